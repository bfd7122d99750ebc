#pragma once
#include <cstdint>
#include <cstring>

#include "core/types.hpp"

namespace ff {

enum class DType { f16, bf16, f32, f64 };

// A read-only view of a matrix owned elsewhere: any of four element types, any strides in bytes,
// including negative ones, and any alignment.
struct MatrixView {
  const char* data = nullptr;
  DType dtype = DType::f32;
  index rows = 0, cols = 0;
  index row_stride = 0, col_stride = 0;

  const char* row(index i) const { return data + i * row_stride; }
};

// A read-only view of a stack of matrices.
struct StackView {
  MatrixView first;
  index count = 1;
  index stride = 0;

  MatrixView operator[](index g) const {
    MatrixView view = first;
    view.data += g * stride;
    return view;
  }
};

namespace detail {

inline float widen_f16(std::uint16_t h) {
  // Shift exponent and fraction into place and multiply by 2^112, which is right for denormals too.
  std::uint32_t bits = std::uint32_t(h & 0x7fffu) << 13;
  float magnitude;
  std::memcpy(&magnitude, &bits, 4);
  magnitude *= 0x1p112f;
  std::memcpy(&bits, &magnitude, 4);
  if ((h & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;  // infinity and NaN
  bits |= std::uint32_t(h & 0x8000u) << 16;
  std::memcpy(&magnitude, &bits, 4);
  return magnitude;
}

inline float widen_bf16(std::uint16_t h) {
  const std::uint32_t bits = std::uint32_t(h) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class Stored>
Stored read(const char* p) {
  Stored value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace detail

// out[0 … cols) = row i, widened to T, or rounded if float64 is read as float.
template <class T>
void load_row(const MatrixView& x, index i, T* out);

// Throws std::invalid_argument, which becomes ValueError, and names the first value of the row that
// is not finite.
[[noreturn]] void throw_not_finite(const MatrixView& x, index row, const char* name);

}  // namespace ff

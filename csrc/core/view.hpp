#pragma once
#include <cstdint>
#include <cstring>

#include "core/types.hpp"

namespace ff {

enum class DType { f16, bf16, f32, f64 };

// A matrix that somebody else owns: any of four element types, any strides (in bytes, negative ones
// and unaligned addresses included), never written to.
struct MatrixView {
  const char* data = nullptr;
  DType dtype = DType::f32;
  index rows = 0, cols = 0;
  index row_stride = 0, col_stride = 0;

  const char* row(index i) const { return data + i * row_stride; }
};

// The same for a stack of matrices.
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
  // Shift exponent and fraction into place and multiply by 2^112: right for denormals as well.
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

// out[0 … cols) = row i, widened (or, from float64 to float, rounded) to T.
template <class T>
void load_row(const MatrixView& x, index i, T* out);

// For a search that met a value it cannot order: says which, and throws ValueError's C++ form.
[[noreturn]] void throw_not_finite(const MatrixView& x, index row, const char* name);

}  // namespace ff

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

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

template <class T, class Stored, class Widen>
void widen_row(const char* p, index n, index stride, T* out, Widen widen) {
  if (stride == index(sizeof(Stored))) {
    for (index j = 0; j < n; ++j) out[j] = T(widen(read<Stored>(p + j * index(sizeof(Stored)))));
  } else {
    for (index j = 0; j < n; ++j) out[j] = T(widen(read<Stored>(p + j * stride)));
  }
}

}  // namespace detail

// out[0 … cols) = row i, widened to T, or rounded if float64 is read as float.
template <class T>
void load_row(const MatrixView& x, index i, T* out) {
  const char* p = x.row(i);
  const auto same = [](auto value) { return value; };
  switch (x.dtype) {
    case DType::f16:
      return detail::widen_row<T, std::uint16_t>(p, x.cols, x.col_stride, out, detail::widen_f16);
    case DType::bf16:
      return detail::widen_row<T, std::uint16_t>(p, x.cols, x.col_stride, out, detail::widen_bf16);
    case DType::f32:
      return detail::widen_row<T, float>(p, x.cols, x.col_stride, out, same);
    case DType::f64:
      return detail::widen_row<T, double>(p, x.cols, x.col_stride, out, same);
  }
}

// Throws std::invalid_argument, which becomes ValueError, and names the first value of the row that
// is not finite.
[[noreturn]] inline void throw_not_finite(const MatrixView& x, index row, const char* name) {
  for (index j = 0; j < x.cols; ++j) {
    MatrixView cell = x;
    cell.data += j * x.col_stride;
    cell.cols = 1;
    double value = 0;
    load_row(cell, row, &value);
    if (!std::isfinite(value))
      throw std::invalid_argument(std::string(name) + " must be finite, got " +
                                  std::to_string(value) + " at [" + std::to_string(row) + ", " +
                                  std::to_string(j) + "]");
  }
  throw std::invalid_argument(std::string(name) + " must have a finite squared norm in row " +
                              std::to_string(row) + ", got values too large for float64");
}

}  // namespace ff

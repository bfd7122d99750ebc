#include "core/view.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace ff {
namespace {

template <class T, class Stored, class Widen>
void widen_row(const char* p, index n, index stride, T* out, Widen widen) {
  if (stride == index(sizeof(Stored))) {
    for (index j = 0; j < n; ++j)
      out[j] = T(widen(detail::read<Stored>(p + j * index(sizeof(Stored)))));
  } else {
    for (index j = 0; j < n; ++j) out[j] = T(widen(detail::read<Stored>(p + j * stride)));
  }
}

}  // namespace

template <class T>
void load_row(const MatrixView& x, index i, T* out) {
  const char* p = x.row(i);
  const auto same = [](auto value) { return value; };
  switch (x.dtype) {
    case DType::f16:
      return widen_row<T, std::uint16_t>(p, x.cols, x.col_stride, out, detail::widen_f16);
    case DType::bf16:
      return widen_row<T, std::uint16_t>(p, x.cols, x.col_stride, out, detail::widen_bf16);
    case DType::f32:
      return widen_row<T, float>(p, x.cols, x.col_stride, out, same);
    case DType::f64:
      return widen_row<T, double>(p, x.cols, x.col_stride, out, same);
  }
}

template void load_row(const MatrixView&, index, float*);
template void load_row(const MatrixView&, index, double*);

void throw_not_finite(const MatrixView& x, index row, const char* name) {
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

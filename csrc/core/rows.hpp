#pragma once
#include <cstdint>
#include <vector>

#include "core/view.hpp"

namespace ff {

// Reads rows of a view as T: in place if they are stored as T, else widened into a buffer. A row is
// valid until the next one is read.
template <class T>
class Rows {
 public:
  explicit Rows(const MatrixView& x) : x_(x) {
    constexpr DType own = sizeof(T) == 4 ? DType::f32 : DType::f64;
    constexpr auto kAlign = index(alignof(T));
    in_place_ = x.dtype == own && x.col_stride == index(sizeof(T)) && x.row_stride % kAlign == 0 &&
                reinterpret_cast<std::uintptr_t>(x.data) % kAlign == 0;
    if (!in_place_) buffer_.resize(x.cols);
  }

  bool in_place() const { return in_place_; }

  const T* operator[](index i) {
    if (in_place_) return reinterpret_cast<const T*>(x_.row(i));
    load_row(x_, i, buffer_.data());
    return buffer_.data();
  }

 private:
  const MatrixView& x_;
  bool in_place_;
  std::vector<T> buffer_;
};

}  // namespace ff

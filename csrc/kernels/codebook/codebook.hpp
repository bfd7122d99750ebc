#pragma once
#include "core/view.hpp"
#include "kernels/bits/bits.hpp"

namespace ff {

// A view of packed codes for a matrix with shape.rows rows and shape.cols · dim columns.
struct PackedView {
  const std::uint8_t* data = nullptr;
  PackedShape shape;

  const std::uint8_t* row(index r, index book) const {
    return data + r * shape.row_bytes() + book * shape.segment_bytes();
  }
};

// Code vectors, contiguous as [book][row][group][entry][dim]; `rows` or `groups` is 1 if all rows
// or groups share them. A group is group_size neighbouring columns of the matrix; the last group
// may be smaller.
struct CodebookView {
  const char* data = nullptr;
  DType dtype = DType::f32;  // not f64
  index books = 1, rows = 1, groups = 1, entries = 1, dim = 1;
  index group_size = 1;  // columns; a multiple of dim

  index table_size() const { return entries * dim; }
  // Returns whether the tables can be read as floats where they are.
  bool is_float() const {
    return dtype == DType::f32 && reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0;
  }
  index place(index book, index row, index group) const {
    return ((book * rows + (rows > 1 ? row : 0)) * groups + group) * table_size();
  }
  const float* stored(index book, index row, index group) const {
    return reinterpret_cast<const float*>(data) + place(book, row, group);
  }
  void load(index book, index row, index group, float* out) const;
};

// Computes out (x.rows, packed rows) = x · Wᵀ, where W is the matrix that codes and codebook stand
// for and is never built. Works in float, so that |y − Wx| ≤ 1e-5 · Σ|w x|, with the parts of w
// from each book counted separately.
void codebook_matmul(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                     float* out, int n_threads, Stop& stop);

// Writes rows ids[0 … n) of W to out (n, columns), or all rows in order if ids is null.
void codebook_rows(const PackedView& packed, const CodebookView& codebook, const std::int64_t* ids,
                   index n, float* out, int n_threads, Stop& stop);

}  // namespace ff

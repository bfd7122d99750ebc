#pragma once
#include "core/view.hpp"
#include "kernels/bits/bits.hpp"

namespace ff {

// Packed codes that somebody else owns, of a matrix with shape.rows rows and shape.cols · dim
// columns.
struct PackedView {
  const std::uint8_t* data = nullptr;
  PackedShape shape;

  const std::uint8_t* row(index r, index book) const {
    return data + r * shape.row_bytes() + book * shape.segment_bytes();
  }
};

// Code vectors [book][row][group][entry][dim], front to back, of which rows and groups may be one
// for all. A group is so many neighbouring columns of the matrix, the last one maybe fewer.
struct CodebookView {
  const char* data = nullptr;
  DType dtype = DType::f32;  // not f64
  index books = 1, rows = 1, groups = 1, entries = 1, dim = 1;
  index group_size = 1;  // columns; a multiple of dim

  index table_size() const { return entries * dim; }
  void load(index book, index row, index group, float* out) const;
};

// out (x.rows, packed rows) = x · Wᵀ, where W is what codes and codebook stand for and is never
// built. In float, so that |y − Wx| ≤ 1e-5 · Σ|w x|, each book's part of w counted by itself.
void codebook_matmul(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                     float* out, int n_threads, Stop& stop);

// out (n, columns) = rows ids[0 … n) of W; of all rows, in order, where ids is null.
void codebook_rows(const PackedView& packed, const CodebookView& codebook, const std::int64_t* ids,
                   index n, float* out, int n_threads, Stop& stop);

}  // namespace ff

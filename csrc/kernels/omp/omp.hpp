#pragma once
#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

struct OmpOptions {
  index max_nonzeros;      // a row's coding stops at so many atoms
  double tol;              // or as soon as its squared error is at most this; negative: never
  bool orthogonal_select;  // choose by ⟨r, d⟩² over the part of d outside the span (OLS), not by
                           // |⟨r, d⟩|
  int n_threads;
};

// Rows of a CSR matrix, columns ascending.
template <class T>
struct SparseRows {
  Buffer<T> data;
  Buffer<std::int32_t> indices;
  Buffer<std::int64_t> indptr;
};

// Codes each row of x over the rows of the dictionary. gram may be null: then it is computed, whole
// or, for few rows, by the row. Throws std::invalid_argument where an operand is not finite.
template <class T>
SparseRows<T> omp(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                  const OmpOptions& options, Stop& stop);

}  // namespace ff

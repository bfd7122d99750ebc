#pragma once
#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

struct OmpOptions {
  index max_nonzeros;      // the most atoms a row may have
  double tol;              // stop when the squared error is at most this; negative: never
  bool orthogonal_select;  // choose by ⟨r, d⟩² / ‖d outside the span‖² (OLS), not by
                           // |⟨r, d⟩|
  int n_threads;
  // Where the best atom adds nothing to a row, because rounding hides what others would add, look
  // for the best of those that add something. omp() sets it itself for the rows that need it.
  bool careful = false;
};

// The rows of a CSR matrix, columns ascending.
template <class T>
struct SparseRows {
  Buffer<T> data;
  Buffer<std::int32_t> indices;
  Buffer<std::int64_t> indptr;
  index n_early = 0;  // rows that ended before they were done: no atom could lower their error
};

// Codes each row of x over the rows of the dictionary. If gram is null, it is computed: whole, or
// row by row if there are few rows to code. Rows for which float is too coarse, because atoms
// depend on each other almost linearly, are coded in double. Throws std::invalid_argument if an
// operand is not finite.
template <class T>
SparseRows<T> omp(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                  const OmpOptions& options, Stop& stop);

}  // namespace ff

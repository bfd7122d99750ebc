#pragma once
#include "kernels/omp/omp.hpp"

namespace ff {

struct HashedOmpOptions {
  index max_nonzeros;  // a row's coding stops at so many atoms
  double tol;          // or as soon as its squared error is at most this; negative: never
  int n_tables;
  int n_bits;        // buckets of a table: 2 to this; 0: every step looks at all atoms
  double threshold;  // a row looks into the buckets whose directions are at least so near to its
                     // residual, as |cosine|
  std::uint64_t seed;
  int n_threads;
};

// Codes each row of x over the rows of the dictionary as omp() does, but takes the best of the
// atoms that hash tables give, and of all atoms only where none of those will do. Throws
// std::invalid_argument where an operand is not finite.
template <class T>
SparseRows<T> hashed_omp(const MatrixView& x, const MatrixView& dictionary,
                         const HashedOmpOptions& options, Stop& stop);

}  // namespace ff

#pragma once
#include "kernels/omp/omp.hpp"

namespace ff {

struct HashedOmpOptions {
  index max_nonzeros;  // the most atoms a row may have
  double tol;          // stop when the squared error is at most this; negative: never
  int n_tables;
  int n_bits;        // a table has 2^n_bits buckets; 0: every step looks at all atoms
  double threshold;  // a row looks into the buckets whose direction has at least
                     // this |cosine| with its residual
  std::uint64_t seed;
  int n_threads;
};

// Codes each row of x over the rows of the dictionary as omp() does, but takes the best of the
// atoms found in hash tables, and looks at all atoms only if none of those can be used. Throws
// std::invalid_argument if an operand is not finite.
template <class T>
SparseRows<T> hashed_omp(const MatrixView& x, const MatrixView& dictionary,
                         const HashedOmpOptions& options, Stop& stop);

}  // namespace ff

#pragma once
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// A view of an array of any number of dimensions and any strides (in bytes).
struct ArrayView {
  const char* data = nullptr;
  DType dtype = DType::f32;
  std::vector<index> shape, strides;

  index size() const {
    index n = 1;
    for (const index length : shape) n *= length;
    return n;
  }
};

// W's entries in C order are cut into groups of `length` (which divides their number), and each
// group drops its n_dropped smallest magnitudes. One group is the whole array, a group per row is
// row-wise pruning, groups of m are n:m pruning. Ties keep the lower index. NaN and infinity throw
// std::invalid_argument.
struct Groups {
  index length = 1, n_dropped = 0;
};

// Sets thresholds[g] to the least magnitude that group g keeps, or infinity if it keeps none.
void thresholds(const ArrayView& w, Groups groups, int n_threads, Stop& stop, double* out);

// Sets mask[i] to whether entry i stays.
void prune_mask(const ArrayView& w, Groups groups, int n_threads, Stop& stop, bool* mask);

// Blocks of rows × cols entries; those at the lower and right edge may be smaller.
struct BlockShape {
  index rows = 1, cols = 1;
};

enum class Pool { max, mean };

// Computes the largest or the mean magnitude of every block, block row by block row.
void block_scores(const MatrixView& w, BlockShape block, Pool pool, int n_threads, Stop& stop,
                  double* scores);

// Sets mask (rows, cols) to what `kept` says about the block of each entry.
void expand_blocks(const bool* kept, index rows, index cols, BlockShape block, int n_threads,
                   Stop& stop, bool* mask);

// Throws an error that names the first NaN or infinite entry; there must be one.
[[noreturn]] void throw_first_not_finite(const ArrayView& w);

}  // namespace ff

#pragma once
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// An array that somebody else owns, of any number of dimensions and any strides (in bytes).
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

// W's entries in C order, cut into groups of `length` of them (which divides their number), each of
// which drops its n_dropped smallest magnitudes: one group is the whole array, a group a row is
// row-wise pruning, groups of m are n:m pruning. Of equal magnitudes those of lower index stay.
// NaN and infinity are std::invalid_argument.
struct Groups {
  index length = 1, n_dropped = 0;
};

// thresholds[g]: the least magnitude that group g keeps, infinity where it keeps none.
void thresholds(const ArrayView& w, Groups groups, int n_threads, Stop& stop, double* out);

// mask[i]: whether entry i stays.
void prune_mask(const ArrayView& w, Groups groups, int n_threads, Stop& stop, bool* mask);

// Blocks of rows × cols entries; those at the lower and right edge hold what is left.
struct BlockShape {
  index rows = 1, cols = 1;
};

enum class Pool { max, mean };

// The largest or the mean magnitude of every block, block row by block row.
void block_scores(const MatrixView& w, BlockShape block, Pool pool, int n_threads, Stop& stop,
                  double* scores);

// mask (rows, cols): what `kept` says of the block that an entry is in.
void expand_blocks(const bool* kept, index rows, index cols, BlockShape block, int n_threads,
                   Stop& stop, bool* mask);

// Names the first entry that is NaN or infinite; there must be one.
[[noreturn]] void throw_first_not_finite(const ArrayView& w);

}  // namespace ff

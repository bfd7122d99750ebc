#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "core/buffer.hpp"
#include "kernels/codebook/codebook.hpp"
#include "kernels/codebook/walk.hpp"

// The ways in which codebook_matmul() multiplies; it chooses between them.
namespace ff {

// x in float. Columns are in the order in which a look-up gives values, and the vectors of a few
// inputs lie side by side: [tile of inputs][vector][input of the tile][lane]. So a product of a
// tile reads one stream, and no two rows of x fall on the same lines of L1.
struct Inputs {
  index batch, tile, width;
  Buffer<float> values;

  index tile_size(index b) const { return std::min(tile, batch - b); }

  // Returns the values of the tile that begins with input b, from `column` on, which must begin a
  // vector.
  const float* at(index b, index column) const {
    return values.data() + b * width + column * tile_size(b);
  }
};

Inputs arrange(const MatrixView& x, const Lookup& lookup, index tile, int n_threads, Stop& stop);

// The scratch memory of each worker, created by the worker's first task. Each lies on cache lines
// of its own: on shared lines two threads took longer than one.
template <class T>
class PerWorker {
 public:
  explicit PerWorker(int n_threads) : all_(n_threads) {}

  template <class Make>
  T& of(int worker, Make&& make) {
    auto& own = all_[worker].value;
    if (!own) own.emplace(make());
    return *own;
  }

 private:
  struct alignas(kCacheLine) Own {
    std::optional<T> value;
  };
  std::vector<Own> all_;
};

// In tiles.cpp: any codes, any number of inputs.
void multiply_tiles(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                    const Lookup& lookup, float* out, int n_threads, Stop& stop);

// In planes.cpp on levels that permute bytes, otherwise in sums.cpp: for codebooks that all rows
// share. Products of the inputs' pieces with every code vector are computed first and then summed
// (the asymmetric distance of product quantization, H. Jégou, M. Douze, C. Schmid 2011). Inputs lie
// one after the other.
void multiply_sums(const Inputs& inputs, const PackedView& packed, const CodebookView& codebook,
                   float* out, int n_threads, Stop& stop);

}  // namespace ff

#pragma once
#include <algorithm>
#include <vector>

#include "kernels/omp/omp.hpp"

// Storage for the codes of blocks of rows while the total is unknown. If nearly every row has the
// most nonzeros allowed, they are written straight to their final place; otherwise each block fills
// a buffer of its own, and the buffers are joined at the end.
namespace ff {

template <class T>
class BlockCodes {
 public:
  struct Place {
    T* data;
    std::int32_t* indices;
  };

  BlockCodes() = default;
  BlockCodes(Place place, index room) : place_(place), room_(room) {}

  // Returns where the next row's `count` values go.
  Place append(index count) {
    if (used_ + count > room_) grow(std::max(used_ + count, 2 * room_));
    const Place at{place_.data + used_, place_.indices + used_};
    used_ += count;
    return at;
  }

  void copy_to(T* data, std::int32_t* indices) const {
    std::copy_n(place_.data, used_, data);
    std::copy_n(place_.indices, used_, indices);
  }

 private:
  void grow(index room) {
    room = std::max<index>(room, 1024);
    Buffer<T> data(room);
    Buffer<std::int32_t> indices(room);
    copy_to(data.data(), indices.data());
    data_ = std::move(data);
    indices_ = std::move(indices);
    place_ = {data_.data(), indices_.data()};
    room_ = room;
  }

  alignas(kCacheLine) Place place_{};  // aligned because different threads fill neighbouring blocks
  index used_ = 0, room_ = 0;
  Buffer<T> data_;
  Buffer<std::int32_t> indices_;
};

template <class T>
class Codes {
 public:
  // Blocks have `block` rows of at most `most` nonzeros each; full: nearly every row has that many.
  Codes(index rows, index block, index most, bool full)
      : block_(block), blocks_(ceil_div(rows, block)), indptr_(rows + 1) {
    indptr_[0] = 0;
    if (!full) return;
    data_ = Buffer<T>(rows * most);
    indices_ = Buffer<std::int32_t>(rows * most);
    for (index b = 0; b < index(blocks_.size()); ++b) {
      const index first = b * block * most, end = std::min(first + block * most, rows * most);
      blocks_[b] = {{data_.data() + first, indices_.data() + first}, end - first};
    }
  }

  BlockCodes<T>& block(index b) { return blocks_[b]; }
  // Returns where the caller writes the number of nonzeros of each row.
  std::int64_t* counts() { return indptr_.data() + 1; }

  SparseRows<T> join(int n_threads, Stop& stop) && {
    const index rows = indptr_.size() - 1;
    for (index i = 0; i < rows; ++i) indptr_[i + 1] += indptr_[i];
    const index total = indptr_[rows];
    if (total == data_.size())
      return {std::move(data_), std::move(indices_), std::move(indptr_), 0};
    SparseRows<T> result{Buffer<T>(total), Buffer<std::int32_t>(total), std::move(indptr_), 0};
    parallel_for(index(blocks_.size()), n_threads, stop, [&](index b, int) {
      const index at = result.indptr[b * block_];
      blocks_[b].copy_to(result.data.data() + at, result.indices.data() + at);
    });
    return result;
  }

 private:
  index block_;
  std::vector<BlockCodes<T>> blocks_;
  Buffer<std::int64_t> indptr_;
  Buffer<T> data_;
  Buffer<std::int32_t> indices_;
};

}  // namespace ff

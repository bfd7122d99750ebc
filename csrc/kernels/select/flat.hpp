#pragma once
#include <algorithm>
#include <cstdlib>

#include "core/prefetch.hpp"
#include "kernels/select/select.hpp"

namespace ff {

// The entries of an array in C order, as elements of `Stored` bytes that can be read piece by
// piece: in place if they are contiguous, otherwise gathered into a buffer of the piece's size.
template <class Stored>
class Flat {
 public:
  explicit Flat(const ArrayView& w) : data_(w.data), size_(w.size()) {
    for (std::size_t d = 0; d < w.shape.size(); ++d) {
      if (w.shape[d] == 1) continue;
      if (!shape_.empty() && strides_.back() == w.shape[d] * w.strides[d]) {
        shape_.back() *= w.shape[d];
        strides_.back() = w.strides[d];
      } else {
        shape_.push_back(w.shape[d]);
        strides_.push_back(w.strides[d]);
      }
    }
    if (shape_.empty()) shape_.push_back(size_), strides_.push_back(kStep);
  }

  index size() const { return size_; }

  // Returns a good size for pieces, at least `least`; for a transposed array it lets rows be read
  // by whole cache lines.
  index piece_size(index least) const {
    const index run = shape_.back();
    return transposed() && run <= kMostTransposed / kLine
               ? round_up(std::max(least, kLine * run), run)
               : least;
  }

  void prefetch(index position) const { ff::prefetch(address(position)); }

  // Returns the entries [begin, begin + n), valid until the next call with this buffer.
  const char* fetch(index begin, index n, Buffer<Stored>& buffer) const {
    const index run = shape_.back(), at = begin % run;
    if (strides_.back() == kStep && at + n <= run) return address(begin);
    if (buffer.size() < n) buffer = Buffer<Stored>(n);
    for (index done = 0; done < n;) {
      const index position = begin + done, first = position % run;
      Stored* to = buffer.data() + done;
      index n_rows = 0;
      if (transposed() && first == 0)
        n_rows = std::min((n - done) / run, shape_.end()[-2] - position / run % shape_.end()[-2]);
      if (n_rows > 1) {
        copy_rows(address(position), n_rows, to);
        done += n_rows * run;
      } else {
        done += copy_run(address(position), std::min(run - first, n - done), to);
      }
    }
    return reinterpret_cast<const char*>(buffer.data());
  }

 private:
  static constexpr index kStep = sizeof(Stored);
  static constexpr index kLine = index(kCacheLine) / kStep;
  static constexpr index kMostTransposed = index(1) << 22;  // entries in a piece

  bool transposed() const {
    return shape_.size() > 1 && std::abs(strides_.end()[-2]) < std::abs(strides_.back());
  }

  const char* address(index position) const {
    const char* p = data_;
    for (std::size_t d = shape_.size(); d-- > 0; position /= shape_[d])
      p += position % shape_[d] * strides_[d];
    return p;
  }

  index copy_run(const char* from, index n, Stored* to) const {
    const index stride = strides_.back();
    if (stride == kStep) {
      std::memcpy(to, from, std::size_t(n) * sizeof(Stored));
    } else {
      for (index i = 0; i < n; ++i) to[i] = detail::read<Stored>(from + i * stride);
    }
    return n;
  }

  // Copies whole rows, a few columns at a time, so that a cache line is read once and not once per
  // row.
  void copy_rows(const char* from, index n_rows, Stored* to) const {
    constexpr index kAtOnce = 8;
    const index run = shape_.back(), stride = strides_.back(), row_stride = strides_.end()[-2];
    for (index c = 0; c < run; c += kAtOnce) {
      const index end = std::min(run, c + kAtOnce);
      for (index r = 0; r < n_rows; ++r)
        for (index j = c; j < end; ++j)
          to[r * run + j] = detail::read<Stored>(from + r * row_stride + j * stride);
    }
  }

  const char* data_;
  index size_;
  std::vector<index> shape_, strides_;
};

// Returns the same entries in the order of their addresses, for results that do not depend on
// order.
inline ArrayView in_memory_order(const ArrayView& w) {
  std::vector<std::size_t> order;
  ArrayView sorted = w;
  for (std::size_t d = 0; d < w.shape.size(); ++d) {
    order.push_back(d);
    if (w.strides[d] < 0 && w.shape[d] > 0) {
      sorted.data += (w.shape[d] - 1) * w.strides[d];
      sorted.strides[d] = -w.strides[d];
    }
  }
  const std::vector<index> strides = sorted.strides;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return strides[a] > strides[b]; });
  for (std::size_t d = 0; d < order.size(); ++d) {
    sorted.shape[d] = w.shape[order[d]];
    sorted.strides[d] = strides[order[d]];
  }
  return sorted;
}

}  // namespace ff

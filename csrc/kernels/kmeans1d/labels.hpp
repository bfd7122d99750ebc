#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "core/simd.hpp"
#include "kernels/kmeans1d/points.hpp"

// Labels by comparison: a value above the midpoint of two neighbouring centroids belongs to the
// upper one or further up.
namespace ff {

// Returns the largest T that is not nearer to b than to a, for a < b.
template <class T>
T last_of_lower(T a, T b) {
  if constexpr (sizeof(T) == 4) {
    const double middle = 0.5 * (double(a) + double(b));
    const T cut = T(middle);
    return double(cut) > middle ? std::nextafter(cut, a) : cut;
  } else {
    const bool large = std::abs(a) > 1e300 || std::abs(b) > 1e300;
    if (large) a *= 0.5, b *= 0.5;
    const T sum = a + b, part = sum - a, lost = (a - (sum - part)) + (b - part);
    const T middle = large ? sum : 0.5 * sum;  // rounded; `lost` tells in which direction
    return lost < 0 ? std::nextafter(middle, -std::numeric_limits<T>::infinity()) : middle;
  }
}

template <class T>
class Labeller {
 public:
  // centroids must rise. If some are equal, the first of them gets the label.
  Labeller(const T* centroids, index k) {
    labels_.push_back(0);
    for (index c = 1; c < k; ++c) {
      if (centroids[c] == centroids[labels_.back()]) continue;
      cuts_.push_back(last_of_lower(centroids[labels_.back()], centroids[c]));
      labels_.push_back(std::int32_t(c));
    }
    renamed_ = index(labels_.size()) < k;
  }

  // rank() returns the position of a value's cluster among the distinct centroids, and
  // label_of_rank() its label.
  index rank(T x) const { return std::lower_bound(cuts_.begin(), cuts_.end(), x) - cuts_.begin(); }
  std::int32_t label_of_rank(index r) const { return labels_[std::size_t(r)]; }
  index n_ranks() const { return index(labels_.size()); }
  T cut(index r) const { return cuts_[std::size_t(r)]; }

  void label(const T* x, index n, std::int32_t* labels) const {
    if (index(cuts_.size()) <= kFewCuts) {
      count(x, n, labels);
    } else {
      search(x, n, labels);
    }
    if (renamed_)
      for (index i = 0; i < n; ++i) labels[i] = labels_[std::size_t(labels[i])];
  }

 private:
  static constexpr index kFewCuts = 32;

  // For few cuts: counts the cuts below each value, for a vector of values at a time.
  void count(const T* x, index n, std::int32_t* labels) const {
    constexpr int kLanes = simd::kLanes<T>;
    using Counts = simd::Vec<simd::Int<T>>;
    typedef std::int32_t Narrow __attribute__((vector_size(kLanes * 4)));
    const auto at = [&](simd::Vec<T> values) {
      Counts counts{};
      for (const T cut : cuts_) counts -= Counts(values > simd::splat(cut));
      return __builtin_convertvector(counts, Narrow);
    };
    index i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const Narrow found = at(simd::load(x + i));
      std::memcpy(labels + i, &found, sizeof found);
    }
    if (i == n) return;
    T rest[kLanes] = {};
    std::copy(x + i, x + n, rest);
    const Narrow found = at(simd::load(rest));
    std::memcpy(labels + i, &found, std::size_t(n - i) * 4);
  }

  // Binary search without branches, eight values at a time.
  void search(const T* x, index n, std::int32_t* labels) const {
    constexpr int kTogether = 8;
    const T* cuts = cuts_.data();
    index i = 0;
    for (; i + kTogether <= n; i += kTogether) {
      std::int32_t low[kTogether] = {};
      std::int32_t length = std::int32_t(cuts_.size());
      while (length > 1) {
        const std::int32_t half = length / 2;
        for (int v = 0; v < kTogether; ++v) low[v] += cuts[low[v] + half - 1] < x[i + v] ? half : 0;
        length -= half;
      }
      for (int v = 0; v < kTogether; ++v) labels[i + v] = low[v] + (cuts[low[v]] < x[i + v]);
    }
    for (; i < n; ++i) labels[i] = std::int32_t(rank(x[i]));
  }

  std::vector<T> cuts_;
  std::vector<std::int32_t> labels_;
  bool renamed_;
};

// Writes the labels of a whole group, in parallel.
template <class T>
void label_group(const MatrixView& x, const Labeller<T>& labeller, std::int32_t* labels,
                 int n_threads, Stop& stop) {
  constexpr index kBlock = 1024, kTask = 64 * kBlock;
  parallel_ranges(ceil_div(x.cols, kTask), n_threads, stop, [&](index task, int) {
    T block[kBlock];
    const index end = std::min(x.cols, (task + 1) * kTask);
    for (index i = task * kTask; i < end; i += kBlock) {
      const index n = std::min(kBlock, end - i);
      load_row(detail::columns(x, i, n), 0, block);
      labeller.label(block, n, labels + i);
    }
  });
}

// Does the same for 16-bit floats, by a table of all bit patterns.
template <class T>
void label_patterns(const MatrixView& x, const Labeller<T>& labeller, std::int32_t* labels,
                    int n_threads, Stop& stop) {
  Buffer<std::int32_t> table(kPatterns);
  for (std::uint32_t bits = 0; bits < kPatterns; ++bits) {
    const T value = widen_pattern(bits, x.dtype);
    labeller.label(&value, 1, table.data() + bits);
  }
  constexpr index kTask = index(1) << 17;
  parallel_ranges(ceil_div(x.cols, kTask), n_threads, stop, [&](index task, int) {
    const index end = std::min(x.cols, (task + 1) * kTask);
    for (index i = task * kTask; i < end; ++i) labels[i] = table[pattern_at(x, i)];
  });
}

}  // namespace ff

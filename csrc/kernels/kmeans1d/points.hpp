#pragma once
#include <cmath>
#include <limits>

#include "core/buffer.hpp"
#include "core/sort.hpp"
#include "core/view.hpp"

// A group in the form that the searches need: its distinct values in rising order, each with the
// total weight of all equal values.
namespace ff {

// Values are y · unit and weights w · weight_unit. Both units are powers of two, and y and w are at
// most 2, so that squares neither overflow nor vanish. Values of zero weight are left out.
struct Points {
  index count = 0;
  Buffer<double> y, w;
  double low = 0, high = 0;  // of all values, not in units; not finite if a value is not
  double unit = 1, weight_unit = 1;
};

namespace detail {

inline MatrixView columns(MatrixView x, index first, index count) {
  x.data += first * x.col_stride;
  x.cols = count;
  return x;
}

// Returns the least 2^e > |x|, limited to a range whose inverses are finite.
inline double power_above(double x) {
  if (!(x > 0) || !std::isfinite(x)) return 1;
  return std::ldexp(1.0, std::min(std::max(std::ilogb(x) + 1, -1000), 1000));
}

// Collects values with weights in rising order and merges equal ones.
class PointsWriter {
 public:
  PointsWriter(index capacity, double unit, double weight_unit)
      : per_unit_(1 / unit), per_weight_(1 / weight_unit) {
    points_.y = Buffer<double>(capacity);
    points_.w = Buffer<double>(capacity);
    points_.unit = unit;
    points_.weight_unit = weight_unit;
  }

  void add(double value, double weight) {
    points_.y[points_.count] = value * per_unit_;
    points_.w[points_.count] = weight * per_weight_;
    points_.count += weight * per_weight_ > 0;
  }

  Points take() { return std::move(points_); }

 private:
  Points points_;
  double per_unit_, per_weight_;
};

inline double heaviest(const double* weights, index n) {
  return weights == nullptr ? 1 : *std::max_element(weights, weights + n);
}

// Returns the largest magnitude that a unit has to cover: of the values and of the fixed centroids.
inline double reach(double low, double high, double fixed) {
  return std::max(fixed, std::max(std::abs(low), std::abs(high)));
}

template <class Key>
struct WeightedKey {
  Key key;
  index position;
};

template <class T, class Item, class MakeItem>
void make_items(const MatrixView& x, Item* items, int n_threads, Stop& stop, MakeItem make) {
  constexpr index kBlock = 512, kTask = 128 * kBlock;
  parallel_ranges(ceil_div(x.cols, kTask), n_threads, stop, [&](index task, int) {
    T block[kBlock];
    const index end = std::min(x.cols, (task + 1) * kTask);
    for (index i = task * kTask; i < end; i += kBlock) {
      const index n = std::min(kBlock, end - i);
      load_row(columns(x, i, n), 0, block);
      for (index j = 0; j < n; ++j) items[i + j] = make(block[j], i + j);
    }
  });
}

// Returns the distinct values of sorted items; key(item) and weight(item) give an item's value and
// weight.
template <class Item, class KeyOf, class WeightOf>
Points merge_equal(const Item* items, index n, double fixed, double weight_unit, KeyOf key,
                   WeightOf weight) {
  const double low = from_sort_key(key(items[0])), high = from_sort_key(key(items[n - 1]));
  PointsWriter writer(n, power_above(reach(low, high, fixed)), weight_unit);
  for (index i = 0; i < n;) {
    const auto value = from_sort_key(key(items[i]));
    double total = weight(items[i]);
    for (++i; i < n && from_sort_key(key(items[i])) == value; ++i) total += weight(items[i]);
    writer.add(double(value), total);
  }
  Points points = writer.take();
  points.low = low;
  points.high = high;
  return points;
}

// Does the same if every weight is one.
template <class Key>
Points merge_equal_keys(const Key* keys, index n, double fixed) {
  Points points;
  points.low = from_sort_key(keys[0]);
  points.high = from_sort_key(keys[n - 1]);
  points.unit = power_above(reach(points.low, points.high, fixed));
  points.y = Buffer<double>(n);
  points.w = Buffer<double>(n);
  const double per_unit = 1 / points.unit;
  double *y = points.y.data(), *w = points.w.data();
  index count = 0;
  auto value = from_sort_key(keys[0]);
  for (index i = 1; i < n; ++i) {
    const auto next = from_sort_key(keys[i]);
    y[count] = double(value) * per_unit;
    w[count] = double(i);
    count += next != value;
    value = next;
  }
  y[count] = double(value) * per_unit;
  w[count] = double(n);
  points.count = count + 1;
  for (; count > 0; --count) w[count] -= w[count - 1];
  return points;
}

template <class T>
Points sorted_points(const MatrixView& x, const double* weights, double fixed, int n_threads,
                     Stop& stop) {
  using Key = decltype(sort_key(T()));
  constexpr int kBits = 8 * int(sizeof(Key));
  const index n = x.cols;
  if (weights == nullptr) {
    Buffer<Key> keys(n), scratch(n);
    make_items<T>(x, keys.data(), n_threads, stop, [](T value, index) { return sort_key(value); });
    const auto key = [](Key k) { return k; };
    const Key* sorted = radix_sort<kBits>(keys.data(), scratch.data(), n, key, n_threads, stop);
    return merge_equal_keys(sorted, n, fixed);
  }
  using Item = WeightedKey<Key>;
  Buffer<Item> items(n), scratch(n);
  make_items<T>(x, items.data(), n_threads, stop,
                [](T value, index i) { return Item{sort_key(value), i}; });
  const auto key = [](const Item& item) { return item.key; };
  const Item* sorted = radix_sort<kBits>(items.data(), scratch.data(), n, key, n_threads, stop);
  return merge_equal(sorted, n, fixed, power_above(heaviest(weights, n)), key,
                     [&](const Item& item) { return weights[item.position]; });
}

}  // namespace detail

// 16-bit floats have at most 65,536 values, so their weights are counted by bit pattern: one pass
// over the data in chunks that depend on n alone, added up in order.
inline constexpr index kPatterns = 65536;

inline float widen_pattern(std::uint32_t bits, DType dtype) {
  const auto half = std::uint16_t(bits);
  return dtype == DType::f16 ? detail::widen_f16(half) : detail::widen_bf16(half);
}

inline std::uint16_t pattern_at(const MatrixView& x, index i) {
  return detail::read<std::uint16_t>(x.data + i * x.col_stride);
}

template <class Count>
Points counted_points(const MatrixView& x, const double* weights, double fixed, int n_threads,
                      Stop& stop) {
  constexpr index kChunk = index(1) << 20, kMostChunks = 16;
  const index n = x.cols;
  const index n_chunks = std::min(kMostChunks, ceil_div(n, kChunk));
  const index length = ceil_div(n, n_chunks);
  Buffer<Count> counts(n_chunks * kPatterns);
  Buffer<std::uint8_t> seen(n_chunks * kPatterns);  // set even if the value's weight is zero
  parallel_for(n_chunks, n_threads, stop, [&](index c, int) {
    Count* mine = counts.data() + c * kPatterns;
    std::uint8_t* met = seen.data() + c * kPatterns;
    std::fill_n(mine, kPatterns, Count(0));
    std::fill_n(met, kPatterns, std::uint8_t(0));
    const index end = std::min(n, (c + 1) * length);
    for (index i = c * length; i < end; ++i) {
      const std::uint16_t bits = pattern_at(x, i);
      mine[bits] += weights == nullptr ? Count(1) : Count(weights[i]);
      met[bits] = 1;
    }
  });
  for (index c = 1; c < n_chunks; ++c) {
    for (index p = 0; p < kPatterns; ++p) counts[p] += counts[c * kPatterns + p];
    for (index p = 0; p < kPatterns; ++p) seen[p] |= seen[c * kPatterns + p];
  }

  Buffer<std::uint32_t> order(kPatterns);  // patterns that occur, ordered by value
  index n_found = 0;
  for (std::uint32_t k = 0; k < kPatterns; ++k) {
    const std::uint32_t bits = k < 0x8000 ? 0xffff - k : k - 0x8000;
    order[n_found] = bits;
    n_found += seen[bits];
  }
  const double low = widen_pattern(order[0], x.dtype);
  const double high = widen_pattern(order[n_found - 1], x.dtype);
  double most = 0;
  for (index i = 0; i < n_found; ++i) most = std::max(most, double(counts[order[i]]));
  detail::PointsWriter writer(n_found, detail::power_above(detail::reach(low, high, fixed)),
                              weights == nullptr ? 1 : detail::power_above(most));
  for (index i = 0; i < n_found; ++i) {
    const float value = widen_pattern(order[i], x.dtype);
    double total = double(counts[order[i]]);
    if (value == 0 && i + 1 < n_found && widen_pattern(order[i + 1], x.dtype) == 0)
      total += double(counts[order[++i]]);  // −0 and +0
    writer.add(value, total);
  }
  Points points = writer.take();
  points.low = low;
  points.high = high;
  return points;
}

}  // namespace ff

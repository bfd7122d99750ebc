#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/simd.hpp"

// The cheapest partition of sorted values into any number of intervals, each of which costs a
// penalty λ in addition:
//
//     F(j) = λ + min over i < j of F(i) + c(i, j),      c Monge, so the best i rises with j.
//
// F never falls. So if extending the last cluster of J to j costs at most λ, then F(j) ≤ F(J) + λ,
// and no cluster that begins between J and j can be the last of an optimal partition of [0, j). All
// such j, nearly half the length of a cluster, depend only on candidates up to J. They form a block
// whose rows and columns are known; its minima are found by divide and conquer, without a
// recurrence inside the block.
//
// Sums within a block are taken about its first value, so they are as small as its clusters are:
// nothing cancels, wherever zero is and whatever the other values are.
namespace ff {

// A stretch of values between fixed centroids (or the ends). Values left of the first free cluster
// belong to `left` and values right of the last one to `right`, if these exist.
struct Stretch {
  index first, last;
  bool has_left, has_right;
  double left, right;
};

template <class Grid>
class PenalizedPartition {
 public:
  PenalizedPartition(const double* y, const double* w, index n, const Grid& grid, int n_threads,
                     Stop& stop)
      : y_(y),
        w_(w),
        grid_(grid),
        n_threads_(n_threads),
        stop_(stop),
        weight_(n + 1 + kGroup),
        sum_(n + 1 + kGroup),
        square_(n + 1 + kGroup),
        best_(n + 1 + kGroup),
        from_(n + 1 + kGroup) {}

  // Appends where clusters begin and where the last one ends: one position more than there are
  // clusters.
  void solve(const Stretch& part, double penalty, std::vector<index>& cuts) {
    penalty_ = penalty;
    index at = part.first, low = part.first, since_asked = 0;
    weight_[at] = sum_[at] = square_[at] = best_[at] = 0;
    from_[at] = kNone;
    bool left_serves = part.has_left;
    while (at < part.last) {
      const index end = extend(at, part, left_serves);
      anchor_ = y_[at];
      find_minima(at, end, low);
      low = from_[end];
      if (left_serves) left_serves = compare_left(at, end, part.left);
      if (end < part.last) move_anchor(at, end, low);
      since_asked += end - at;
      if (since_asked > kAskEvery) stop_.throw_if_requested(), since_asked = 0;
      at = end;
    }
    trace(part, part.has_right ? cheapest_end(part) : part.last, cuts);
  }

 private:
  static constexpr int kLanes = simd::kLanes<double>;
  static constexpr int kGroup = 8;  // columns whose minima are found together
  static constexpr int kVectors = kGroup / kLanes;
  static constexpr index kFewRows = 16;       // 8 to 24 made no measurable difference
  static constexpr index kManyGroups = 1024;  // from this many on, it is worth waking other threads
  static constexpr std::size_t kPieces = 16;
  static constexpr index kAskEvery = 1 << 14;
  static constexpr std::int64_t kNone = -1;  // no free cluster yet
  using Vec = simd::Vec<double>;
  using Index = simd::Vec<std::int64_t>;

  // Computes prefix sums from `at` on as far as F(j) ≤ F(at) + λ is certain, for at least one
  // column; returns where it stopped.
  index extend(index at, const Stretch& part, bool left_serves) {
    const double anchor = y_[at];
    const index begin = from_[at] == kNone ? at : from_[at];
    const double w0 = weight_[begin], s0 = sum_[begin];
    const double before = begin < at ? grid_.least(s0, w0, anchor) : 0;
    const double shift = anchor - part.left;
    const auto fits = [&](index j) {
      const double grows =
          left_serves ? square_[j] + shift * (2 * sum_[j] + shift * weight_[j])
                      : square_[j] + grid_.least(s0 + sum_[j], w0 + weight_[j], anchor) - before;
      return grows <= penalty_;
    };
    weight_[at] = sum_[at] = square_[at] = 0;
    double weight = 0, sum = 0, square = 0;
    index j = at;
    do {
      const index stop = std::min(j + kGroup, part.last), start = j;
      for (; j < stop; ++j) {
        const double d = y_[j] - anchor, wd = w_[j] * d;
        weight += w_[j];
        sum += wd;
        square += wd * d;
        weight_[j + 1] = weight;
        sum_[j + 1] = sum;
        square_[j + 1] = square;
      }
      if (!fits(j)) {
        for (j = start; j + 1 < stop && fits(j + 1);) ++j;
        return std::max(j, at + 1);
      }
    } while (j < part.last);
    return j;
  }

  struct Piece {  // groups of columns, and the rows that hold their minima
    index first, last, low, high;
  };

  void find_minima(index at, index end, index low) {
    const index groups = ceil_div(end - at, kGroup);
    Piece all{0, groups, low, at};
    if (at - low >= kFewRows) all.high = best_row(end, low, at);
    if (groups < kManyGroups) return find_minima(at, all);
    std::vector<Piece> pieces{all};
    while (pieces.size() < kPieces) {
      std::vector<Piece> halves(2 * pieces.size());
      for (std::size_t p = 0; p < pieces.size(); ++p)
        halve(at, pieces[p], halves[2 * p], halves[2 * p + 1]);
      pieces.swap(halves);
    }
    parallel_for(index(pieces.size()), n_threads_, stop_,
                 [&](index p, int) { find_minima(at, pieces[p]); });
  }

  void find_minima(index at, const Piece& piece) {
    if (piece.high - piece.low < kFewRows || piece.last - piece.first < 2) {
      for (index g = piece.first; g < piece.last; ++g) fill(at + 1 + g * kGroup, piece);
      return;
    }
    if (piece.last - piece.first > kAskEvery / kGroup) stop_.throw_if_requested();
    Piece left, right;
    halve(at, piece, left, right);
    find_minima(at, left);
    find_minima(at, right);
  }

  void halve(index at, const Piece& piece, Piece& left, Piece& right) const {
    const index middle = (piece.first + piece.last) / 2;
    const index row = best_row(at + middle * kGroup, piece.low, piece.high);
    left = {piece.first, middle, piece.low, row};
    right = {middle, piece.last, row, piece.high};
  }

  // Computes F and the row it comes from for the columns of one group.
  void fill(index column, const Piece& piece) {
    Vec best[kVectors], sum[kVectors], weight[kVectors];
    Index from[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      best[v] = simd::splat(std::numeric_limits<double>::infinity());
      sum[v] = simd::load(sum_.data() + column + v * kLanes);
      weight[v] = simd::load(weight_.data() + column + v * kLanes);
      from[v] = simd::splat<std::int64_t>(piece.low);
    }
    for (index i = piece.low; i <= piece.high; ++i) {
      const Vec base = simd::splat(best_[i] + square_[i]);
      const Vec s = simd::splat(sum_[i]), w = simd::splat(weight_[i]);
      const Index row = simd::splat<std::int64_t>(i);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec cost = base + grid_.least(s + sum[v], w + weight[v], anchor_);
        const auto less = cost < best[v];
        best[v] = less ? cost : best[v];
        from[v] = less ? row : from[v];
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const index j = column + v * kLanes;
      simd::store(best_.data() + j, best[v] + penalty_ + simd::load(square_.data() + j));
      simd::store(from_.data() + j, from[v]);
    }
  }

  // Returns the best row of one column; ties go to the lowest.
  index best_row(index column, index low, index high) const {
    const double s = sum_[column], w = weight_[column];
    if (high - low + 1 < kLanes) return best_of_few(column, low, high);
    Vec best = simd::splat(std::numeric_limits<double>::infinity());
    Index from = simd::splat<std::int64_t>(low), row = simd::iota<std::int64_t>() + low;
    const auto look = [&](index i) {
      const Vec base = simd::load(best_.data() + i) + simd::load(square_.data() + i);
      const Vec cost = base + grid_.least(simd::load(sum_.data() + i) + s,
                                          simd::load(weight_.data() + i) + w, anchor_);
      const auto less = cost < best;
      best = less ? cost : best;
      from = less ? row : from;
    };
    index i = low;
    for (; i + kLanes <= high + 1; i += kLanes) {
      look(i);
      row += kLanes;
    }
    if (i <= high) {  // the last rows again; some are compared twice
      row -= i - (high + 1 - kLanes);
      look(high + 1 - kLanes);
    }
    const Vec least = simd::splat(simd::reduce_min<double>(best));
    const Index none = simd::splat<std::int64_t>(std::numeric_limits<std::int64_t>::max());
    return index(simd::reduce_min<std::int64_t>(best == least ? from : none));
  }

  index best_of_few(index column, index low, index high) const {
    index found = low;
    double least = std::numeric_limits<double>::infinity();
    for (index i = low; i <= high; ++i) {
      const double cost =
          best_[i] + square_[i] +
          grid_.least(sum_[i] + sum_[column], weight_[i] + weight_[column], anchor_);
      if (cost < least) least = cost, found = i;
    }
    return found;
  }

  // Sets F(j) wherever leaving all of [first, j) to the fixed centroid at the left is cheaper;
  // returns whether it still is at `end`.
  bool compare_left(index at, index end, double left) {
    const double shift = anchor_ - left, begin = best_[at];
    for (index j = at + 1; j <= end; ++j) {
      const double cost = begin + square_[j] + shift * (2 * sum_[j] + shift * weight_[j]);
      if (cost > best_[j]) return false;
      best_[j] = cost;
      from_[j] = kNone;
    }
    return true;
  }

  // Turns sums of [i, at) about y[at], or of [at, i) if i lies after it, into sums of [i, end)
  // about y[end].
  void move_anchor(index at, index end, index low) {
    const double shift = y_[end] - y_[at];
    const double weight = weight_[end], sum = sum_[end], square = square_[end];
    double* __restrict ws = weight_.data(), * __restrict ss = sum_.data();
    double* __restrict qs = square_.data();
    const auto move = [&](index i, double w, double s, double q) {
      ws[i] = w;
      ss[i] = s - shift * w;
      qs[i] = q + shift * (shift * w - 2 * s);
    };
    for (index i = low; i < at; ++i) move(i, weight + ws[i], sum + ss[i], square + qs[i]);
    for (index i = std::max(low, at); i <= end; ++i)
      move(i, weight - ws[i], sum - ss[i], square - qs[i]);
  }

  // Returns the position from which on values belong to the fixed centroid at the right.
  index cheapest_end(const Stretch& part) const {
    double served = 0, least = best_[part.last];
    index found = part.last;
    for (index j = part.last - 1; j >= part.first; --j) {
      const double d = y_[j] - part.right;
      served += w_[j] * d * d;
      if (best_[j] + served < least) least = best_[j] + served, found = j;
    }
    return found;
  }

  void trace(const Stretch& part, index at, std::vector<index>& cuts) const {
    const auto begin = cuts.size();
    cuts.push_back(at);
    while (at > part.first && from_[at] != kNone) cuts.push_back(at = index(from_[at]));
    std::reverse(cuts.begin() + std::ptrdiff_t(begin), cuts.end());
  }

  const double *y_, *w_;
  const Grid grid_;
  const int n_threads_;
  Stop& stop_;
  double penalty_ = 0, anchor_ = 0;
  // For each position i: Σ w, Σ w(y−a), Σ w(y−a)² between it and the block's first column; F(i);
  // the row of its minimum.
  Buffer<double> weight_, sum_, square_, best_;
  Buffer<std::int64_t> from_;
};

}  // namespace ff

#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/parallel.hpp"
#include "core/simd.hpp"

// Nearly optimal prices for a balanced assignment. The dual of the transport problem,
//
//   D(p) = Σ_i min_j (c_ij + p_j) − Σ_j room_j p_j,
//
// is concave and piecewise linear. Its slope in p_j is the number of points that cluster j holds
// minus the number that it should hold.
namespace ff::balance {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Points are cut into tasks of this size for any number of threads.
inline constexpr index kChunk = 1024;

// Fewer costs than this are read by one thread: that takes about 0.4 ms, so waking others gains
// little on an idle machine (bench balanced, 10,240 × 32, K 64) and loses time slices of 8 ms on a
// busy one.
inline constexpr index kAlone = 1 << 20;

// Some rows of a matrix of costs. Columns from n_clusters up to ld are infinite.
struct Costs {
  const double* data = nullptr;
  index ld = 0;
  index n_clusters = 0;
  const std::int32_t* rows = nullptr;  // null: all
  index n = 0;

  const double* row(index i) const { return data + index(rows ? rows[i] : i) * ld; }
  index floor() const { return n / n_clusters; }
  index n_large() const { return n % n_clusters; }  // clusters that hold one more
};

struct Lowest {
  index at;
  double value, runner_up;
};

// Returns the two lowest of a[k] + b[k], k in [0, ld); ties go to the lower index. ld must be a
// multiple of the vector length. The index is 0 if no sum is finite, so it is always one of a
// cluster.
inline Lowest lowest(const double* a, const double* b, index ld) {
  using simd::Vec;
  using Ids = Vec<std::int64_t>;
  constexpr index kLanes = simd::kLanes<double>;
  Vec<double> best = simd::splat(kInfinity), second = best;
  Ids at = {}, id = simd::iota<std::int64_t>();  // `at` stays 0 where no sum is below infinity
  for (index k = 0; k < ld; k += kLanes) {
    const Vec<double> v = simd::load(a + k) + simd::load(b + k);
    const auto less = v < best;
    second = simd::min(second, less ? best : v);
    at = less ? id : at;
    best = less ? v : best;
    id += kLanes;
  }
  const double value = simd::reduce_min<double>(best);
  const auto equal = best == simd::splat(value);
  const std::int64_t first = simd::reduce_min<std::int64_t>(
      equal ? at : simd::splat(std::numeric_limits<std::int64_t>::max()));
  const auto winner = equal & (at == simd::splat(first));
  return {first, value, simd::reduce_min<double>(winner ? second : best)};
}

// The cluster that each point would choose at given prices.
class Choices {
 public:
  Choices(const Costs& costs, const std::vector<double>& prices, int n_threads, Stop& stop)
      : costs_(costs),
        n_threads_(n_threads),
        stop_(stop),
        prices_(prices),
        labels_(costs.n),
        gaps_(costs.n, 0.0),
        sizes_(costs.n_clusters, 0) {
    choose(kInfinity);
  }

  const Costs& costs() const { return costs_; }
  const std::vector<double>& prices() const { return prices_; }  // has length ld
  std::vector<std::int32_t>& labels() { return labels_; }
  // Returns for each point a lower bound of the difference between its two lowest costs, prices
  // included.
  const std::vector<double>& gaps() const { return gaps_; }
  const std::vector<index>& sizes() const { return sizes_; }

  // Returns the least number of points that must leave their clusters.
  index excess() const {
    const index largest = costs_.floor() + (costs_.n_large() > 0);
    index sum = 0;
    for (const index size : sizes_) sum += std::max<index>(0, size - largest);
    return sum;
  }

  void set_prices(const std::vector<double>& prices) {
    // No difference of two prices changes by more than `spread`, so no point with a wider gap
    // moves.
    double low = kInfinity, high = -kInfinity;
    for (index j = 0; j < costs_.n_clusters; ++j) {
      low = std::min(low, prices[j] - prices_[j]);
      high = std::max(high, prices[j] - prices_[j]);
    }
    prices_ = prices;
    choose((high - low) * (1 + 1e-12));
  }

  // Returns how many threads should read the rows of the points whose gaps are at most this.
  int threads_for(double gap) const {
    const index rows =
        std::count_if(gaps_.begin(), gaps_.end(), [=](double g) { return g <= gap; });
    return rows * costs_.ld < kAlone ? 1 : n_threads_;
  }

  // Returns a gap that about `count` points do not exceed.
  double gap_of(index count) const {
    const index stride = std::max<index>(1, costs_.n / 8192);
    std::vector<double> sample;
    sample.reserve(costs_.n / stride + 1);
    for (index i = 0; i < costs_.n; i += stride) sample.push_back(gaps_[i]);
    const index rank = std::min<index>(count / stride, index(sample.size()) - 1);
    std::nth_element(sample.begin(), sample.begin() + rank, sample.end());
    return sample[rank];
  }

 private:
  void choose(double spread) {
    const int n_threads = threads_for(spread);
    parallel_for(ceil_div(costs_.n, kChunk), n_threads, stop_, [&](index chunk, int) {
      for (index i = chunk * kChunk; i < std::min(costs_.n, (chunk + 1) * kChunk); ++i) {
        if (gaps_[i] > spread) {
          gaps_[i] -= spread;
        } else {
          const Lowest found = lowest(costs_.row(i), prices_.data(), costs_.ld);
          labels_[i] = std::int32_t(found.at);
          gaps_[i] = found.runner_up - found.value;
        }
      }
    });
    std::fill(sizes_.begin(), sizes_.end(), 0);
    for (const std::int32_t label : labels_) ++sizes_[label];
  }

  const Costs costs_;
  const int n_threads_;
  Stop& stop_;
  std::vector<double> prices_;
  std::vector<std::int32_t> labels_;
  std::vector<double> gaps_;
  std::vector<index> sizes_;
};

// Newton steps on the dual. Raising p_a over p_b by t moves the points within t of the border
// between the two clusters across it. With N_ab points within h of the border, the curvature is
// N_ab / 2h: the Laplacian L of a graph. Δp solves L Δp = sizes − n / K.
class Newton {
 public:
  explicit Newton(Choices& choices) : choices_(choices), costs_(choices.costs()) {}

  void run() {
    double damping = 1;
    for (int round = 0; round < kRounds && damping > 0.01; ++round) {
      const index before = choices_.excess();
      if (before <= costs_.n_clusters) return;
      const std::vector<double> prices = choices_.prices();
      if (!step(before, damping)) return;
      const index after = choices_.excess();
      if (after > before) {
        choices_.set_prices(prices);
        damping /= 4;
      } else if (after * 4 > before * 3) {
        return;
      }
    }
  }

 private:
  static constexpr int kRounds = 12;
  static constexpr int kSolverRounds = 40;

  struct Border {
    std::int32_t a, b;
  };

  bool step(index excess, double damping) {
    const index K = costs_.n_clusters;
    const double h = choices_.gap_of(std::min(costs_.n / 2, 2 * excess + 8 * K));
    // 1 / 2h and sums of it must be finite.
    if (!(h > 0x1p-900) || h == kInfinity) return false;
    collect(h);
    if (borders_.empty()) return false;
    const std::vector<double> change = solve(h);
    if (!std::all_of(change.begin(), change.end(), [](double c) { return std::isfinite(c); }))
      return false;
    std::vector<double> prices = choices_.prices();
    for (index j = 0; j < K; ++j) prices[j] += damping * std::clamp(change[j], -8 * h, 8 * h);
    choices_.set_prices(prices);
    return true;
  }

  void collect(double h) {
    borders_.clear();
    const std::vector<double>& prices = choices_.prices();
    std::vector<double> row(costs_.ld);
    for (index i = 0; i < costs_.n; ++i) {
      if (choices_.gaps()[i] > h) continue;
      const std::int32_t a = choices_.labels()[i];
      std::copy_n(costs_.row(i), costs_.ld, row.data());
      const double value = row[a] + prices[a];
      row[a] = kInfinity;
      const Lowest second = lowest(row.data(), prices.data(), costs_.ld);
      if (second.value - value <= h) borders_.push_back({a, std::int32_t(second.at)});
    }
  }

  // Solves by conjugate gradients, preconditioned by the diagonal. Slightly more than L is solved,
  // so that clusters without a common border do not divide by zero. Points are samples of a
  // density, so two digits are enough.
  std::vector<double> solve(double h) const {
    const index K = costs_.n_clusters;
    const double weight = 1 / (2 * h);
    std::vector<double> diagonal(K, 0.0);
    for (const Border& border : borders_)
      diagonal[border.a] += weight, diagonal[border.b] += weight;
    const double mean = std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / double(K);
    std::vector<double> x(K, 0.0), r(K), z(K), d(K), q(K), extra(K);
    double target = 0;
    for (index j = 0; j < K; ++j) {
      extra[j] = 1e-3 * std::max(diagonal[j], mean);
      diagonal[j] += extra[j];
      r[j] = double(choices_.sizes()[j]) - double(costs_.n) / double(K);
      z[j] = d[j] = r[j] / diagonal[j];
      target += r[j] * z[j];
    }
    double rz = target;
    for (int round = 0; round < kSolverRounds && rz > 1e-4 * target; ++round) {
      for (index j = 0; j < K; ++j) q[j] = extra[j] * d[j];
      for (const Border& border : borders_) {
        const double flow = weight * (d[border.a] - d[border.b]);
        q[border.a] += flow;
        q[border.b] -= flow;
      }
      const double alpha = rz / std::inner_product(d.begin(), d.end(), q.begin(), 0.0);
      double next = 0;
      for (index j = 0; j < K; ++j) {
        x[j] += alpha * d[j];
        r[j] -= alpha * q[j];
        z[j] = r[j] / diagonal[j];
        next += r[j] * z[j];
      }
      for (index j = 0; j < K; ++j) d[j] = z[j] + next / rz * d[j];
      rz = next;
    }
    return x;
  }

  Choices& choices_;
  const Costs& costs_;
  std::vector<Border> borders_;
};

}  // namespace ff::balance

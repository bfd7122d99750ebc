// Balanced assignment: min Σ_i c_i,label(i) with ⌊n/K⌋ or ⌈n/K⌉ points a cluster. This is a
// transport problem whose sources are single points, so it has an optimum that moves whole points.
//
// 1. Compute the costs, n × K, in float64 (here).
// 2. Find prices at which the points' own choices nearly fill the clusters: Newton's method on the
//    dual (prices.hpp), from prices of a sample if the given prices are not near.
// 3. Find successive shortest paths for the points that are left over (paths.hpp, exits.hpp).
#include "kernels/balance/balance.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#  include <unistd.h>
#endif

#include "core/buffer.hpp"
#include "core/panels.hpp"
#include "core/random.hpp"
#include "kernels/balance/paths.hpp"

namespace ff {
namespace {

using namespace balance;

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// The exponents that bring the largest magnitudes of points and of weights into [1, 2). Scaling by
// powers of two is exact, so data of any magnitude is assigned alike and no square overflows.
struct Scale {
  int points = 0, weights = 0;

  int costs() const { return 2 * points + weights; }

  // Scales a point in two steps: 2^points itself is infinite for data below 2^-1023.
  void apply(double* row, index depth) const {
    const double half = std::ldexp(1.0, points / 2), rest = std::ldexp(1.0, points - points / 2);
    for (index k = 0; k < depth; ++k) row[k] = row[k] * half * rest;
  }
};

int exponent_of(double largest) {
  return largest > 0 ? -std::ilogb(largest) : 0;
}

double largest_in(const MatrixView& x, const char* name, int n_threads, Stop& stop) {
  std::vector<double> parts(ceil_div(x.rows, kChunk), 0.0);
  const int used = x.rows * x.cols < kAlone ? 1 : n_threads;
  parallel_for(index(parts.size()), used, stop, [&](index chunk, int) {
    std::vector<double> row(x.cols);
    for (index i = chunk * kChunk; i < std::min(x.rows, (chunk + 1) * kChunk); ++i) {
      load_row(x, i, row.data());
      double largest = 0, probe = 0;  // 0 · v is NaN if v is not finite
      for (const double v : row) {
        largest = std::max(largest, std::abs(v));
        probe += 0 * v;
      }
      if (probe != 0) throw_not_finite(x, i, name);
      parts[chunk] = std::max(parts[chunk], largest);
    }
  });
  double largest = 0;
  for (const double part : parts) largest = std::max(largest, part);
  return largest;
}

double largest_weight(const double* weights, index n) {
  double largest = 0;
  for (index i = 0; i < n; ++i) {
    if (!(weights[i] >= 0 && std::isfinite(weights[i])))
      throw std::invalid_argument("sample_weight must be finite and zero or more, got " +
                                  std::to_string(weights[i]) + " at [" + std::to_string(i) + "]");
    largest = std::max(largest, weights[i]);
  }
  return largest;
}

Buffer<double> allocate_costs(index n, index ld) {
  const double bytes = 8.0 * double(n) * double(ld);
  const std::string text = "balanced clusters need " + std::to_string(bytes * 0x1p-30) +
                           " GiB for the costs of n_samples × n_clusters, got less";
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  // Some systems grant memory that they do not have, and end the process later.
  if (bytes > double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE)))
    throw OutOfMemory(text);
#endif
  try {
    return Buffer<double>(n * ld);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(text);
  }
}

// w_i ‖x_i − c_j‖² as Σ (x − c)², which needs no centring: nothing cancels, a point on a centroid
// costs nothing, and equal centroids give the same bits.
class CostMatrix {
 public:
  CostMatrix(const MatrixView& x, const MatrixView& centroids, const double* weights, Scale scale,
             int n_threads, Stop& stop)
      : x_(x), weights_(weights), scale_(scale), panels_(centroids.rows, centroids.cols) {
    std::vector<double> row(centroids.cols);
    for (index j = 0; j < centroids.rows; ++j) {
      load_row(centroids, j, row.data());
      scale.apply(row.data(), centroids.cols);
      panels_.set(j, row.data());
    }
    data_ = allocate_costs(x.rows, panels_.padded());
    const index n_tiles = ceil_div(x.rows, kTileRows);
    const index tiles = std::max<index>(1, kChunk / kTileRows);
    parallel_for(ceil_div(n_tiles, tiles), n_threads, stop, [&](index chunk, int) {
      Buffer<double> rows(kTileRows * x_.cols), mixed(kTileRows * x_.cols);
      for (index t = chunk * tiles; t < std::min(n_tiles, (chunk + 1) * tiles); ++t)
        fill(t * kTileRows, rows.data(), mixed.data());
    });
  }

  Costs view() const {
    Costs costs;
    costs.data = data_.data();
    costs.ld = panels_.padded();
    costs.n_clusters = panels_.count();
    costs.n = x_.rows;
    return costs;
  }

 private:
  void fill(index first, double* rows, double* mixed) {
    const index n = std::min<index>(kTileRows, x_.rows - first), depth = panels_.depth();
    for (index r = 0; r < kTileRows; ++r) {
      double* row = rows + r * depth;
      load_row(x_, first + std::min(r, n - 1), row);
      scale_.apply(row, depth);
    }
    interleave<kTileRows>(rows, depth, depth, mixed);
    for (index p = 0; p < panels_.n_panels(); ++p) fill_panel(first, n, mixed, p);
  }

  void fill_panel(index first, index n, const double* mixed, index p) {
    using simd::Vec;
    constexpr index kLanes = simd::kLanes<double>;
    Vec<double> acc[kTileRows][kPanelVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) acc[r][0] = acc[r][1] = Vec<double>{};
    const double* c = panels_.panel(p);
    for (index k = 0; k < panels_.depth(); ++k) {
      const Vec<double> c0 = simd::load(c), c1 = simd::load(c + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const Vec<double> xr = simd::splat(mixed[k * kTileRows + r]), d0 = xr - c0, d1 = xr - c1;
        acc[r][0] = simd::mul_add(d0, d0, acc[r][0]);
        acc[r][1] = simd::mul_add(d1, d1, acc[r][1]);
      }
      c += kPanelCols<double>;
    }
    const index left = panels_.count() - p * kPanelCols<double>;
    for (index r = 0; r < n; ++r) {
      double* row = data_.data() + (first + r) * panels_.padded() + p * kPanelCols<double>;
      const Vec<double> weight =
          simd::splat(weights_ ? std::ldexp(weights_[first + r], scale_.weights) : 1.0);
      simd::store(row, acc[r][0] * weight);
      simd::store(row + kLanes, acc[r][1] * weight);
      for (index l = left; l < kPanelCols<double>; ++l) row[l] = kInfinity;
    }
  }

  const MatrixView& x_;
  const double* weights_;
  const Scale scale_;
  Panels<double> panels_;
  Buffer<double> data_;
};

std::vector<double> optimal_prices(const Costs& costs, const std::vector<double>& start,
                                   int n_threads, Stop& stop);

// With fewer points per cluster, borders have no density, and paths alone are as fast.
constexpr index kDense = 8;

// Improves the prices. If they leave many points to move, better ones are first found from a
// quarter of the points, and so on recursively: a sample's prices leave only its noise, O(√(n K))
// points, wherever the points lie. The sample depends on the points' positions in the array alone.
void approach(Choices& choices, int n_threads, Stop& stop) {
  const Costs& costs = choices.costs();
  if (costs.n < kDense * costs.n_clusters) return;
  const index before = choices.excess();
  if (before > costs.n / 16) {
    std::vector<std::int32_t> rows;
    for (index i = 0; i < costs.n; ++i)
      if (mix64(std::uint64_t(i)) % 4 == 0)
        rows.push_back(std::int32_t(costs.rows ? costs.rows[i] : i));
    Costs sample = costs;
    sample.rows = rows.data();
    sample.n = index(rows.size());
    const std::vector<double> start = choices.prices();
    choices.set_prices(optimal_prices(sample, start, n_threads, stop));
    if (choices.excess() > before) choices.set_prices(start);
  }
  Newton(choices).run();
}

std::vector<double> optimal_prices(const Costs& costs, const std::vector<double>& start,
                                   int n_threads, Stop& stop) {
  Choices choices(costs, start, n_threads, stop);
  approach(choices, n_threads, stop);
  Router router(choices, stop);
  router.run();
  return router.prices();
}

// Returns the state's prices in the scale of the costs. Returns zeros if there are no prices, or if
// they are so much larger than the costs that sums would lose the costs.
std::vector<double> starting_prices(const BalanceState& state, const Costs& costs, Scale scale,
                                    index depth) {
  std::vector<double> prices(costs.ld, 0.0);
  if (index(state.prices.size()) != costs.n_clusters || costs.n < costs.n_clusters) return prices;
  const double most = 128 * double(std::max<index>(depth, 1));
  for (index j = 0; j < costs.n_clusters; ++j) {
    const double price = std::ldexp(state.prices[j], scale.costs());
    if (!(std::abs(price) <= most)) return std::vector<double>(costs.ld, 0.0);
    prices[j] = price;
  }
  return prices;
}

// Returns Σ over points, added in a fixed order.
template <class Term>
double sum_over_points(index n, int n_threads, Stop& stop, Term term) {
  std::vector<double> parts(ceil_div(n, kChunk), 0.0);
  parallel_for(index(parts.size()), n_threads, stop, [&](index chunk, int) {
    for (index i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i)
      parts[chunk] += term(i);
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

// Returns the primal minus the dual value, term by term so that nothing cancels: what each point
// pays above its cheapest choice, and how far the prices of the large clusters lie below the
// highest.
double absolute_gap(const Costs& costs, const Router& router, int n_threads, Stop& stop) {
  const std::vector<double> prices = router.prices();
  const double points = sum_over_points(costs.n, n_threads, stop, [&](index i) {
    const index label = router.labels()[i];
    const double* row = costs.row(i);
    return row[label] + prices[label] - lowest(row, prices.data(), costs.ld).value;
  });
  std::vector<double> highest(prices.begin(), prices.begin() + costs.n_clusters), large;
  for (index j = 0; j < costs.n_clusters; ++j)
    if (router.large()[j]) large.push_back(prices[j]);
  std::sort(highest.rbegin(), highest.rend());
  std::sort(large.rbegin(), large.rend());
  double clusters = 0;
  for (index r = 0; r < index(large.size()); ++r) clusters += highest[r] - large[r];
  return points + clusters;
}

}  // namespace

BalanceResult balanced_assign(const MatrixView& x, const MatrixView& centroids,
                              const double* weights, BalanceState& state,
                              const BalanceOptions& options, std::int32_t* labels, Stop& stop) {
  const index n = x.rows, K = centroids.rows;
  const int n_threads = options.n_threads;
  Scale scale;
  scale.points = exponent_of(std::max(largest_in(x, "X", n_threads, stop),
                                      largest_in(centroids, "centroids", n_threads, stop)));
  if (weights) scale.weights = exponent_of(largest_weight(weights, n));
  const CostMatrix matrix(x, centroids, weights, scale, n_threads, stop);
  const Costs costs = matrix.view();

  Choices choices(costs, starting_prices(state, costs, scale, x.cols), n_threads, stop);
  approach(choices, n_threads, stop);
  Router router(choices, stop);
  router.run();

  std::copy(router.labels().begin(), router.labels().end(), labels);
  const std::vector<double> prices = router.prices();
  const double lowest_price = *std::min_element(prices.begin(), prices.begin() + K);
  state.prices.resize(K);
  for (index j = 0; j < K; ++j)
    state.prices[j] = std::ldexp(prices[j] - lowest_price, -scale.costs());

  const int used = n * simd::kLanes<double> < kAlone ? 1 : n_threads;  // a cache line per point
  const double cost =
      sum_over_points(n, used, stop, [&](index i) { return costs.row(i)[labels[i]]; });
  BalanceResult result;
  result.cost = std::ldexp(cost, -scale.costs());
  if (options.certify) {
    const double gap = absolute_gap(costs, router, n_threads, stop);
    result.gap = gap > 0 ? gap / cost : 0;
  }
  return result;
}

}  // namespace ff

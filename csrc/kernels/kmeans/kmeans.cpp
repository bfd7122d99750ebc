// Lloyd's k-means (S. Lloyd 1982): assign each row to its nearest centroid and move each centroid
// to the mean of its rows, until no label changes or the centroids hardly move.
#include "kernels/kmeans/kmeans.hpp"

#include "core/random.hpp"
#include "kernels/balance/balance.hpp"
#include "kernels/kmeans/assignment.hpp"
#include "kernels/kmeans/centroids.hpp"

namespace ff {
namespace {

// Computes labels for clusters of equal size; the prices are carried from one iteration to the
// next.
template <class T>
bool balance_rows(const Samples<T>& samples, const std::vector<T>& centroids, BalanceState& prices,
                  int n_threads, Stop& stop, std::vector<std::int32_t>& labels) {
  constexpr DType own = sizeof(T) == 4 ? DType::f32 : DType::f64;
  const index d = samples.x.cols, size = index(sizeof(T));
  const MatrixView view{reinterpret_cast<const char*>(centroids.data()),
                        own,
                        index(centroids.size()) / d,
                        d,
                        d * size,
                        size};
  const auto before = labels;
  BalanceOptions options;
  options.n_threads = n_threads;
  balanced_assign(samples.x, view, samples.weights, prices, options, labels.data(), stop);
  return labels != before;
}

template <class T>
struct Run {
  std::vector<T> centroids;
  std::vector<std::int32_t> labels;
  double inertia = 0;  // in the frame's units
  index n_iter = 0;
};

template <class T>
Run<T> lloyd(const Samples<T>& samples, std::vector<T> centroids, const KMeansOptions& options,
             int n_threads, Stop& stop) {
  Run<T> run{std::move(centroids), std::vector<std::int32_t>(samples.x.rows, -1), 0, 0};
  const double enough = options.tol * samples.mean_variance;
  CentroidUpdate<T> update(samples, options.n_clusters, n_threads, stop);
  Assignment<T> assignment(samples, options.n_clusters, n_threads, stop);
  BalanceState prices;
  const auto assign_all = [&] {
    if (options.balanced)
      return balance_rows(samples, run.centroids, prices, n_threads, stop, run.labels);
    return assignment.run(run.centroids.data(), run.labels.data());
  };
  bool settled = false;  // the labels belong to the current centroids
  while (run.n_iter < options.max_iter && !settled) {
    ++run.n_iter;
    settled = !assign_all();
    if (settled) break;
    if (update.move(run.labels.data(), run.centroids.data()) <= enough) break;
  }
  if (!settled) assign_all();
  run.inertia = inertia(samples, run.centroids.data(), run.labels.data(), n_threads, stop);
  return run;
}

template <class T>
Run<T> best_run(const Samples<T>& samples, const MatrixView* initial, index group,
                const KMeansOptions& options, int n_threads, Stop& stop) {
  const index d = samples.x.cols;
  Run<T> best;
  for (index attempt = 0; attempt < options.n_init; ++attempt) {
    std::vector<T> centroids(options.n_clusters * d);
    if (initial) {
      for (index j = 0; j < options.n_clusters; ++j)
        load_row(*initial, j, centroids.data() + j * d);
    } else {
      const std::uint64_t seed = mix64(mix64(options.seed ^ mix64(group)) + std::uint64_t(attempt));
      seed_centroids(samples, options.init, options.n_clusters, seed, n_threads, stop,
                     centroids.data());
    }
    Run<T> run = lloyd(samples, std::move(centroids), options, n_threads, stop);
    if (attempt == 0 || run.inertia < best.inertia) best = std::move(run);
  }
  return best;
}

// Weights in a range where their products with squared distances are finite: divided by a power of
// two if the largest is very large or very small.
class ScaledWeights {
 public:
  ScaledWeights(const double* weights, index n) : weights_(weights) {
    constexpr int kSafe = 100;
    if (!weights) return;
    const double largest = *std::max_element(weights, weights + n);
    if (!(largest > 0) || std::abs(std::ilogb(largest)) <= kSafe) return;
    exponent_ = std::ilogb(largest);
    own_.resize(n);
    for (index i = 0; i < n; ++i) own_[i] = std::ldexp(weights[i], -exponent_);
    weights_ = own_.data();
  }

  const double* data() const { return weights_; }
  int exponent() const { return exponent_; }  // of the power of two

 private:
  const double* weights_;
  std::vector<double> own_;
  int exponent_ = 0;
};

// Calls body(group, threads) for every group: groups in parallel if there are enough of them,
// otherwise one after the other with all threads inside each.
template <class Body>
void for_groups(index count, int n_threads, Stop& stop, Body&& body) {
  if (count >= n_threads) {
    parallel_for(count, n_threads, stop, [&](index g, int) { body(g, 1); });
  } else {
    for (index g = 0; g < count; ++g) body(g, n_threads);
  }
}

}  // namespace

template <class T>
KMeansResult<T> kmeans(const StackView& x, const double* weights, const StackView* initial,
                       const KMeansOptions& options, Stop& stop) {
  const index n = x.first.rows, d = x.first.cols, k = options.n_clusters;
  KMeansResult<T> result{Buffer<T>(x.count * k * d), Buffer<std::int32_t>(x.count * n),
                         Buffer<double>(x.count), Buffer<std::int64_t>(x.count)};
  for_groups(x.count, options.n_threads, stop, [&](index g, int n_threads) {
    MatrixView given;
    if (initial) given = (*initial)[g];
    const ScaledWeights own(weights ? weights + g * n : nullptr, n);
    const auto samples =
        make_samples<T>(x[g], own.data(), initial ? &given : nullptr, n_threads, stop);
    const auto run = best_run(samples, initial ? &given : nullptr, g, options, n_threads, stop);
    std::copy(run.centroids.begin(), run.centroids.end(), result.centroids.data() + g * k * d);
    std::copy(run.labels.begin(), run.labels.end(), result.labels.data() + g * n);
    const int units = 2 * std::ilogb(samples.frame.scale());
    result.inertia[g] = std::ldexp(run.inertia, own.exponent() - units);
    result.n_iter[g] = run.n_iter;
  });
  return result;
}

template <class T>
void assign(const StackView& x, const StackView& centroids, std::int32_t* labels, T* distances,
            int n_threads, Stop& stop) {
  const index n = x.first.rows, d = x.first.cols, k = centroids.first.rows;
  for_groups(x.count, n_threads, stop, [&](index g, int threads) {
    const MatrixView given = centroids[g];
    const auto samples = make_samples<T>(x[g], nullptr, &given, threads, stop);
    std::vector<T> own(k * d);
    for (index j = 0; j < k; ++j) load_row(given, j, own.data() + j * d);
    std::fill_n(labels + g * n, n, -1);
    Assignment<T>(samples, k, threads, stop).run(own.data(), labels + g * n);
    const double scale = double(samples.frame.scale()), unscale = 1 / scale;
    const Chunks chunks(n);
    parallel_ranges(chunks.count, threads, stop, [&](index chunk, int) {
      Rows<T> rows(samples.x);
      for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
        const T* centroid = own.data() + labels[g * n + i] * d;
        distances[g * n + i] = T(squared_distance(rows[i], centroid, d, scale) * unscale * unscale);
      }
    });
  });
}

template KMeansResult<float> kmeans(const StackView&, const double*, const StackView*,
                                    const KMeansOptions&, Stop&);
template KMeansResult<double> kmeans(const StackView&, const double*, const StackView*,
                                     const KMeansOptions&, Stop&);
template void assign(const StackView&, const StackView&, std::int32_t*, float*, int, Stop&);
template void assign(const StackView&, const StackView&, std::int32_t*, double*, int, Stop&);

}  // namespace ff

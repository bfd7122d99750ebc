// k-means of scalars: values are sorted once, and each cluster is an interval of them.
#include "kernels/kmeans1d/kmeans1d.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/kmeans1d/exact.hpp"
#include "kernels/kmeans1d/grid.hpp"
#include "kernels/kmeans1d/labels.hpp"
#include "kernels/kmeans1d/lloyd.hpp"

namespace ff {
namespace {

// From this many 16-bit floats on, counting bit patterns is faster than sorting.
constexpr index kManyHalves = index(1) << 15;
// From this many values on, all threads work on one group; below, each thread takes its own groups.
constexpr index kManyValues = index(1) << 18;

bool is_half(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16;
}

[[noreturn]] void refuse(const char* what, double value, index group, index i, bool one_vector) {
  const std::string place = one_vector ? "" : std::to_string(group) + ", ";
  throw std::invalid_argument(what + (", got " + std::to_string(value)) + " at [" + place +
                              std::to_string(i) + "]");
}

[[noreturn]] void refuse_values(const MatrixView& x, index group, bool one_vector) {
  double value = 0;
  for (index i = 0; i < x.cols; ++i) {
    load_row(detail::columns(x, i, 1), group, &value);
    if (!std::isfinite(value)) refuse("x must be finite", value, group, i, one_vector);
  }
  throw std::logic_error("no value of x is at fault");
}

// Returns one row of weights in float64.
Buffer<double> load_weights(const MatrixView& weights, index group, bool one_vector) {
  Buffer<double> row(weights.cols);
  load_row(weights, group, row.data());
  double total = 0;
  bool good = true;
  for (index i = 0; i < row.size(); ++i) {
    good &= row[i] >= 0;
    total += row[i];
  }
  if (good && total > 0 && std::isfinite(total)) return row;
  for (index i = 0; i < row.size(); ++i)
    if (!(row[i] >= 0) || !std::isfinite(row[i]))
      refuse("sample_weight must be finite and zero or more", row[i], group, i, one_vector);
  throw std::invalid_argument("sample_weight must have a finite sum greater than zero, got " +
                              std::to_string(total));
}

template <class Grid>
class Group {
 public:
  Group(const Points& points, const double* fixed, const double* given,
        const KMeans1DOptions& options, const Grid& grid, int n_threads, Stop& stop)
      : points_(points),
        given_(given),
        options_(options),
        n_free_(options.n_clusters - options.n_fixed),
        grid_(grid),
        n_threads_(n_threads),
        stop_(stop) {
    for (index f = 0; f < options.n_fixed; ++f) fixed_.push_back(fixed[f] / points.unit);
    std::sort(fixed_.begin(), fixed_.end());
  }

  // Returns the centroids that are free to move, at most n_clusters − n_fixed. Sets n_iter to the
  // number of passes over the values.
  std::vector<double> run(std::int64_t& n_iter) {
    n_iter = 0;
    std::vector<double> places;
    if (n_free_ > 0) places = options_.exact ? exact(n_iter) : lloyds(n_iter);
    for (double& place : places) place = grid_.value(place);
    return places;
  }

 private:
  std::vector<double> exact(std::int64_t& n_iter) {
    const index n = points_.count;
    const double *y = points_.y.data(), *w = points_.w.data();
    std::vector<double> places;
    if (n_free_ >= n) {
      for (index i = 0; i < n; ++i) places.push_back(grid_.nearest(y[i]));
    } else if (n_free_ == 1 && fixed_.empty()) {
      places.push_back(best_place(y, w, 0, n, grid_));
    } else {
      const std::vector<Stretch> parts = stretches();
      ExactPartition<Grid> search(y, w, n, parts, grid_, n_threads_, stop_);
      const Partition found = search.solve(n_free_, n_iter);
      for (std::size_t s = 0; s < parts.size(); ++s)
        for (std::size_t c = found.begin(s); c + 1 < found.ends[s]; ++c)
          places.push_back(best_place(y, w, found.cuts[c], found.cuts[c + 1], grid_));
    }
    return places;
  }

  std::vector<Stretch> stretches() const {
    std::vector<Stretch> parts;
    Stretch part{0, 0, false, false, 0, 0};
    const double *y = points_.y.data(), *end = y + points_.count;
    for (const double place : fixed_) {
      part.last = std::lower_bound(y + part.first, end, place) - y;
      part.has_right = true;
      part.right = place;
      parts.push_back(part);
      part = {part.last, 0, true, false, place, 0};
    }
    part.last = points_.count;
    parts.push_back(part);
    return parts;
  }

  std::vector<double> lloyds(std::int64_t& n_iter) {
    const PrefixSums sums(points_);
    std::vector<Place> places;
    for (index c = 0; c < n_free_; ++c) places.push_back({start(c, sums), false});
    for (const double place : fixed_) places.push_back({place, true});
    std::stable_sort(places.begin(), places.end(),
                     [](const Place& a, const Place& b) { return a.at < b.at; });
    n_iter = lloyd(points_, sums, grid_, places, stop_);
    std::vector<double> moved;
    for (const Place& place : places)
      if (!place.fixed) moved.push_back(place.at);
    return moved;
  }

  double start(index c, const PrefixSums& sums) const {
    switch (options_.init) {
      case Init1D::given:
        return grid_.nearest(given_[c] / points_.unit);
      case Init1D::density:
        return grid_.nearest(points_.y[sums.quantile((double(c) + 0.5) / double(n_free_))]);
      case Init1D::linear:
        break;
    }
    const double low = points_.low / points_.unit, high = points_.high / points_.unit;
    const double share = n_free_ == 1 ? 0.5 : double(c) / double(n_free_ - 1);
    return grid_.nearest(low + share * (high - low));
  }

  const Points& points_;
  const double* given_;
  const KMeans1DOptions& options_;
  const index n_free_;
  const Grid& grid_;
  const int n_threads_;
  Stop& stop_;
  std::vector<double> fixed_;
};

// Returns Σ w(x − c)² with each value assigned as its label says.
template <class T>
double inertia_of(const Points& points, const Labeller<T>& labeller, const T* centroids) {
  const double *y = points.y.data(), *w = points.w.data(), *end = y + points.count;
  double total = 0;
  index first = 0;
  for (index r = 0; r < labeller.n_ranks(); ++r) {
    const bool last = r + 1 == labeller.n_ranks();
    const index next =
        last ? points.count
             : std::upper_bound(y + first, end, double(labeller.cut(r)) / points.unit) - y;
    const double c = double(centroids[labeller.label_of_rank(r)]) / points.unit;
    total += squares_about(y, w, first, next, c);
    first = next;
  }
  return std::ldexp(total, 2 * std::ilogb(points.unit) + std::ilogb(points.weight_unit));
}

template <class T>
class Solver {
 public:
  Solver(const MatrixView& x, const MatrixView* weights, const KMeans1DOptions& options, Stop& stop,
         KMeans1DResult<T>& result)
      : x_(x), weights_(weights), options_(options), stop_(stop), result_(result) {}

  void run(index group, int n_threads) {
    MatrixView x = x_;
    x.data += group * x.row_stride;
    x.rows = 1;
    const index k = options_.n_clusters, n_given = k - options_.n_fixed;
    const double* fixed = of_group(options_.fixed, group, options_.n_fixed);
    const double* given = of_group(options_.given, group, n_given);
    double reach = 0;
    for (index f = 0; f < options_.n_fixed; ++f) reach = std::max(reach, std::abs(fixed[f]));
    if (given != nullptr)
      for (index c = 0; c < n_given; ++c) reach = std::max(reach, std::abs(given[c]));
    const bool by_pattern = is_half(x.dtype) && x.cols >= kManyHalves;
    const Points points = points_of(x, group, reach, by_pattern, n_threads);
    if (!std::isfinite(points.low) || !std::isfinite(points.high))
      refuse_values(x_, group, options_.one_vector);
    T* centroids = result_.centroids.data() + group * k;
    const std::vector<double> moved =
        find_centroids(points, fixed, given, n_threads, result_.n_iter[group]);
    fill_centroids(moved, fixed, centroids);
    const Labeller<T> labeller(centroids, k);
    result_.inertia[group] = inertia_of(points, labeller, centroids);
    std::int32_t* labels = result_.labels.data() + group * x.cols;
    if (by_pattern) {
      label_patterns(x, labeller, labels, n_threads, stop_);
    } else {
      label_group(x, labeller, labels, n_threads, stop_);
    }
  }

 private:
  static const double* of_group(const double* rows, index group, index cols) {
    return rows == nullptr ? nullptr : rows + group * cols;
  }

  Points points_of(const MatrixView& x, index group, double reach, bool by_pattern, int n_threads) {
    Buffer<double> row;
    if (weights_ != nullptr) row = load_weights(*weights_, group, options_.one_vector);
    const double* weights = row.data();
    if (!by_pattern) return detail::sorted_points<T>(x, weights, reach, n_threads, stop_);
    if (weights == nullptr)
      return counted_points<std::uint32_t>(x, weights, reach, n_threads, stop_);
    return counted_points<double>(x, weights, reach, n_threads, stop_);
  }

  // Returns the centroids of a group that are free to move. The search runs in float64 for any T,
  // so it is compiled only once for each kind of places.
  std::vector<double> find_centroids(const Points& points, const double* fixed, const double* given,
                                     int n_threads, std::int64_t& n_iter) {
    const auto on = [&](const auto& places) {
      const Grid<std::decay_t<decltype(places)>> grid(points.unit, places);
      return Group(points, fixed, given, options_, grid, n_threads, stop_).run(n_iter);
    };
    switch (options_.grid) {
      case CentroidGrid::f16:
        return on(FloatPlaces(11, -14, 65504.0));
      case CentroidGrid::bf16:
        return on(FloatPlaces(8, -126, 0x1.fep127));
      case CentroidGrid::int8:
        return on(
            Int8Places(std::max(std::abs(points.low), std::abs(points.high)), sizeof(T) == 4));
      case CentroidGrid::any:
        break;
    }
    return on(AnyPlace());
  }

  // Writes all centroids in rising order; if there are too few, the last one is repeated.
  void fill_centroids(const std::vector<double>& moved, const double* fixed, T* centroids) const {
    T* end = centroids;
    for (const double place : moved) *end++ = T(place);
    for (index f = 0; f < options_.n_fixed; ++f) *end++ = T(fixed[f]);
    std::sort(centroids, end);
    std::fill(end, centroids + options_.n_clusters, end[-1]);
  }

  const MatrixView& x_;
  const MatrixView* weights_;
  const KMeans1DOptions& options_;
  Stop& stop_;
  KMeans1DResult<T>& result_;
};

}  // namespace

template <class T>
KMeans1DResult<T> kmeans1d(const MatrixView& x, const MatrixView* weights,
                           const KMeans1DOptions& options, Stop& stop) {
  const index groups = x.rows;
  KMeans1DResult<T> result{Buffer<T>(groups * options.n_clusters),
                           Buffer<std::int32_t>(groups * x.cols), Buffer<double>(groups),
                           Buffer<std::int64_t>(groups)};
  Solver<T> solver(x, weights, options, stop, result);
  if (x.cols >= kManyValues) {
    for (index g = 0; g < groups; ++g) solver.run(g, options.n_threads);
  } else {
    parallel_for(groups, options.n_threads, stop, [&](index g, int) { solver.run(g, 1); });
  }
  return result;
}

template KMeans1DResult<float> kmeans1d(const MatrixView&, const MatrixView*,
                                        const KMeans1DOptions&, Stop&);
template KMeans1DResult<double> kmeans1d(const MatrixView&, const MatrixView*,
                                         const KMeans1DOptions&, Stop&);

}  // namespace ff

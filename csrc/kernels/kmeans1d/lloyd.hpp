#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kmeans1d/points.hpp"

// Lloyd's iterations on sorted values. A cluster is an interval, its mean comes from two
// differences of prefix sums, and an iteration costs K searches.
namespace ff {

struct Place {
  double at;
  bool fixed;
};

class PrefixSums {
 public:
  explicit PrefixSums(const Points& points)
      : y_(points.y.data()),
        shift_(points.y[points.count / 2]),
        weight_(points.count + 1),
        sum_(points.count + 1) {
    double weight = 0, sum = 0;
    weight_[0] = sum_[0] = 0;
    for (index i = 0; i < points.count; ++i) {
      weight_[i + 1] = weight += points.w[i];
      sum_[i + 1] = sum += points.w[i] * (points.y[i] - shift_);
    }
  }

  double weight(index first, index last) const { return weight_[last] - weight_[first]; }
  // Rounding must not carry a mean outside its values: the largest number would become infinite.
  double mean(index first, index last) const {
    const double mean = shift_ + (sum_[last] - sum_[first]) / weight(first, last);
    return std::clamp(mean, y_[first], y_[last - 1]);
  }

  // Returns the first value at which the cumulative weight exceeds this share of the total.
  index quantile(double share) const {
    const index n = weight_.size() - 1;
    const double target = share * weight_[n];
    const double* found = std::upper_bound(weight_.data() + 1, weight_.data() + n + 1, target);
    return std::min<index>(found - weight_.data() - 1, n - 1);
  }

 private:
  const double* y_;
  double shift_;
  Buffer<double> weight_, sum_;
};

// Returns the first position whose value exceeds x. It starts from the position of the last search:
// the new one is mostly near, where a search without branches finds it.
inline index first_above(const double* y, index n, double x, index near) {
  constexpr index kWindow = 32;
  index low = std::max<index>(0, std::min(near - kWindow / 2, n - kWindow));
  const bool begins = low == 0 || y[low - 1] <= x;
  if (begins && n >= kWindow && (low + kWindow == n || y[low + kWindow] > x)) {
    for (index step = kWindow / 2; step > 0; step /= 2) low += step * index(y[low + step - 1] <= x);
    return low + index(y[low] <= x);
  }
  index high = low, step = kWindow;
  if (begins) {
    while (high < n && y[high] <= x) low = high + 1, high += step, step *= 2;
    high = std::min(high, n);
  } else {
    while (low > 0 && y[low - 1] > x)
      high = low - 1, low = std::max<index>(0, low - step), step *= 2;
  }
  return std::upper_bound(y + low, y + high, x) - y;
}

// Moves the places, which rise, until no value changes its cluster. Ties go to the lower place; a
// place without values stays. Returns the number of iterations.
template <class Grid>
std::int64_t lloyd(const Points& points, const PrefixSums& sums, const Grid& grid,
                   std::vector<Place>& places, Stop& stop) {
  constexpr std::int64_t kMostIterations = 1000;
  const index k = index(places.size()), n = points.count;
  std::vector<index> cuts(std::size_t(k) + 1, 0);
  cuts[std::size_t(k)] = n;
  for (std::int64_t done = 0; done < kMostIterations; ++done) {
    bool changed = done == 0;
    for (index c = 1; c < k; ++c) {
      const double middle = 0.5 * (places[c - 1].at + places[c].at);
      const index cut = first_above(points.y.data(), n, middle, cuts[c]);
      changed |= cut != cuts[c];
      cuts[c] = cut;
    }
    if (!changed) return done;
    for (index c = 0; c < k; ++c) {
      if (places[c].fixed || !(sums.weight(cuts[c], cuts[c + 1]) > 0)) continue;
      places[c].at = grid.nearest(sums.mean(cuts[c], cuts[c + 1]));
    }
    stop.throw_if_requested();
  }
  return kMostIterations;
}

}  // namespace ff

#include "kernels/kmeans/seeding.hpp"

#include <cmath>
#include <numeric>
#include <optional>
#include <unordered_set>

#include "core/random.hpp"
#include "kernels/kmeans/centroids.hpp"
#include "kernels/kmeans/nearest_lanes.hpp"
#include "kernels/kmeans/seeding_filtered.hpp"
#include "kernels/kmeans/seeding_tiles.hpp"

namespace ff {
namespace {

// k-means++ (D. Arthur, S. Vassilvitskii 2007) with one candidate per draw. A centroid is drawn
// with probability proportional to w·D², where D is the distance to the nearest one drawn before.
// Distances are refreshed for a block of centroids in one pass over the data. Between refreshes a
// row is drawn by its stale D² and accepted with probability true/stale, which equals a draw by the
// true D².
template <class T>
class PlusPlus {
 public:
  PlusPlus(const Samples<T>& samples, index n_clusters, std::uint64_t seed, int n_threads,
           Stop& stop)
      : samples_(samples),
        n_(samples.x.rows),
        d_(samples.x.cols),
        n_clusters_(n_clusters),
        n_threads_(n_threads),
        stop_(stop),
        random_(seed, 0),
        distance_(n_),
        part_sum_(ceil_div(n_, kPart)),
        row_(d_) {
#if defined(__AVX512VNNI__)
    // Coding the rows once is worth it if they meet many centroids.
    if constexpr (sizeof(T) == 4)
      if (d_ > 10 && d_ <= coded::kMaxDepth && n_clusters >= 64)
        filter_.emplace(samples.x, samples.frame, kPart, n_threads, stop);
#endif
    // Equal distances make the first draw depend on the weights alone.
    refresh_parts([&](index, index first, index n) { std::fill_n(&distance_[first], n, T(1)); });
  }

  void draw(T* centroids) {
    for (index j = 0; j < n_clusters_; ++j) {
      load_row(samples_.x, next(), centroids + j * d_);
      pending_.resize(pending_.size() + d_);
      samples_.frame.to_frame(centroids + j * d_, pending_.data() + pending_.size() - d_);
      if (j == 0) std::fill_n(distance_.data(), n_, std::numeric_limits<T>::infinity());
      // A block is no larger than the number of centroids before it: a row then finds about one
      // nearer centroid in it.
      if (j + 1 < n_clusters_ && n_pending() >= std::min((j + 2) / 2, kBlock)) refresh();
    }
  }

 private:
  static constexpr index kBlock = 32;   // centroids per refresh, at most
  static constexpr index kPart = 1024;  // rows summed together and searched one by one

  index n_pending() const { return index(pending_.size()) / d_; }

  index next() {
    // Once rejected draws have cost a quarter of a refresh, refresh: later draws then become cheap.
    index spent = 0;
    for (;;) {
      if (!(total_ > 0)) return any_row();
      const index i = by_distance();
      if (farther(i, random_.uniform() * double(distance_[i]))) return i;
      spent += kPart + n_pending() * d_;
      if (spent > n_ * d_ / 4) {
        refresh();
        spent = 0;
      }
    }
  }

  // Returns a random row of positive weight. Used when every row lies on a centroid.
  index any_row() {
    for (;;) {
      const index i = index(random_.below(std::uint64_t(n_)));
      if (samples_.weight(i) > 0) return i;
    }
  }

  index by_distance() {
    const double target = random_.uniform() * total_;
    const index part = std::min<index>(
        std::upper_bound(part_sum_.begin(), part_sum_.end(), target) - part_sum_.begin(),
        index(part_sum_.size()) - 1);
    double sum = part == 0 ? 0 : part_sum_[part - 1];
    index last = -1;
    for (index i = part * kPart; i < std::min(n_, (part + 1) * kPart); ++i) {
      const double mass = samples_.weight(i) * double(distance_[i]);
      if (!(mass > 0)) continue;
      last = i;
      if ((sum += mass) > target) break;
    }
    return last;
  }

  // Returns whether row i is farther than sqrt(distance2) from all pending centroids.
  bool farther(index i, double distance2) {
    samples_.frame.load(samples_.x, i, row_.data());
    for (index j = 0; j < n_pending(); ++j)
      if (squared_distance(row_.data(), pending_.data() + j * d_, d_) <= distance2) return false;
    return true;
  }

  void refresh() {
#if defined(__AVX512VNNI__)
    if constexpr (sizeof(T) == 4)
      if (filter_) return refresh_filtered();
#endif
    if (LaneNearest<T>::takes(d_)) refresh_short_rows();
    else refresh_tiles();
  }

#if defined(__AVX512VNNI__)
  void refresh_filtered() {
    coded::Centroids centroids(n_pending(), d_);
    set_pending(centroids);
    centroids.ready();
    const TileShrink<T> tiles(samples_, pending_);
    refresh_parts([&](index part, index first, index n) {
      FilteredShrink::Scratch scratch(*filter_);
      if (!filter_->shrink(part, centroids, scratch, distance_.data() + first))
        tiles.shrink(first, n, distance_.data() + first);
    });
  }
#endif

  void refresh_short_rows() {
    LaneNearest<T> search(n_pending(), d_);
    set_pending(search);
    refresh_parts([&](index, index first, index n) {
      typename LaneNearest<T>::Scratch scratch(search);
      search.shrink(samples_.x, samples_.frame, first, n, scratch, distance_.data() + first);
    });
  }

  void refresh_tiles() {
    const TileShrink<T> tiles(samples_, pending_);
    refresh_parts(
        [&](index, index first, index n) { tiles.shrink(first, n, distance_.data() + first); });
  }

  template <class Search>
  void set_pending(Search& search) const {
    for (index j = 0; j < n_pending(); ++j) search.set(j, pending_.data() + j * d_);
  }

  // Calls shrink(part, first, n) for the rows of each part; afterwards nothing is pending.
  template <class Shrink>
  void refresh_parts(Shrink shrink) {
    parallel_ranges(index(part_sum_.size()), n_threads_, stop_, [&](index part, int) {
      const index first = part * kPart, n = std::min(n_ - first, kPart);
      shrink(part, first, n);
      double sum = 0;
      for (index i = first; i < first + n; ++i) sum += samples_.weight(i) * double(distance_[i]);
      part_sum_[part] = sum;
    });
    std::partial_sum(part_sum_.begin(), part_sum_.end(), part_sum_.begin());
    total_ = part_sum_.back();
    pending_.clear();
  }

  const Samples<T>& samples_;
  const index n_, d_, n_clusters_;
  const int n_threads_;
  Stop& stop_;
  Random random_;
  Buffer<T> distance_;            // squared, to the nearest centroid that is not pending
  std::vector<double> part_sum_;  // running sums of w·D², part by part
  double total_ = 0;
  std::vector<T> pending_;  // centroids drawn since the last refresh, in the frame
  std::vector<T> row_;
#if defined(__AVX512VNNI__)
  std::optional<FilteredShrink> filter_;
#endif
};

// Draws distinct rows, each set equally likely. With weights, each next row is drawn in proportion
// to its weight among those left (P. Efraimidis, P. Spirakis 2006). If there are more clusters than
// rows of positive weight, rows repeat.
template <class T>
void draw_rows(const Samples<T>& samples, index n_clusters, std::uint64_t seed, T* centroids) {
  Random random(seed, 0);
  const index n = samples.x.rows;
  std::vector<index> rows;
  if (samples.weights) {
    std::vector<std::pair<double, index>> keys;
    for (index i = 0; i < n; ++i) {
      const double u = random.uniform();
      if (samples.weights[i] > 0) keys.emplace_back(-std::log1p(-u) / samples.weights[i], i);
    }
    const index m = std::min<index>(n_clusters, index(keys.size()));
    std::partial_sort(keys.begin(), keys.begin() + m, keys.end());
    for (index j = 0; j < m; ++j) rows.push_back(keys[j].second);
  } else {
    // R. Floyd's draw without repetition.
    std::unordered_set<index> taken;
    for (index last = n - std::min(n, n_clusters); last < n; ++last) {
      index i = index(random.below(std::uint64_t(last) + 1));
      if (!taken.insert(i).second) taken.insert(i = last);
      rows.push_back(i);
    }
  }
  for (index j = 0; j < n_clusters; ++j)
    load_row(samples.x, rows[j % index(rows.size())], centroids + j * samples.x.cols);
}

// Spaces centroids evenly between the smallest and the largest value, both included.
template <class T>
void spread_evenly(const Samples<T>& samples, index n_clusters, T* centroids) {
  double low = INFINITY, high = -INFINITY;
  for (index i = 0; i < samples.x.rows; ++i) {
    if (!(samples.weight(i) > 0)) continue;
    double v;
    load_row(samples.x, i, &v);
    low = std::min(low, v);
    high = std::max(high, v);
  }
  for (index j = 0; j < n_clusters; ++j) {
    const double t = n_clusters > 1 ? double(j) / double(n_clusters - 1) : 0.5;
    centroids[j] = T(low * (1 - t) + high * t);
  }
}

// Takes the (j + ½)/K quantiles of the weighted values.
template <class T>
void spread_by_density(const Samples<T>& samples, index n_clusters, T* centroids) {
  std::vector<std::pair<T, double>> values;
  double total = 0;
  for (index i = 0; i < samples.x.rows; ++i) {
    const double w = samples.weight(i);
    if (!(w > 0)) continue;
    T v;
    load_row(samples.x, i, &v);
    values.emplace_back(v, w);
    total += w;
  }
  std::sort(values.begin(), values.end());
  double below = 0;
  std::size_t at = 0;
  for (index j = 0; j < n_clusters; ++j) {
    const double target = total * (double(j) + 0.5) / double(n_clusters);
    while (at + 1 < values.size() && below + values[at].second <= target)
      below += values[at++].second;
    centroids[j] = values[at].first;
  }
}

}  // namespace

template <class T>
void seed_centroids(const Samples<T>& samples, Init init, index n_clusters, std::uint64_t seed,
                    int n_threads, Stop& stop, T* centroids) {
  switch (init) {
    case Init::plus_plus:
      return PlusPlus<T>(samples, n_clusters, seed, n_threads, stop).draw(centroids);
    case Init::random:
      return draw_rows(samples, n_clusters, seed, centroids);
    case Init::linear:
      return spread_evenly(samples, n_clusters, centroids);
    case Init::density:
      return spread_by_density(samples, n_clusters, centroids);
  }
}

template void seed_centroids(const Samples<float>&, Init, index, std::uint64_t, int, Stop&, float*);
template void seed_centroids(const Samples<double>&, Init, index, std::uint64_t, int, Stop&,
                             double*);

}  // namespace ff

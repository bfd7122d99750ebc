#pragma once
#include "kernels/samples.hpp"

// The second half of a Lloyd iteration: labels → centroids, and what a labelling costs.
namespace ff {

// Σ (x − c)² in double.
template <class T>
inline double squared_distance(const T* x, const T* c, index d) {
  double partial[8] = {};
  index k = 0;
  for (; k + 8 <= d; k += 8)
    for (int u = 0; u < 8; ++u) {
      const double off = double(x[k + u]) - double(c[k + u]);
      partial[u] += off * off;
    }
  double sum = 0;
  for (; k < d; ++k) {
    const double off = double(x[k]) - double(c[k]);
    sum += off * off;
  }
  for (const double p : partial) sum += p;
  return sum;
}

// Σ w ‖x − c‖²
template <class T>
double inertia(const Samples<T>& samples, const T* centroids, const std::int32_t* labels,
               int n_threads, Stop& stop) {
  const index d = samples.x.cols;
  const Chunks chunks(samples.x.rows);
  std::vector<double> partial(chunks.count, 0.0);
  parallel_for(chunks.count, n_threads, stop, [&](index chunk, int) {
    std::vector<T> buffer(d);
    for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i)
      partial[chunk] += samples.weight(i) * squared_distance(row_as(samples.x, i, buffer.data()),
                                                             centroids + labels[i] * d, d);
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

// Centroids as means, sums in double. The work is cut into pieces of rows × slices of columns, so
// that the sums one task adds to stay in L2; pieces are then added in order.
template <class T>
class CentroidUpdate {
 public:
  CentroidUpdate(const Samples<T>& samples, index n_clusters, int n_threads, Stop& stop)
      : samples_(samples), k_(n_clusters), d_(samples.x.cols), n_threads_(n_threads), stop_(stop) {
    constexpr index kSliceBytes = index(256) << 10, kTasks = 32;
    const index fit = kSliceBytes / (k_ * index(sizeof(double))) / 16 * 16;
    width_ = std::clamp<index>(fit, 16, std::max<index>(d_, 16));
    slices_ = std::max<index>(ceil_div(d_, width_), 1);
    // Adding the pieces up must cost less than making them.
    pieces_ = std::clamp<index>(ceil_div(kTasks, slices_), 1, std::max<index>(samples.x.rows / (4 * k_), 1));
    sums_ = Buffer<double>(pieces_ * k_ * d_);
    mass_ = Buffer<double>(pieces_ * k_);
    count_ = Buffer<std::int64_t>(pieces_ * k_);
  }

  // Moves the centroids to the means of their rows; returns the squared shift of all together.
  double move(const std::int32_t* labels, T* centroids) {
    parallel_for(pieces_ * slices_, n_threads_, stop_, [&](index task, int) {
      add_piece(task / slices_, task % slices_, labels);
    });
    add_up();
    refill_empty(labels, centroids);
    double shift = 0;
    for (index j = 0; j < k_; ++j) {
      if (!(mass_[j] > 0)) continue;  // nothing to refill it with: it stays
      for (index k = 0; k < d_; ++k) {
        const T mean = T(sums_[j * d_ + k] / mass_[j]);
        const double step = double(mean) - double(centroids[j * d_ + k]);
        shift += step * step;
        centroids[j * d_ + k] = mean;
      }
    }
    return shift;
  }

 private:
  void add_piece(index piece, index slice, const std::int32_t* labels) {
    const index first = slice * width_, width = std::min(width_, d_ - first);
    const MatrixView part = columns(samples_.x, first, width);
    double* sums = sums_.data() + piece * k_ * d_ + first;
    double* mass = mass_.data() + piece * k_;
    std::int64_t* count = count_.data() + piece * k_;
    for (index j = 0; j < k_; ++j) std::fill_n(sums + j * d_, width, 0.0);
    if (slice == 0) {
      std::fill_n(mass, k_, 0.0);
      std::fill_n(count, k_, 0);
    }
    std::vector<T> buffer(width);
    const index n = part.rows;
    for (index i = n * piece / pieces_; i < n * (piece + 1) / pieces_; ++i) {
      const T* row = row_as(part, i, buffer.data());
      double* sum = sums + labels[i] * d_;
      const double w = samples_.weight(i);
      if (samples_.weights) {
        for (index k = 0; k < width; ++k) sum[k] += w * double(row[k]);
      } else {
        for (index k = 0; k < width; ++k) sum[k] += double(row[k]);
      }
      if (slice == 0) {
        mass[labels[i]] += w;
        count[labels[i]] += w > 0;
      }
    }
  }

  void add_up() {
    if (pieces_ == 1) return;
    constexpr index kClusters = 32;  // a task
    parallel_for(ceil_div(k_, kClusters), n_threads_, stop_, [&](index task, int) {
      const index first = task * kClusters, n = std::min(kClusters, k_ - first);
      for (index piece = 1; piece < pieces_; ++piece) {
        const index offset = piece * k_ + first;
        for (index m = 0; m < n * d_; ++m) sums_[first * d_ + m] += sums_[offset * d_ + m];
        for (index j = 0; j < n; ++j) {
          mass_[first + j] += mass_[offset + j];
          count_[first + j] += count_[offset + j];
        }
      }
    });
  }

  // An empty cluster, lowest index first, takes the row that is farthest from its centroid (equally
  // far: the lowest index) among rows that weigh something and do not leave their cluster empty.
  void refill_empty(const std::int32_t* labels, const T* centroids) {
    std::vector<index> empty;
    for (index j = 0; j < k_; ++j)
      if (!(mass_[j] > 0)) empty.push_back(j);
    if (empty.empty()) return;
    const index n = samples_.x.rows;
    std::vector<std::pair<double, index>> farthest(n);
    const Chunks chunks(n);
    parallel_for(chunks.count, n_threads_, stop_, [&](index chunk, int) {
      std::vector<T> buffer(d_);
      for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
        const double distance = squared_distance(row_as(samples_.x, i, buffer.data()),
                                                 centroids + labels[i] * d_, d_);
        farthest[i] = {samples_.weight(i) > 0 ? -distance : 0.0, i};
      }
    });
    // Sorted as far as is needed: a heap gives the next farthest in O(log n).
    const auto later = std::greater<>();
    std::make_heap(farthest.begin(), farthest.end(), later);
    std::vector<double> row(d_);
    auto end = farthest.end();
    for (const index j : empty) {
      index i = -1;
      while (i < 0 && end != farthest.begin()) {
        std::pop_heap(farthest.begin(), end--, later);
        if (end->first == 0) return;  // all that is left lies on its centroid
        if (count_[labels[end->second]] > 1) i = end->second;
      }
      if (i < 0) return;
      load_row(samples_.x, i, row.data());
      const double w = samples_.weight(i);
      const index from = labels[i];
      for (index k = 0; k < d_; ++k) {
        sums_[from * d_ + k] -= w * row[k];
        sums_[j * d_ + k] = w * row[k];
      }
      mass_[from] -= w;
      mass_[j] = w;
      --count_[from];
      count_[j] = 1;
    }
  }

  const Samples<T>& samples_;
  const index k_, d_;
  const int n_threads_;
  Stop& stop_;
  index width_, slices_, pieces_;
  Buffer<double> sums_, mass_;
  Buffer<std::int64_t> count_;  // rows that weigh something
};

}  // namespace ff

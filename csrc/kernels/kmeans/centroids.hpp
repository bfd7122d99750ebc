#pragma once
#include "core/prefetch.hpp"
#include "kernels/kmeans/samples.hpp"

// The second half of a Lloyd iteration: computes centroids from labels, and the inertia of labels.
namespace ff {

namespace detail {
// Adds w ((x_k − c_k) scale)² to lanes; returns the sum over the elements after the last whole
// vector.
template <class T, class Width>
inline double add_squares(const T* x, const T* c, Width d, double scale, double w,
                          simd::Vec<double>& lanes) {
  constexpr int kLanes = simd::kLanes<double>;
  index k = 0;
  for (; k + kLanes <= d; k += kLanes) {
    const auto off = (simd::load_wide(x + k) - simd::load_wide(c + k)) * scale;
    lanes = lanes + w * (off * off);
  }
  double rest = 0;
  for (; k < d; ++k) {
    const double off = (double(x[k]) - double(c[k])) * scale;
    rest += off * off;
  }
  return w * rest;
}
}  // namespace detail

// Returns Σ ((x − c) scale)² in double.
template <class T>
inline double squared_distance(const T* x, const T* c, index d, double scale = 1) {
  simd::Vec<double> lanes = {};
  const double rest = detail::add_squares(x, c, d, scale, 1, lanes);
  return rest + simd::reduce_add<double>(lanes);
}

// Returns Σ w ‖x − c‖² in the frame's units, where no square overflows or vanishes.
template <class T>
double inertia(const Samples<T>& samples, const T* centroids, const std::int32_t* labels,
               int n_threads, Stop& stop) {
  const Chunks chunks(samples.x.rows);
  const double scale = double(samples.frame.scale());
  std::vector<double> partial(chunks.count, 0.0);
  parallel_for(chunks.count, n_threads, stop, [&](index chunk, int) {
    with_width(samples.x.cols, [&](auto d) {
      Rows<T> rows(samples.x);
      simd::Vec<double> lanes = {};
      double rest = 0;
      for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i)
        rest += detail::add_squares(rows[i], centroids + labels[i] * d, d, scale, samples.weight(i),
                                    lanes);
      partial[chunk] = rest + simd::reduce_add<double>(lanes);
    });
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

// Computes centroids as means, with sums in double. The work is cut into pieces of rows and slices
// of columns, so that the sums of one task stay in its caches. The pieces are then added in order.
template <class T>
class CentroidUpdate {
 public:
  CentroidUpdate(const Samples<T>& samples, index n_clusters, int n_threads, Stop& stop)
      : samples_(samples), k_(n_clusters), d_(samples.x.cols), n_threads_(n_threads), stop_(stop) {
    // One update of kmeans c on one thread takes 22 ms with slices of 256 KB, which read x in short
    // runs, and 14 ms with 2 MB, although the sums are then in L3. 8 pieces take 11 ms, 16 take 12
    // and 32 take 14, but 8 would leave larger machines idle.
    constexpr index kSliceBytes = index(2) << 20, kTasks = 16;
    const index fit = kSliceBytes / (k_ * index(sizeof(double))) / 16 * 16;
    width_ = std::clamp<index>(fit, 16, std::max<index>(d_, 16));
    slices_ = std::max<index>(ceil_div(d_, width_), 1);
    // Adding the pieces up must cost less than computing them.
    pieces_ = std::clamp<index>(ceil_div(kTasks, slices_), 1,
                                std::max<index>(samples.x.rows / std::max<index>(4 * k_, 2048), 1));
    // With few clusters the next row often adds to a sum whose last addition is not yet finished:
    // 512 rows of 8 and 16 clusters take 1.0 ns a row with four sets of sums, 1.47 with one.
    if (k_ * d_ <= 512) banks_ = kBanks;
    sums_ = Buffer<double>(pieces_ * banks_ * k_ * d_);
    mass_ = Buffer<double>(pieces_ * banks_ * k_);
    count_ = Buffer<std::int64_t>(pieces_ * banks_ * k_);
    mean_.resize(d_);
  }

  // Moves the centroids to the means of their rows; returns the squared shift of all of them
  // together, in the frame's units.
  double move(const std::int32_t* labels, T* centroids) {
    parallel_ranges(pieces_ * slices_, n_threads_, stop_,
                    [&](index task, int) { add_piece(task / slices_, task % slices_, labels); });
    add_up();
    refill_empty(labels, centroids);
    double shift = 0;
    with_width(d_, [&](auto d) { shift = move_to_means(d, centroids); });
    return shift;
  }

 private:
  template <class Width>
  double move_to_means(Width d, T* centroids) {
    T* mean = mean_.data();
    double rest = 0;
    simd::Vec<double> lanes = {};
    for (index j = 0; j < k_; ++j) {
      const double mass = mass_[j];
      if (!(mass > 0)) continue;  // no row could refill it: it stays where it is
      const double* sum = sums_.data() + j * d;
      T* centroid = centroids + j * d;
      for (index k = 0; k < d; ++k) mean[k] = T(sum[k] / mass);
      rest += detail::add_squares(mean, centroid, d, double(samples_.frame.scale()), 1, lanes);
      std::copy_n(mean, d, centroid);
    }
    return rest + simd::reduce_add<double>(lanes);
  }

  void add_piece(index piece, index slice, const std::int32_t* labels) {
    const index first = slice * width_, width = std::min(width_, d_ - first);
    const MatrixView part = columns(samples_.x, first, width);
    const index n = part.rows, begin = n * piece / pieces_, end = n * (piece + 1) / pieces_;
    double* sums = sums_.data() + piece * banks_ * k_ * d_ + first;
    for (index j = 0; j < banks_ * k_; ++j) std::fill_n(sums + j * d_, width, 0.0);
    with_width(width, [&](auto w) {
      if (samples_.weights) add_rows<true>(part, begin, end, labels, w, sums);
      else add_rows<false>(part, begin, end, labels, w, sums);
    });
    if (slice == 0) count_rows(piece, begin, end, labels);
  }

  void count_rows(index piece, index begin, index end, const std::int32_t* labels) {
    double* mass = mass_.data() + piece * banks_ * k_;
    std::int64_t* count = count_.data() + piece * banks_ * k_;
    std::fill_n(mass, banks_ * k_, 0.0);
    std::fill_n(count, banks_ * k_, 0);
    if (samples_.weights) {
      for (index i = begin; i < end; ++i) {
        mass[labels[i]] += samples_.weights[i];
        count[labels[i]] += samples_.weights[i] > 0;
      }
    } else {
      const index k = k_;
      in_banks(begin, end, [=](index i, index bank) { ++count[bank * k + labels[i]]; });
      std::copy_n(count, banks_ * k_, mass);
    }
  }

  template <bool kWeighted, class Width>
  void add_rows(const MatrixView& part, index begin, index end, const std::int32_t* labels,
                Width width, double* sums) const {
    Rows<T> rows(part);
    if (rows.in_place()) {
      const char* data = part.data;
      const index stride = part.row_stride;
      add_rows<kWeighted>(part, begin, end, labels, width, sums,
                          [=](index i) { return reinterpret_cast<const T*>(data + i * stride); });
    } else {
      add_rows<kWeighted>(part, begin, end, labels, width, sums, [&](index i) { return rows[i]; });
    }
  }

  template <bool kWeighted, class Width, class RowOf>
  void add_rows(const MatrixView& part, index begin, index end, const std::int32_t* labels,
                Width width, double* sums, RowOf row_of) const {
    const index d = d_, bank_size = k_ * d_;
    const double* weights = samples_.weights;
    in_banks(begin, end, [=](index i, index bank) {
      constexpr int kLanes = simd::kLanes<double>;
      if constexpr (std::is_integral_v<Width>)
        prefetch(part, sums, labels, std::min(i + kAhead, end - 1));
      const T* row = row_of(i);
      double* sum = sums + bank * bank_size + labels[i] * d;
      const double w = kWeighted ? weights[i] : 1;
      const index whole = width / kLanes * kLanes;
      for (index k = 0; k < whole; k += kLanes)
        simd::store(sum + k, simd::load(sum + k) + w * simd::load_wide(row + k));
      for (index k = whole; k < width; ++k) sum[k] += w * double(row[k]);
    });
  }

  // Calls body(i, bank) for rows [begin, end), with the banks in turn.
  template <class Body>
  void in_banks(index begin, index end, Body body) const {
    index i = begin;
    if (banks_ == kBanks)
      for (; i + kBanks <= end; i += kBanks)
        body(i, 0), body(i + 1, 1), body(i + 2, 2), body(i + 3, 3);
    for (; i < end; ++i) body(i, 0);
  }

  // Fetches a row of x from memory, and the sums it will be added to from L2, while earlier rows
  // are added.
  void prefetch(const MatrixView& part, const double* sums, const std::int32_t* labels,
                index i) const {
    ff::prefetch(part.row(i), part.cols * part.col_stride);
    ff::prefetch(sums + labels[i] * d_, part.cols * index(sizeof(double)));
  }

  void add_up() {
    const index parts = pieces_ * banks_;
    if (parts == 1) return;
    constexpr index kClusters = 32;  // per task
    parallel_for(ceil_div(k_, kClusters), n_threads_, stop_, [&](index task, int) {
      const index first = task * kClusters, n = std::min(kClusters, k_ - first);
      for (index part = 1; part < parts; ++part) {
        const index offset = part * k_ + first;
        for (index m = 0; m < n * d_; ++m) sums_[first * d_ + m] += sums_[offset * d_ + m];
        for (index j = 0; j < n; ++j) {
          mass_[first + j] += mass_[offset + j];
          count_[first + j] += count_[offset + j];
        }
      }
    });
  }

  // Refills empty clusters, lowest index first. Each takes the row farthest from its centroid (ties
  // go to the lowest index) among the rows that have a positive weight and are not alone in their
  // cluster.
  void refill_empty(const std::int32_t* labels, const T* centroids) {
    std::vector<index> empty;
    for (index j = 0; j < k_; ++j)
      if (!(mass_[j] > 0)) empty.push_back(j);
    if (empty.empty()) return;
    const index n = samples_.x.rows;
    std::vector<std::pair<double, index>> farthest(n);
    const Chunks chunks(n);
    parallel_for(chunks.count, n_threads_, stop_, [&](index chunk, int) {
      Rows<T> rows(samples_.x);
      for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
        const double distance = squared_distance(rows[i], centroids + labels[i] * d_, d_,
                                                 double(samples_.frame.scale()));
        farthest[i] = {samples_.weight(i) > 0 ? -distance : 0.0, i};
      }
    });
    // A heap sorts only as far as is needed: it gives the next farthest row in O(log n).
    const auto later = std::greater<>();
    std::make_heap(farthest.begin(), farthest.end(), later);
    std::vector<std::int32_t> moved(labels, labels + n);
    std::vector<bool> affected(k_, false);
    auto end = farthest.end();
    for (auto j = empty.begin(); j != empty.end() && end != farthest.begin();) {
      std::pop_heap(farthest.begin(), end--, later);
      if (end->first == 0) break;  // all remaining rows lie on their centroids
      const index i = end->second, from = labels[i];
      if (count_[from] == 1) continue;
      --count_[from];
      affected[from] = affected[*j] = true;
      moved[i] = std::int32_t(*j++);
    }
    add_afresh(moved, affected);
  }

  // Computes the sums of some clusters from their rows again: subtracting the rows that left would
  // leave rounding behind.
  void add_afresh(const std::vector<std::int32_t>& labels, const std::vector<bool>& affected) {
    for (index j = 0; j < k_; ++j)
      if (affected[j]) std::fill_n(sums_.data() + j * d_, d_, mass_[j] = 0.0);
    std::vector<double> row(d_);
    for (index i = 0; i < samples_.x.rows; ++i) {
      const index j = labels[i];
      if (!affected[j]) continue;
      load_row(samples_.x, i, row.data());
      const double w = samples_.weight(i);
      for (index k = 0; k < d_; ++k) sums_[j * d_ + k] += w * row[k];
      mass_[j] += w;
    }
  }

  static constexpr index kBanks = 4;
  static constexpr index kAhead = 4;

  const Samples<T>& samples_;
  const index k_, d_;
  const int n_threads_;
  Stop& stop_;
  index width_, slices_, pieces_, banks_ = 1;
  Buffer<double> sums_, mass_;
  std::vector<T> mean_;
  Buffer<std::int64_t> count_;  // rows of positive weight
};

}  // namespace ff

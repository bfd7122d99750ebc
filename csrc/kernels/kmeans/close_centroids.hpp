#pragma once
#include <array>
#include <numeric>

#include "kernels/kmeans/centroids.hpp"

// Labels of rows near centroids that lie so close together that the searches cannot tell them
// apart: points at 0 and at 10⁶ … 10⁶ + 1, for example. They are found again from differences.
//
// A search compares scores x·c − ‖c‖²/2 of d + 1 terms, rounded by u each. So it may take ‖x−c‖²
// and ‖x−c'‖² for equal if they differ by up to B = 6 (d+1) u ‖c‖². Let j be the label, and t a
// centroid nearer by more than a share δ: (1+δ) ‖x−t‖² < ‖x−j‖². Then ‖x−j‖² < B (1+δ)/δ, and
// ‖j−t‖ ≤ ‖x−j‖ + ‖x−t‖ < 2 ‖x−j‖. So t is among the centroids within √(4 B (1+δ)/δ) of j. For
// most data there are none.
namespace ff {

template <class T>
class CloseCentroids {
 public:
  CloseCentroids(const Samples<T>& samples, index n_clusters, int n_threads, Stop& stop)
      : samples_(samples),
        k_(n_clusters),
        d_(samples.x.cols),
        ld_(round_up(k_, kLanes)),
        n_threads_(k_ < kAlone ? 1 : n_threads),
        stop_(stop),
        columns_(kColumns * ld_),
        reach2_(k_),
        has_close_(k_) {
    std::fill_n(columns_.data(), kColumns * ld_, T(0));
  }

  // Looks for centroids that are close together; returns whether there are any. Both arrays must
  // live until the last correct(). framed: the same centroids in the frame.
  bool find(const T* centroids, const T* framed) {
    centroids_ = centroids;
    framed_ = framed;
    if (k_ < 2) return false;
    fill_columns();
    std::fill(has_close_.begin(), has_close_.end(), char(false));
    if (n_threads_ == 1) {
      mark_close(0, k_);
    } else {
      parallel_for(ceil_div(k_, kTask), n_threads_, stop_, [&](index task, int) {
        mark_close(task * kTask, std::min(k_, (task + 1) * kTask));
      });
    }
    const bool any =
        std::find(has_close_.begin(), has_close_.end(), char(true)) != has_close_.end();
    if (any) list_close();
    return any;
  }

  // Replaces labels of the rows from `first` on by nearer centroids that are close to them.
  void correct(index first, index n, std::int32_t* labels) const {
    Rows<T> rows(samples_.x);
    for (index i = 0; i < n; ++i) {
      if (!has_close_[labels[i]]) continue;
      const std::vector<std::int32_t>& list = lists_[labels[i]];
      if (list.empty()) continue;
      const T* row = rows[first + i];
      std::int32_t nearest = labels[i];
      double least = distance2(row, nearest);
      const auto compare = [&](std::int32_t j) {
        const double found = distance2(row, j);
        if (found < least || (found == least && j < nearest)) least = found, nearest = j;
      };
      if (index(list.size()) < kMost) {
        for (const std::int32_t j : list) compare(j);
      } else {
        stop_.throw_if_requested();
        for (const std::int32_t j : distinct_) compare(j);
      }
      labels[i] = nearest;
    }
  }

 private:
  static constexpr int kLanes = simd::kLanes<T>;
  static constexpr int kColumns = 4;    // compared first: they tell most centroids apart
  static constexpr int kTogether = 4;   // centroids that share each load
  static constexpr index kTask = 64;    // centroids
  static constexpr index kAlone = 512;  // with fewer centroids one thread compares all
  static constexpr index kMost = 64;    // longer lists are not held: all centroids are compared
  static constexpr double kShare = 1.0 / 64;  // δ

  double distance2(const T* row, index j) const {
    return squared_distance(row, centroids_ + j * d_, d_, double(samples_.frame.scale()));
  }

  // Takes the columns in which the centroids differed most at the first call. Any would do.
  void choose_columns() {
    std::vector<double> squares(d_, 0.0);
    for (index j = 0; j < k_; ++j)
      for (index k = 0; k < d_; ++k)
        squares[k] += double(framed_[j * d_ + k]) * double(framed_[j * d_ + k]);
    chosen_.resize(d_);
    std::iota(chosen_.begin(), chosen_.end(), 0);
    const index n = std::min<index>(d_, kColumns);
    std::partial_sort(chosen_.begin(), chosen_.begin() + n, chosen_.end(),
                      [&](index a, index b) { return squares[a] > squares[b]; });
    chosen_.resize(n);
  }

  void fill_columns() {
    if (chosen_.empty()) choose_columns();
    constexpr double kUnit = std::numeric_limits<T>::epsilon() / 2;
    const double share = 24 * double(std::min<index>(d_ + 1, 11)) * kUnit * (1 + 1 / kShare);
    for (index j = 0; j < k_; ++j) reach2_[j] = share * squared_norm(framed_ + j * d_, d_);
    for (index c = 0; c < index(chosen_.size()); ++c) {
      T* column = columns_.data() + c * ld_;
      for (index j = 0; j < k_; ++j) column[j] = framed_[j * d_ + chosen_[c]];
      std::fill(column + k_, column + ld_, std::numeric_limits<T>::infinity());
    }
  }

  // Marks the centroids of [begin, end) that others are close to.
  void mark_close(index begin, index end) {
    index j = begin;
    for (; j + kTogether <= end; j += kTogether) mark_close<kTogether>(j);
    for (; j < end; ++j) mark_close<1>(j);
  }

  template <int N>
  void mark_close(index first) {
    simd::Vec<T> own[N][kColumns], reach2[N];
    for (int n = 0; n < N; ++n) {
      for (int c = 0; c < kColumns; ++c) own[n][c] = simd::splat(columns_[c * ld_ + first + n]);
      reach2[n] = simd::splat(T(reach2_[first + n] * 1.0001));
    }
    for (index l = 0; l < ld_; l += kLanes) {
      simd::Vec<T> other[kColumns];
      for (int c = 0; c < kColumns; ++c) other[c] = simd::load(columns_.data() + c * ld_ + l);
      for (int n = 0; n < N; ++n) {
        simd::Vec<T> apart2 = {};
        for (int c = 0; c < kColumns; ++c) {
          const simd::Vec<T> off = other[c] - own[n][c];
          apart2 = simd::mul_add(off, off, apart2);
        }
        unsigned near = simd::mask_bits(simd::Vec<simd::Int<T>>(apart2 <= reach2[n]));
        const index j = first + n;
        if (j >= l && j < l + kLanes) near &= ~(1u << (j - l));
        for (; near && !has_close_[j]; near &= near - 1)
          has_close_[j] = are_close(j, l + __builtin_ctz(near));
      }
    }
  }

  bool are_close(index j, index l) const {
    return squared_distance(framed_ + j * d_, framed_ + l * d_, d_) <= reach2_[j];
  }

  // Lists the centroids that are close to each. Of equal centroids only the first can be a label,
  // so the others are left out.
  void list_close() {
    distinct_.resize(k_);
    std::iota(distinct_.begin(), distinct_.end(), 0);
    const auto compared = [&](std::int32_t a, std::int32_t b) {
      const T *from = centroids_ + a * d_, *to = centroids_ + b * d_;
      return std::mismatch(from, from + d_, to);
    };
    const auto equal = [&](std::int32_t a, std::int32_t b) {
      return compared(a, b).first == centroids_ + (a + 1) * d_;
    };
    std::sort(distinct_.begin(), distinct_.end(), [&](std::int32_t a, std::int32_t b) {
      const auto [x, y] = compared(a, b);
      return x == centroids_ + (a + 1) * d_ ? a < b : *x < *y;
    });
    distinct_.erase(std::unique(distinct_.begin(), distinct_.end(), equal), distinct_.end());
    std::sort(distinct_.begin(), distinct_.end());
    lists_.assign(k_, {});
    parallel_for(ceil_div(k_, kTask), n_threads_, stop_, [&](index task, int) {
      for (index j = task * kTask; j < std::min(k_, (task + 1) * kTask); ++j)
        if (has_close_[j]) list_close_to(j);
    });
  }

  void list_close_to(index j) {
    for (const std::int32_t l : distinct_) {
      if (index(lists_[j].size()) == kMost) return;
      if (l != j && are_close(j, l)) lists_[j].push_back(l);
    }
  }

  const Samples<T>& samples_;
  const index k_, d_, ld_;
  const int n_threads_;
  Stop& stop_;
  const T *centroids_ = nullptr, *framed_ = nullptr;
  Buffer<T> columns_;  // of the centroids in the frame
  std::vector<index> chosen_;
  std::vector<double> reach2_;
  std::vector<char> has_close_;
  std::vector<std::int32_t> distinct_;
  std::vector<std::vector<std::int32_t>> lists_;
};

}  // namespace ff

#pragma once
#include <memory>

#include "kernels/kmeans/close_centroids.hpp"
#include "kernels/kmeans/nearest_coded_lanes.hpp"
#include "kernels/kmeans/nearest_filtered.hpp"
#include "kernels/kmeans/nearest_lanes.hpp"
#include "kernels/kmeans/nearest_line.hpp"
#include "kernels/kmeans/samples.hpp"

// The first half of a Lloyd iteration: computes labels from centroids, by the search that suits the
// sizes.
namespace ff {

template <class T>
class Assignment {
 public:
  Assignment(const Samples<T>& samples, index n_clusters, int n_threads, Stop& stop)
      : samples_(samples),
        n_clusters_(n_clusters),
        n_threads_(n_threads),
        stop_(stop),
        close_(samples, n_clusters, n_threads, stop),
        framed_(n_clusters * samples.x.cols) {
    const index n = samples.x.rows, d = samples.x.cols;
    const bool is_small = n * d * index(sizeof(T)) <= kSmallBytes;
    if (choice() == Search::line) {
      line_ = std::make_unique<LineNearest<T>>(n_clusters);
      if (is_small) lanes_ = line_->lanes(samples.x, samples.frame);
    } else if (choice() == Search::lanes && is_small) {
      small_ = std::make_unique<LaneNearest<T>>(n_clusters, d);
      lanes_ = small_->lanes(samples.x, samples.frame);
    }
    if (lanes_.size()) found_.resize(n);
  }

  // Writes the labels of all rows; returns whether any of them changed (−1 before the first call).
  bool run(const T* centroids, std::int32_t* labels) {
    if (small_) return run_small(*small_, centroids, labels);
    switch (choice()) {
      case Search::line:
        if (lanes_.size()) return run_small(*line_, centroids, labels);
        return run_blocks(*line_, centroids, labels);
      case Search::lanes:
        return run_blocks<LaneNearest<T>>(centroids, labels);
#if defined(__AVX512VNNI__)
      case Search::coded_lanes:
        if constexpr (sizeof(T) == 4)
          return run_blocks<CodedLaneNearest>(centroids, labels, float(samples_.reach));
        break;
      case Search::filtered:
        if constexpr (sizeof(T) == 4) return run_blocks<FilteredNearest>(centroids, labels);
        break;
#endif
      case Search::plain:
        break;
    }
    return run_blocks<Nearest<T>>(centroids, labels);
  }

 private:
#if defined(__AVX512VNNI__)
  enum class Search { line, lanes, coded_lanes, filtered, plain };
#else
  enum class Search { line, lanes, plain };
#endif

  // A problem of at most this size stays in a core's L2 with its sums, so its rows are laid out for
  // the search only once.
  static constexpr index kSmallBytes = index(256) << 10;

  Search choice() const {
    const index d = samples_.x.cols;
    if (d == 1) return Search::line;
#if defined(__AVX512VNNI__)
    // ns per row and thread:    lanes  coded lanes  filtered
    //   d  8,   64 centroids     5.9      5.9
    //   d  8,  256              20       17
    //   d 12,  256              33       23          31
    //   d 16,  256              48       29          30
    //   d 16, 1024             189      110          90
    if (sizeof(T) == 4) {
      const bool long_rows = d > kMaxLaneDepth || (d > 12 && n_clusters_ > 512);
      if (long_rows && d <= coded::kMaxDepth && n_clusters_ >= 64) return Search::filtered;
      if (!long_rows && d >= 6 && d * n_clusters_ >= 640) return Search::coded_lanes;
    }
#endif
    return LaneNearest<T>::takes(d) ? Search::lanes : Search::plain;
  }

  // Returns whether the labels found have to be corrected.
  template <class Nearest>
  bool pack(const T* centroids, Nearest& search) {
    const index d = samples_.x.cols;
    for (index j = 0; j < n_clusters_; ++j) {
      T* framed = framed_.data() + j * d;
      samples_.frame.to_frame(centroids + j * d, framed);
      search.set(j, framed);
    }
    search.ready();
    return close_.find(centroids, framed_.data());
  }

  bool pack(const T* centroids, LineNearest<T>& search) {
    search.set_all(centroids);
    return false;
  }

  template <class Nearest>
  bool run_small(Nearest& search, const T* centroids, std::int32_t* labels) {
    stop_.throw_if_requested();
    const bool are_close = pack(centroids, search);
    search.search(lanes_, index(found_.size()), found_.data());
    if (are_close) close_.correct(0, index(found_.size()), found_.data());
    const bool changed = !std::equal(found_.begin(), found_.end(), labels);
    if (changed) std::copy(found_.begin(), found_.end(), labels);
    return changed;
  }

  template <class Nearest, class... Args>
  bool run_blocks(const T* centroids, std::int32_t* labels, Args... args) {
    Nearest search(n_clusters_, samples_.x.cols, args...);
    return run_blocks(search, centroids, labels);
  }

  template <class Nearest>
  bool run_blocks(Nearest& search, const T* centroids, std::int32_t* labels) {
    const bool are_close = pack(centroids, search);
    const index n = samples_.x.rows, block = search.block_rows();
    std::vector<std::unique_ptr<typename Nearest::Scratch>> scratch(n_threads_);
    std::vector<std::vector<std::int32_t>> found(n_threads_);
    std::atomic<bool> changed{false};
    parallel_ranges(ceil_div(n, block), n_threads_, stop_, [&](index b, int worker) {
      auto& mine = found[worker];
      if (!scratch[worker]) {
        scratch[worker] = std::make_unique<typename Nearest::Scratch>(search);
        mine.resize(block);
      }
      const index first = b * block, count = std::min(block, n - first);
      std::copy_n(labels + first, count, mine.begin());
      search.search(samples_.x, samples_.frame, first, count, *scratch[worker], mine.data());
      if (are_close) close_.correct(first, count, mine.data());
      if (!std::equal(mine.begin(), mine.begin() + count, labels + first)) {
        changed.store(true, std::memory_order_relaxed);
        std::copy_n(mine.begin(), count, labels + first);
      }
    });
    return changed.load();
  }

  const Samples<T>& samples_;
  const index n_clusters_;
  const int n_threads_;
  Stop& stop_;
  CloseCentroids<T> close_;
  Buffer<T> framed_;  // the centroids
  std::unique_ptr<LaneNearest<T>> small_;
  std::unique_ptr<LineNearest<T>> line_;
  Buffer<T> lanes_;  // all rows of a small problem, as the search needs them
  std::vector<std::int32_t> found_;
};

}  // namespace ff

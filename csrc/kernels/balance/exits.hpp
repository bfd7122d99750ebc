#pragma once
#include "kernels/balance/prices.hpp"

// For each pair of clusters j → l, the point of j that moves to l at the least cost, kept up to
// date while points move. The cost of a move, δ = c_il − c_ij, does not depend on prices.
namespace ff::balance {

// The points that each cluster holds.
class Members {
 public:
  Members(index n_clusters, const std::vector<std::int32_t>& labels)
      : points_(n_clusters), place_(labels.size()) {
    std::vector<index> sizes(n_clusters, 0);
    for (const std::int32_t label : labels) ++sizes[label];
    for (index j = 0; j < n_clusters; ++j) points_[j].reserve(sizes[j] + 1);
    for (index i = 0; i < index(labels.size()); ++i) add(std::int32_t(i), labels[i]);
  }

  const std::vector<std::int32_t>& operator[](index j) const { return points_[j]; }

  void add(std::int32_t i, index j) {
    place_[i] = std::int32_t(points_[j].size());
    points_[j].push_back(i);
  }

  void remove(std::int32_t i, index j) {
    const std::int32_t last = points_[j].back();
    points_[j][place_[i]] = last;
    place_[last] = place_[i];
    points_[j].pop_back();
  }

 private:
  std::vector<std::vector<std::int32_t>> points_;
  std::vector<std::int32_t> place_;
};

// Few of the n · K moves lie on shortest paths. So each pair has a heap of its cheapest moves only,
// and a bound: every move below it is in the heap. If a path would need a move above the bound,
// refill() reads the cluster again. A move whose point has left stays in its heap until it reaches
// the top.
class Exits {
 public:
  static constexpr std::int32_t kUnknown = -1;  // the pair's δ is a lower bound, not a move

  // Starts with the moves that cost at most `radius` more than staying, prices included.
  Exits(const Choices& choices, const std::vector<std::int32_t>& labels, const Members& members,
        double radius, index ld, Stop& stop)
      : costs_(choices.costs()),
        labels_(labels),
        members_(members),
        ld_(ld),
        heaps_(costs_.n_clusters * costs_.n_clusters),
        bounds_(costs_.n_clusters * ld, kInfinity),
        points_(costs_.n_clusters * ld, kUnknown) {
    for (index j = 0; j < costs_.n_clusters; ++j)
      for (index l = 0; l < costs_.n_clusters; ++l)
        if (l != j && !members_[j].empty())
          bounds_[j * ld_ + l] = choices.prices()[j] - choices.prices()[l] + radius;
    collect(choices.gaps(), radius, choices.threads_for(radius), stop);
    costs_of_ = bounds_;
    for (index j = 0; j < costs_.n_clusters; ++j)
      for (index l = 0; l < costs_.n_clusters; ++l) {
        Heap& heap = heaps_[j * costs_.n_clusters + l];
        std::make_heap(heap.begin(), heap.end(), dearer);
        show(j, l);
      }
  }

  // Returns δ of the cheapest move from j to each l, or a lower bound of it; infinite if there is
  // none.
  const double* costs_of(index j) const { return costs_of_.data() + j * ld_; }
  double cost(index j, index l) const { return costs_of_[j * ld_ + l]; }
  std::int32_t point(index j, index l) const { return points_[j * ld_ + l]; }

  void refill(index j, index l) {
    Heap& heap = heaps_[j * costs_.n_clusters + l];
    heap.clear();
    for (const std::int32_t i : members_[j])
      heap.push_back({costs_.row(i)[l] - costs_.row(i)[j], i});
    // Keeps a constant share, so that a pair is read at most a constant number of times.
    const index wanted = std::max<index>(16, index(heap.size()) / 8);
    double& bound = bounds_[j * ld_ + l];
    bound = kInfinity;
    if (index(heap.size()) > wanted) {
      std::nth_element(heap.begin(), heap.begin() + wanted, heap.end(), cheaper);
      bound = heap[wanted].cost;
      heap.resize(wanted);
    }
    std::make_heap(heap.begin(), heap.end(), dearer);
    show(j, l);
  }

  // left() and entered() must be called after labels and members have changed.
  void left(std::int32_t i, index j) {
    for (index l = 0; l < costs_.n_clusters; ++l)
      if (points_[j * ld_ + l] == i) show(j, l);
  }

  void entered(std::int32_t i, index j) {
    const double* row = costs_.row(i);
    for (index l = 0; l < costs_.n_clusters; ++l) {
      const double delta = row[l] - row[j];
      if (l == j || !(delta <= bounds_[j * ld_ + l])) continue;
      Heap& heap = heaps_[j * costs_.n_clusters + l];
      heap.push_back({delta, i});
      std::push_heap(heap.begin(), heap.end(), dearer);
      show(j, l);
    }
  }

 private:
  struct Move {
    double cost;
    std::int32_t point;
  };
  using Heap = std::vector<Move>;

  static bool cheaper(const Move& a, const Move& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.point < b.point;
  }
  static bool dearer(const Move& a, const Move& b) { return cheaper(b, a); }

  void show(index j, index l) {
    Heap& heap = heaps_[j * costs_.n_clusters + l];
    while (!heap.empty() && labels_[heap.front().point] != j) {
      std::pop_heap(heap.begin(), heap.end(), dearer);
      heap.pop_back();
    }
    costs_of_[j * ld_ + l] = heap.empty() ? bounds_[j * ld_ + l] : heap.front().cost;
    points_[j * ld_ + l] = heap.empty() ? kUnknown : heap.front().point;
  }

  void collect(const std::vector<double>& gaps, double radius, int n_threads, Stop& stop) {
    struct Found {
      std::int32_t point, to;
      double cost;
    };
    const index n_chunks = ceil_div(costs_.n, kChunk);
    std::vector<std::vector<Found>> found(n_chunks);
    parallel_for(n_chunks, n_threads, stop, [&](index chunk, int) {
      for (index i = chunk * kChunk; i < std::min(costs_.n, (chunk + 1) * kChunk); ++i) {
        const double* bounds = bounds_.data() + labels_[i] * ld_;
        const double* row = costs_.row(i);
        if (gaps[i] > radius) continue;
        for (index l = 0; l < costs_.n_clusters; ++l)
          if (const double delta = row[l] - row[labels_[i]]; l != labels_[i] && delta <= bounds[l])
            found[chunk].push_back({std::int32_t(i), std::int32_t(l), delta});
      }
    });
    for (const auto& part : found)
      for (const Found& move : part)
        heaps_[labels_[move.point] * costs_.n_clusters + move.to].push_back(
            {move.cost, move.point});
  }

  const Costs& costs_;
  const std::vector<std::int32_t>& labels_;
  const Members& members_;
  const index ld_;
  std::vector<Heap> heaps_;
  std::vector<double> bounds_;    // every move below it is in the heap
  std::vector<double> costs_of_;  // the lowest of the heap, or the bound if it is empty
  std::vector<std::int32_t> points_;
};

}  // namespace ff::balance

#pragma once
#include <cmath>

#include "kernels/kmeans1d_penalty.hpp"

// The least inertia of k clusters, f(k), is convex in k where interval costs have the Monge
// property. So there is a penalty a cluster at which the cheapest partition into any number of
// intervals has k of them, or fewer and more at once; the search is for that penalty, and it needs
// memory for one row of F, not for k.
//
// Sources: Aggarwal, Schieber, Tokuyama (1994) for the penalty and the exchange of paths; Grønlund
// et al. (2017) for k-means.
namespace ff {

// A partition: for every stretch, where its free clusters begin and where the last one ends.
struct Partition {
  std::vector<index> cuts;
  std::vector<std::size_t> ends;  // of each stretch, in cuts
  double cost = 0;

  index n_clusters() const { return index(cuts.size()) - index(ends.size()); }
  std::size_t begin(std::size_t s) const { return s == 0 ? 0 : ends[s - 1]; }
};

template <class Grid>
class ExactPartition {
 public:
  ExactPartition(const double* y, const double* w, index n, const std::vector<Stretch>& stretches,
                 const Grid& grid, int n_threads, Stop& stop)
      : y_(y),
        w_(w),
        n_(n),
        stretches_(stretches),
        grid_(grid),
        stop_(stop),
        penalized_(y, w, n, grid, n_threads, stop) {}

  // At most k free clusters, k at least 1 and less than the number of values. Adds to n_solved.
  Partition solve(index k, std::int64_t& n_solved) {
    Partition few, many;
    double few_penalty = 0, many_penalty = 0, penalty = first_guess(k), last_factor = 1;
    bool on_chord = false;
    for (int step = 0;; ++step) {
      stop_.throw_if_requested();
      Partition found = partition(penalty);
      ++n_solved;
      const index count = found.n_clusters();
      if (count == k) return found;
      found.cost = cost_of(found);
      if (count < k) {
        if (found.cost <= 0 || penalty * double(k - count) <= kNothing * found.cost) return found;
        // Both ends of a chord are cheapest at its slope, and so is what lies between.
        if (on_chord && count <= few.n_clusters()) return exchange(few, many, k);
        few = std::move(found), few_penalty = penalty;
      } else {
        if (on_chord && count >= many.n_clusters()) return exchange(few, many, k);
        many = std::move(found), many_penalty = penalty;
      }
      // f(k) falls like 1/k², its slope like 1/k³.
      const double ratio = (double(count) + 0.5) / (double(k) + 0.5);
      double factor = std::min(std::max(ratio * ratio * ratio, 1e-3), 1e3);
      on_chord = false;
      if (few.ends.empty() || many.ends.empty()) {
        if (step > 2) factor = factor < 1 ? std::min(factor, last_factor * last_factor)
                                          : std::max(factor, last_factor * last_factor);
        last_factor = factor;
        penalty *= factor;
        continue;
      }
      const double next = penalty * factor;
      if (step < kModelSteps && next > many_penalty && next < few_penalty) {
        penalty = next;
        continue;
      }
      penalty = (few.cost - many.cost) / double(many.n_clusters() - few.n_clusters());
      if (!(penalty > many_penalty && penalty < few_penalty)) return exchange(few, many, k);
      on_chord = true;
    }
  }

 private:
  static constexpr double kNothing = 1e-16;  // of the cost: less than rounding leaves
  static constexpr int kModelSteps = 5;

  Partition partition(double penalty) {
    Partition found;
    for (const Stretch& part : stretches_) {
      penalized_.solve(part, penalty, found.cuts);
      found.ends.push_back(found.cuts.size());
    }
    return found;
  }

  // Panter and Dite: f(k) is about (∫ density^⅓)³ / 12k², its slope twice that over k.
  double first_guess(index k) const {
    const index block = std::max<index>(1, n_ / (4 * k));
    double sum = 0;
    for (index i = 0; i + 1 < n_; i += block) {
      const index end = std::min(i + block, n_ - 1);
      double weight = 0;
      for (index j = i; j < end; ++j) weight += w_[j];
      const double width = y_[end] - y_[i];
      sum += std::cbrt(weight * width * width);
    }
    const double each = sum / double(k);
    return std::max(each * each * each / 6, std::numeric_limits<double>::min());
  }

  double cost_of(const Partition& found) const {
    double total = 0;
    for (std::size_t s = 0; s < stretches_.size(); ++s) {
      const Stretch& part = stretches_[s];
      const std::size_t begin = found.begin(s), end = found.ends[s];
      total += cost_of(part.first, found.cuts[begin], part.left);
      for (std::size_t c = begin; c + 1 < end; ++c)
        total += cost_of(found.cuts[c], found.cuts[c + 1],
                         best_place(y_, w_, found.cuts[c], found.cuts[c + 1], grid_));
      total += cost_of(found.cuts[end - 1], part.last, part.right);
    }
    return total;
  }

  double cost_of(index first, index last, double place) const {
    double cost = 0;
    for (index i = first; i < last; ++i) {
      const double d = y_[i] - place;
      cost += w_[i] * d * d;
    }
    return cost;
  }

  // k clusters from two partitions cheapest at one penalty, with fewer and with more. Where an edge
  // of the one spans an edge of the other, (p, p') ⊇ (q, q'), each may go on as the other does:
  // c(q, p') + c(p, q') ≤ c(p, p') + c(q, q'). With the ends of a stretch as nodes before and after
  // all, such edges are found at any difference x of their numbers, 0 < x < |Q| − |P|.
  Partition exchange(const Partition& few, const Partition& many, index k) const {
    Partition mixed;
    index missing = k - few.n_clusters();
    for (std::size_t s = 0; s < stretches_.size(); ++s) {
      const index* p = few.cuts.data() + few.begin(s);
      const index* q = many.cuts.data() + many.begin(s);
      const index n_p = index(few.ends[s] - few.begin(s));
      const index n_q = index(many.ends[s] - many.begin(s)), more = n_q - n_p;
      index from_q = 0, from_p = 0;  // so many cuts of q, then p's from this one on
      if (more > 0 && more <= missing) {
        from_q = n_q, from_p = n_p;
      } else if (more > 0 && missing > 0) {
        while (from_p < n_p && p[from_p] < q[from_p + missing]) ++from_p;
        from_q = from_p + missing;
      }
      mixed.cuts.insert(mixed.cuts.end(), q, q + from_q);
      mixed.cuts.insert(mixed.cuts.end(), p + from_p, p + n_p);
      mixed.ends.push_back(mixed.cuts.size());
      missing -= std::min(std::max<index>(more, 0), missing);
    }
    return mixed;
  }

  const double *y_, *w_;
  const index n_;
  const std::vector<Stretch>& stretches_;
  const Grid grid_;
  Stop& stop_;
  PenalizedPartition<Grid> penalized_;
};

}  // namespace ff

#pragma once
#include <cmath>

#include "kernels/kmeans1d/grid.hpp"
#include "kernels/kmeans1d/penalty.hpp"

// Let f(k) be the least inertia of k clusters. It is convex in k if interval costs have the Monge
// property. So there is a penalty per cluster at which the cheapest partition into any number of
// intervals has k of them, or at which one with fewer and one with more are equally cheap. The
// search looks for that penalty and needs memory for one row of F instead of k.
//
// Sources: Aggarwal, Schieber, Tokuyama (1994) for the penalty and the exchange of paths; Grønlund
// et al. (2017) for k-means.
namespace ff {

// A partition: for every stretch, where its free clusters begin and where the last of them ends.
struct Partition {
  std::vector<index> cuts;
  std::vector<std::size_t> ends;  // the end of each stretch, as a position in cuts

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

  // Returns a partition into at most k free clusters; k is at least 1 and less than the number of
  // values. Adds the number of problems solved to n_solved.
  Partition solve(index k, std::int64_t& n_solved) {
    Search search(k, first_penalty(k));
    for (int step = 0;; ++step) {
      stop_.throw_if_requested();
      Partition found = partition(search.penalty);
      ++n_solved;
      const index count = found.n_clusters();
      if (count == k) return found;
      if (count < k && step >= kModelSteps &&
          search.penalty * double(k - count) <= kNothing * cost_of(found))
        return found;
      // Both ends of a chord are cheapest at its slope, and so is every partition between them.
      if (search.on_chord &&
          (count <= search.few.n_clusters() || count >= search.many.n_clusters()))
        return exchange(search.few, search.many, k);
      search.learn(std::move(found));
      if (step < kModelSteps && search.follow_model()) continue;
      if (!search.enclosed()) {
        search.leap();
        continue;
      }
      const index more = search.many.n_clusters() - search.few.n_clusters();
      if (!search.take_chord((cost_of(search.few) - cost_of(search.many)) / double(more)))
        return exchange(search.few, search.many, k);
    }
  }

 private:
  static constexpr double kNothing = 1e-16;  // share of the cost; less than its rounding error
  static constexpr int kModelSteps = 6;
  static constexpr index kCoarse = 24;  // values per cluster in a coarse problem

  Partition partition(double penalty) {
    Partition found;
    for (const Stretch& part : stretches_) {
      penalized_.solve(part, penalty, found.cuts);
      found.ends.push_back(found.cuts.size());
    }
    return found;
  }

  // Bounds on the penalty sought: that of a partition with too few clusters and of one with too
  // many.
  struct Search {
    Search(index n_clusters, double first) : k(n_clusters), penalty(first) {}

    bool enclosed() const { return !few.ends.empty() && !many.ends.empty(); }

    void learn(Partition found) {
      const double count = double(found.n_clusters()) + 0.5, wanted = double(k) + 0.5;
      // f(k) falls like 1/k² and its slope like 1/k³, or with the power that the last two steps
      // show.
      double power = 3;
      if (last_count > 0 && last_count != count)
        power = std::log(penalty / last_penalty) / std::log(last_count / count);
      model = penalty * std::pow(count / wanted, std::min(std::max(power, 1.0), 12.0));
      last_count = count, last_penalty = penalty;
      on_chord = false;
      if (found.n_clusters() < k) few = std::move(found), few_penalty = penalty;
      else many = std::move(found), many_penalty = penalty;
    }

    bool follow_model() {
      if (!few.ends.empty() && model >= few_penalty) return false;
      if (!many.ends.empty() && model <= many_penalty) return false;
      penalty = model;
      return true;
    }

    // Takes larger and larger steps until the penalty is bounded on both sides.
    void leap() {
      penalty = few.ends.empty() ? penalty * stride : penalty / stride;
      stride *= stride;
    }

    bool take_chord(double slope) {
      on_chord = slope > many_penalty && slope < few_penalty;
      if (on_chord) penalty = slope;
      return on_chord;
    }

    index k;
    double penalty, model = 0, last_penalty = 0, last_count = 0, stride = 4;
    double few_penalty = 0, many_penalty = 0;
    Partition few, many;
    bool on_chord = false;
  };

  // Returns the answer of a problem with fewer, coarser values if there are many values per
  // cluster, otherwise an estimate after Panter and Dite: f(k) is about (∫ density^⅓)³ / 12k², and
  // its slope twice that over k.
  double first_penalty(index k) const {
    const index coarse = kCoarse * k;
    if (n_ >= 8 * coarse && stretches_.size() == 1) return coarse_penalty(coarse, k);
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

  double coarse_penalty(index count, index k) const {
    Buffer<double> y(count), w(count);
    for (index c = 0; c < count; ++c) {
      const index first = c * n_ / count, last = (c + 1) * n_ / count;
      double weight = 0, sum = 0;
      for (index i = first; i < last; ++i) {
        weight += w_[i];
        sum += w_[i] * (y_[i] - y_[first]);
      }
      y[c] = y_[first] + sum / weight;
      w[c] = weight;
    }
    const std::vector<Stretch> whole{{0, count, false, false, 0, 0}};
    ExactPartition few(y.data(), w.data(), count, whole, grid_, 1, stop_);
    Search search(k, few.first_penalty(k));
    for (int step = 0; step < kModelSteps; ++step) {
      Partition found = few.partition(search.penalty);
      const bool hit = found.n_clusters() == k;
      search.learn(std::move(found));
      if (hit || !search.follow_model()) break;
    }
    return search.penalty;
  }

  double cost_of(const Partition& found) const {
    double total = 0;
    for (std::size_t s = 0; s < stretches_.size(); ++s) {
      const Stretch& part = stretches_[s];
      const std::size_t begin = found.begin(s), end = found.ends[s];
      total += squares_about(y_, w_, part.first, found.cuts[begin], part.left);
      for (std::size_t c = begin; c + 1 < end; ++c)
        total += squares_about(y_, w_, found.cuts[c], found.cuts[c + 1],
                               best_place(y_, w_, found.cuts[c], found.cuts[c + 1], grid_));
      total += squares_about(y_, w_, found.cuts[end - 1], part.last, part.right);
    }
    return total;
  }

  // Returns a partition into k clusters made from two that are cheapest at the same penalty, one
  // with fewer and one with more. If an edge (p, p') of one spans an edge (q, q') of the other, the
  // two paths may swap what follows: c(q, p') + c(p, q') ≤ c(p, p') + c(q, q'). With the ends of a
  // stretch as nodes before and after all, such edges exist for any difference x of their numbers,
  // 0 < x < |Q| − |P|.
  Partition exchange(const Partition& few, const Partition& many, index k) const {
    Partition mixed;
    index missing = k - few.n_clusters();
    for (std::size_t s = 0; s < stretches_.size(); ++s) {
      const index* p = few.cuts.data() + few.begin(s);
      const index* q = many.cuts.data() + many.begin(s);
      const index n_p = index(few.ends[s] - few.begin(s));
      const index n_q = index(many.ends[s] - many.begin(s)), more = n_q - n_p;
      index from_q = 0, from_p = 0;  // take q's cuts before from_q, then p's from from_p on
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

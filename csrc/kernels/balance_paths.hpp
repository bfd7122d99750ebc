#pragma once
#include <optional>

#include "kernels/balance_exits.hpp"

// From prices and choices to the optimum: successive shortest paths between clusters.
namespace ff::balance {

// Clusters are nodes; the edge j → l is the cheapest point of j to move to l and has the length
// c_il + p_l − c_ij − p_j ≥ 0. Besides there is the hub, through which clusters trade the right to
// hold one point more: j → hub where j may take that right, hub → l where l has it. A unit of excess
// moves along a shortest path to a cluster that lacks one, and the prices of the nodes that are nearer
// rise to keep every length from falling below zero. With no excess left, the choices are optimal.
class Router {
 public:
  Router(Choices& choices, int n_threads, Stop& stop)
      : costs_(choices.costs()),
        stop_(stop),
        hub_(costs_.n_clusters),
        ld_(std::max(costs_.ld, round_up(costs_.n_clusters + 1, simd::kLanes<double>))),
        labels_(choices.labels()),
        prices_(choices.prices()),
        large_(costs_.n_clusters, 0),
        excess_(costs_.n_clusters),
        members_(costs_.n_clusters, settle_ties(choices)) {
    prices_.resize(ld_, 0.0);
    set_hub_price();
    const index total = total_excess();
    if (total > 0 && costs_.n > kScanned * costs_.n_clusters)
      exits_.emplace(choices, labels_, members_,
                     choices.gap_of(std::min(costs_.n - 1, 16 * total + 16 * costs_.n_clusters)), ld_,
                     n_threads, stop);
  }

  // How many units had to move.
  index run() {
    for (auto* v : {&distances_, &closed_, &targets_, &traded_}) v->assign(ld_, kInfinity);
    parents_.assign(ld_, kNone);
    movers_.assign(ld_, kNone);
    index moved = 0;
    for (index left = total_excess(); left > 0;) {
      stop_.throw_if_requested();
      const double distance = search();
      if (!trace()) continue;
      for (index j = 0; j < ld_; ++j) prices_[j] += std::max(0.0, distance - distances_[j]);
      do {
        move();
        --left, ++moved;
      } while (left > 0 && repeats());
    }
    return moved;
  }

  // Of the clusters, as Choices takes them.
  std::vector<double> prices() const {
    std::vector<double> prices(costs_.ld, 0.0);
    std::copy_n(prices_.begin(), costs_.n_clusters, prices.begin());
    return prices;
  }
  const std::vector<std::int32_t>& labels() const { return labels_; }
  const std::vector<char>& large() const { return large_; }

 private:
  // Up to so many points a cluster an edge is found by reading their rows, beyond it by Exits.
  static constexpr index kScanned = 4;
  static constexpr std::int64_t kNone = -1;

  struct Step {
    index from, to;
    std::int32_t point;  // kNone: through the hub
    double cost;
  };

  index total_excess() const {
    index sum = 0;
    for (const index e : excess_) sum += std::max<index>(0, e);
    return sum;
  }

  // Which clusters hold one more: those of the highest prices, of equals the fullest. And points that
  // cost the same in several clusters go where there is room, which spares duplicates their paths.
  const std::vector<std::int32_t>& settle_ties(Choices& choices) {
    const index K = costs_.n_clusters;
    const std::vector<index>& sizes = choices.sizes();
    std::vector<std::int32_t> order(K);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      if (prices_[a] != prices_[b]) return prices_[a] > prices_[b];
      return sizes[a] != sizes[b] ? sizes[a] > sizes[b] : a < b;
    });
    for (index r = 0; r < costs_.n_large(); ++r) large_[order[r]] = 1;
    double highest = 0;
    for (index j = 0; j < K; ++j) {
      excess_[j] = sizes[j] - costs_.floor() - large_[j];
      highest = std::max(highest, std::abs(prices_[j]));
    }
    for (index i = 0; i < costs_.n; ++i) {
      const index from = labels_[i];
      if (excess_[from] <= 0) continue;
      const double* row = costs_.row(i);
      const double value = row[from] + prices_[from];
      const double tie = kTie * (highest + row[from]);
      if (choices.gaps()[i] > tie) continue;
      index to = from;
      for (index l = 0; l < K; ++l)
        if (row[l] + prices_[l] - value <= tie && excess_[l] < excess_[to]) to = l;
      if (excess_[to] >= 0) continue;
      labels_[i] = std::int32_t(to);
      --excess_[from], ++excess_[to];
    }
    return labels_;
  }

  // A few roundings of what is compared: far below the gap that is promised.
  static constexpr double kTie = 0x1p-50;

  void set_hub_price() {
    double price = -kInfinity;
    for (index j = 0; j < hub_; ++j)
      if (!large_[j]) price = std::max(price, prices_[j]);
    prices_[hub_] = price;
  }

  // Dijkstra from all clusters with excess to the nearest that lacks a point.
  double search() {
    for (index j = 0; j < ld_; ++j) distances_[j] = kInfinity, closed_[j] = 0, targets_[j] = kInfinity;
    for (index j = 0; j < hub_; ++j) {
      if (excess_[j] > 0) distances_[j] = 0, parents_[j] = kNone;
      if (excess_[j] < 0) targets_[j] = 0;
      traded_[j] = large_[j] ? 0 : kInfinity;
    }
    for (;;) {
      const Lowest target = lowest(distances_.data(), targets_.data(), ld_);
      const Lowest next = lowest(distances_.data(), closed_.data(), ld_);
      if (target.value <= next.value) {
        target_ = target.at;
        return target.value;
      }
      // Of equals the hub first: past it are the clusters that lack points.
      const index j = closed_[hub_] == 0 && distances_[hub_] == next.value ? hub_ : next.at;
      closed_[j] = kInfinity;
      if (j == hub_) {
        relax(j, kNone, traded_.data(), 0, ld_);
      } else if (exits_) {
        relax(j, kNone, exits_->costs_of(j), 0, ld_);
      } else {
        stop_.throw_if_requested();
        for (const std::int32_t i : members_[j]) {
          const double* row = costs_.row(i);
          relax(j, i, row, row[j], costs_.ld);
        }
      }
      if (j != hub_ && !large_[j] && costs_.n_large() > 0) {
        const double distance = distances_[j] + std::max(0.0, prices_[hub_] - prices_[j]);
        if (distance < distances_[hub_]) distances_[hub_] = distance, parents_[hub_] = j;
      }
    }
  }

  // Edges from j of cost costs[l] − base.
  void relax(index j, std::int64_t mover, const double* costs, double base, index ld) {
    using simd::Vec;
    using Ids = Vec<std::int64_t>;
    const Vec<double> from = simd::splat(distances_[j]), zero = {};
    const Vec<double> paid = simd::splat(base + prices_[j]);
    const Ids parent = simd::splat(std::int64_t(j)), point = simd::splat(mover);
    for (index l = 0; l < ld; l += simd::kLanes<double>) {
      const Vec<double> length = simd::load(costs + l) + simd::load(&prices_[l]) - paid;
      const Vec<double> distance = from + simd::max(length, zero), old = simd::load(&distances_[l]);
      const auto less = distance < old;
      simd::store(&distances_[l], less ? distance : old);
      simd::store(&parents_[l], Ids(less ? parent : simd::load(&parents_[l])));
      simd::store(&movers_[l], Ids(less ? point : simd::load(&movers_[l])));
    }
  }

  // The path to the target, last step first. False where it led over bounds, which now are moves.
  bool trace() {
    path_.clear();
    bool known = true;
    for (index to = target_; parents_[to] != kNone; to = parents_[to]) {
      const index from = parents_[to];
      if (from == hub_ || to == hub_) {
        path_.push_back({from, to, std::int32_t(kNone), 0});
      } else if (!exits_) {
        path_.push_back({from, to, std::int32_t(movers_[to]), 0});
      } else if (const std::int32_t point = exits_->point(from, to); point != Exits::kUnknown) {
        path_.push_back({from, to, point, exits_->costs_of(from)[to]});
      } else {
        exits_->refill(from, to);
        known = false;
      }
    }
    return known;
  }

  void move() {
    for (const Step& step : path_) {
      if (step.from == hub_) {
        large_[step.to] = 0;
      } else if (step.to == hub_) {
        large_[step.from] = 1;
      } else {
        labels_[step.point] = std::int32_t(step.to);
        members_.remove(step.point, step.from);
        members_.add(step.point, step.to);
      }
    }
    if (exits_)
      for (const Step& step : path_)
        if (step.point != kNone) {
          exits_->left(step.point, step.from);
          exits_->entered(step.point, step.to);
        }
    --excess_[path_.back().from];
    ++excess_[path_.front().to];
  }

  // Whether another unit can go the same way at the same cost, as with duplicates it can.
  bool repeats() {
    if (!exits_ || excess_[path_.back().from] <= 0 || excess_[path_.front().to] >= 0) return false;
    for (Step& step : path_) {
      if (step.point == kNone || exits_->costs_of(step.from)[step.to] != step.cost) return false;
      step.point = exits_->point(step.from, step.to);
      if (step.point == Exits::kUnknown) return false;
    }
    return true;
  }

  const Costs& costs_;
  Stop& stop_;
  const index hub_, ld_;
  std::vector<std::int32_t>& labels_;
  std::vector<double> prices_;  // the hub's among them
  std::vector<char> large_;     // holds one more than the floor
  std::vector<index> excess_;
  Members members_;
  std::optional<Exits> exits_;

  std::vector<double> distances_, closed_, targets_, traded_;  // of nodes; 0 or infinity but the first
  std::vector<std::int64_t> parents_, movers_;
  index target_ = 0;
  std::vector<Step> path_;
};

}  // namespace ff::balance

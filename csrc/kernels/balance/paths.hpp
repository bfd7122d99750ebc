#pragma once
#include <optional>

#include "kernels/balance/exits.hpp"

// Gets from prices and choices to the optimum by successive shortest paths between clusters.
namespace ff::balance {

// Clusters are nodes. The edge j → l stands for the cheapest point of j to move to l and has the
// length c_il + p_l − c_ij − p_j ≥ 0. One more node, the hub, lets clusters trade the right to hold
// one point more: there is an edge j → hub if j may take that right, and hub → l if l has it. A
// unit of excess moves along a shortest path to a cluster that lacks one. The prices of the nodes
// nearer than that cluster then rise, which keeps all lengths from falling below zero. When no
// excess is left, the choices are optimal.
class Router {
 public:
  Router(Choices& choices, Stop& stop)
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
                     choices.gap_of(std::min(costs_.n - 1, 16 * total + 16 * costs_.n_clusters)),
                     ld_, stop);
  }

  // Moves all excess; returns how many units had to move.
  index run() {
    for (auto* v : {&distances_, &closed_, &targets_, &traded_, &edges_}) v->assign(ld_, kInfinity);
    parents_.assign(ld_, kNone);
    index moved = 0;
    for (index left = total_excess(); left > 0;) {
      stop_.throw_if_requested();
      const double distance = search();
      trace();
      if (paths_.empty()) continue;
      for (index j = 0; j < ld_; ++j) prices_[j] += std::max(0.0, distance - distances_[j]);
      for (Path& path : paths_)
        for (; left > 0 && open(path); --left, ++moved) move(path);
    }
    return moved;
  }

  // Returns the prices of the clusters in the form that Choices takes.
  std::vector<double> prices() const {
    std::vector<double> prices(costs_.ld, 0.0);
    std::copy_n(prices_.begin(), costs_.n_clusters, prices.begin());
    return prices;
  }
  const std::vector<std::int32_t>& labels() const { return labels_; }
  const std::vector<char>& large() const { return large_; }

 private:
  // With at most this many points a cluster, an edge is found by reading their rows; otherwise by
  // Exits.
  static constexpr index kScanned = 8;
  static constexpr std::int32_t kNone = -1;

  struct Step {
    index from, to;
    std::int32_t point;  // the point that moves; none to and from the hub
    double cost;
  };
  using Path = std::vector<Step>;

  index total_excess() const {
    index sum = 0;
    for (const index e : excess_) sum += std::max<index>(0, e);
    return sum;
  }

  // Gives the right to one more point to the clusters with the highest prices; ties go to the
  // fullest. Points that cost the same in several clusters go where there is room, so that
  // duplicates need no paths.
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

  // A few roundings of the compared values: far below the gap that is promised.
  static constexpr double kTie = 0x1p-46;

  void set_hub_price() {
    double price = -kInfinity;
    for (index j = 0; j < hub_; ++j)
      if (!large_[j]) price = std::max(price, prices_[j]);
    prices_[hub_] = price;
  }

  // Runs Dijkstra's algorithm from all clusters with excess to the nearest quarter of those that
  // lack a point, so that one search serves many paths. Returns the distance of the last one found.
  double search() {
    for (index j = 0; j < ld_; ++j)
      distances_[j] = kInfinity, closed_[j] = 0, targets_[j] = kInfinity;
    index lacking = 0;
    for (index j = 0; j < hub_; ++j) {
      if (excess_[j] > 0) distances_[j] = 0, parents_[j] = kNone;
      if (excess_[j] < 0) targets_[j] = 0, ++lacking;
      traded_[j] = large_[j] ? 0 : kInfinity;
    }
    found_.clear();
    for (;;) {
      // Ties go first to a cluster that lacks points, then to the hub, which may lead to such a
      // cluster.
      const Lowest next = lowest(distances_.data(), closed_.data(), ld_);
      index j = closed_[hub_] == 0 && distances_[hub_] == next.value ? hub_ : next.at;
      if (nearest_target() <= next.value) {
        j = lowest(distances_.data(), targets_.data(), ld_).at;
        targets_[j] = kInfinity;
        found_.push_back(j);
        if (index(found_.size()) * 4 >= lacking) return distances_[j];
      }
      closed_[j] = kInfinity;
      leave(j);
    }
  }

  double nearest_target() const {
    simd::Vec<double> least = simd::splat(kInfinity);
    for (index l = 0; l < ld_; l += simd::kLanes<double>)
      least = simd::min(least, simd::load(&distances_[l]) + simd::load(&targets_[l]));
    return simd::reduce_min<double>(least);
  }

  void leave(index j) {
    const double* edges = j == hub_ ? traded_.data() : exits_ ? exits_->costs_of(j) : read_edges(j);
    const simd::Vec<double> from = simd::splat(distances_[j]), paid = simd::splat(prices_[j]);
    const auto parent = simd::splat(std::int64_t(j));
    for (index l = 0; l < ld_; l += simd::kLanes<double>) {
      const auto length = simd::load(edges + l) + simd::load(&prices_[l]) - paid;
      const auto distance = from + simd::max(length, simd::Vec<double>{});
      const auto old = simd::load(&distances_[l]);
      const auto less = distance < old;
      simd::store(&distances_[l], less ? distance : old);
      simd::store<std::int64_t>(&parents_[l], less ? parent : simd::load(&parents_[l]));
    }
    if (j != hub_ && !large_[j] && costs_.n_large() > 0) {
      const double distance = distances_[j] + std::max(0.0, prices_[hub_] - prices_[j]);
      if (distance < distances_[hub_]) distances_[hub_] = distance, parents_[hub_] = j;
    }
  }

  // Returns min_i (c_il − c_ij) over the points of j, for each l.
  const double* read_edges(index j) {
    stop_.throw_if_requested();
    rows_.clear();
    for (const std::int32_t i : members_[j]) rows_.push_back(costs_.row(i));
    for (index l = 0; l < costs_.ld; l += simd::kLanes<double>) {
      simd::Vec<double> least = simd::splat(kInfinity);
      for (const double* row : rows_)
        least = simd::min(least, simd::load(row + l) - simd::splat(row[j]));
      simd::store(&edges_[l], least);
    }
    return edges_.data();
  }

  // Collects the paths to the clusters found, each with its last step first. Paths over edges that
  // are only bounds are left out: these edges are refilled for the next search, after all paths are
  // read, because refilling may raise their costs.
  void trace() {
    paths_.clear();
    unknown_.clear();
    for (const index target : found_) {
      Path path;
      const std::size_t before = unknown_.size();
      for (index to = target; parents_[to] != kNone; to = parents_[to]) {
        const index from = parents_[to];
        const bool moves = exits_ && from != hub_ && to != hub_;
        if (moves && exits_->point(from, to) == Exits::kUnknown) unknown_.push_back({from, to});
        path.push_back({from, to, mover(from, to), moves ? exits_->cost(from, to) : 0});
      }
      if (unknown_.size() == before) paths_.push_back(std::move(path));
    }
    std::sort(unknown_.begin(), unknown_.end());
    unknown_.erase(std::unique(unknown_.begin(), unknown_.end()), unknown_.end());
    for (const auto& [from, to] : unknown_) exits_->refill(from, to);
  }

  // Returns, without Exits, the point that moves from one cluster to the other.
  std::int32_t mover(index from, index to) const {
    std::int32_t best = kNone;
    if (exits_ || from == hub_ || to == hub_) return best;
    double least = kInfinity;
    for (const std::int32_t i : members_[from]) {
      const double cost = costs_.row(i)[to] - costs_.row(i)[from];
      if (cost < least || (cost == least && i < best)) least = cost, best = i;
    }
    return best;
  }

  // Returns whether a unit can go this way at no more than the cost that was searched: paths of one
  // search share steps, and with duplicates many units go the same way. Sets the points that move.
  bool open(Path& path) const {
    if (excess_[path.back().from] <= 0 || excess_[path.front().to] >= 0) return false;
    for (Step& step : path) {
      if (step.from == hub_) {
        if (!large_[step.to]) return false;
      } else if (step.to == hub_) {
        if (large_[step.from]) return false;
      } else if (!exits_) {
        if (step.point == kNone || labels_[step.point] != step.from) return false;
      } else {
        step.point = exits_->point(step.from, step.to);
        if (step.point == Exits::kUnknown || exits_->cost(step.from, step.to) != step.cost)
          return false;
      }
    }
    return true;
  }

  void move(const Path& path) {
    for (const Step& step : path) {
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
      for (const Step& step : path)
        if (step.from != hub_ && step.to != hub_) {
          exits_->left(step.point, step.from);
          exits_->entered(step.point, step.to);
        }
    --excess_[path.back().from];
    ++excess_[path.front().to];
  }

  const Costs& costs_;
  Stop& stop_;
  const index hub_, ld_;
  std::vector<std::int32_t>& labels_;
  std::vector<double> prices_;  // including the hub's
  std::vector<char> large_;     // whether a cluster holds one more than the floor
  std::vector<index> excess_;
  Members members_;
  std::optional<Exits> exits_;

  std::vector<double> distances_;                  // of nodes, like the following ones
  std::vector<double> closed_, targets_, traded_;  // 0 or infinity, to be added
  std::vector<double> edges_;
  std::vector<std::int64_t> parents_;
  std::vector<const double*> rows_;
  std::vector<index> found_;
  std::vector<Path> paths_;
  std::vector<std::pair<index, index>> unknown_;
};

}  // namespace ff::balance

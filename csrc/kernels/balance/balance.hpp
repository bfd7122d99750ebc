#pragma once
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// What one balanced assignment hands to the next of the same K: the price of each cluster, which a
// point pays on top of its cost. Empty or of another length means a cold start; any prices are
// legal, and only the time depends on them.
struct BalanceState {
  std::vector<double> prices;
};

struct BalanceOptions {
  int n_threads = 1;
  bool certify = false;  // compute the gap: one more reading of the costs
};

struct BalanceResult {
  double cost = 0;  // Σ w_i ‖x_i − c_label(i)‖²
  double gap = 0;   // (cost − dual value of the prices) / cost, where certified: only rounding
};

// The cheapest of the assignments that give every cluster ⌊n/K⌋ or ⌈n/K⌉ points: labels[0 … n),
// with cost w_i ‖x_i − c_j‖² (weights null: all one); a weight changes what a point costs, not the
// room it takes. K > n is legal: then no cluster holds more than one point. The prices in state are
// read and replaced. The same bits for any number of threads.
//
// Memory: 8 n K bytes for the costs (K rounded up to whole vectors) and at most about as much
// again; std::bad_alloc, with a text, where the costs cannot be had.
//
// Time: O(n K d) for the costs and a few readings of them for prices, both parallel; then searches
// of O(K²) each, or O(n K) where n ≤ 8 K, at most one for every point that good prices leave in a
// cluster too many: some K of them where points have a density, never more than n.
//
// Throws std::invalid_argument where an operand is not finite or a weight is negative.
BalanceResult balanced_assign(const MatrixView& x, const MatrixView& centroids,
                              const double* weights, BalanceState& state,
                              const BalanceOptions& options, std::int32_t* labels, Stop& stop);

}  // namespace ff

#pragma once
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// What one balanced assignment hands to the next with the same K: the price of each cluster, which
// a point pays in addition to its cost. An empty vector or one of another length means a cold
// start. Any prices are valid; they affect only the time.
struct BalanceState {
  std::vector<double> prices;
};

struct BalanceOptions {
  int n_threads = 1;
  bool certify = false;  // compute the gap, which reads the costs once more
};

struct BalanceResult {
  double cost = 0;  // Σ w_i ‖x_i − c_label(i)‖²
  double gap = 0;   // (cost − dual value of the prices) / cost if certified, which is mere rounding
};

// Finds the cheapest of the assignments that give every cluster ⌊n/K⌋ or ⌈n/K⌉ points: labels[0 …
// n), with cost w_i ‖x_i − c_j‖² (null weights: all 1). A weight changes what a point costs, not
// how much room it takes. If K > n, no cluster holds more than one point. The prices in state are
// read and replaced. The result has the same bits for any number of threads.
//
// Memory: 8 n K bytes for the costs (K rounded up to whole vectors) and at most about as much
// again. Throws std::bad_alloc, with a text, if the costs cannot be allocated.
//
// Time: O(n K d) for the costs and a few passes over them for the prices, both parallel. Then
// searches of O(K²) each, or O(n K) if n ≤ 8 K: at most one for every point that good prices leave
// in an overfull cluster, which is about K of them if the points have a density, and never more
// than n.
//
// Throws std::invalid_argument if an operand is not finite or a weight is negative.
BalanceResult balanced_assign(const MatrixView& x, const MatrixView& centroids,
                              const double* weights, BalanceState& state,
                              const BalanceOptions& options, std::int32_t* labels, Stop& stop);

}  // namespace ff

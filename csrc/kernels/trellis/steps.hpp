#pragma once
#include <cstdint>
#include <limits>

#include "core/simd.hpp"
#include "kernels/trellis/costs.hpp"
#include "kernels/trellis/format.hpp"

// One step of the Viterbi algorithm: the costs of the best paths into each state.
//
// Even states 2i and 2i' with i' = i ^ 10 lead to states i and i' by either parity, odd ones 2i + 1
// and 2i' + 1 to 32 + (i ^ 1) and 32 + (i' ^ 1). Even and odd states are therefore kept apart: a
// step adds the costs of both parities, takes minima of lanes permuted by an exclusive or, and
// separates the result into its even and odd lanes.
namespace ff::trellis {

class Paths {
 public:
  Paths() {
    const Vector never = simd::splat(std::numeric_limits<float>::infinity());
    for (int v = 0; v < kHalf; ++v) even_[v] = odd_[v] = never;
    even_[0][0] = 0;
  }

  // Advances by one column. Bit t of the result: the better way into state t is by an odd level.
  std::uint64_t step(const Least& least) {
    Vector total[2 * kHalf];
    const std::uint64_t low = better<0>(even_, least.cost[0], total);
    const std::uint64_t high = better<kFeedback & 31>(odd_, least.cost[1], total + kHalf);
    for (int v = 0; v < kHalf; ++v) {
      even_[v] = simd::every_other<0>(total[2 * v], total[2 * v + 1]);
      odd_[v] = simd::every_other<1>(total[2 * v], total[2 * v + 1]);
    }
    return low | high << kStates / 2;
  }

  // Subtracts the least cost from all, so that float32 keeps their differences accurate on long
  // rows.
  void lower() {
    Vector least = even_[0];
    for (int v = 0; v < kHalf; ++v) least = simd::min(least, simd::min(even_[v], odd_[v]));
    const Vector all = simd::splat(simd::reduce_min<float>(least));
    for (int v = 0; v < kHalf; ++v) even_[v] -= all, odd_[v] -= all;
  }

  // Returns the state that the best path ends in; ties go to the lowest.
  int best_state() const {
    // GCC 12 with sanitizers miscompiles an element of a selected array, (a ? x : y)[i].
    float costs[2][kStates / 2];
    for (int v = 0; v < kHalf; ++v) {
      simd::store(costs[0] + v * kLanes, even_[v]);
      simd::store(costs[1] + v * kLanes, odd_[v]);
    }
    int best = 0;
    for (int state = 1; state < kStates; ++state)
      if (costs[state & 1][state / 2] < costs[best & 1][best / 2]) best = state;
    return best;
  }

 private:
  using Vector = simd::Vec<float>;
  static constexpr int kLanes = simd::kLanes<float>, kHalf = kStates / 2 / kLanes;

  // Computes the costs of the states of one quantizer: min(from[t ^ Turn] + even, from[t ^ Turn ^
  // kInput] + odd). Returns a bit for each, set if the odd way is better.
  template <int Turn>
  static std::uint64_t better(const Vector* from, const float* cost, Vector* to) {
    const Vector even = simd::splat(cost[0]), odd = simd::splat(cost[1]);
    std::uint64_t bits = 0;
    for (int v = 0; v < kHalf; ++v) {
      const Vector a = turned<Turn>(from, v) + even, b = turned<Turn ^ kInput>(from, v) + odd;
      bits |= std::uint64_t(simd::less_bits(b, a)) << v * kLanes;
      to[v] = simd::min(b, a);
    }
    return bits;
  }

  // Returns vector v of from[t ^ By].
  template <int By>
  static Vector turned(const Vector* from, int v) {
    return simd::exclusive_or_lanes<By % kLanes>(from[v ^ By / kLanes]);
  }

  Vector even_[kHalf], odd_[kHalf];  // indexed by half the state's number
};

}  // namespace ff::trellis

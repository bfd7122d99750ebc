#pragma once
#include <algorithm>

#include "core/simd.hpp"
#include "core/types.hpp"

// The largest of many scores; ties go to the lowest index.
namespace ff {

// The number of vectors that a sweep over the atoms takes in one step.
inline constexpr int kSweepVectors = 8;
template <class T>
inline constexpr index kSweep = kSweepVectors * simd::kLanes<T>;

template <class T>
struct Best {
  index atom;
  T score;
};

// Keeps in each lane the best score so far and its place. The vectors of a step are compared as a
// tree: compared one after another, each would wait for the one before, and omp a takes 42 ms on
// one thread instead of 38.
template <class T>
class Argmax {
 public:
  // Takes the scores of atoms [first, first + kSweep). Steps come in rising order, or in falling
  // order if Down.
  template <bool Down = false>
  void offer(const simd::Vec<T> (&scores)[kSweepVectors], index first) {
    const Lanes step = best_of<kSweepVectors>(scores, 0);
    const auto better = Down ? step.score >= score_ : step.score > score_;
    at_ = better ? step.at + simd::splat(I(first)) : at_;
    score_ = better ? step.score : score_;
  }

  Best<T> best() const {
    const T top = simd::reduce_max<T>(score_);
    const simd::Vec<I> atom = at_ + simd::iota<I>();
    unsigned lanes = simd::mask_bits(simd::Vec<I>(score_ == simd::splat(top)));
    if (!lanes) return {0, 0};  // NaN: no score is positive
    I lowest = atom[__builtin_ctz(lanes)];
    while (lanes &= lanes - 1) lowest = std::min<I>(lowest, atom[__builtin_ctz(lanes)]);
    return {index(lowest), top};
  }

 private:
  using I = simd::Int<T>;
  struct Lanes {
    simd::Vec<T> score;
    simd::Vec<I> at;
  };

  template <int N>
  static Lanes best_of(const simd::Vec<T>* scores, int first) {
    if constexpr (N == 1) {
      return {scores[first], simd::splat(I(first * simd::kLanes<T>))};
    } else {
      const Lanes low = best_of<N / 2>(scores, first);
      const Lanes high = best_of<N / 2>(scores, first + N / 2);
      const auto better = high.score > low.score;
      return {better ? high.score : low.score, better ? high.at : low.at};
    }
  }

  simd::Vec<T> score_ = simd::splat<T>(-1);
  simd::Vec<I> at_ = {};
};

}  // namespace ff

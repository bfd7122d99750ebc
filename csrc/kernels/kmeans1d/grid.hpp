#pragma once
#include "core/simd.hpp"
#include "kernels/kmeans1d/kmeans1d.hpp"

// Where centroids may lie, and what the best of them costs an interval of values.
//
// With W = Σw, S = Σw(x−a), Q = Σw(x−a)² about any a, an interval served from a + r costs
// Q + r(rW − 2S): least, −S²/W, at r = S/W, and among permitted places at the one nearest to that.
// Whatever the set of places is, these least costs have the Monge property, which the search stands
// on: let r serve [i, j') best and r' serve [i', j), i ≤ i' ≤ j ≤ j'. If r' ≤ r, what lies left of
// i' is at least as well off with r' as what lies in [i', j) is, and there r' wins; so giving r'
// [i, j) and r [i', j') costs no more. r' > r mirrors it.
namespace ff {

template <CentroidGrid kGrid, class T>
class Grid {
 public:
  // unit: what the caller's coordinates are multiples of. largest: max |x|, not in units of it.
  Grid(double unit, double largest) : unit_(unit), per_unit_(1 / unit), step_(T(largest) / 127) {}

  // The permitted place nearest to x; V is double or a vector of them.
  template <class V>
  V nearest(V x) const {
    if constexpr (kGrid == CentroidGrid::any) return x;
    else return rounded(x * unit_) * per_unit_;
  }

  // Σ over an interval of w(x−c)² − Q, about the anchor.
  template <class V>
  V least(V sum, V weight, double anchor) const {
    if constexpr (kGrid == CentroidGrid::any) {
      return -(sum * sum) / weight;
    } else {
      const V place = nearest(sum / weight + anchor) - anchor;
      return place * (place * weight - 2 * sum);
    }
  }

  // The centroid itself, exact in T where there is a grid.
  T value(double x) const {
    if constexpr (kGrid == CentroidGrid::any) return T(x * unit_);
    else return T(rounded(x * unit_));
  }

 private:
  // x + m − m rounds to a multiple of the step whose 2^52-fold is in m.
  static constexpr double kRound = 0x1.8p52;

  template <class V>
  V rounded(V x) const {
    if constexpr (kGrid == CentroidGrid::f16) return to_bits<11, -14>(clamped(x, 65504.0));
    if constexpr (kGrid == CentroidGrid::bf16) return to_bits<8, -126>(clamped(x, 0x1.fep127));
    if constexpr (kGrid == CentroidGrid::int8) {
      if (step_ == 0) return x - x;
      return in_t(clamped(x / double(step_) + kRound - kRound, 127.0) * double(step_));
    }
    return x;
  }

  // A float of kBits significant bits whose least normal exponent is kLeast.
  template <int kBits, int kLeast, class V>
  static V to_bits(V x) {
    constexpr double kSplit = double((std::int64_t(1) << (53 - kBits)) + 1);
    const double magic = std::ldexp(kRound, kLeast - kBits + 1);
    const V high = x * kSplit, normal = high - (high - x);
    const V subnormal = (x + magic) - magic;
    const V size = x < 0 ? -x : x;
    return size < std::ldexp(1.0, kLeast) ? subnormal : normal;
  }

  template <class V>
  static V clamped(V x, double limit) {
    const V most = (x - x) + limit;
    x = x < most ? x : most;
    return x > -most ? x : -most;
  }

  static double in_t(double x) { return double(T(x)); }
  static simd::Vec<double> in_t(simd::Vec<double> x) {
    if constexpr (sizeof(T) == 4) {
      typedef float Narrow __attribute__((vector_size(simd::kBytes / 2)));
      return __builtin_convertvector(__builtin_convertvector(x, Narrow), simd::Vec<double>);
    } else {
      return x;
    }
  }

  double unit_, per_unit_;
  T step_;
};

// The best permitted place for the values [first, last), one at least.
template <class Grid>
double best_place(const double* y, const double* w, index first, index last, const Grid& grid) {
  using Vec = simd::Vec<double>;
  constexpr int kLanes = simd::kLanes<double>;
  const double anchor = y[first];
  Vec weights{}, sums{};
  index i = first;
  for (; i + kLanes <= last; i += kLanes) {
    const Vec each = simd::load(w + i);
    weights += each;
    sums = simd::mul_add(each, simd::load(y + i) - anchor, sums);
  }
  double weight = simd::reduce_add<double>(weights), sum = simd::reduce_add<double>(sums);
  for (; i < last; ++i) {
    weight += w[i];
    sum = simd::mul_add(w[i], y[i] - anchor, sum);
  }
  return grid.nearest(anchor + sum / weight);
}

// Σ w(y − place)² over [first, last).
inline double squares_about(const double* y, const double* w, index first, index last,
                            double place) {
  using Vec = simd::Vec<double>;
  constexpr int kLanes = simd::kLanes<double>;
  Vec sums{};
  index i = first;
  for (; i + kLanes <= last; i += kLanes) {
    const Vec d = simd::load(y + i) - place;
    sums = simd::mul_add(simd::load(w + i), d * d, sums);
  }
  double sum = simd::reduce_add<double>(sums);
  for (; i < last; ++i) sum = simd::mul_add(w[i], (y[i] - place) * (y[i] - place), sum);
  return sum;
}

}  // namespace ff

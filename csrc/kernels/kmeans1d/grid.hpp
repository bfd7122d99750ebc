#pragma once
#include <algorithm>
#include <cmath>

#include "core/simd.hpp"
#include "kernels/kmeans1d/kmeans1d.hpp"

// Where centroids may lie, and what the best of these places costs for an interval of values.
//
// With W = Σw, S = Σw(x−a), Q = Σw(x−a)² about any a, an interval with its centroid at a + r costs
// Q + r(rW − 2S). This is least, Q − S²/W, at r = S/W, and among permitted places at the one
// nearest to that. For any set of places these least costs have the Monge property, which the
// search relies on: let r be best for [i, j') and r' for [i', j), i ≤ i' ≤ j ≤ j'. If r' ≤ r, then
// r' wins on [i', j), and for values left of i' it is better still compared with r; so using r' for
// [i, j) and r for [i', j') costs no more. r' > r is the mirror image.
namespace ff {

namespace detail {
// x + m − m rounds x to a multiple of a step if m is kRound times that step.
inline constexpr double kRound = 0x1.8p52;

template <class V>
V clamped(V x, double limit) {
  const V most = (x - x) + limit;
  x = x < most ? x : most;
  return x > -most ? x : -most;
}

inline double in_float(double x) {
  return double(float(x));
}
inline simd::Vec<double> in_float(simd::Vec<double> x) {
  typedef float Narrow __attribute__((vector_size(simd::kBytes / 2)));
  return __builtin_convertvector(__builtin_convertvector(x, Narrow), simd::Vec<double>);
}
}  // namespace detail

// Three kinds of places. Each has rounded(x), which returns the permitted place nearest to x in the
// caller's coordinates; V is double or a vector of doubles.
struct AnyPlace {
  static constexpr bool kEverywhere = true;

  template <class V>
  V rounded(V x) const {
    return x;
  }
};

// Floats with n_bits significant bits, given their least normal exponent and largest number.
class FloatPlaces {
 public:
  static constexpr bool kEverywhere = false;

  FloatPlaces(int n_bits, int least, double largest)
      : split_(double((std::int64_t(1) << (53 - n_bits)) + 1)),
        magic_(std::ldexp(detail::kRound, least - n_bits + 1)),
        normal_(std::ldexp(1.0, least)),
        largest_(largest) {}

  template <class V>
  V rounded(V x) const {
    x = detail::clamped(x, largest_);
    const V high = x * split_, normal = high - (high - x);
    const V subnormal = (x + magic_) - magic_;
    const V size = x < 0 ? -x : x;
    return size < normal_ ? subnormal : normal;
  }

 private:
  double split_, magic_, normal_, largest_;
};

// Multiples of a step from −127 to 127 times it, as float64 or (narrow) float32 represents them.
class Int8Places {
 public:
  static constexpr bool kEverywhere = false;

  // largest: 127 times the step.
  Int8Places(double largest, bool narrow)
      : step_(narrow ? double(float(largest) / 127) : largest / 127), narrow_(narrow) {}

  template <class V>
  V rounded(V x) const {
    if (step_ == 0) return x - x;
    const V place = detail::clamped(x / step_ + detail::kRound - detail::kRound, 127.0) * step_;
    return narrow_ ? detail::in_float(place) : place;
  }

 private:
  double step_;
  bool narrow_;
};

// The same places for values in units of `unit`: the caller's coordinates are these values times
// unit.
template <class Places>
class Grid {
 public:
  Grid(double unit, const Places& places) : places_(places), unit_(unit), per_unit_(1 / unit) {}

  // Returns the permitted place nearest to x.
  template <class V>
  V nearest(V x) const {
    if constexpr (Places::kEverywhere) return x;
    else return places_.rounded(x * unit_) * per_unit_;
  }

  // Returns Σ w(x−c)² − Q of an interval for its best centroid c, all about the anchor.
  template <class V>
  V least(V sum, V weight, double anchor) const {
    if constexpr (Places::kEverywhere) {
      return -(sum * sum) / weight;
    } else {
      const V place = nearest(sum / weight + anchor) - anchor;
      return place * (place * weight - 2 * sum);
    }
  }

  // Returns the centroid in the caller's coordinates; exact if not every place is permitted.
  double value(double x) const { return places_.rounded(x * unit_); }

 private:
  Places places_;
  double unit_, per_unit_;
};

// Returns the best permitted place for the values [first, last), of which there must be at least
// one.
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
  // Rounding must not carry the mean outside the values.
  return grid.nearest(std::clamp(anchor + sum / weight, anchor, y[last - 1]));
}

// Returns Σ w(y − place)² over [first, last).
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

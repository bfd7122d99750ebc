#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/omp/argmax.hpp"
#include "kernels/omp/atoms.hpp"
#include "kernels/omp/support.hpp"

// Exchanging atoms of one row's code.
//
// Let s_1 … s_n be its atoms, A the inverse of their Gram matrix, u = A (α[s_1] … α[s_n]) their
// coefficients. For every atom i
//
//   r = α[i] − Σ u_j G[s_j,i]          its correlation with the residual
//   w_j = Σ_l A_jl G[s_l,i]            its coordinates in the span
//   ν = G[i,i] − Σ w_j G[s_j,i]        its squared norm outside the span
//
// Without s_j the error is larger by u_j² / A_jj. The part of s_j outside the span of the others
// has the square 1 / A_jj and the coefficient u_j, so r + w_j u_j / A_jj takes the place of r and
// ν + w_j² / A_jj that of ν. Replacing s_j by i therefore lowers the error by
//
//   (r + w_j u_j / A_jj)² / (ν + w_j² / A_jj) − u_j² / A_jj,
//
// and one sweep over the atoms finds the best of all exchanges, with n² + 4 n multiplications an
// atom. The sweep works in T. Coefficients and errors are computed in double from x itself and
// refined once: with G in float their error would be its rounding times the square of the atoms'
// condition number.
namespace ff {

template <class T>
class ExchangedRow {
 public:
  ExchangedRow(const Atoms<T>& atoms, const AtomRows<T>& by_row)
      : atoms_(atoms),
        by_row_(by_row),
        atom_scratch_(atoms.has_gram() ? 0 : atoms.depth()),
        left_(by_row.ld) {}

  // Starts a row. x: the row, with zeros up to by_row.ld; alpha: D·x. Returns false if the atoms
  // are linearly dependent, as far as T can tell.
  bool start(const T* x, const T* alpha, const std::vector<std::int32_t>& chosen) {
    x_ = x;
    alpha_ = alpha;
    chosen_.assign(chosen.begin(), chosen.end());
    if (n() > capacity_) grow();
    for (index j = 0; j < n(); ++j) rows_[j] = gram_row(j, chosen_[j]);
    return solve();
  }

  // Returns whether T is too coarse to compare exchanges: the sweep would leave out atoms that have
  // as little outside the span of the others as one of the row's own atoms.
  bool nearly_dependent() const {
    for (index j = 0; j < n(); ++j)
      if (share_[j] <= least_share() * atoms_.diagonal()[chosen_[j]]) return true;
    return false;
  }

  // Makes the exchange that lowers the error most; returns false, and changes nothing, if none
  // lowers it.
  bool step() {
    const index atom = best_atom();
    if (std::find(chosen_.begin(), chosen_.end(), std::int32_t(atom)) != chosen_.end())
      return false;
    const index place = place_for(atom);
    if (place < 0) return false;
    const double before = error_;
    const std::int32_t old = chosen_[place];
    put(place, std::int32_t(atom));
    // The gain must exceed rounding, or two exchanges could undo each other for ever.
    if (solve() && error_ < (1 - kLeastGain) * before) return true;
    put(place, old);
    solve();
    return false;
  }

  // Writes the atoms in ascending order and their coefficients times `unscale`.
  void result(double unscale, std::int32_t* indices, T* data) const {
    for (index j = 0; j < n(); ++j) {
      const index to = std::count_if(chosen_.begin(), chosen_.end(),
                                     [&](std::int32_t other) { return other < chosen_[j]; });
      indices[to] = chosen_[j];
      data[to] = T(u_[j] * unscale);
    }
  }

 private:
  using Vec = simd::Vec<T>;
  static constexpr T kEps = std::numeric_limits<T>::epsilon();
  static constexpr double kLeastGain = 1e-6;

  index n() const { return index(chosen_.size()); }

  // The share of its square that an atom must have outside the span of the others.
  static T least_share() { return 4 * std::sqrt(kEps); }

  void grow() {
    capacity_ = round_up(std::max<index>(2 * n(), 16), simd::kLanes<double>);
    rows_.resize(capacity_);
    inverse_ = Buffer<double>(capacity_ * capacity_);
    u_ = Buffer<double>(capacity_);
    answers_.resize(capacity_);
    narrow_ = Buffer<T>(capacity_ * capacity_);
    w_ = Buffer<T>(capacity_ * kSweep<T>);
    for (auto* vector : {&minus_u_, &gain_, &share_, &loss_}) vector->resize(capacity_);
    if (!atoms_.has_gram()) gram_scratch_ = Buffer<T>(capacity_ * atoms_.ld());
  }

  const T* gram_row(index place, index atom) {
    T* scratch = atoms_.has_gram() ? nullptr : gram_scratch_.data() + place * atoms_.ld();
    return atoms_.gram_row(atom, scratch, atom_scratch_.data());
  }

  void put(index place, std::int32_t atom) {
    chosen_[place] = atom;
    rows_[place] = gram_row(place, atom);
  }

  // Computes A, u and the error. Returns false if an atom depends on those before it.
  bool solve() {
    using Wide = simd::Vec<double>;
    constexpr index kWide = simd::kLanes<double>;
    const index size = n();
    ld_ = round_up(size, kWide);
    for (index j = 0; j < size; ++j) {
      double* row = inverse_.data() + j * ld_;
      for (index l = 0; l < size; ++l) row[l] = double(rows_[j][chosen_[l]]);
      std::fill(row + size, row + ld_, 0.0);
    }
    for (index p = 0; p < size; ++p) {  // Gauss–Jordan; A is positive definite, so no pivots
      double* pivot = inverse_.data() + p * ld_;
      const double full = double(atoms_.diagonal()[chosen_[p]]), outside = pivot[p];
      if (!(outside > double(Atoms<T>::dependent(size)) * full &&
            outside >= double(Atoms<T>::kLeast)))
        return false;
      // Column p becomes that of the unit matrix first. This is done by whole vectors: loading a
      // vector right after storing one of its numbers waits until the store reaches the cache.
      const Wide inverse = simd::splat(1 / outside);
      for (index l = 0; l < ld_; l += kWide) {
        const auto column = simd::iota<std::int64_t>() == simd::splat(std::int64_t(p - l));
        const Wide own = column ? simd::splat(1.0) : simd::load(pivot + l);
        simd::store(pivot + l, own * inverse);
      }
      for (index j = 0; j < size; ++j) {
        if (j == p) continue;
        double* row = inverse_.data() + j * ld_;
        const Wide minus = simd::splat(-row[p]);
        for (index l = 0; l < ld_; l += kWide) {
          const auto column = simd::iota<std::int64_t>() == simd::splat(std::int64_t(p - l));
          const Wide left = column ? Wide{} : simd::load(row + l);
          simd::store(row + l, simd::mul_add(minus, simd::load(pivot + l), left));
        }
      }
    }
    std::fill_n(u_.data(), ld_, 0.0);
    for (index j = 0; j < size; ++j) answers_[j] = double(alpha_[chosen_[j]]);
    add_coefficients();
    subtract();
    for (index j = 0; j < size; ++j)
      answers_[j] = wide_product(by_row_.row(chosen_[j]), left_.data(), by_row_.ld);
    add_coefficients();
    error_ = subtract();
    for (index j = 0; j < size; ++j) {
      const double share = 1 / inverse_[j * ld_ + j], gain = u_[j] * share;
      minus_u_[j] = T(-u_[j]);
      gain_[j] = T(gain);
      share_[j] = T(share);
      loss_[j] = T(u_[j] * gain);
    }
    for (index i = 0; i < size * ld_; ++i) narrow_[i] = T(inverse_[i]);
    return true;
  }

  // Adds A · answers to u. A is symmetric, so this is a sum of its rows.
  void add_coefficients() {
    constexpr index kWide = simd::kLanes<double>;
    for (index l = 0; l < ld_; l += kWide) {
      simd::Vec<double> sum = simd::load(u_.data() + l);
      for (index j = 0; j < n(); ++j)
        sum =
            simd::mul_add(simd::splat(answers_[j]), simd::load(inverse_.data() + j * ld_ + l), sum);
      simd::store(u_.data() + l, sum);
    }
  }

  // Computes left = x − Σ u_j d_j; returns its squared norm.
  double subtract() {
    constexpr index kWide = simd::kLanes<double>;
    simd::Vec<double> squares{};
    for (index k = 0; k < by_row_.ld; k += kWide) {
      simd::Vec<double> left = simd::load_wide(x_ + k);
      for (index j = 0; j < n(); ++j)
        left =
            simd::mul_add(simd::splat(-u_[j]), simd::load_wide(by_row_.row(chosen_[j]) + k), left);
      simd::store(left_.data() + k, left);
      squares = simd::mul_add(left, left, squares);
    }
    return simd::reduce_add<double>(squares);
  }

  // Returns the atom that lowers the error most when it replaces one of the row's atoms.
  index best_atom() {
    Argmax<T> argmax;
    const Vec least = simd::splat(least_share());
    for (index c = 0; c < atoms_.ld(); c += kSweep<T>) {
      Vec left[kSweepVectors], outside[kSweepVectors], best[kSweepVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kSweepVectors; ++v) {
        left[v] = simd::load(alpha_ + c + v * simd::kLanes<T>);
        outside[v] = simd::load(atoms_.diagonal() + c + v * simd::kLanes<T>);
        best[v] = simd::splat(std::numeric_limits<T>::lowest());
      }
      for (index j = 0; j < n(); ++j) coordinates(j, c, left, outside);
      for (index j = 0; j < n(); ++j) {
        const Vec gain = simd::splat(gain_[j]), share = simd::splat(share_[j]);
        const Vec loss = simd::splat(loss_[j]);
#pragma GCC unroll 8
        for (int v = 0; v < kSweepVectors; ++v) {
          const Vec w = simd::load(w_.data() + j * kSweep<T> + v * simd::kLanes<T>);
          const Vec full = simd::load(atoms_.diagonal() + c + v * simd::kLanes<T>);
          const Vec answer = simd::mul_add(gain, w, left[v]);
          const Vec square = simd::mul_add(share * w, w, outside[v]);
          const Vec lowered = answer * answer / square - loss;
          best[v] = square > least * full ? simd::max(lowered, best[v]) : best[v];
        }
      }
      argmax.offer(best, c);
    }
    return argmax.best().atom;
  }

  // Computes w_j of the atoms from c on and applies its terms to r and ν.
  void coordinates(index j, index c, Vec (&left)[kSweepVectors], Vec (&outside)[kSweepVectors]) {
    Vec w[kSweepVectors] = {};
    for (index l = 0; l < n(); ++l) {
      const Vec a = simd::splat(narrow_[j * ld_ + l]);
#pragma GCC unroll 8
      for (int v = 0; v < kSweepVectors; ++v)
        w[v] = simd::mul_add(a, simd::load(rows_[l] + c + v * simd::kLanes<T>), w[v]);
    }
    const Vec minus_u = simd::splat(minus_u_[j]);
#pragma GCC unroll 8
    for (int v = 0; v < kSweepVectors; ++v) {
      const Vec g = simd::load(rows_[j] + c + v * simd::kLanes<T>);
      left[v] = simd::mul_add(minus_u, g, left[v]);
      outside[v] = simd::mul_add(-w[v], g, outside[v]);
      simd::store(w_.data() + j * kSweep<T> + v * simd::kLanes<T>, w[v]);
    }
  }

  // Returns the place where this atom lowers the error most, or −1 if it does so nowhere.
  index place_for(index atom) {
    const double full = double(atoms_.diagonal()[atom]);
    double left = double(alpha_[atom]), outside = full;
    std::vector<double>& w = coordinates_;
    w.assign(n(), 0);
    for (index j = 0; j < n(); ++j) {
      const double g = double(rows_[j][atom]);
      for (index l = 0; l < n(); ++l) w[j] += inverse_[j * ld_ + l] * double(rows_[l][atom]);
      left -= u_[j] * g;
      outside -= w[j] * g;
    }
    index place = -1;
    double most = 0;
    for (index j = 0; j < n(); ++j) {
      const double own = inverse_[j * ld_ + j];
      const double answer = left + w[j] * u_[j] / own, square = outside + w[j] * w[j] / own;
      if (!(square > double(least_share()) * full)) continue;
      const double lowered = answer * answer / square - u_[j] * u_[j] / own;
      if (lowered > most) {
        most = lowered;
        place = j;
      }
    }
    return place;
  }

  const Atoms<T>& atoms_;
  const AtomRows<T>& by_row_;
  index capacity_ = 0, ld_ = 0;
  Buffer<T> atom_scratch_, gram_scratch_;
  std::vector<std::int32_t> chosen_;
  std::vector<const T*> rows_;  // the chosen atoms' rows of the Gram matrix
  Buffer<double> inverse_, u_;  // A, rows ld_ apart
  std::vector<double> answers_, coordinates_;
  Buffer<double> left_;                           // x − Σ u_j d_j
  Buffer<T> narrow_, w_;                          // A; w of one step of the sweep
  std::vector<T> minus_u_, gain_, share_, loss_;  // −u_j, u_j / A_jj, 1 / A_jj, u_j² / A_jj
  const T* x_ = nullptr;
  const T* alpha_ = nullptr;
  double error_ = 0;  // ‖left‖²
};

}  // namespace ff

#pragma once
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/omp/argmax.hpp"
#include "kernels/omp/atoms.hpp"
#include "kernels/omp/early.hpp"

// The pursuit of one row.
//
// Let q_0 … q_{j-1} be the chosen atoms after orthogonalisation and ν_i their squared norms. For
// every row we keep α = Dr, the correlation of each atom with the residual, and Q_i = Dq_i.
// Choosing atom s then costs one Gram row and no square root (Cholesky in its LDLᵀ form):
//
//   w_i = Q_i[s] / ν_i            the new atom's coordinates: row j of the unit triangle L
//   ν_j = G[s,s] − Σ w_i Q_i[s]   the atom's squared norm outside the span
//   Q_j = G[s] − Σ w_i Q_i
//   a_j = α[s] / ν_j,   α ← α − a_j Q_j,   ‖r‖² ← ‖r‖² − a_j α[s]
//
// At the end the coefficients γ solve Lᵀγ = a. Everything but G stays in the caches of one core.
namespace ff {

// Codes one row at a time, with the scratch memory of one worker.
template <class T>
class Coder {
 public:
  Coder(const Atoms<T>& atoms, const OmpOptions& options)
      : atoms_(atoms),
        options_(options),
        ld_(atoms.ld()),
        gram_scratch_(ld_),
        atom_scratch_(atoms.depth()),
        outside_(options.orthogonal_select ? ld_ : 0) {
    grow(std::min<index>(options.max_nonzeros, 16));
  }

  // Starts a row. alpha: D·x, which step() changes. x: the row, scaled to magnitude 1, in a tile.
  void start(T* alpha, const T* x, double norm2, double tol) {
    alpha_ = alpha;
    x_ = x;
    norm2_ = error_ = norm2;
    tol_ = tol;
    n_ = 0;
    ended_ = Ended::as_asked;
    least_answer2_ = simd::splat(T(atoms_.least_answer2(norm2, options_.max_nonzeros)));
    left_out_ = Vec<I>{};
    std::fill(common_.begin(), common_.end(), T(0));
    std::fill(chosen_.begin(), chosen_.end(), I(-1));
    if (options_.orthogonal_select) std::copy_n(atoms_.diagonal(), ld_, outside_.data());
    best_ = options_.orthogonal_select ? select<true>() : select<false>();
  }

  // Adds one atom; returns false when the row is done.
  bool step() {
    if (n_ == options_.max_nonzeros || reached()) return false;
    index s = best_.atom;
    bool added = best_.score > 0 && add(s, alpha_[s]);
    if (!added && options_.careful) added = add_other(s);
    if (!added) {
      ended_ = Ended::early;
      return false;
    }
    const T correlation = alpha_[s];
    error_ -= double(a_[n_ - 1]) * double(correlation);
    if (n_ == options_.max_nonzeros) return false;  // α is not needed any more
    best_ = options_.orthogonal_select ? update<true>(s) : update<false>(s);
    return true;
  }

  index count() const { return n_; }
  Ended ended() const {
    const bool in_doubt = ended_ == Ended::as_asked && simd::mask_bits(left_out_);
    return in_doubt ? Ended::in_doubt : ended_;
  }

  // Writes the chosen atoms in ascending order and their coefficients times `unscale`.
  void result(double unscale, std::int32_t* indices, T* data) {
    solve();
    const index padded = round_up(n_, simd::kLanes<T>);
    std::fill(chosen_.data() + n_, chosen_.data() + padded, std::numeric_limits<I>::max());
    for (index i = 0; i < n_; ++i) {
      index to = 0;
      for (index t = 0; t < padded; t += simd::kLanes<T>)
        to += __builtin_popcount(
            simd::mask_bits(Vec<I>(simd::load(chosen_.data() + t) < simd::splat(chosen_[i]))));
      indices[to] = std::int32_t(chosen_[i]);
      data[to] = T(double(gamma_[i]) * unscale);
    }
  }

 private:
  using I = simd::Int<T>;
  template <class U>
  using Vec = simd::Vec<U>;
  static constexpr T kEps = std::numeric_limits<T>::epsilon();

  // Returns Q_i from column c on; c is a multiple of the step. Q is laid out step by step, so that
  // a sweep reads it from front to back: rows a power of two apart would share a few sets of the
  // cache.
  T* q(index i, index c) { return q_.data() + (c / kSweep<T> * capacity_ + i) * kSweep<T>; }

  void grow(index capacity) {
    capacity = round_up(capacity, simd::kLanes<T>);
    Buffer<T> q(capacity * ld_), l(capacity * capacity);
    for (index c = 0; c < ld_; c += kSweep<T>)
      std::copy_n(q_.data() + c * capacity_, n_ * kSweep<T>, q.data() + c * capacity);
    for (index i = 0; i < n_; ++i)
      std::copy_n(l_.data() + i * capacity_, n_, l.data() + i * capacity);
    q_ = std::move(q);
    l_ = std::move(l);
    for (auto* vector : {&common_, &minus_w_, &inverse_nu_, &a_, &gamma_}) vector->resize(capacity);
    chosen_.resize(capacity, I(-1));
    capacity_ = capacity;
  }

  // Computes row n of L and a_n. Returns false if there is nothing to add: the residual is
  // orthogonal to every atom, as far as T can tell, or the atom lies in the span of those chosen.
  bool add(index s, T correlation) {
    if (n_ == capacity_) grow(std::min(options_.max_nonzeros, 2 * capacity_));
    const T full = atoms_.diagonal()[s];
    if (!atoms_.answers(s, double(correlation), norm2_, n_)) return false;
    for (index i = 0; i < n_; ++i) common_[i] = q(i, s / kSweep<T> * kSweep<T>)[s % kSweep<T>];
    Vec<T> inside{};
    Vec<I> repeated{};
    for (index i = 0; i < n_; i += simd::kLanes<T>) {  // beyond n_, common is 0 and chosen is −1
      const Vec<T> common = simd::load(common_.data() + i);
      const Vec<T> w = common * simd::load(inverse_nu_.data() + i);
      inside = simd::mul_add(w, common, inside);
      simd::store(l_.data() + n_ * capacity_ + i, w);
      simd::store(minus_w_.data() + i, -w);
      repeated |= simd::load(chosen_.data() + i) == simd::splat(I(s));
    }
    const T outside = full - simd::reduce_add<T>(inside);
    if (simd::mask_bits(repeated)) return false;
    if (!(outside > Atoms<T>::dependent(n_) * full && outside >= Atoms<T>::kLeast)) return false;
    inverse_nu_[n_] = 1 / outside;
    a_[n_] = correlation * inverse_nu_[n_];
    chosen_[n_++] = I(s);
    cancelled_ = 4096 * kEps * full / outside;
    return true;
  }

  // Adds the best of the atoms that add() does not refuse, and sets s to it. Few rows come here.
  bool add_other(index& s) {
    std::vector<std::pair<T, index>> others;
    for (index i = 0; i < atoms_.count(); ++i) {
      const T alpha = alpha_[i], full = atoms_.diagonal()[i];
      if (!atoms_.answers(i, double(alpha), norm2_, n_)) continue;
      if (!options_.orthogonal_select) others.emplace_back(-std::abs(alpha), i);
      else if (outside_[i] > full * floor()[0])
        others.emplace_back(-alpha * alpha / outside_[i], i);
    }
    std::sort(others.begin(), others.end());
    for (const auto& [score, i] : others)
      if (add(i, alpha_[i])) {
        s = i;
        return true;
      }
    return false;
  }

  // OLS: the share of its square that an atom must have outside the span to get a score. Dividing
  // by less would let the rounding of α choose.
  static Vec<T> floor() { return simd::splat(sizeof(T) == 4 ? 4 * std::sqrt(kEps) : T(0x1p-34)); }

  template <bool Orthogonal>
  static Vec<T> score(Vec<T> alpha, Vec<T> outside, Vec<T> full) {
    if constexpr (!Orthogonal) return simd::abs(alpha);
    // In float, rows with atoms that answer but get no score are coded again in double.
    return outside > full * floor() ? alpha * alpha / outside : Vec<T>{};
  }

  template <bool Orthogonal>
  Best<T> select() const {
    Argmax<T> argmax;
    for (index c = 0; c < ld_; c += kSweep<T>) {
      Vec<T> scores[kSweepVectors];
#pragma GCC unroll 8
      for (int u = 0; u < kSweepVectors; ++u) {
        const index at = c + u * simd::kLanes<T>;
        const Vec<T> full = Orthogonal ? simd::load(atoms_.diagonal() + at) : Vec<T>{};
        scores[u] = score<Orthogonal>(simd::load(alpha_ + at), full, full);
      }
      argmax.offer(scores, c);
    }
    return argmax.best();
  }

  // Updates Q_n-1 and α and finds the next atom in one sweep. Sweeps run upwards and downwards in
  // turn, so that each begins with what the last one left in L1 when Q as a whole no longer fits
  // there.
  template <bool Orthogonal>
  Best<T> update(index s) {
    return n_ % 2 ? sweep<Orthogonal, false>(s) : sweep<Orthogonal, true>(s);
  }

  template <bool Orthogonal, bool Down>
  Best<T> sweep(index s) {
    const index j = n_ - 1;
    const T* g = atoms_.gram_row(s, gram_scratch_.data(), atom_scratch_.data());
    const Vec<T> minus_inverse = simd::splat(-inverse_nu_[j]), minus_a = simd::splat(-a_[j]);
    Argmax<T> argmax;
    for (index visited = 0; visited < ld_; visited += kSweep<T>) {
      const index c = Down ? ld_ - kSweep<T> - visited : visited;
      Vec<T> z[kSweepVectors];
#pragma GCC unroll 8
      for (int u = 0; u < kSweepVectors; ++u) z[u] = simd::load(g + c + u * simd::kLanes<T>);
      T* qi = q(0, c);
      for (index i = 0; i < j; ++i, qi += kSweep<T>) {
        const Vec<T> wi = simd::splat(minus_w_[i]);
#pragma GCC unroll 8
        for (int u = 0; u < kSweepVectors; ++u)
          z[u] = simd::mul_add(wi, simd::load(qi + u * simd::kLanes<T>), z[u]);
      }
#pragma GCC unroll 8
      for (int u = 0; u < kSweepVectors; ++u) {
        const index at = c + u * simd::kLanes<T>;
        simd::store(qi + u * simd::kLanes<T>, z[u]);
        const Vec<T> left = simd::mul_add(minus_a, z[u], simd::load(alpha_ + at));
        simd::store(alpha_ + at, left);
        Vec<T> outside = {}, full = {};
        if constexpr (Orthogonal) {
          const Vec<T> before = simd::load(outside_.data() + at);
          outside = simd::mul_add(z[u] * minus_inverse, z[u], before);
          if constexpr (sizeof(T) == 8)
            outside = outside > before * simd::splat(cancelled_) ? outside : Vec<T>{};
          simd::store(outside_.data() + at, outside);
          full = simd::load(atoms_.diagonal() + at);
          if constexpr (sizeof(T) == 4)
            left_out_ |= (outside <= full * floor()) & (left * left > full * least_answer2_);
        }
        z[u] = score<Orthogonal>(left, outside, full);
      }
      argmax.template offer<Down>(z, c);
    }
    return argmax.best();
  }

  // Returns whether the squared error is at most the tolerance. The recursion ‖x‖² − Σ a²ν carries
  // the rounding of T; when that could change the answer, the error is computed from its
  // definition, in double.
  bool reached() {
    if (tol_ < 0) return false;
    const double doubt = 256 * double(kEps) * norm2_;
    if (error_ > tol_ + doubt) return false;
    if (error_ < tol_ - doubt) return true;
    solve();
    double sum = 0;
    for (index k = 0; k < atoms_.depth(); ++k) {
      double left = x_[SideBySide<kTileRows>::at(k)];
      for (index i = 0; i < n_; ++i)
        left -= double(gamma_[i]) * double(atoms_.at(index(chosen_[i]), k));
      sum += left * left;
    }
    return sum <= tol_;
  }

  void solve() {
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const Matrix, 0, Eigen::OuterStride<>> l(l_.data(), n_, n_,
                                                              Eigen::OuterStride<>(capacity_));
    Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, 1>> gamma(gamma_.data(), n_);
    std::copy_n(a_.data(), n_, gamma_.data());
    l.template triangularView<Eigen::UnitLower>().transpose().solveInPlace(gamma);
  }

  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  const index ld_;
  Buffer<T> gram_scratch_, atom_scratch_;
  Buffer<T> outside_;  // OLS: each atom's squared norm outside the span
  Buffer<T> q_, l_;
  std::vector<T> common_, minus_w_, inverse_nu_, a_, gamma_;
  std::vector<I> chosen_;
  index n_ = 0, capacity_ = 0;
  Ended ended_ = Ended::as_asked;
  Vec<T> least_answer2_{};  // for an atom of unit norm: the least square above rounding
  T cancelled_ = 0;    // OLS: the share of a square that the latest atom's rounding may leave of it
  Vec<I> left_out_{};  // OLS: whether an atom got no score although it answers
  T* alpha_ = nullptr;
  const T* x_ = nullptr;
  Best<T> best_{};
  double norm2_ = 0, error_ = 0, tol_ = 0;  // error_: ‖r‖² by the recursion
};

}  // namespace ff

#pragma once
#include <array>

#include "kernels/omp/argmax.hpp"
#include "kernels/omp/atoms.hpp"

// The pursuit of several rows in step, for codes of few atoms.
//
// With s_i the chosen atoms and γ_i their coefficients, the correlation of every atom with the
// residual,
//
//   α − Σ γ_i G[s_i],   α = Dx,
//
// is computed anew in registers at each step and only its largest entry is kept: a sweep stores
// nothing. The rest is small and uses one lane per row. LDLᵀ is the factorisation of the Gram
// matrix of the chosen atoms:
//
//   w_i = (G[s_i,s] − Σ_{t<i} L_it ν_t w_t) / ν_i   the new atom's coordinates: row j of L
//   ν_j = G[s,s] − Σ w_i² ν_i                       its squared norm outside the span
//   b_j = α[s] − Σ w_i b_i                          forward substitution
//   γ_i = b_i / ν_i − Σ_{t>i} L_ti γ_t              backward, from the last to the first
namespace ff {

template <class T>
class Flight {
 public:
  // Time relative to Coder (10,000 rows of 64 on one thread), with 256 and with 1024 atoms: 0.65
  // and 0.84 for codes of 8 atoms, 0.70 and 1.03 for 16, 0.82 and 1.10 for 24, whose Gram rows for
  // all rows in step do not fit L2.
  static constexpr int kMostAtoms = 16;

  Flight(const Atoms<T>& atoms, index max_nonzeros)
      : atoms_(atoms),
        max_nonzeros_(int(max_nonzeros)),
        gram_scratch_(atoms.has_gram() ? 0 : max_nonzeros * atoms.ld()),
        atom_scratch_(atoms.has_gram() ? 0 : atoms.depth()) {}

  // Returns how many rows code() takes: one if their Gram rows have to be computed and stored.
  index rows() const { return atoms_.has_gram() ? kLanes : 1; }

  // Codes n rows. alpha: D·x of each row, ld apart; norm2: ‖x‖².
  void code(const T* alpha, const double* norm2, int n) {
    alignas(simd::kBytes) std::array<I, kLanes> going;
    for (int r = 0; r < kLanes; ++r) going[r] = r < n ? -1 : 0;
    count_ = Ints{};
    for (int j = 0; j < max_nonzeros_; ++j) {
      // The largest entries are looked up after all sweeps, so that no sweep waits for the end of
      // another. Rows are taken forwards and backwards in turn, so that a step begins with those
      // whose Gram rows are still in L1.
      for (int i = 0; i < n; ++i) {
        const int r = j % 2 ? n - 1 - i : i;
        if (going[r]) sweep(j, r, alpha + r * atoms_.ld());
      }
      for (int r = 0; r < n; ++r)
        if (going[r]) going[r] = choose(j, r, alpha + r * atoms_.ld(), norm2[r]) ? -1 : 0;
      const Ints left = append(j, simd::load(going.data()));
      if (!simd::mask_bits(left)) break;
      simd::store(going.data(), left);
    }
    rank();
  }

  index count(int r) const { return index(count_[r]); }

  // Writes the chosen atoms of row r in ascending order and their coefficients times `unscale`.
  void result(int r, double unscale, std::int32_t* indices, T* data) const {
    for (int i = 0; i < int(count_[r]); ++i) {
      const index to = index(rank_[i][r]);
      indices[to] = std::int32_t(chosen_[i][r]);
      data[to] = T(-double(minus_gamma_[i][r]) * unscale);
    }
  }

 private:
  using I = simd::Int<T>;
  using Vec = simd::Vec<T>;
  using Ints = simd::Vec<I>;
  static constexpr int kLanes = simd::kLanes<T>;
  template <class U>
  using PerRow = std::array<U, kLanes>;
  template <class U>
  using PerAtom = std::array<U, kMostAtoms>;

  void sweep(int j, int r, const T* alpha) {
    Argmax<T> argmax;
    for (index c = 0; c < atoms_.ld(); c += kSweep<T>) {
      Vec left[kSweepVectors];
#pragma GCC unroll 8
      for (int u = 0; u < kSweepVectors; ++u) left[u] = simd::load(alpha + c + u * kLanes);
      for (int i = 0; i < j; ++i) {
        const Vec minus = simd::splat(minus_gamma_[i][r]);
        const T* g = gram_rows_[i][r] + c;
#pragma GCC unroll 8
        for (int u = 0; u < kSweepVectors; ++u)
          left[u] = simd::mul_add(minus, simd::load(g + u * kLanes), left[u]);
      }
#pragma GCC unroll 8
      for (int u = 0; u < kSweepVectors; ++u) left[u] = simd::abs(left[u]);
      argmax.offer(left, c);
    }
    argmax_[r] = argmax;
  }

  // Chooses row r's next atom and collects what append() needs for it. Returns false if there is
  // none: the residual is orthogonal to every atom, as far as T can tell.
  bool choose(int j, int r, const T* alpha, double norm2) {
    const Best<T> best = argmax_[r].best();
    const index s = best.atom;
    if (!atoms_.answers(s, double(best.score), norm2, j)) return false;
    for (int i = 0; i < j; ++i) common_[i][r] = gram_rows_[i][r][s];
    chosen_[j][r] = I(s);
    full_[r] = atoms_.diagonal()[s];
    answer_[r] = alpha[s];
    if (j + 1 < max_nonzeros_) {
      T* scratch = atoms_.has_gram() ? nullptr : gram_scratch_.data() + j * atoms_.ld();
      gram_rows_[j][r] = atoms_.gram_row(s, scratch, atom_scratch_.data());
    }
    return true;
  }

  // Computes row j of every factor and the γ that belong to it; returns which rows go on. A row
  // whose new atom lies in the span of those it has keeps them and ends.
  Ints append(int j, Ints going) {
    const Vec full = simd::load(full_.data());
    const Ints atom = simd::load(chosen_[j].data());
    Vec common[kMostAtoms], gamma[kMostAtoms];
    Vec outside = full, answer = simd::load(answer_.data());
    for (int i = 0; i < j; ++i) {
      common[i] = simd::load(common_[i].data());
      for (int t = 0; t < i; ++t) common[i] = simd::mul_add(minus_l_[i][t], common[t], common[i]);
      minus_l_[j][i] = -(common[i] * inverse_nu_[i]);
      outside = simd::mul_add(minus_l_[j][i], common[i], outside);
      answer = simd::mul_add(minus_l_[j][i], answers_[i], answer);
      going &= atom != simd::load(chosen_[i].data());
    }
    going &= outside > simd::splat(Atoms<T>::dependent(j)) * full;
    going &= outside >= simd::splat(Atoms<T>::kLeast);
    inverse_nu_[j] = simd::splat(T(1)) / outside;
    answers_[j] = answer;
    for (int i = j; i >= 0; --i) {
      gamma[i] = answers_[i] * inverse_nu_[i];
      for (int t = j; t > i; --t) gamma[i] = simd::mul_add(minus_l_[t][i], gamma[t], gamma[i]);
      T* to = minus_gamma_[i].data();
      simd::store(to, going ? -gamma[i] : simd::load(to));
    }
    count_ -= going;
    return going;
  }

  // Finds the place of each chosen atom in its row's ascending order. It counts smaller atoms, for
  // all rows at once, because the branches of a sort would be unpredictable.
  void rank() {
    for (int i = 0; i < max_nonzeros_; ++i) {
      Ints rank = {};
      const Ints atom = simd::load(chosen_[i].data());
      for (int t = 0; t < max_nonzeros_; ++t)
        rank -= (simd::load(chosen_[t].data()) < atom) & (count_ > simd::splat(I(t)));
      simd::store(rank_[i].data(), rank);
    }
  }

  const Atoms<T>& atoms_;
  const int max_nonzeros_;
  Buffer<T> gram_scratch_, atom_scratch_;
  PerRow<Argmax<T>> argmax_;
  PerAtom<PerRow<const T*>> gram_rows_ = {};
  Ints count_ = {};
  PerAtom<Vec> inverse_nu_ = {}, answers_ = {};
  PerAtom<PerAtom<Vec>> minus_l_ = {};
  alignas(simd::kBytes) PerAtom<PerRow<T>> common_ = {}, minus_gamma_ = {};
  alignas(simd::kBytes) PerAtom<PerRow<I>> chosen_ = {}, rank_ = {};
  alignas(simd::kBytes) PerRow<T> full_ = {}, answer_ = {};
};

}  // namespace ff

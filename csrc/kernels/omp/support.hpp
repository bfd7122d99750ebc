#pragma once
#include <algorithm>
#include <vector>

#include "kernels/omp/atoms.hpp"

// Least squares for many rows, each on the few atoms that it has chosen so far, without a Gram
// matrix: the few products that a factor needs are computed when an atom is added.
//
// With s_i the chosen atoms, LDLᵀ the factors of their Gram matrix, and ν the diagonal of D:
//
//   c_i = ⟨a_i, a⟩ − Σ_{t<i} L_it c_t,  L_ji = c_i / ν_i   the new atom's row of the triangle
//   ν_j = ⟨a, a⟩ − Σ L_ji c_i                              its squared norm outside the span
//   b_j = ⟨a, x⟩ − Σ L_ji b_i                              forward substitution
//   γ_i = b_i / ν_i − Σ_{t>i} L_ti γ_t                     backward
//   r = x − Σ γ_i a_i
//
// All of it is in double: it is a small part of the work, and a duplicate atom in float then leaves
// nothing but rounding.
namespace ff {

template <class T>
inline constexpr index kSupportStep = 2 * simd::kLanes<double>;

// Returns Σ a_k b_k in double over n numbers, n a multiple of kSupportStep.
template <class T, class U>
double wide_product(const T* a, const U* b, index n) {
  constexpr int kLanes = simd::kLanes<double>;
  simd::Vec<double> even{}, odd{};
  for (index k = 0; k < n; k += kSupportStep<T>) {
    even = simd::mul_add(simd::load_wide(a + k), simd::load_wide(b + k), even);
    odd = simd::mul_add(simd::load_wide(a + k + kLanes), simd::load_wide(b + k + kLanes), odd);
  }
  return simd::reduce_add<double>(even + odd);
}

// The atoms one after the other, each followed by zeros up to a whole step.
template <class T>
struct AtomRows {
  AtomRows(const Atoms<T>& atoms, int n_threads, Stop& stop)
      : ld(round_up(atoms.depth(), std::max<index>(simd::kLanes<T>, kSupportStep<T>))),
        data(atoms.count() * ld) {
    parallel_for(atoms.panels().n_panels(), n_threads, stop, [&](index p, int) {
      const index first = p * kPanelCols<T>, end = std::min(atoms.count(), first + kPanelCols<T>);
      for (index s = first; s < end; ++s) {
        T* to = data.data() + s * ld;
        for (index k = 0; k < atoms.depth(); ++k) to[k] = atoms.at(s, k);
        std::fill(to + atoms.depth(), to + ld, T(0));
      }
    });
  }

  const T* row(index s) const { return data.data() + s * ld; }

  index ld;
  Buffer<T> data;
};

template <class T>
class Supports {
 public:
  // atoms: all of them, ld apart, filled up with zeros. most: how many a row may choose.
  Supports(const T* atoms, index ld, index rows, index most)
      : atoms_(atoms), ld_(ld), rows_(rows), most_(most), counts_(rows, 0) {
    grow(first_room(most));
  }

  // Returns the memory a row takes at first. If any row chooses more than kFirstRoom atoms, all
  // rows get more.
  static index bytes_per_row(index most) { return most_bytes_per_row(first_room(most)); }

  static index most_bytes_per_row(index room) {
    return (triangle(room) + 2 * room) * index(sizeof(double)) + room * index(sizeof(std::int32_t));
  }

  void clear(index row) { counts_[row] = 0; }
  index count(index row) const { return counts_[row]; }

  // Adds an atom to a row whose signal is x. Returns false, and changes nothing that is kept, if
  // the atom lies in the span of those chosen.
  bool add(index row, index atom, const T* x) {
    const index j = counts_[row];
    if (j == room_) grow(std::min(most_, 2 * room_));
    const T* a = atoms_ + atom * ld_;
    const std::int32_t* chosen = chosen_.data() + row * room_;
    const double* answers = answers_.data() + row * room_;
    double* mine = factor(row, j);
    const double full = wide_product(a, a, ld_);
    double outside = full, answer = wide_product(a, x, ld_);
    for (index i = 0; i < j; ++i) {
      if (chosen[i] == atom) return false;
      const double* l = factor(row, i);
      double common = wide_product(atoms_ + chosen[i] * ld_, a, ld_);
      for (index t = 0; t < i; ++t) common -= l[t] * common_[t];
      common_[i] = common;
      mine[i] = common / l[i];
      outside -= mine[i] * common;
      answer -= mine[i] * answers[i];
    }
    if (!(outside > double(Atoms<T>::dependent(j)) * full && outside >= double(Atoms<T>::kLeast)))
      return false;
    mine[j] = outside;
    answers_[row * room_ + j] = answer;
    chosen_[row * room_ + j] = std::int32_t(atom);
    counts_[row] = j + 1;
    solve(row);
    return true;
  }

  // Computes r = x − Σ γ a; returns its squared norm.
  double residual(index row, const T* x, T* r) const {
    constexpr int kLanes = simd::kLanes<double>;
    const double* gamma = gamma_.data() + row * room_;
    const std::int32_t* chosen = chosen_.data() + row * room_;
    for (index k = 0; k < ld_; k += kLanes) {
      simd::Vec<double> left = simd::load_wide(x + k);
      for (index i = 0; i < counts_[row]; ++i)
        left = simd::mul_add(simd::splat(-gamma[i]), simd::load_wide(atoms_ + chosen[i] * ld_ + k),
                             left);
      for (int lane = 0; lane < kLanes; ++lane) r[k + lane] = T(left[lane]);
    }
    return wide_product(r, r, ld_);
  }

  // Writes the chosen atoms in ascending order and their coefficients times `unscale`.
  void result(index row, double unscale, std::int32_t* indices, T* data) const {
    const std::int32_t* chosen = chosen_.data() + row * room_;
    for (index i = 0; i < counts_[row]; ++i) {
      const index to = std::count_if(chosen, chosen + counts_[row],
                                     [=](std::int32_t other) { return other < chosen[i]; });
      indices[to] = chosen[i];
      data[to] = T(gamma_[row * room_ + i] * unscale);
    }
  }

 private:
  static constexpr index kFirstRoom = 16;

  static index first_room(index most) { return std::min(most, kFirstRoom); }
  static index triangle(index n) { return n * (n + 1) / 2; }

  // Returns row i of a row's triangle, which ends with ν_i.
  double* factor(index row, index i) {
    return factors_.data() + row * triangle(room_) + triangle(i);
  }

  void grow(index room) {
    chosen_ = widened(chosen_, room_, room);
    factors_ = widened(factors_, triangle(room_), triangle(room));
    answers_ = widened(answers_, room_, room);
    gamma_ = widened(gamma_, room_, room);
    common_.resize(room);
    room_ = room;
  }

  // Returns a copy in which each row has room for `to` elements instead of `from`.
  template <class U>
  Buffer<U> widened(const Buffer<U>& old, index from, index to) const {
    Buffer<U> wide(rows_ * to);
    for (index row = 0; row < rows_; ++row)
      std::copy_n(old.data() + row * from, from, wide.data() + row * to);
    return wide;
  }

  void solve(index row) {
    const index n = counts_[row];
    const double* answers = answers_.data() + row * room_;
    double* gamma = gamma_.data() + row * room_;
    for (index i = 0; i < n; ++i) gamma[i] = answers[i] / factor(row, i)[i];
    for (index i = n - 1; i > 0; --i)
      for (index t = 0; t < i; ++t) gamma[t] -= factor(row, i)[t] * gamma[i];
  }

  const T* atoms_;
  index ld_, rows_, most_, room_ = 0;
  std::vector<index> counts_;
  Buffer<std::int32_t> chosen_;
  Buffer<double> factors_, answers_, gamma_;
  std::vector<double> common_;
};

}  // namespace ff

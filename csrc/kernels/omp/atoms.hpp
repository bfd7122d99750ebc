#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/panels.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/omp/argmax.hpp"

// The dictionary of a pursuit: its atoms packed for products with rows, and its Gram matrix.
namespace ff {

// Returns the power of two that brings the largest magnitude into [1, 2). Scaling by it is exact,
// so rows of any magnitude are coded alike.
template <class T>
T exact_scale(T largest) {
  if (!(largest > 0 && std::isfinite(largest))) return 1;
  // If 2^n has the biased exponent e = bias + n, then 2^-n has 2·bias − e.
  using I = simd::Int<T>;
  constexpr int kFraction = std::numeric_limits<T>::digits - 1;
  constexpr I kBias = std::numeric_limits<T>::max_exponent - 1;
  I bits;
  std::memcpy(&bits, &largest, sizeof bits);
  bits = std::clamp<I>(2 * kBias - (bits >> kFraction), 1, 2 * kBias) << kFraction;
  T scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// Returns the largest |value|; NaN counts as larger than any number. It compares integers, whose
// maximum compilers vectorise: floats without their sign are ordered like their bits.
template <class T>
T largest_magnitude(const T* values, index n) {
  using I = simd::Int<T>;
  constexpr I magnitude = std::numeric_limits<I>::max();
  I largest = 0;
  for (index i = 0; i < n; ++i) {
    I bits;
    std::memcpy(&bits, values + i, sizeof bits);
    largest = std::max<I>(largest, bits & magnitude);
  }
  T result;
  std::memcpy(&result, &largest, sizeof result);
  return result;
}

template <class T>
double squared_norm(const T* values, index n) {
  double partial[8] = {};
  index i = 0;
  for (; i + 8 <= n; i += 8)
    for (int u = 0; u < 8; ++u) partial[u] += double(values[i + u]) * double(values[i + u]);
  double sum = 0;
  for (; i < n; ++i) sum += double(values[i]) * double(values[i]);
  for (const double p : partial) sum += p;
  return sum;
}

// Returns whether computing the whole Gram matrix is worth its time if its rows are used this
// often, and whether it fits.
template <class T>
bool gram_pays(index n_atoms, index uses) {
  constexpr index kMostBytes = index(2) << 30;
  return 4 * uses >= n_atoms && n_atoms <= kMostBytes / index(sizeof(T)) / n_atoms;
}

// The dictionary as the coder needs it: scaled, packed in panels, with its Gram matrix held whole
// or computed row by row.
template <class T>
class Atoms {
 public:
  Atoms(const MatrixView& dictionary, const MatrixView* gram, bool whole_gram, int n_threads,
        Stop& stop)
      : panels_(dictionary.rows, dictionary.cols),
        ld_(round_up(dictionary.rows, kSweep<T>)),
        noise_ulps_(4 + 0.5 * std::sqrt(double(dictionary.cols))) {
    pack(dictionary, n_threads, stop);
    diagonal_ = Buffer<T>(ld_);
    std::fill_n(diagonal_.data(), ld_, T(0));
    if (gram) {
      load_gram(*gram, n_threads, stop);
    } else if (whole_gram) {
      compute_gram(n_threads, stop);
    }
    for (index s = 0; s < count(); ++s)
      diagonal_[s] = gram_.size() ? gram_[s * ld_ + s] : gram_diagonal(s);
    for (index s = 0; s < count(); ++s)
      if (diagonal_[s] < kLeast) diagonal_[s] = 0;
  }

  index count() const { return panels_.count(); }
  index depth() const { return panels_.depth(); }
  // Returns the number of atoms, rounded up to whole steps; entries past the last atom are zero.
  index ld() const { return ld_; }
  T scale() const { return scale_; }
  const Panels<T>& panels() const { return panels_; }
  const T* diagonal() const { return diagonal_.data(); }
  T at(index atom, index k) const {
    return panels_.panel(atom / kPanelCols<T>)[k * kPanelCols<T> + atom % kPanelCols<T>];
  }

  // Returns whether a residual's correlation with atom s is larger than rounding alone can make it,
  // given that n atoms are chosen.
  bool answers(index s, double correlation, double norm2, index n) const {
    return correlation * correlation > least_answer2(norm2, n) * double(diagonal_[s]);
  }

  // Returns the square that rounding alone can give the correlation with an atom of unit norm.
  double least_answer2(double norm2, index n) const {
    const double noise = double(kEps) * (noise_ulps_ + 0.5 * double(n));
    return noise * noise * norm2;
  }

  // If less than this share of an atom's square lies outside the span of n others, it is rounding:
  // each of up to n subtractions is off by half an ulp of G[s,s].
  static T dependent(index n) { return kEps * T(8 + n); }

  // The smallest square that still has a finite inverse. Atoms with a smaller one (in float,
  // shorter than about 1e-19 of the dictionary's largest magnitude) count as zero.
  static constexpr T kLeast = std::numeric_limits<T>::min();

  bool has_gram() const { return gram_.size() > 0; }

  // Returns row s of the Gram matrix; computes it into scratch if the matrix is not held.
  const T* gram_row(index s, T* scratch, T* atom) const {
    if (gram_.size()) return gram_.data() + s * ld_;
    for (index k = 0; k < depth(); ++k) atom[k] = at(s, k);
    multiply<1>(atom, scratch);
    return scratch;
  }

  // Computes out[r·ld + c] = ⟨row r, atom c⟩ for R interleaved rows.
  template <int R>
  void multiply(const T* rows, T* out) const {
    for (index p = 0; p < panels_.n_panels(); ++p) multiply_panel<R>(rows, p, out);
    for (int r = 0; r < R; ++r)
      std::fill(out + r * ld_ + panels_.padded(), out + (r + 1) * ld_, T(0));
  }

  template <int R, class Layout = Interleaved<R>>
  void multiply_panel(const T* rows, index p, T* out) const {
    simd::Vec<T> acc[R][kPanelVectors] = {};
    panel_product<R, Layout>(rows, panels_.panel(p), depth(), acc);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        simd::store(out + r * ld_ + p * kPanelCols<T> + v * simd::kLanes<T>, acc[r][v]);
  }

 private:
  static constexpr T kEps = std::numeric_limits<T>::epsilon();

  void pack(const MatrixView& dictionary, int n_threads, Stop& stop) {
    // One task per panel, so that no two threads write into the same panel.
    const index n_panels = panels_.n_panels();
    std::vector<T> largest(n_panels, T(0));
    parallel_for(n_panels, n_threads, stop, [&](index p, int) {
      std::vector<T> row(depth());
      for (index s = p * kPanelCols<T>; s < std::min(count(), (p + 1) * kPanelCols<T>); ++s) {
        load_row(dictionary, s, row.data());
        if (!std::isfinite(squared_norm(row.data(), depth())))
          throw_not_finite(dictionary, s, "dictionary");
        largest[p] = std::max(largest[p], largest_magnitude(row.data(), depth()));
      }
    });
    scale_ = exact_scale(*std::max_element(largest.begin(), largest.end()));
    parallel_for(n_panels, n_threads, stop, [&](index p, int) {
      std::vector<T> row(depth());
      for (index s = p * kPanelCols<T>; s < std::min(count(), (p + 1) * kPanelCols<T>); ++s) {
        load_row(dictionary, s, row.data());
        for (T& value : row) value *= scale_;
        panels_.set(s, row.data());
      }
    });
  }

  void load_gram(const MatrixView& gram, int n_threads, Stop& stop) {
    gram_ = Buffer<T>(count() * ld_);
    parallel_for(count(), n_threads, stop, [&](index s, int) {
      T* row = gram_.data() + s * ld_;
      load_row(gram, s, row);
      for (index c = 0; c < count(); ++c) {
        if (!std::isfinite(row[c])) throw_not_finite(gram, s, "gram");
        row[c] = row[c] * scale_ * scale_;
      }
      std::fill(row + count(), row + ld_, T(0));
    });
  }

  void compute_gram(int n_threads, Stop& stop) {
    gram_ = Buffer<T>(count() * ld_);
    parallel_for(ceil_div(count(), kTileRows), n_threads, stop, [&](index block, int) {
      std::vector<T> rows(kTileRows * depth());
      Buffer<T> products(kTileRows * ld_);
      const index first = block * kTileRows, n = std::min<index>(kTileRows, count() - first);
      for (index k = 0; k < depth(); ++k)
        for (index r = 0; r < kTileRows; ++r)
          rows[k * kTileRows + r] = at(first + std::min(r, n - 1), k);
      multiply<kTileRows>(rows.data(), products.data());
      std::copy_n(products.data(), n * ld_, gram_.data() + first * ld_);
    });
  }

  // Returns G[s,s] with the rounding that it has in the whole matrix.
  T gram_diagonal(index s) const {
    T total = 0;
    for (index first = 0; first < depth(); first += kDepthPart) {
      T part = 0;
      for (index k = first; k < std::min(depth(), first + kDepthPart); ++k)
        part = simd::mul_add(at(s, k), at(s, k), part);
      total = first == 0 ? part : total + part;
    }
    return total;
  }

  Panels<T> panels_;
  index ld_;
  double noise_ulps_;  // the rounding error of a correlation of unit vectors, in ulps
  T scale_ = 1;
  Buffer<T> gram_;
  Buffer<T> diagonal_;
};

}  // namespace ff

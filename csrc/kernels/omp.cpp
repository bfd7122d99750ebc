// Batched orthogonal matching pursuit. Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal
// matching pursuit" (1993); Gram form after R. Rubinstein, M. Zibulevsky, M. Elad (2008).
//
// Let q_0 … q_{j-1} be the chosen atoms, orthonormalised. For every row we keep α = Dr, the
// correlation of each atom with the residual, and Q_i = Dq_i. Choosing atom s then costs one Gram
// row:
//
//   w_i = Q_i[s]                  the new atom's coordinates: row j of the Cholesky factor L
//   ν   = G[s,s] − Σ w_i²         what of it lies outside the span
//   Q_j = (G[s] − Σ w_i Q_i) / √ν
//   a_j = α[s] / √ν,   α ← α − a_j Q_j,   ‖r‖² ← ‖r‖² − a_j²
//
// and the coefficients solve Lᵀγ = a at the end. All but G stays in the caches of one core.
#include "kernels/omp.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "core/panels.hpp"

namespace ff {
namespace {

using simd::Vec;

// The update runs over so many vectors at a time, so that each w_i is broadcast once for all.
constexpr int kUnroll = 8;
template <class T>
constexpr index kStep = kUnroll * simd::kLanes<T>;

// Powers of two that bring the largest magnitude into [1, 2): scaling by them is exact, so rows of
// any magnitude are coded alike.
template <class T>
T exact_scale(T largest) {
  if (!(largest > 0 && std::isfinite(largest))) return 1;
  // The biased exponent e of 2^n is bias + n: that of 2^-n is 2·bias − e.
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

// NaN counts as larger than all. In integers, whose maximum compilers vectorise: floats without
// their sign are ordered as their bits are.
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

// The dictionary as the coder wants it: scaled, packed in panels, its Gram matrix whole or by row.
template <class T>
class Atoms {
 public:
  Atoms(const MatrixView& dictionary, const MatrixView* gram, bool whole_gram, int n_threads,
        Stop& stop)
      : panels_(dictionary.rows, dictionary.cols), ld_(round_up(dictionary.rows, kStep<T>)) {
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
  }

  index count() const { return panels_.count(); }
  index depth() const { return panels_.depth(); }
  index ld() const {
    return ld_;
  }  // atoms, rounded up to whole steps; what is past the last is zero
  T scale() const { return scale_; }
  const Panels<T>& panels() const { return panels_; }
  const T* diagonal() const { return diagonal_.data(); }
  T at(index atom, index k) const {
    return panels_.panel(atom / kPanelCols<T>)[k * kPanelCols<T> + atom % kPanelCols<T>];
  }

  // Row s of the Gram matrix; computed into scratch where the matrix is not held.
  const T* gram_row(index s, T* scratch, T* atom) const {
    if (gram_.size()) return gram_.data() + s * ld_;
    for (index k = 0; k < depth(); ++k) atom[k] = at(s, k);
    multiply<1>(atom, scratch);
    return scratch;
  }

  // Where the matrix is larger than a core's cache: starts to fetch a row that will be asked for.
  void prefetch_gram_row(index s) const {
    constexpr index kCached = index(512) << 10;
    if (gram_.size() * index(sizeof(T)) <= kCached) return;
    for (index c = 0; c < ld_; c += index(kCacheLine / sizeof(T)))
      __builtin_prefetch(gram_.data() + s * ld_ + c);
  }

  // out[r·ld + c] = ⟨row r, atom c⟩ for R interleaved rows.
  template <int R>
  void multiply(const T* rows, T* out) const {
    for (index p = 0; p < panels_.n_panels(); ++p) multiply_panel<R>(rows, p, out);
    for (int r = 0; r < R; ++r)
      std::fill(out + r * ld_ + panels_.padded(), out + (r + 1) * ld_, T(0));
  }

  template <int R>
  void multiply_panel(const T* rows, index p, T* out) const {
    Vec<T> acc[R][kPanelVectors] = {};
    panel_product<R>(rows, panels_.panel(p), depth(), acc);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        simd::store(out + r * ld_ + p * kPanelCols<T> + v * simd::kLanes<T>, acc[r][v]);
  }

 private:
  void pack(const MatrixView& dictionary, int n_threads, Stop& stop) {
    // One task a panel, so that no two threads write into the same one.
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

  // G[s,s] with the rounding that the whole matrix would have.
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
  T scale_ = 1;
  Buffer<T> gram_;
  Buffer<T> diagonal_;
};

// One worker's scratch, and the coding of one row in it.
template <class T>
class Coder {
 public:
  Coder(const Atoms<T>& atoms, const OmpOptions& options)
      : atoms_(atoms),
        options_(options),
        ld_(atoms.ld()),
        noise_ulps_(4 + 0.5 * std::sqrt(double(atoms.depth()))),
        gram_scratch_(ld_),
        atom_scratch_(atoms.depth()),
        outside_(options.orthogonal_select ? ld_ : 0) {
    grow(std::min<index>(options.max_nonzeros, 16));
  }

  // alpha: D·x, which step() changes. x: the row, scaled to magnitude 1.
  void start(T* alpha, const T* x, double norm2, double tol) {
    alpha_ = alpha;
    x_ = x;
    norm2_ = error_ = norm2;
    tol_ = tol;
    n_ = 0;
    if (options_.orthogonal_select) std::copy_n(atoms_.diagonal(), ld_, outside_.data());
    best_ = options_.orthogonal_select ? select<true>() : select<false>();
    atoms_.prefetch_gram_row(best_.atom);
  }

  // One more atom; false when the row is done.
  bool step() {
    if (n_ == options_.max_nonzeros || reached()) return false;
    const index s = best_.atom;
    if (!(best_.score > 0) || !add(s, alpha_[s])) return false;
    error_ -= double(a_[n_ - 1]) * double(a_[n_ - 1]);
    if (n_ == options_.max_nonzeros) return false;  // nobody asks for α again
    best_ = options_.orthogonal_select ? update<true>(s) : update<false>(s);
    atoms_.prefetch_gram_row(best_.atom);
    return true;
  }

  index count() const { return n_; }

  // The chosen atoms in ascending order and their coefficients times `unscale`.
  void result(T unscale, std::int32_t* indices, T* data) {
    solve();
    for (index i = 0; i < n_; ++i) {
      index at = i;
      for (; at > 0 && indices[at - 1] > chosen_[i]; --at) {
        indices[at] = indices[at - 1];
        data[at] = data[at - 1];
      }
      indices[at] = std::int32_t(chosen_[i]);
      data[at] = gamma_[i] * unscale;
    }
  }

 private:
  using I = simd::Int<T>;
  static constexpr T kEps = std::numeric_limits<T>::epsilon();

  struct Best {
    index atom;
    T score;
  };

  // Per lane the best score so far and where it was met. Of equals the lowest index stays, whether
  // they are offered upwards or downwards.
  struct Running {
    Vec<T> score = simd::splat<T>(-1);
    Vec<I> at = {};

    template <bool Down = false>
    void offer(Vec<T> candidate, Vec<I> position) {
      const auto better = Down ? candidate >= score : candidate > score;
      at = better ? position : at;
      score = better ? candidate : score;
    }

    Best best() const {
      const T top = simd::reduce_max<T>(score);
      const Vec<I> atom = at + simd::iota<I>();
      unsigned lanes = simd::mask_bits(score == simd::splat(top));
      if (!lanes) return {0, 0};  // NaN: no score is positive
      I lowest = atom[__builtin_ctz(lanes)];
      while (lanes &= lanes - 1) lowest = std::min<I>(lowest, atom[__builtin_ctz(lanes)]);
      return {index(lowest), top};
    }
  };

  // Q_i from column c on, c a multiple of the step. Laid out step by step, so that a sweep reads
  // it front to back: rows a power of two apart would share a few sets of the cache.
  T* q(index i, index c) { return q_.data() + (c / kStep<T> * capacity_ + i) * kStep<T>; }

  void grow(index capacity) {
    Buffer<T> q(capacity * ld_), l(capacity * capacity);
    for (index c = 0; c < ld_; c += kStep<T>)
      std::copy_n(q_.data() + c * capacity_, n_ * kStep<T>, q.data() + c * capacity);
    for (index i = 0; i < n_; ++i)
      std::copy_n(l_.data() + i * capacity_, n_, l.data() + i * capacity);
    q_ = std::move(q);
    l_ = std::move(l);
    minus_w_.resize(capacity);
    chosen_.resize(capacity);
    a_.resize(capacity);
    gamma_.resize(capacity);
    capacity_ = capacity;
  }

  // Row n of L and a_n. False where there is nothing to add: the residual is orthogonal to every
  // atom as far as T can tell, or the atom lies in the span of those chosen.
  bool add(index s, T correlation) {
    if (n_ == capacity_) grow(std::min(options_.max_nonzeros, 2 * capacity_));
    const T full = atoms_.diagonal()[s];
    const double noise = kEps * (noise_ulps_ + 0.5 * double(n_));
    if (double(correlation) * double(correlation) <= noise * noise * norm2_ * double(full))
      return false;
    T* row = l_.data() + n_ * capacity_;
    T outside = full;
    for (index i = 0; i < n_; ++i) {
      if (chosen_[i] == s) return false;
      row[i] = q(i, s / kStep<T> * kStep<T>)[s % kStep<T>];
      minus_w_[i] = -row[i];
      outside = simd::mul_add(minus_w_[i], row[i], outside);
    }
    if (!(outside > dependent(full))) return false;
    row[n_] = std::sqrt(outside);
    a_[n_] = correlation / row[n_];
    chosen_[n_++] = s;
    return true;
  }

  // Below this ν is rounding: each of up to n subtractions errs by half an ulp of G[s,s].
  T dependent(T full) const { return kEps * T(8 + n_) * full; }

  template <bool Orthogonal>
  static Vec<T> score(Vec<T> alpha, Vec<T> outside, Vec<T> full) {
    if constexpr (!Orthogonal) return simd::abs(alpha);
    // An atom that lies in the span but for a few √ε of its square: dividing by that little would
    // let the rounding of α choose. (After a ν of √ε the next ones err by √ε themselves.)
    const Vec<T> floor = full * simd::splat(4 * std::sqrt(kEps));
    return outside > floor ? alpha * alpha / outside : Vec<T>{};
  }

  template <bool Orthogonal>
  Best select() const {
    Running running;
    for (index c = 0; c < ld_; c += simd::kLanes<T>) {
      const Vec<T> full = Orthogonal ? simd::load(atoms_.diagonal() + c) : Vec<T>{};
      running.offer(score<Orthogonal>(simd::load(alpha_ + c), full, full), simd::splat(I(c)));
    }
    return running.best();
  }

  // Q_n-1, α and the next choice in one sweep: upwards and downwards in turn, so that a sweep
  // begins with what the last one left in L1 when all of Q has outgrown it.
  template <bool Orthogonal>
  Best update(index s) {
    return n_ % 2 ? sweep<Orthogonal, false>(s) : sweep<Orthogonal, true>(s);
  }

  template <bool Orthogonal, bool Down>
  Best sweep(index s) {
    const index j = n_ - 1;
    const T* g = atoms_.gram_row(s, gram_scratch_.data(), atom_scratch_.data());
    const Vec<T> inverse = simd::splat(1 / l_[j * capacity_ + j]), minus_a = simd::splat(-a_[j]);
    Running running;
    for (index visited = 0; visited < ld_; visited += kStep<T>) {
      const index c = Down ? ld_ - kStep<T> - visited : visited;
      Vec<T> z[kUnroll];
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) z[u] = simd::load(g + c + u * simd::kLanes<T>);
      T* qi = q(0, c);
      for (index i = 0; i < j; ++i, qi += kStep<T>) {
        const Vec<T> wi = simd::splat(minus_w_[i]);
#pragma GCC unroll 8
        for (int u = 0; u < kUnroll; ++u)
          z[u] = simd::mul_add(wi, simd::load(qi + u * simd::kLanes<T>), z[u]);
      }
#pragma GCC unroll 8
      for (int m = 0; m < kUnroll; ++m) {
        const int u = Down ? kUnroll - 1 - m : m;
        const index at = c + u * simd::kLanes<T>;
        z[u] = z[u] * inverse;
        simd::store(qi + u * simd::kLanes<T>, z[u]);
        const Vec<T> left = simd::mul_add(minus_a, z[u], simd::load(alpha_ + at));
        simd::store(alpha_ + at, left);
        Vec<T> outside = {}, full = {};
        if constexpr (Orthogonal) {
          outside = simd::mul_add(-z[u], z[u], simd::load(outside_.data() + at));
          simd::store(outside_.data() + at, outside);
          full = simd::load(atoms_.diagonal() + at);
        }
        running.template offer<Down>(score<Orthogonal>(left, outside, full), simd::splat(I(at)));
      }
    }
    return running.best();
  }

  // ‖x‖² − Σ a² carries the rounding of T. Where that could decide, the error is computed as it is
  // defined, in double.
  bool reached() {
    if (tol_ < 0) return false;
    const double doubt = 256 * double(kEps) * norm2_;
    if (error_ > tol_ + doubt) return false;
    if (error_ < tol_ - doubt) return true;
    solve();
    double sum = 0;
    for (index k = 0; k < atoms_.depth(); ++k) {
      double left = x_[k];
      for (index i = 0; i < n_; ++i) left -= double(gamma_[i]) * double(atoms_.at(chosen_[i], k));
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
    l.template triangularView<Eigen::Lower>().transpose().solveInPlace(gamma);
  }

  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  const index ld_;
  const double noise_ulps_;  // how far rounding alone carries the correlation of unit vectors
  Buffer<T> gram_scratch_, atom_scratch_;
  Buffer<T> outside_;  // OLS: ‖part of each atom outside the span‖²
  Buffer<T> q_, l_;
  std::vector<T> a_, gamma_, minus_w_;
  std::vector<index> chosen_;
  index n_ = 0, capacity_ = 0;
  T* alpha_ = nullptr;
  const T* x_ = nullptr;
  Best best_{};
  double norm2_ = 0, error_ = 0, tol_ = 0;  // error: ‖r‖² by the recursion
};

template <class T>
struct BlockCodes {
  std::vector<T> data;
  std::vector<std::int32_t> indices;
};

// Rows whose x and α together take about a quarter of an L2 of 1 MB: the panels then stream past
// them once a block, not once a tile.
template <class T>
index rows_per_block(const Atoms<T>& atoms) {
  const index bytes = (atoms.depth() + atoms.ld()) * index(sizeof(T));
  return std::clamp<index>((index(256) << 10) / bytes / kTileRows, 1, 64) * kTileRows;
}

// One worker: blocks of rows through product and coder.
template <class T>
class Worker {
 public:
  Worker(const MatrixView& x, const Atoms<T>& atoms, const OmpOptions& options, index block)
      : x_(x),
        atoms_(atoms),
        options_(options),
        rows_(block * atoms.depth()),
        interleaved_(block * atoms.depth()),
        alpha_(block * atoms.ld()),
        scale_(block),
        norm2_(block) {
    for (index i = 0; i < rows_in_flight(); ++i) coders_.emplace_back(atoms, options);
  }

  void code(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    load(first, n);
    const index tiles = ceil_div(n, kTileRows), depth = atoms_.depth(), ld = atoms_.ld();
    for (index p = 0; p < atoms_.panels().n_panels(); ++p)
      for (index t = 0; t < tiles; ++t)
        atoms_.template multiply_panel<kTileRows>(interleaved_.data() + t * kTileRows * depth, p,
                                                  alpha_.data() + t * kTileRows * ld);
    const index flight = index(coders_.size()),
                likely = n * std::min<index>(options_.max_nonzeros, 64);
    codes.data.reserve(likely);
    codes.indices.reserve(likely);
    for (index r = 0; r < n; r += flight) code_flight(r, std::min(flight, n - r), counts, codes);
  }

 private:
  // A step ends in an argmax and a square root that the next one waits for. Rows in turn, a step
  // each, fill that wait, as long as what they hold stays in L1. Measured on omp a, b, c: 4, 1 and
  // 1 rows are the best or within 2 % of it.
  index rows_in_flight() const {
    const index bytes = options_.max_nonzeros * atoms_.ld() * index(sizeof(T));
    return std::clamp<index>((index(24) << 10) / std::max<index>(bytes, 1), 1, 4);
  }

  void code_flight(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    const index ld = atoms_.ld(), depth = atoms_.depth();
    std::array<bool, 4> busy{};
    for (index i = 0; i < n; ++i) {
      const index r = first + i;
      T* alpha = alpha_.data() + r * ld;
      std::fill(alpha + atoms_.panels().padded(), alpha + ld, T(0));
      const double tol =
          options_.tol < 0 ? -1 : options_.tol * double(scale_[r]) * double(scale_[r]);
      coders_[i].start(alpha, rows_.data() + r * depth, norm2_[r], tol);
      busy[i] = true;
    }
    for (bool any = true; any;) {
      any = false;
      for (index i = 0; i < n; ++i)
        if (busy[i]) any |= busy[i] = coders_[i].step();
    }
    for (index i = 0; i < n; ++i) {
      const index count = coders_[i].count(), used = index(codes.data.size());
      codes.data.resize(used + count);
      codes.indices.resize(used + count);
      coders_[i].result(atoms_.scale() / scale_[first + i], codes.indices.data() + used,
                        codes.data.data() + used);
      counts[first + i] = count;
    }
  }

  void load(index first, index n) {
    const index depth = atoms_.depth();
    for (index r = 0; r < n; ++r) {
      T* row = rows_.data() + r * depth;
      load_row(x_, first + r, row);
      scale_[r] = exact_scale(largest_magnitude(row, depth));
      for (index k = 0; k < depth; ++k) row[k] *= scale_[r];
      norm2_[r] = squared_norm(row, depth);
      if (!std::isfinite(norm2_[r])) throw_not_finite(x_, first + r, "X");
    }
    for (index t = 0; t < ceil_div(n, kTileRows); ++t) {
      T* rows = rows_.data() + t * kTileRows * depth;
      for (index r = n - t * kTileRows; r < kTileRows; ++r)
        std::fill_n(rows + r * depth, depth, T(0));
      interleave<kTileRows>(rows, depth, depth, interleaved_.data() + t * kTileRows * depth);
    }
  }

  const MatrixView& x_;
  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  std::vector<Coder<T>> coders_;
  Buffer<T> rows_, interleaved_, alpha_;
  std::vector<T> scale_;
  std::vector<double> norm2_;
};

template <class T>
SparseRows<T> join(const std::vector<BlockCodes<T>>& blocks, Buffer<std::int64_t> indptr, index n,
                   index block, int n_threads, Stop& stop) {
  for (index i = 0; i < n; ++i) indptr[i + 1] += indptr[i];
  SparseRows<T> result{Buffer<T>(indptr[n]), Buffer<std::int32_t>(indptr[n]), std::move(indptr)};
  parallel_for(index(blocks.size()), n_threads, stop, [&](index b, int) {
    const index at = result.indptr[b * block];
    std::copy(blocks[b].data.begin(), blocks[b].data.end(), result.data.data() + at);
    std::copy(blocks[b].indices.begin(), blocks[b].indices.end(), result.indices.data() + at);
  });
  return result;
}

}  // namespace

template <class T>
SparseRows<T> omp(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                  const OmpOptions& requested, Stop& stop) {
  OmpOptions options = requested;
  options.max_nonzeros = std::min({options.max_nonzeros, dictionary.rows, dictionary.cols});
  // The whole Gram matrix pays when its rows are used often enough, and only where it fits.
  constexpr index kMaxGramBytes = index(2) << 30;
  const bool whole_gram = 4 * x.rows * options.max_nonzeros >= dictionary.rows &&
                          dictionary.rows <= kMaxGramBytes / index(sizeof(T)) / dictionary.rows;
  const Atoms<T> atoms(dictionary, gram, whole_gram, options.n_threads, stop);

  const index block = rows_per_block(atoms), n_blocks = ceil_div(x.rows, block);
  std::vector<std::unique_ptr<Worker<T>>> workers(options.n_threads);
  std::vector<BlockCodes<T>> codes(n_blocks);
  Buffer<std::int64_t> indptr(x.rows + 1);
  indptr[0] = 0;
  parallel_for(n_blocks, options.n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<Worker<T>>(x, atoms, options, block);
    const index first = b * block;
    mine->code(first, std::min(block, x.rows - first), indptr.data() + 1 + first, codes[b]);
  });
  return join(codes, std::move(indptr), x.rows, block, options.n_threads, stop);
}

template SparseRows<float> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                               const OmpOptions&, Stop&);
template SparseRows<double> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                                const OmpOptions&, Stop&);

}  // namespace ff

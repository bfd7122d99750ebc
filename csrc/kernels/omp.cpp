// Batched orthogonal matching pursuit. Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal
// matching pursuit" (1993); Gram form after R. Rubinstein, M. Zibulevsky, M. Elad (2008).
//
// Let q_0 … q_{j-1} be the chosen atoms, orthonormalised. For every row we keep α = Dr, the
// correlation of each atom with the residual, and Q_i = Dq_i. Choosing atom s then costs one Gram row:
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
#include <limits>
#include <vector>

#include "core/panels.hpp"

namespace ff {
namespace {

using simd::Vec;

// The update runs over so many vectors at a time, so that each w_i is broadcast once for all.
constexpr int kUnroll = 4;
template <class T>
constexpr index kStep = kUnroll * simd::kLanes<T>;

// Powers of two that bring the largest magnitude into [1, 2): scaling by them is exact, so rows of
// any magnitude are coded alike.
template <class T>
T exact_scale(T largest) {
  if (largest == 0) return 1;
  const int limit = std::numeric_limits<T>::max_exponent - 1;
  return std::ldexp(T(1), std::clamp(-std::ilogb(largest), -limit, limit));
}

template <class T>
T largest_magnitude(const T* values, index n) {
  T largest = 0;
  for (index i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
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
  index ld() const { return ld_; }  // atoms, rounded up to whole steps; what is past the last is zero
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
        gram_scratch_(ld_),
        atom_scratch_(atoms.depth()),
        outside_(options.orthogonal_select ? ld_ : 0) {
    grow(std::min<index>(options.max_nonzeros, 16));
  }

  // alpha: D·x on entry, changed. x is scaled to magnitude 1; returns how many atoms were chosen.
  index code(T* alpha, const T* x, double norm2, double tol) {
    norm2_ = norm2;
    n_ = 0;
    if (options_.orthogonal_select) std::copy_n(atoms_.diagonal(), ld_, outside_.data());
    Best best = options_.orthogonal_select ? select<true>(alpha) : select<false>(alpha);
    double error = norm2;
    while (n_ < options_.max_nonzeros && !reached(tol, error, x)) {
      const index s = best.atom;
      if (!(best.score > 0) || !add(s, alpha[s])) break;
      error -= double(a_[n_ - 1]) * double(a_[n_ - 1]);
      // After the last atom nobody asks for α again.
      if (n_ < options_.max_nonzeros)
        best = options_.orthogonal_select ? update<true>(s, alpha) : update<false>(s, alpha);
    }
    return n_;
  }

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

  // Per lane the best score so far and the step it was met in; ties keep the earlier.
  struct Running {
    Vec<T> score = simd::splat<T>(-1);
    Vec<I> at = {};

    void offer(Vec<T> candidate, Vec<I> position) {
      const auto better = candidate > score;
      at = better ? position : at;
      score = better ? candidate : score;
    }

    Best best() const {
      const T top = simd::reduce_max<T>(score);
      const auto lowest = score == simd::splat(top) ? at + simd::iota<I>()
                                                    : simd::splat(std::numeric_limits<I>::max());
      return {index(simd::reduce_min<I>(lowest)), top};
    }
  };

  void grow(index capacity) {
    Buffer<T> q(capacity * ld_), l(capacity * capacity);
    for (index i = 0; i < n_; ++i) {
      std::copy_n(q_.data() + i * ld_, ld_, q.data() + i * ld_);
      std::copy_n(l_.data() + i * capacity_, n_, l.data() + i * capacity);
    }
    q_ = std::move(q);
    l_ = std::move(l);
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
    const double noise = kEps * (4 + 0.5 * std::sqrt(double(atoms_.depth())) + 0.5 * double(n_));
    if (double(correlation) * double(correlation) <= noise * noise * norm2_ * double(full)) return false;
    T* row = l_.data() + n_ * capacity_;
    T outside = full;
    for (index i = 0; i < n_; ++i) {
      if (chosen_[i] == s) return false;
      row[i] = q_[i * ld_ + s];
      outside = simd::mul_add(-row[i], row[i], outside);
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
    // An atom that lies in the span but for √ε of its square: dividing by that little would let
    // the rounding of α choose.
    const Vec<T> floor = full * simd::splat(std::sqrt(kEps));
    return outside > floor ? alpha * alpha / outside : Vec<T>{};
  }

  template <bool Orthogonal>
  Best select(const T* alpha) const {
    Running running;
    for (index c = 0; c < ld_; c += simd::kLanes<T>) {
      const Vec<T> full = Orthogonal ? simd::load(atoms_.diagonal() + c) : Vec<T>{};
      running.offer(score<Orthogonal>(simd::load(alpha + c), full, full), simd::splat(I(c)));
    }
    return running.best();
  }

  // Q_n-1, α and the next choice in one sweep.
  template <bool Orthogonal>
  Best update(index s, T* alpha) {
    const index j = n_ - 1;
    const T* g = atoms_.gram_row(s, gram_scratch_.data(), atom_scratch_.data());
    const T* w = l_.data() + j * capacity_;
    T* q = q_.data() + j * ld_;
    const Vec<T> inverse = simd::splat(1 / w[j]), a = simd::splat(a_[j]);
    Running running;
    for (index c = 0; c < ld_; c += kStep<T>) {
      Vec<T> z[kUnroll];
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) z[u] = simd::load(g + c + u * simd::kLanes<T>);
      for (index i = 0; i < j; ++i) {
        const Vec<T> wi = simd::splat(-w[i]);
        const T* qi = q_.data() + i * ld_ + c;
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u)
          z[u] = simd::mul_add(wi, simd::load(qi + u * simd::kLanes<T>), z[u]);
      }
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const index at = c + u * simd::kLanes<T>;
        z[u] = z[u] * inverse;
        simd::store(q + at, z[u]);
        const Vec<T> left = simd::mul_add(-a, z[u], simd::load(alpha + at));
        simd::store(alpha + at, left);
        Vec<T> outside = {}, full = {};
        if constexpr (Orthogonal) {
          outside = simd::mul_add(-z[u], z[u], simd::load(outside_.data() + at));
          simd::store(outside_.data() + at, outside);
          full = simd::load(atoms_.diagonal() + at);
        }
        running.offer(score<Orthogonal>(left, outside, full), simd::splat(I(at)));
      }
    }
    return running.best();
  }

  // ‖x‖² − Σ a² carries the rounding of T. Where that could decide, the error is computed as it is
  // defined, in double.
  bool reached(double tol, double error, const T* x) {
    if (tol < 0) return false;
    const double doubt = 256 * double(kEps) * norm2_;
    if (error > tol + doubt) return false;
    if (error < tol - doubt) return true;
    solve();
    double sum = 0;
    for (index k = 0; k < atoms_.depth(); ++k) {
      double left = x[k];
      for (index i = 0; i < n_; ++i) left -= double(gamma_[i]) * double(atoms_.at(chosen_[i], k));
      sum += left * left;
    }
    return sum <= tol;
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
  Buffer<T> gram_scratch_, atom_scratch_;
  Buffer<T> outside_;  // OLS: ‖part of each atom outside the span‖²
  Buffer<T> q_, l_;
  std::vector<T> a_, gamma_;
  std::vector<index> chosen_;
  index n_ = 0, capacity_ = 0;
  double norm2_ = 0;
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
        coder_(atoms, options),
        rows_(block * atoms.depth()),
        interleaved_(block * atoms.depth()),
        alpha_(block * atoms.ld()),
        scale_(block),
        norm2_(block) {}

  void code(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    load(first, n);
    const index tiles = ceil_div(n, kTileRows), depth = atoms_.depth(), ld = atoms_.ld();
    for (index p = 0; p < atoms_.panels().n_panels(); ++p)
      for (index t = 0; t < tiles; ++t)
        atoms_.template multiply_panel<kTileRows>(interleaved_.data() + t * kTileRows * depth, p,
                                                  alpha_.data() + t * kTileRows * ld);
    for (index r = 0; r < n; ++r) {
      T* alpha = alpha_.data() + r * ld;
      std::fill(alpha + atoms_.panels().padded(), alpha + ld, T(0));
      const double tol = options_.tol < 0 ? -1 : options_.tol * double(scale_[r]) * double(scale_[r]);
      const index count = coder_.code(alpha, rows_.data() + r * depth, norm2_[r], tol);
      const std::size_t used = codes.data.size();
      codes.data.resize(used + count);
      codes.indices.resize(used + count);
      coder_.result(atoms_.scale() / scale_[r], codes.indices.data() + used, codes.data.data() + used);
      counts[r] = count;
    }
  }

 private:
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
      for (index r = n - t * kTileRows; r < kTileRows; ++r) std::fill_n(rows + r * depth, depth, T(0));
      interleave<kTileRows>(rows, depth, depth, interleaved_.data() + t * kTileRows * depth);
    }
  }

  const MatrixView& x_;
  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  Coder<T> coder_;
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

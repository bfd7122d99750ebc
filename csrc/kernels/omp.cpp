// Batched orthogonal matching pursuit. Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal
// matching pursuit" (1993); Gram form after R. Rubinstein, M. Zibulevsky, M. Elad (2008).
#include "kernels/omp.hpp"

#include <array>

#include "kernels/omp_coder.hpp"

namespace ff {
namespace {

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
  // A step ends in an argmax that the next one waits for. Rows in turn, a step each, fill that
  // wait, as long as what they hold stays near. On one thread omp b takes 162 ms with 1 row, 159
  // with 2, 165 with 4, and c 72 ms with 1 and 97 with 2; a, the smallest, gets all 4.
  index rows_in_flight() const {
    const index bytes = options_.max_nonzeros * atoms_.ld() * index(sizeof(T));
    return std::clamp<index>((index(72) << 10) / std::max<index>(bytes, 1), 1, 4);
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

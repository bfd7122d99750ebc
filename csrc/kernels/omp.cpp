// Batched orthogonal matching pursuit. Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal
// matching pursuit" (1993); Gram form after R. Rubinstein, M. Zibulevsky, M. Elad (2008).
#include "kernels/omp.hpp"

#include <array>
#include <memory>

#include "kernels/omp_coder.hpp"
#include "kernels/omp_codes.hpp"
#include "kernels/omp_flight.hpp"

namespace ff {
namespace {

using Tile = SideBySide<kTileRows>;

// Rows whose x and α together take about a quarter of an L2 of 1 MB: the panels then stream past
// them once a block, not once a tile.
template <class T>
index rows_per_block(const Atoms<T>& atoms) {
  const index bytes = (atoms.depth() + atoms.ld()) * index(sizeof(T));
  return std::clamp<index>((index(256) << 10) / bytes / kTileRows, 1, 64) * kTileRows;
}

// What Flight does; the rest is Coder's.
template <class T>
bool by_flight(const OmpOptions& options) {
  return options.tol < 0 && !options.orthogonal_select &&
         options.max_nonzeros <= Flight<T>::kMostAtoms;
}

// One worker: blocks of rows through product and pursuit.
template <class T>
class Worker {
 public:
  Worker(const MatrixView& x, const Atoms<T>& atoms, const OmpOptions& options, index block)
      : x_(x),
        atoms_(atoms),
        options_(options),
        row_(atoms.depth()),
        rows_(block / kTileRows * Tile::size(atoms.depth())),
        alpha_(block * atoms.ld()),
        scale_(block),
        norm2_(block) {
    if (by_flight<T>(options)) {
      flight_ = std::make_unique<Flight<T>>(atoms, options.max_nonzeros);
    } else {
      for (index i = 0; i < rows_in_turn(); ++i) coders_.emplace_back(atoms, options);
    }
  }

  void code(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    load(first, n);
    multiply(n);
    if (flight_) {
      for (index r = 0; r < n; r += flight_->rows())
        fly(r, std::min(flight_->rows(), n - r), counts, codes);
    } else {
      const index turn = index(coders_.size());
      for (index r = 0; r < n; r += turn) code_in_turn(r, std::min(turn, n - r), counts, codes);
    }
  }

 private:
  // A step ends in an argmax that the next one waits for. Rows in turn, a step each, fill that wait
  // as long as all they hold fits L1. 10,000 rows on one thread with 1, 2 and 4 rows in turn: codes
  // of 20 of 128 atoms 19.4, 19.0 and 15.5 ms, of 256 atoms 20.4, 19.6 and 26.1; omp c 70, 96, 106.
  index rows_in_turn() const {
    const index bytes = options_.max_nonzeros * atoms_.ld() * index(sizeof(T));
    return std::clamp<index>((index(48) << 10) / std::max<index>(bytes, 1), 1, 4);
  }

  void load(index first, index n) {
    const index depth = atoms_.depth();
    for (index r = 0; r < n; ++r) {
      load_row(x_, first + r, row_.data());
      scale_[r] = exact_scale(largest_magnitude(row_.data(), depth));
      norm2_[r] = put_row(r, scale_[r]);
      if (!std::isfinite(norm2_[r])) throw_not_finite(x_, first + r, "X");
    }
    std::fill(row_.begin(), row_.end(), T(0));
    for (index r = n; r < round_up(n, kTileRows); ++r) put_row(r, 1);
  }

  // Row r of the tiles and its squared norm.
  double put_row(index r, T scale) {
    double norm2 = 0;
    for (index k = 0; k < atoms_.depth(); k += kDepthPart) {
      const index n = std::min(kDepthPart, atoms_.depth() - k);
      const T* from = row_.data() + k;
      T* to = row(r) + Tile::at(k);
      for (index i = 0; i < n; ++i) to[i] = from[i] * scale;
      norm2 += squared_norm(to, n);
    }
    return norm2;
  }

  void multiply(index n) {
    const index ld = atoms_.ld(), padded = atoms_.panels().padded();
    for (index p = 0; p < atoms_.panels().n_panels(); ++p)
      for (index r = 0; r < n; r += kTileRows)
        atoms_.template multiply_panel<kTileRows, Tile>(row(r), p, alpha(r));
    for (index r = 0; r < n; ++r) std::fill(alpha(r) + padded, alpha(r) + ld, T(0));
  }

  void fly(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    flight_->code(alpha(first), norm2_.data() + first, int(n));
    for (index i = 0; i < n; ++i) {
      const index count = counts[first + i] = flight_->count(int(i));
      const auto to = codes.append(count);
      flight_->result(int(i), atoms_.scale() / scale_[first + i], to.indices, to.data);
    }
  }

  void code_in_turn(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    std::array<bool, 4> busy{};
    for (index i = 0; i < n; ++i) {
      const index r = first + i;
      const double tol =
          options_.tol < 0 ? -1 : options_.tol * double(scale_[r]) * double(scale_[r]);
      coders_[i].start(alpha(r), row(r), norm2_[r], tol);
      busy[i] = true;
    }
    for (bool any = true; any;) {
      any = false;
      for (index i = 0; i < n; ++i)
        if (busy[i]) any |= busy[i] = coders_[i].step();
    }
    for (index i = 0; i < n; ++i) {
      const index count = counts[first + i] = coders_[i].count();
      const auto to = codes.append(count);
      coders_[i].result(atoms_.scale() / scale_[first + i], to.indices, to.data);
    }
  }

  T* row(index r) {
    return rows_.data() + r / kTileRows * Tile::size(atoms_.depth()) + r % kTileRows * Tile::kRow;
  }
  T* alpha(index r) { return alpha_.data() + r * atoms_.ld(); }

  const MatrixView& x_;
  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  std::unique_ptr<Flight<T>> flight_;
  std::vector<Coder<T>> coders_;
  std::vector<T> row_;
  Buffer<T> rows_, alpha_;
  std::vector<T> scale_;
  std::vector<double> norm2_;
};

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

  const index block = rows_per_block(atoms);
  std::vector<std::unique_ptr<Worker<T>>> workers(options.n_threads);
  // Without a tolerance nearly every row ends with as many atoms as it may have. Room for all of
  // them is taken at once where it is no more than X itself takes.
  const bool full = options.tol < 0 && 2 * options.max_nonzeros <= x.cols;
  Codes<T> codes(x.rows, block, options.max_nonzeros, full);
  parallel_for(ceil_div(x.rows, block), options.n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<Worker<T>>(x, atoms, options, block);
    const index first = b * block;
    mine->code(first, std::min(block, x.rows - first), codes.counts() + first, codes.block(b));
  });
  return std::move(codes).join(options.n_threads, stop);
}

template SparseRows<float> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                               const OmpOptions&, Stop&);
template SparseRows<double> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                                const OmpOptions&, Stop&);

}  // namespace ff

// Batched orthogonal matching pursuit. Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal
// matching pursuit" (1993); Gram form after R. Rubinstein, M. Zibulevsky, M. Elad (2008).
#include "kernels/omp/omp.hpp"

#include <array>
#include <memory>

#include "kernels/omp/answers.hpp"
#include "kernels/omp/coder.hpp"
#include "kernels/omp/codes.hpp"
#include "kernels/omp/flight.hpp"

namespace ff {
namespace {

// Returns whether Flight codes the rows; Coder does otherwise.
template <class T>
bool by_flight(const OmpOptions& options) {
  return options.tol < 0 && !options.orthogonal_select &&
         options.max_nonzeros <= Flight<T>::kMostAtoms;
}

// One worker: multiplies blocks of rows with the dictionary and codes them.
template <class T>
class OmpWorker {
 public:
  OmpWorker(const MatrixView& x, const Atoms<T>& atoms, const OmpOptions& options, index block)
      : atoms_(atoms), options_(options), answers_(x, atoms, block) {
    if (by_flight<T>(options)) {
      flight_ = std::make_unique<Flight<T>>(atoms, options.max_nonzeros);
    } else {
      for (index i = 0; i < rows_in_turn(); ++i) coders_.emplace_back(atoms, options);
    }
  }

  void code(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    answers_.compute(first, n);
    if (flight_) {
      for (index r = 0; r < n; r += flight_->rows())
        fly(r, std::min(flight_->rows(), n - r), counts, codes);
    } else {
      const index turn = index(coders_.size());
      for (index r = 0; r < n; r += turn) code_in_turn(r, std::min(turn, n - r), counts, codes);
    }
  }

 private:
  // Each step waits for the argmax of the one before. Taking several rows in turn, one step each,
  // fills that wait as long as their state fits L1. Milliseconds for 10,000 rows on one thread with
  // 1, 2 and 4 rows in turn: codes of 20 of 128 atoms 19.4, 19.0 and 15.5; of 256 atoms 20.4, 19.6
  // and 26.1; omp c 70, 96 and 106.
  index rows_in_turn() const {
    const index bytes = options_.max_nonzeros * atoms_.ld() * index(sizeof(T));
    return std::clamp<index>((index(48) << 10) / std::max<index>(bytes, 1), 1, 4);
  }

  void fly(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    flight_->code(answers_.alpha(first), answers_.norms2(first), int(n));
    for (index i = 0; i < n; ++i) {
      const index count = counts[first + i] = flight_->count(int(i));
      const auto to = codes.append(count);
      flight_->result(int(i), atoms_.scale() / answers_.scale(first + i), to.indices, to.data);
    }
  }

  void code_in_turn(index first, index n, std::int64_t* counts, BlockCodes<T>& codes) {
    std::array<bool, 4> busy{};
    for (index i = 0; i < n; ++i) {
      const index r = first + i;
      const double scale = double(answers_.scale(r));
      const double tol = options_.tol < 0 ? -1 : options_.tol * scale * scale;
      coders_[i].start(answers_.alpha(r), answers_.row(r), answers_.norm2(r), tol);
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
      coders_[i].result(atoms_.scale() / answers_.scale(first + i), to.indices, to.data);
    }
  }

  const Atoms<T>& atoms_;
  const OmpOptions& options_;
  Answers<T> answers_;
  std::unique_ptr<Flight<T>> flight_;
  std::vector<Coder<T>> coders_;
};

}  // namespace

template <class T>
SparseRows<T> omp(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                  const OmpOptions& requested, Stop& stop) {
  OmpOptions options = requested;
  options.max_nonzeros = std::min({options.max_nonzeros, dictionary.rows, dictionary.cols});
  const bool whole_gram = gram_pays<T>(dictionary.rows, x.rows * options.max_nonzeros);
  const Atoms<T> atoms(dictionary, gram, whole_gram, options.n_threads, stop);

  const index block = rows_per_block(atoms);
  std::vector<std::unique_ptr<OmpWorker<T>>> workers(options.n_threads);
  // Without a tolerance nearly every row ends with the most atoms it may have. Room for all of them
  // is allocated at once if it takes no more memory than X.
  const bool full = options.tol < 0 && 2 * options.max_nonzeros <= x.cols;
  Codes<T> codes(x.rows, block, options.max_nonzeros, full);
  parallel_for(ceil_div(x.rows, block), options.n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<OmpWorker<T>>(x, atoms, options, block);
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

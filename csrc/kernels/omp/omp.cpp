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
  return options.tol < 0 && !options.orthogonal_select && !options.careful &&
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

  void code(index first, index n, std::int64_t* counts, Ended* ended, BlockCodes<T>& codes,
            Stop& stop) {
    answers_.compute(first, n);
    const index turn = flight_ ? flight_->rows() : index(coders_.size());
    for (index r = 0; r < n; r += turn) {
      stop.throw_if_requested();
      if (flight_) fly(r, std::min(turn, n - r), counts, ended, codes);
      else code_in_turn(r, std::min(turn, n - r), counts, ended, codes, stop);
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

  void fly(index first, index n, std::int64_t* counts, Ended* ended, BlockCodes<T>& codes) {
    flight_->code(answers_.alpha(first), answers_.norms2(first), int(n));
    for (index i = 0; i < n; ++i) {
      const index count = counts[first + i] = flight_->count(int(i));
      if (count < options_.max_nonzeros) ended[first + i] = Ended::early;
      const auto to = codes.append(count);
      flight_->result(int(i), unscale(first + i), to.indices, to.data);
    }
  }

  // What coefficients of the scaled row and atoms are multiplied by.
  double unscale(index r) const { return double(atoms_.scale()) / double(answers_.scale(r)); }

  void code_in_turn(index first, index n, std::int64_t* counts, Ended* ended, BlockCodes<T>& codes,
                    Stop& stop) {
    std::array<bool, 4> busy{};
    for (index i = 0; i < n; ++i) {
      const index r = first + i;
      const double scale = double(answers_.scale(r));
      const double tol = options_.tol < 0 ? -1 : options_.tol * scale * scale;
      coders_[i].start(answers_.alpha(r), answers_.row(r), answers_.norm2(r), tol);
      busy[i] = true;
    }
    for (index step = 1; any_busy(busy); ++step) {
      if (step % kUnasked == 0) stop.throw_if_requested();
      for (index i = 0; i < n; ++i)
        if (busy[i]) busy[i] = coders_[i].step();
    }
    for (index i = 0; i < n; ++i) {
      const index count = counts[first + i] = coders_[i].count();
      const auto to = codes.append(count);
      ended[first + i] = coders_[i].ended();
      coders_[i].result(unscale(first + i), to.indices, to.data);
    }
  }

  static bool any_busy(const std::array<bool, 4>& busy) {
    return busy[0] || busy[1] || busy[2] || busy[3];
  }

  static constexpr index kUnasked = 16;  // steps between two questions whether to stop

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
  std::vector<Ended> ended(x.rows, Ended::as_asked);
  parallel_for(ceil_div(x.rows, block), options.n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<OmpWorker<T>>(x, atoms, options, block);
    const index first = b * block;
    mine->code(first, std::min(block, x.rows - first), codes.counts() + first, ended.data() + first,
               codes.block(b), stop);
  });
  // A Gram matrix in float would bring its rounding along.
  const MatrixView* exact_gram = gram && gram->dtype == DType::f64 ? gram : nullptr;
  OmpOptions careful = options;
  careful.careful = true;
  return ended_as_asked(std::move(codes).join(options.n_threads, stop), x, dictionary, ended,
                        options.careful, options.n_threads, stop, [&](const MatrixView& rows) {
                          return omp<double>(rows, dictionary, exact_gram, careful, stop);
                        });
}

template SparseRows<float> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                               const OmpOptions&, Stop&);
template SparseRows<double> omp(const MatrixView&, const MatrixView&, const MatrixView*,
                                const OmpOptions&, Stop&);

}  // namespace ff

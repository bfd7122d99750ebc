// Exchange of atoms in sparse codes. V. V. Fedorov (1972) exchanges the points of experiments in
// this way; P. Jain, A. Tewari, I. S. Dhillon, "Orthogonal matching pursuit with replacement"
// (2011).
#include "kernels/omp/exchange.hpp"

#include <memory>

#include "kernels/omp/answers.hpp"
#include "kernels/omp/exchange_row.hpp"

namespace ff {
namespace {

template <class T>
class ExchangeWorker {
 public:
  ExchangeWorker(const MatrixView& x, const Atoms<T>& atoms, const AtomRows<T>& by_row, index block)
      : atoms_(atoms), answers_(x, atoms, block), row_(atoms, by_row), x_(by_row.ld, T(0)) {}

  void improve(const CsrView& codes, index max_exchanges, index first, index n, T* data,
               std::int32_t* indices) {
    answers_.compute(first, n);
    for (index r = 0; r < n; ++r) {
      const index begin = codes.start(first + r), end = codes.start(first + r + 1);
      chosen_.clear();
      for (index k = begin; k < end; ++k)
        chosen_.push_back(codes.wide_indices
                              ? std::int32_t(static_cast<const std::int64_t*>(codes.indices)[k])
                              : static_cast<const std::int32_t*>(codes.indices)[k]);
      // More atoms than features are always linearly dependent.
      if (end - begin > atoms_.depth() || !row_.start(unpacked(r), answers_.alpha(r), chosen_)) {
        keep(codes, begin, end, data, indices);
        continue;
      }
      const index most = max_exchanges < 0 ? end - begin : max_exchanges;
      for (index k = 0; k < most && row_.step(); ++k) {
      }
      row_.result(atoms_.scale() / answers_.scale(r), indices + begin, data + begin);
    }
  }

 private:
  // Copies row r out of its tile.
  const T* unpacked(index r) {
    using Tile = typename Answers<T>::Tile;
    for (index k = 0; k < atoms_.depth(); k += kDepthPart)
      std::copy_n(answers_.row(r) + Tile::at(k), std::min(kDepthPart, atoms_.depth() - k),
                  x_.data() + k);
    return x_.data();
  }

  void keep(const CsrView& codes, index begin, index end, T* data, std::int32_t* indices) {
    for (index k = begin; k < end; ++k)
      data[k] = codes.dtype == DType::f64 ? T(static_cast<const double*>(codes.data)[k])
                                          : T(static_cast<const float*>(codes.data)[k]);
    std::copy(chosen_.begin(), chosen_.end(), indices + begin);
  }

  const Atoms<T>& atoms_;
  Answers<T> answers_;
  ExchangedRow<T> row_;
  std::vector<T> x_;
  std::vector<std::int32_t> chosen_;
};

}  // namespace

template <class T>
void exchange_atoms(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                    const CsrView& codes, index max_exchanges, T* data, std::int32_t* indices,
                    int n_threads, Stop& stop) {
  const bool whole_gram = gram_pays<T>(dictionary.rows, 2 * codes.nonzeros);
  const Atoms<T> atoms(dictionary, gram, whole_gram, n_threads, stop);
  const AtomRows<T> by_row(atoms, n_threads, stop);
  const index block = rows_per_block(atoms);
  std::vector<std::unique_ptr<ExchangeWorker<T>>> workers(n_threads);
  parallel_for(ceil_div(x.rows, block), n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<ExchangeWorker<T>>(x, atoms, by_row, block);
    const index first = b * block;
    mine->improve(codes, max_exchanges, first, std::min(block, x.rows - first), data, indices);
  });
}

template void exchange_atoms(const MatrixView&, const MatrixView&, const MatrixView*,
                             const CsrView&, index, float*, std::int32_t*, int, Stop&);
template void exchange_atoms(const MatrixView&, const MatrixView&, const MatrixView*,
                             const CsrView&, index, double*, std::int32_t*, int, Stop&);

}  // namespace ff

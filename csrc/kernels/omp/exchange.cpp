// Exchange of atoms in sparse codes. V. V. Fedorov (1972) exchanges the points of experiments in
// this way; P. Jain, A. Tewari, I. S. Dhillon, "Orthogonal matching pursuit with replacement"
// (2011).
#include "kernels/omp/exchange.hpp"

#include <memory>

#include "kernels/omp/answers.hpp"
#include "kernels/omp/early.hpp"
#include "kernels/omp/exchange_row.hpp"

namespace ff {
namespace {

template <class T>
class ExchangeWorker {
 public:
  ExchangeWorker(const MatrixView& x, const Atoms<T>& atoms, const AtomRows<T>& by_row, index block)
      : atoms_(atoms), answers_(x, atoms, block), row_(atoms, by_row), x_(by_row.ld, T(0)) {}

  // Sets ended[r] of a row that is left unchanged.
  void improve(const CsrView& codes, index max_exchanges, index first, index n, T* data,
               std::int32_t* indices, Ended* ended, Stop& stop) {
    answers_.compute(first, n);
    for (index r = 0; r < n; ++r) {
      stop.throw_if_requested();
      const index begin = codes.start(first + r), end = codes.start(first + r + 1);
      chosen_.clear();
      for (index k = begin; k < end; ++k)
        chosen_.push_back(codes.wide_indices
                              ? std::int32_t(static_cast<const std::int64_t*>(codes.indices)[k])
                              : static_cast<const std::int32_t*>(codes.indices)[k]);
      // More atoms than features are always linearly dependent.
      const bool too_many = end - begin > atoms_.depth();
      const bool solved = !too_many && row_.start(unpacked(r), answers_.alpha(r), chosen_);
      if (!solved || (kCoarse && row_.nearly_dependent())) {
        ended[r] = kCoarse && !too_many ? Ended::in_doubt : Ended::early;
        keep(codes, begin, end, data, indices);
        continue;
      }
      const index most = max_exchanges < 0 ? end - begin : max_exchanges;
      for (index k = 0; k < most && row_.step(); ++k) {
      }
      row_.result(double(atoms_.scale()) / double(answers_.scale(r)), indices + begin,
                  data + begin);
    }
  }

 private:
  static constexpr bool kCoarse = sizeof(T) == 4;  // double may tell more

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

// Improves codes of some rows in double; returns how many of them are left unchanged.
template <class T>
index improve_in_double(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                        const CsrView& codes, const std::vector<index>& rows, index max_exchanges,
                        T* data, std::int32_t* indices, int n_threads, Stop& stop) {
  std::vector<double> own_data;
  std::vector<std::int32_t> own_indices;
  std::vector<std::int64_t> indptr = {0};
  for (const index i : rows) {
    own_data.insert(own_data.end(), data + codes.start(i), data + codes.start(i + 1));
    own_indices.insert(own_indices.end(), indices + codes.start(i), indices + codes.start(i + 1));
    indptr.push_back(std::int64_t(own_data.size()));
  }
  CsrView own;
  own.data = own_data.data();
  own.dtype = DType::f64;
  own.indices = own_indices.data();
  own.indptr = indptr.data();
  own.wide_indptr = true;
  own.rows = index(rows.size());
  own.cols = codes.cols;
  own.nonzeros = index(own_data.size());
  const GatheredRows<T> gathered(x, rows);
  Buffer<double> new_data(own.nonzeros);
  Buffer<std::int32_t> new_indices(own.nonzeros);
  const index n_unchanged =
      exchange_atoms<double>(gathered.view(), dictionary, gram, own, max_exchanges, new_data.data(),
                             new_indices.data(), n_threads, stop);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const index begin = codes.start(rows[r]), n = indptr[r + 1] - indptr[r];
    std::copy_n(new_indices.data() + indptr[r], n, indices + begin);
    for (index k = 0; k < n; ++k) data[begin + k] = T(new_data[indptr[r] + k]);
  }
  return n_unchanged;
}

}  // namespace

template <class T>
index exchange_atoms(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                     const CsrView& codes, index max_exchanges, T* data, std::int32_t* indices,
                     int n_threads, Stop& stop) {
  const bool whole_gram = gram_pays<T>(dictionary.rows, 2 * codes.nonzeros);
  const Atoms<T> atoms(dictionary, gram, whole_gram, n_threads, stop);
  const AtomRows<T> by_row(atoms, n_threads, stop);
  const index block = rows_per_block(atoms);
  std::vector<std::unique_ptr<ExchangeWorker<T>>> workers(n_threads);
  std::vector<Ended> ended(x.rows, Ended::as_asked);
  parallel_for(ceil_div(x.rows, block), n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine) mine = std::make_unique<ExchangeWorker<T>>(x, atoms, by_row, block);
    const index first = b * block;
    mine->improve(codes, max_exchanges, first, std::min(block, x.rows - first), data, indices,
                  ended.data() + first, stop);
  });
  std::vector<index> in_doubt;
  for (index i = 0; i < x.rows; ++i)
    if (ended[i] == Ended::in_doubt) in_doubt.push_back(i);
  const index n_unchanged = std::count(ended.begin(), ended.end(), Ended::early);
  if (in_doubt.empty()) return n_unchanged;
  // A Gram matrix in float would bring its rounding along.
  const MatrixView* exact_gram = gram && gram->dtype == DType::f64 ? gram : nullptr;
  return n_unchanged + improve_in_double(x, dictionary, exact_gram, codes, in_doubt, max_exchanges,
                                         data, indices, n_threads, stop);
}

template index exchange_atoms(const MatrixView&, const MatrixView&, const MatrixView*,
                              const CsrView&, index, float*, std::int32_t*, int, Stop&);
template index exchange_atoms(const MatrixView&, const MatrixView&, const MatrixView*,
                              const CsrView&, index, double*, std::int32_t*, int, Stop&);

}  // namespace ff

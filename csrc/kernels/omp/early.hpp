#pragma once
#include <cmath>
#include <vector>

#include "kernels/omp/omp.hpp"
#include "kernels/omp/support.hpp"

// Rows that a pursuit ended before they had all their atoms. If atoms depend on each other almost
// linearly, or differ very much in length, float32 cannot tell what an atom adds to those chosen,
// although the data may say it: such rows are coded again in float64.
namespace ff {

// How a pursuit ended a row: as asked for; early, because it found no atom to add; or in doubt,
// because it left out atoms that may lower the error.
enum class Ended : char { as_asked, early, in_doubt };

// Copies rows of a view into memory of their own.
template <class T>
class GatheredRows {
 public:
  GatheredRows(const MatrixView& x, const std::vector<index>& rows)
      : data_(index(rows.size()) * x.cols) {
    for (std::size_t r = 0; r < rows.size(); ++r)
      load_row(x, rows[r], data_.data() + index(r) * x.cols);
    constexpr index kSize = index(sizeof(T));
    view_ = {reinterpret_cast<const char*>(data_.data()),
             sizeof(T) == 4 ? DType::f32 : DType::f64,
             index(rows.size()),
             x.cols,
             x.cols * kSize,
             kSize};
  }

  const MatrixView& view() const { return view_; }

 private:
  Buffer<T> data_;
  MatrixView view_;
};

// Looks, in float64, at what the codes of a row leave of it.
template <class T>
class LeftOver {
 public:
  enum Verdict : char { nothing, orthogonal, answers };

  LeftOver(const MatrixView& dictionary, int n_threads, Stop& stop)
      : depth_(dictionary.cols),
        ld_(round_up(dictionary.cols, kSupportStep<double>)),
        exponents_(dictionary.rows),
        norms_(dictionary.rows),
        atoms_(dictionary.rows * ld_) {
    constexpr index kTask = 64;
    parallel_for(ceil_div(dictionary.rows, kTask), n_threads, stop, [&](index task, int) {
      for (index s = task * kTask; s < std::min(dictionary.rows, (task + 1) * kTask); ++s) {
        double* atom = atoms_.data() + s * ld_;
        exponents_[s] = load_scaled(dictionary, s, atom);
        norms_[s] = std::sqrt(wide_product(atom, atom, ld_));
      }
    });
  }

  // Returns whether row i is coded to rounding (nothing is left), whether no atom has anything in
  // common with what is left (orthogonal), or whether some atom could lower the error (answers).
  Verdict look(const MatrixView& x, index i, index n, const std::int32_t* indices,
               const T* data) const {
    Buffer<double> left(ld_);
    const int exponent = load_scaled(x, i, left.data());
    const double norm = std::sqrt(wide_product(left.data(), left.data(), ld_));
    double magnitude = norm;
    for (index j = 0; j < n; ++j) {
      const index s = indices[j];
      const double code = std::ldexp(double(data[j]), exponents_[s] - exponent);
      const double* atom = atoms_.data() + s * ld_;
      for (index k = 0; k < ld_; ++k) left[k] -= code * atom[k];
      magnitude += std::abs(code) * norms_[s];
    }
    // Codes are rounded to T; the row and the atoms may be.
    const double ulps = 4 + 0.5 * std::sqrt(double(depth_)) + 0.5 * double(n);
    const double noise = 4 * double(std::numeric_limits<T>::epsilon()) * ulps;
    if (!(std::sqrt(wide_product(left.data(), left.data(), ld_)) > noise * magnitude))
      return nothing;
    for (index s = 0; s < index(norms_.size()); ++s) {
      const double common = wide_product(left.data(), atoms_.data() + s * ld_, ld_);
      if (std::abs(common) > noise * norm * norms_[s]) return answers;
    }
    return orthogonal;
  }

 private:
  // Loads a row with its largest magnitude scaled into [1, 2); returns the exponent e: the row is
  // 2^e times what was loaded.
  int load_scaled(const MatrixView& x, index i, double* row) const {
    load_row(x, i, row);
    std::fill(row + depth_, row + ld_, 0.0);
    const double largest = largest_magnitude(row, depth_);
    if (!(largest > 0)) return 0;
    const int exponent = std::ilogb(largest);
    for (index k = 0; k < depth_; ++k) row[k] = std::ldexp(row[k], -exponent);
    return exponent;
  }

  index depth_, ld_;
  std::vector<int> exponents_;
  std::vector<double> norms_;
  Buffer<double> atoms_;  // each scaled by its own power of two
};

// Puts new codes of some rows in the place of the old ones.
template <class T>
SparseRows<T> with_rows(const SparseRows<T>& codes, const std::vector<index>& rows,
                        const SparseRows<double>& other) {
  const index n = codes.indptr.size() - 1;
  std::vector<index> from(n, -1);
  for (std::size_t r = 0; r < rows.size(); ++r) from[rows[r]] = index(r);
  SparseRows<T> all{{}, {}, Buffer<std::int64_t>(n + 1), 0};
  all.indptr[0] = 0;
  const auto count = [&](index i) {
    return from[i] < 0 ? codes.indptr[i + 1] - codes.indptr[i]
                       : other.indptr[from[i] + 1] - other.indptr[from[i]];
  };
  for (index i = 0; i < n; ++i) all.indptr[i + 1] = all.indptr[i] + count(i);
  all.data = Buffer<T>(all.indptr[n]);
  all.indices = Buffer<std::int32_t>(all.indptr[n]);
  const auto copy = [&](index i, const auto& source, index row) {
    std::copy_n(source.indices.data() + source.indptr[row], count(i),
                all.indices.data() + all.indptr[i]);
    for (index k = 0; k < count(i); ++k)
      all.data[all.indptr[i] + k] = T(source.data[source.indptr[row] + k]);
  };
  for (index i = 0; i < n; ++i) {
    if (from[i] < 0) copy(i, codes, i);
    else copy(i, other, from[i]);
  }
  return all;
}

// Returns codes in which rows that could not end as asked are coded by again(rows), in float64,
// unless these are its own codes (last). Counts the rows that end early with an error left.
template <class T, class Again>
SparseRows<T> ended_as_asked(SparseRows<T> codes, const MatrixView& x, const MatrixView& dictionary,
                             const std::vector<Ended>& ended, bool last, int n_threads, Stop& stop,
                             Again again) {
  std::vector<index> rows;
  for (index i = 0; i < x.rows; ++i)
    if (ended[i] != Ended::as_asked) rows.push_back(i);
  if (rows.empty()) return codes;
  using Verdict = typename LeftOver<T>::Verdict;
  std::vector<Verdict> verdicts(rows.size());
  const LeftOver<T> left_over(dictionary, n_threads, stop);
  parallel_for(index(rows.size()), n_threads, stop, [&](index r, int) {
    const index i = rows[r], begin = codes.indptr[i];
    verdicts[r] = ended[i] == Ended::in_doubt
                      ? LeftOver<T>::answers
                      : left_over.look(x, i, codes.indptr[i + 1] - begin,
                                       codes.indices.data() + begin, codes.data.data() + begin);
  });
  std::vector<index> unsure;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (verdicts[r] == LeftOver<T>::nothing) continue;
    if (!last && verdicts[r] == LeftOver<T>::answers) unsure.push_back(rows[r]);
    else ++codes.n_early;
  }
  if (unsure.empty()) return codes;
  const GatheredRows<T> gathered(x, unsure);
  const SparseRows<double> other = again(gathered.view());
  SparseRows<T> all = with_rows(codes, unsure, other);
  all.n_early = codes.n_early + other.n_early;
  return all;
}

}  // namespace ff

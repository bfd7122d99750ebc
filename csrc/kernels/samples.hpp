#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/nearest.hpp"

namespace ff {

// Rows in fixed pieces, whose partial results are combined in order: what keeps sums the same for
// any number of threads. At most 256 pieces, so that partial results stay small.
struct Chunks {
  explicit Chunks(index n_rows)
      : n(n_rows),
        size(std::max<index>(4096, ceil_div(n_rows, 256))),
        count(ceil_div(n_rows, size)) {}

  index begin(index chunk) const { return chunk * size; }
  index end(index chunk) const { return std::min(n, (chunk + 1) * size); }

  const index n, size, count;
};

// Row i as T: where it lies if that is how it is stored, else widened into the buffer.
template <class T>
inline const T* row_as(const MatrixView& x, index i, T* buffer) {
  constexpr DType own = sizeof(T) == 4 ? DType::f32 : DType::f64;
  const char* p = x.row(i);
  if (x.dtype == own && x.col_stride == index(sizeof(T)) &&
      reinterpret_cast<std::uintptr_t>(p) % alignof(T) == 0)
    return reinterpret_cast<const T*>(p);
  load_row(x, i, buffer);
  return buffer;
}

// The columns [first, first + n) of a view.
inline MatrixView columns(const MatrixView& x, index first, index n) {
  MatrixView part = x;
  part.data += first * x.col_stride;
  part.cols = n;
  return part;
}

// One clustering problem: rows, their weights (null: one each), and the frame to search in.
template <class T>
struct Samples {
  MatrixView x;
  const double* weights = nullptr;
  Frame<T> frame;
  double mean_variance =
      0;  // over the columns, in the frame's units; unweighted, as scikit-learn has it

  double weight(index i) const { return weights ? weights[i] : 1; }
};

namespace detail {

struct ColumnMoments {
  explicit ColumnMoments(index d) : sum(d), square(d), low(d, INFINITY), high(d, -INFINITY) {}

  // Values relative to the first row, so that a large common offset cancels before it is squared.
  template <class T>
  void add(const T* row, const double* origin, double scale) {
    const index d = index(sum.size());
    for (index k = 0; k < d; ++k) {
      const double v = (double(row[k]) - origin[k]) * scale;
      sum[k] += v;
      square[k] += v * v;
      low[k] = std::min(low[k], v);
      high[k] = std::max(high[k], v);
    }
  }

  void add(const ColumnMoments& other) {
    for (std::size_t k = 0; k < sum.size(); ++k) {
      sum[k] += other.sum[k];
      square[k] += other.square[k];
      low[k] = std::min(low[k], other.low[k]);
      high[k] = std::max(high[k], other.high[k]);
    }
  }

  std::vector<double> sum, square, low, high;
};

template <class T>
ColumnMoments column_moments(const MatrixView& x, const double* origin, double scale, int n_threads,
                             Stop& stop) {
  const Chunks chunks(x.rows);
  std::vector<ColumnMoments> partial(chunks.count, ColumnMoments(x.cols));
  parallel_for(chunks.count, n_threads, stop, [&](index chunk, int) {
    std::vector<T> buffer(x.cols);
    for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i)
      partial[chunk].add(row_as(x, i, buffer.data()), origin, scale);
    for (index k = 0; k < x.cols; ++k)
      if (!std::isfinite(partial[chunk].square[k]))
        for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
          load_row(x, i, buffer.data());
          double norm2 = 0;
          for (const T v : buffer) norm2 += double(v) * double(v);
          if (!std::isfinite(norm2)) throw_not_finite(x, i, "X");
        }
  });
  ColumnMoments all(x.cols);
  for (const auto& one : partial) all.add(one);
  return all;
}

}  // namespace detail

// Reads x once; twice where its spread is too small to be squared. `others` (centroids that were
// given; null: none) count towards the scale.
template <class T>
Samples<T> make_samples(const MatrixView& x, const double* weights, const MatrixView* others,
                        int n_threads, Stop& stop) {
  const index d = x.cols;
  Samples<T> samples{x, weights, {std::vector<T>(d, T(0)), 1}, 0};
  if (x.rows == 0) return samples;
  const double n = double(x.rows);
  std::vector<double> origin(d);
  load_row(x, 0, origin.data());
  auto moments = detail::column_moments<T>(x, origin.data(), 1, n_threads, stop);
  double spread = 0;
  for (index k = 0; k < d; ++k) {
    const double mean = moments.sum[k] / n;
    const double reach = std::max(moments.high[k] - mean, mean - moments.low[k]);
    spread = std::max(spread, reach);
    // An eighth of the reach's power of two: few bits, so that integers minus it stay exact.
    const double unit = reach > 0 ? std::ldexp(1.0, std::ilogb(reach) - 3) : 0;
    samples.frame.centre[k] =
        T(unit > 0 ? std::round((origin[k] + mean) / unit) * unit : origin[k]);
  }
  std::vector<double> row(d);
  for (index j = 0; others && j < others->rows; ++j) {
    load_row(*others, j, row.data());
    for (index k = 0; k < d; ++k)
      spread = std::max(spread, std::abs(row[k] - double(samples.frame.centre[k])));
  }
  // Squares of 2^±40 are safe in float32 and of 2^±400 in float64, sums over the columns included.
  const int safe = sizeof(T) == 4 ? 40 : 400, limit = std::numeric_limits<T>::max_exponent - 2;
  if (spread > 0 && std::abs(std::ilogb(spread)) > safe) {
    const double scale = std::ldexp(1.0, std::clamp(-std::ilogb(spread), -limit, limit));
    samples.frame.scale = T(scale);
    moments = detail::column_moments<T>(x, origin.data(), scale, n_threads, stop);
  }
  for (index k = 0; k < d; ++k) {
    const double mean = moments.sum[k] / n;
    samples.mean_variance += std::max(moments.square[k] / n - mean * mean, 0.0) / double(d);
  }
  return samples;
}

}  // namespace ff

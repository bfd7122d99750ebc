#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "core/parallel.hpp"
#include "core/rows.hpp"
#include "core/simd.hpp"
#include "kernels/kmeans/nearest.hpp"

namespace ff {

// Cuts rows into fixed pieces whose partial results are combined in order, so that sums are the
// same for any number of threads. There are at most 256 pieces, so partial results stay small.
struct Chunks {
  explicit Chunks(index n_rows)
      : n(n_rows),
        size(std::max<index>(4096, ceil_div(n_rows, 256))),
        count(ceil_div(n_rows, size)) {}

  index begin(index chunk) const { return chunk * size; }
  index end(index chunk) const { return std::min(n, (chunk + 1) * size); }

  const index n, size, count;
};

namespace detail {
template <class Body, int... D>
void with_one_of(index d, Body& body, std::integer_sequence<int, D...>) {
  const bool known = (... || (d == D && (body(std::integral_constant<index, D>()), true)));
  if (!known) body(d);
}
}  // namespace detail

// Calls body(d), with d a compile-time constant if it is small: loops over short rows then keep
// their sums in registers.
template <class Body>
void with_width(index d, Body&& body) {
  detail::with_one_of(d, body, std::integer_sequence<int, 1, 2, 3, 4, 8, 16>());
}

// Returns the columns [first, first + n) of a view.
inline MatrixView columns(const MatrixView& x, index first, index n) {
  MatrixView part = x;
  part.data += first * x.col_stride;
  part.cols = n;
  return part;
}

// One clustering problem: rows, their weights (null: 1 each), and the frame to search in.
template <class T>
struct Samples {
  MatrixView x;
  const double* weights = nullptr;
  Frame<T> frame;
  // Both in the frame's units. mean_variance is over the columns and unweighted, as in
  // scikit-learn. reach bounds the magnitude of every coordinate of the rows and of the other
  // points that make_samples() was given.
  double mean_variance = 0, reach = 0;

  double weight(index i) const { return weights ? weights[i] : 1; }
};

namespace detail {

struct ColumnMoments {
  explicit ColumnMoments(index d) : sum(d), square(d), low(d, INFINITY), high(d, -INFINITY) {}

  // Values are taken relative to the first row, so that a large common offset cancels before
  // squaring.
  template <class T>
  void add_rows(const MatrixView& x, index begin, index end, const double* origin, double scale) {
    with_width(x.cols, [&](auto d) {
      Rows<T> rows(x);
      if constexpr (std::is_integral_v<decltype(d)>) {
        add_to(rows, begin, end, origin, scale, d, sum.data(), square.data(), low.data(),
               high.data());
      } else {
        double own[4][decltype(d)::value];
        for (index k = 0; k < d; ++k)
          own[0][k] = own[1][k] = 0, own[2][k] = INFINITY, own[3][k] = -INFINITY;
        add_to(rows, begin, end, origin, scale, d, own[0], own[1], own[2], own[3]);
        for (index k = 0; k < d; ++k)
          sum[k] = own[0][k], square[k] = own[1][k], low[k] = own[2][k], high[k] = own[3][k];
      }
    });
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

 private:
  template <class T, class Width>
  static void add_to(Rows<T>& rows, index begin, index end, const double* origin, double scale,
                     Width d, double* __restrict sums, double* __restrict squares,
                     double* __restrict lows, double* __restrict highs) {
    using simd::load, simd::store;
    constexpr int kLanes = simd::kLanes<double>;
    for (index i = begin; i < end; ++i) {
      const T* row = rows[i];
      index k = 0;
      for (; k + kLanes <= d; k += kLanes) {
        const auto v = (simd::load_wide(row + k) - load(origin + k)) * scale;
        store(sums + k, load(sums + k) + v);
        store(squares + k, load(squares + k) + v * v);
        store(lows + k, simd::min(v, load(lows + k)));
        store(highs + k, simd::max(v, load(highs + k)));
      }
      for (; k < d; ++k) {
        const double v = (double(row[k]) - origin[k]) * scale;
        sums[k] += v;
        squares[k] += v * v;
        lows[k] = v < lows[k] ? v : lows[k];
        highs[k] = v > highs[k] ? v : highs[k];
      }
    }
  }
};

template <class T>
ColumnMoments column_moments(const MatrixView& x, const double* origin, double scale, int n_threads,
                             Stop& stop) {
  const Chunks chunks(x.rows);
  std::vector<ColumnMoments> partial(chunks.count, ColumnMoments(x.cols));
  parallel_ranges(chunks.count, n_threads, stop, [&](index chunk, int) {
    partial[chunk].add_rows<T>(x, chunks.begin(chunk), chunks.end(chunk), origin, scale);
    for (index k = 0; k < x.cols; ++k)
      if (!std::isfinite(partial[chunk].square[k])) {
        std::vector<T> buffer(x.cols);
        for (index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
          load_row(x, i, buffer.data());
          double norm2 = 0;
          for (const T v : buffer) norm2 += double(v) * double(v);
          if (!std::isfinite(norm2)) throw_not_finite(x, i, "X");
        }
      }
  });
  ColumnMoments all = std::move(partial[0]);
  for (index chunk = 1; chunk < chunks.count; ++chunk) all.add(partial[chunk]);
  return all;
}

}  // namespace detail

// Reads x once, or twice if its spread is too small or too large to be squared. `others` (given
// centroids; null: none) count towards the scale.
template <class T>
Samples<T> make_samples(const MatrixView& x, const double* weights, const MatrixView* others,
                        int n_threads, Stop& stop) {
  const index d = x.cols;
  Samples<T> samples{x, weights, {std::vector<T>(d, T(0)), 1, 1}};
  if (x.rows == 0) return samples;
  const double n = double(x.rows);
  std::vector<double> origin(d);
  load_row(x, 0, origin.data());
  auto moments = detail::column_moments<T>(x, origin.data(), 1, n_threads, stop);
  double spread = 0, reach_in_frame = 0;
  for (index k = 0; k < d; ++k) {
    const double mean = moments.sum[k] / n;
    const double reach = std::max(moments.high[k] - mean, mean - moments.low[k]);
    spread = std::max(spread, reach);
    // An eighth of the reach's power of two: few bits, so that subtracting it from integers is
    // exact.
    const double unit = reach > 0 ? std::ldexp(1.0, std::ilogb(reach) - 3) : 0;
    samples.frame.centre[k] =
        T(unit > 0 ? std::round((origin[k] + mean) / unit) * unit : origin[k]);
    // As T, the centre of denormal numbers may be off by as much as these reach.
    const double shift = origin[k] - double(samples.frame.centre[k]);
    reach_in_frame = std::max({reach_in_frame, shift + moments.high[k], -shift - moments.low[k]});
  }
  std::vector<double> row(d);
  for (index j = 0; others && j < others->rows; ++j) {
    load_row(*others, j, row.data());
    for (index k = 0; k < d; ++k)
      spread = std::max(spread, std::abs(row[k] - double(samples.frame.centre[k])));
  }
  // Squares of 2^±40 are safe in float32 and of 2^±400 in float64, including their sums over the
  // columns.
  const int safe = sizeof(T) == 4 ? 40 : 400, limit = std::numeric_limits<T>::max_exponent - 2;
  if (spread > 0 && std::abs(std::ilogb(spread)) > safe) {
    const double scale = std::ldexp(1.0, std::clamp(-std::ilogb(spread), -limit, limit));
    (scale < 1 ? samples.frame.shrink : samples.frame.stretch) = T(scale);
    for (T& centre : samples.frame.centre) centre *= samples.frame.shrink;
    moments = detail::column_moments<T>(x, origin.data(), scale, n_threads, stop);
  }
  // The rounded centre differs from the mean by at most a sixteenth of the reach.
  samples.reach = std::max(spread * (1 + 1.0 / 15), reach_in_frame) * double(samples.frame.scale());
  for (index k = 0; k < d; ++k) {
    const double mean = moments.sum[k] / n;
    samples.mean_variance += std::max(moments.square[k] / n - mean * mean, 0.0) / double(d);
  }
  return samples;
}

}  // namespace ff

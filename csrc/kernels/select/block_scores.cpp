#include <algorithm>
#include <cmath>

#include "kernels/select/magnitudes.hpp"
#include "kernels/select/select.hpp"

namespace ff {
namespace {

constexpr index kStripCols = 4096;

// Each block has eight partial sums or maxima of doubles on every level: entry j of a row of the
// block goes to part j mod 8, and the eight are combined as a tree. So all levels give the same
// bits.
constexpr int kParts = 8;
typedef double Parts __attribute__((vector_size(kParts * sizeof(double))));

template <Pool pool>
inline void add(Parts& parts, Parts v) {
  if constexpr (pool == Pool::max) {
    parts = parts > v ? parts : v;
  } else {
    parts = parts + v;
  }
}

template <Pool pool, class T>
inline void add_run(const T* values, index n, double scale, Parts& parts) {
  typedef T Run __attribute__((vector_size(kParts * sizeof(T))));
  const auto magnitudes = [scale](const T* from) {
    Run run;
    std::memcpy(&run, from, sizeof run);
    const Parts v = __builtin_convertvector(run, Parts);
    return (v < 0 ? -v : v) * scale;
  };
  index j = 0;
  for (; j + kParts <= n; j += kParts) add<pool>(parts, magnitudes(values + j));
  for (; j < n; ++j) {
    const double v = std::abs(double(values[j])) * scale;
    double& part = reinterpret_cast<double*>(&parts)[j % kParts];
    part = pool == Pool::max ? std::max(part, v) : part + v;
  }
}

template <Pool pool>
inline double total(Parts parts) {
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      parts[i] =
          pool == Pool::max ? std::max(parts[i], parts[i + half]) : parts[i] + parts[i + half];
  return parts[0];
}

// A float64 sum may overflow where the mean does not: such sums are computed again, scaled.
constexpr double kSmaller = 0x1p-64;

template <class T>
class Scores {
 public:
  Scores(const MatrixView& w, BlockShape block, double* scores)
      : w_(w), block_(block), per_row_(ceil_div(w.cols, block.cols)), scores_(scores) {}

  // Returns how many whole blocks a strip has: as many as fit kStripCols columns.
  index blocks_in_strip() const { return std::max<index>(1, kStripCols / block_.cols); }
  index n_strips() const { return ceil_div(per_row_, blocks_in_strip()); }
  index n_bands() const { return ceil_div(w_.rows, block_.rows); }

  // Scores the blocks of a strip; returns whether all entries are finite.
  template <Pool pool>
  bool score(index band, index strip) {
    const index first = strip * blocks_in_strip();
    const index n = std::min(blocks_in_strip(), per_row_ - first);
    double* to = scores_ + band * per_row_ + first;
    if (!pool_strip<pool>(band, first, n, 1, to)) return false;
    if constexpr (pool == Pool::mean) {
      const bool too_large = std::any_of(to, to + n, [](double s) { return std::isinf(s); });
      if (too_large) pool_strip<pool>(band, first, n, kSmaller, to);
      for (index b = 0; b < n; ++b) {
        to[b] /= double(height(band) * width(first + b));
        if (too_large) to[b] /= kSmaller;
      }
    }
    return true;
  }

 private:
  index height(index band) const { return std::min(block_.rows, w_.rows - band * block_.rows); }
  index width(index b) const { return std::min(block_.cols, w_.cols - b * block_.cols); }

  template <Pool pool>
  bool pool_strip(index band, index first, index n, double scale, double* to) const {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    constexpr auto kInfinity = Key<Bits>(sizeof(T) == 4 ? 0x7f800000 : 0x7ff0000000000000);
    MatrixView part = w_;
    part.data += band * block_.rows * w_.row_stride + first * block_.cols * w_.col_stride;
    part.cols = std::min(n * block_.cols, w_.cols - first * block_.cols);
    Buffer<T> row(part.cols);
    Buffer<Parts> parts(n);
    std::fill_n(parts.data(), n, Parts{});
    for (index i = 0; i < height(band); ++i) {
      load_row(part, i, row.data());
      if (!all_finite<Bits>(reinterpret_cast<const char*>(row.data()), part.cols, kInfinity))
        return false;
      for (index b = 0; b < n; ++b)
        add_run<pool>(row.data() + b * block_.cols, width(first + b), scale, parts[b]);
    }
    for (index b = 0; b < n; ++b) to[b] = total<pool>(parts[b]);
    return true;
  }

  const MatrixView& w_;
  const BlockShape block_;
  const index per_row_;
  double* const scores_;
};

template <class T>
void score_blocks(const MatrixView& w, BlockShape block, Pool pool, int n_threads, Stop& stop,
                  double* out) {
  Scores<T> scores(w, block, out);
  const index n_strips = scores.n_strips();
  parallel_for(scores.n_bands() * n_strips, n_threads, stop, [&](index task, int) {
    const index band = task / n_strips, strip = task % n_strips;
    const bool finite = pool == Pool::max ? scores.template score<Pool::max>(band, strip)
                                          : scores.template score<Pool::mean>(band, strip);
    if (!finite)
      throw_first_not_finite({w.data, w.dtype, {w.rows, w.cols}, {w.row_stride, w.col_stride}});
  });
}

}  // namespace

void block_scores(const MatrixView& w, BlockShape block, Pool pool, int n_threads, Stop& stop,
                  double* scores) {
  if (w.dtype == DType::f64) {
    score_blocks<double>(w, block, pool, n_threads, stop, scores);
  } else {
    score_blocks<float>(w, block, pool, n_threads, stop, scores);
  }
}

void expand_blocks(const bool* kept, index rows, index cols, BlockShape block, int n_threads,
                   Stop& stop, bool* mask) {
  const index per_row = ceil_div(cols, block.cols);
  parallel_for(ceil_div(rows, block.rows), n_threads, stop, [&](index band, int) {
    bool* row = mask + band * block.rows * cols;
    for (index b = 0; b < per_row; ++b)
      std::fill(row + b * block.cols, row + std::min(cols, (b + 1) * block.cols),
                kept[band * per_row + b]);
    const index n = std::min(block.rows, rows - band * block.rows);
    for (index i = 1; i < n; ++i) std::copy_n(row, cols, row + i * cols);
  });
}

}  // namespace ff

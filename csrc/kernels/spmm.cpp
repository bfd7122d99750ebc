// Sparse times dense, row by row: out[i] = Σ_p data[p] · B[indices[p]].
//
// B is cut into panels of a few vectors, so that a row's sums stay in registers, and packed, so
// that a panel lies together and fits the L2 cache of a core. Then one pass over the matrix a
// panel. What a nonzero costs is one load of its value, one of its column, and one load and one FMA
// a vector.
#include "kernels/spmm.hpp"

#include <algorithm>

#include "core/buffer.hpp"
#include "core/simd.hpp"

namespace ff {
namespace {

// A vector of N lanes where the level's own (simd::Vec) would be too wide.
template <class T, int N>
struct Lanes {
  typedef T Vec __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename Lanes<T, N>::Vec;

template <class T, int N>
inline Vec<T, N> load(const T* p) {
  Vec<T, N> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T, int N>
inline Vec<T, N> splat(T x) {
  return x - Vec<T, N>{};
}

template <class T, int N>
inline Vec<T, N> mul_add(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c) {
  constexpr int bytes = N * int(sizeof(T));
  if constexpr (bytes == simd::kBytes) {
    return simd::mul_add(a, b, c);
  } else {
#if defined(__FMA__)
    if constexpr (bytes == 32 && sizeof(T) == 4) {
      return (Vec<T, N>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    } else if constexpr (bytes == 32) {
      return (Vec<T, N>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
    } else if constexpr (sizeof(T) == 4) {
      return (Vec<T, N>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
    } else {
      return (Vec<T, N>)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
    }
#else
    for (int i = 0; i < N; ++i) c[i] = simd::mul_add(a[i], b[i], c[i]);
    return c;
#endif
  }
}

template <class T, class Value, class Index>
struct Matrix {
  const CsrView& view;
  const Value* data;
  const Index* indices;

  explicit Matrix(const CsrView& a)
      : view(a),
        data(static_cast<const Value*>(a.data)),
        indices(static_cast<const Index*>(a.indices)) {}
};

// sums[v] = Σ_p data[p] · panel[indices[p]], nonzeros [p, end). Eight independent sums keep the FMA
// units busy; they are added in a fixed order.
template <int N, int NV, class T, class Value, class Index>
inline void sum_nonzeros(const Matrix<T, Value, Index>& a, index p, index end, const T* panel,
                         Vec<T, N> (&sums)[NV]) {
  constexpr int kUnroll = NV >= 8 ? 1 : 8 / NV;
  Vec<T, N> part[kUnroll][NV] = {};
  for (; p + kUnroll <= end; p += kUnroll) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
      const T* row = panel + index(a.indices[p + u]) * (N * NV);
      const Vec<T, N> value = splat<T, N>(T(a.data[p + u]));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v)
        part[u][v] = mul_add<T, N>(value, load<T, N>(row + v * N), part[u][v]);
    }
  }
  for (; p < end; ++p) {
    const T* row = panel + index(a.indices[p]) * (N * NV);
    const Vec<T, N> value = splat<T, N>(T(a.data[p]));
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      part[0][v] = mul_add<T, N>(value, load<T, N>(row + v * N), part[0][v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    sums[v] = part[0][v];
#pragma GCC unroll 8
    for (int u = 1; u < kUnroll; ++u) sums[v] = sums[v] + part[u][v];
  }
}

template <class T>
struct Out {
  T* data;
  index pitch;
  bool column_major;

  void row(index i, index first_col, index n_cols, const T* values) const {
    if (column_major) {
      for (index j = 0; j < n_cols; ++j) data[(first_col + j) * pitch + i] = values[j];
    } else {
      std::copy_n(values, n_cols, data + i * pitch + first_col);
    }
  }
};

// Columns [first, first + count) of B, packed with `width` columns a row; what is past the last is
// 0.
template <class T>
struct Panel {
  index first, count;
  int width;
  Buffer<T> values;
};

template <class T, class Value, class Index>
class Product {
 public:
  Product(const CsrView& a, const MatrixView& b, const DenseOut& out)
      : a_(a),
        b_(b),
        out_{static_cast<T*>(out.data), out.pitch, out.column_major},
        pieces_(cut_rows(a)),
        partials_(index(pieces_.partials.size()) * b.cols) {}

  void run(int n_threads, Stop& stop) {
    const index group = columns_at_once();
    for (index first = 0; first < b_.cols; first += group)
      multiply(first, std::min(first + group, b_.cols), n_threads, stop);
    for (const auto& row : pieces_.long_rows) combine(row);
  }

 private:
  static constexpr int kFull = simd::kLanes<T>;
  static constexpr index kPanelBytes = index(512) << 10;
  static constexpr index kGroupBytes = index(32) << 20;

  // The widest panel that fits half an L2 cache of 1 MB.
  int full_width() const {
    int width = 4 * kFull;
    while (width > kFull && a_.view.cols * width * index(sizeof(T)) > kPanelBytes) width /= 2;
    return width;
  }

  index columns_at_once() const {
    const index width = full_width();
    const index panel_bytes = std::max<index>(1, a_.view.cols * width * index(sizeof(T)));
    return std::max<index>(1, kGroupBytes / panel_bytes) * width;
  }

  static int width_for(index columns) {
    int width = std::min(kFull, 16 / int(sizeof(T)));
    while (width < columns) width *= 2;
    return width;
  }

  void multiply(index first, index last, int n_threads, Stop& stop) {
    const int full = full_width();
    std::vector<Panel<T>> panels;
    for (index c = first; c < last; c += full) {
      const index count = std::min<index>(full, last - c);
      const int width = width_for(count);
      panels.push_back({c, count, width, Buffer<T>(a_.view.cols * width)});
    }
    const index n_panels = index(panels.size()), chunks = ceil_div(b_.rows, kPackRows);
    parallel_for(n_panels * chunks, n_threads, stop, [&](index t, int) {
      const index row = t % chunks * kPackRows;
      pack(panels[t / chunks], row, std::min(row + kPackRows, b_.rows));
    });
    parallel_for(n_panels * pieces_.size(), n_threads, stop, [&](index t, int) {
      multiply_piece(panels[t / pieces_.size()], t % pieces_.size());
    });
  }

  static constexpr index kPackRows = 256;

  void pack(Panel<T>& panel, index row, index end) const {
    MatrixView part = b_;
    part.data += panel.first * b_.col_stride;
    part.cols = panel.count;
    for (; row < end; ++row) {
      T* to = panel.values.data() + row * panel.width;
      load_row(part, row, to);
      std::fill(to + panel.count, to + panel.width, T(0));
    }
  }

  void multiply_piece(const Panel<T>& panel, index piece) {
    constexpr int kLeast = std::min(kFull, 16 / int(sizeof(T)));
    switch (panel.width / kFull) {
      case 4:
        return multiply_piece<kFull, 4>(panel, piece);
      case 2:
        return multiply_piece<kFull, 2>(panel, piece);
      case 1:
        return multiply_piece<kFull, 1>(panel, piece);
      default:
        if (2 * panel.width == kFull)
          return multiply_piece<std::max(kLeast, kFull / 2), 1>(panel, piece);
        return multiply_piece<kLeast, 1>(panel, piece);
    }
  }

  template <int N, int NV>
  void multiply_piece(const Panel<T>& panel, index piece) {
    const T* values = panel.values.data();
    Vec<T, N> sums[NV];
    const index n_ranges = index(pieces_.ranges.size());
    if (piece >= n_ranges) {
      const auto part = pieces_.partials[piece - n_ranges];
      sum_nonzeros<N, NV>(a_, part.first, part.last, values, sums);
      T flat[N * NV];
      std::memcpy(flat, sums, sizeof flat);
      std::copy_n(flat, panel.count, partials_.data() + (piece - n_ranges) * b_.cols + panel.first);
      return;
    }
    const auto range = pieces_.ranges[piece];
    for (index i = range.first; i < range.last; ++i) {
      sum_nonzeros<N, NV>(a_, a_.view.start(i), a_.view.start(i + 1), values, sums);
      T flat[N * NV];
      std::memcpy(flat, sums, sizeof flat);
      out_.row(i, panel.first, panel.count, flat);
    }
  }

  void combine(const RowPieces::LongRow& row) {
    T* total = partials_.data() + row.first_partial * b_.cols;
    for (index k = 1; k < row.n_partials; ++k)
      for (index j = 0; j < b_.cols; ++j) total[j] += total[k * b_.cols + j];
    out_.row(row.row, 0, b_.cols, total);
  }

  const Matrix<T, Value, Index> a_;
  const MatrixView& b_;
  const Out<T> out_;
  const RowPieces pieces_;
  Buffer<T> partials_;
};

template <class T, class Value>
void spmm_as(const CsrView& a, const MatrixView& b, const DenseOut& out, int n_threads,
             Stop& stop) {
  if (a.wide_indices) {
    Product<T, Value, std::int64_t>(a, b, out).run(n_threads, stop);
  } else {
    Product<T, Value, std::int32_t>(a, b, out).run(n_threads, stop);
  }
}

}  // namespace

void spmm(const CsrView& a, const MatrixView& b, const DenseOut& out, int n_threads, Stop& stop) {
  if (a.dtype == DType::f64) {
    spmm_as<double, double>(a, b, out, n_threads, stop);
  } else if (b.dtype == DType::f64) {
    spmm_as<double, float>(a, b, out, n_threads, stop);
  } else {
    spmm_as<float, float>(a, b, out, n_threads, stop);
  }
}

}  // namespace ff

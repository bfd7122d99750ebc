// Sparse times dense, row by row: out[i] = Σ_p data[p] · B[indices[p]].
//
// B is cut into panels of a few vectors, so that a row's sums stay in registers. Panels are packed,
// so that one lies together and stays in the L2 cache of a core; each panel then takes one pass
// over A. A nonzero costs a load of its value, a load of its column, and one load and one FMA per
// vector of the panel.
//
// What limits it, for 4096 × 4096, 90 % zeros, float32, one core of Zen 5 (two 64-byte loads a
// cycle from L1, 43 bytes a cycle measured from L2), in ns a nonzero:
//   1 column   8 bytes from DRAM: 0.30 with A cold, where the loop alone takes 0.22
//   8 columns  the same and 32 bytes of B, mostly from L2: 0.46 with A cold, 0.36 for the loop
//   64         L2: 256 bytes of B, 1.53 in the loop alone and 1.85 with A cold; L1 would need 0.65
//   512        64 columns eight times, A from L3
// Tried for 64 columns: panels of 1, 2, 3 and 4 vectors take 1.70, 1.53, 1.55 and 1.64 (4 fill the
// whole L2). Prefetching rows of B in 2-vector panels 4 to 16 nonzeros ahead is 10 % slower.
// Non-temporal hints for A make no difference. Blocks of B of 160 rows × 4 vectors, held in L1,
// with a pointer into each row per block take 1.40 (at 80 % zeros 1.16 instead of 1.49), not
// counting the search for the pointers, which costs as much again if they serve one panel; this
// also needs sorted columns, and is not worth a second kernel.
#include "kernels/spmm/spmm.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "core/prefetch.hpp"
#include "core/simd.hpp"

namespace ff {
namespace {

// A vector of N lanes, for cases where the level's own (simd::Vec) would be too wide.
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

// How far ahead A is prefetched. The loads of B in between keep the processor from recognising that
// A is two streams: without prefetch 8 columns take 0.68 ns a nonzero on one core with A cold; with
// it 256, 512, 1024, 2048, 4096 and 8192 bytes ahead they take 0.68, 0.70, 0.53, 0.46, 0.53 and
// 0.53. One column on two threads takes 0.41 ms without and 0.37 with it (medians of six runs each,
// on a machine with other load).
constexpr index kAheadBytes = 2048;
constexpr int kAheadStep = 16;

template <class T, class Value, class Index>
struct Matrix {
  const CsrView& view;
  const Value* data;
  const Index* indices;

  explicit Matrix(const CsrView& a)
      : view(a),
        data(static_cast<const Value*>(a.data)),
        indices(static_cast<const Index*>(a.indices)) {}

  // Fetches nonzeros that will be needed soon. May point past the end: a prefetch cannot fault.
  void prefetch(index p) const {
    ff::prefetch(reinterpret_cast<const char*>(data + p) + kAheadBytes);
    ff::prefetch(reinterpret_cast<const char*>(indices + p) + kAheadBytes);
  }
};

// Computes sums[v] = Σ_p data[p] · panel[indices[p]] over nonzeros [p, end). Eight independent sums
// keep the FMA units busy; they are added in a fixed order.
template <int N, int NV, class T, class Value, class Index>
inline void sum_nonzeros(const Matrix<T, Value, Index>& a, index p, index end, const T* panel,
                         Vec<T, N> (&sums)[NV]) {
  constexpr int kUnroll = 8 / NV;
  Vec<T, N> part[kUnroll][NV] = {};
  const auto add = [&](index q, Vec<T, N>(&to)[NV]) {
    const T* row = panel + index(a.indices[q]) * (N * NV);
    const Vec<T, N> value = splat<T, N>(T(a.data[q]));
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) to[v] = mul_add<T, N>(value, load<T, N>(row + v * N), to[v]);
  };
  for (; p + kAheadStep <= end; p += kAheadStep) {
    a.prefetch(p);
#pragma GCC unroll 16
    for (int u = 0; u < kAheadStep; ++u) add(p + u, part[u % kUnroll]);
  }
  for (; p + kUnroll <= end; p += kUnroll) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) add(p + u, part[u]);
  }
  for (; p < end; ++p) add(p, part[0]);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    sums[v] = part[0][v];
#pragma GCC unroll 8
    for (int u = 1; u < kUnroll; ++u) sums[v] = sums[v] + part[u][v];
  }
}

// Returns Σ_p data[p] · x[indices[p]]. Vectors are built by scalar loads: 0.22 ns a nonzero with 8
// lanes (4: 0.23, 16: 0.24) on Zen 5, where eight scalar sums take 0.31 and gathers 0.35 to 0.41.
template <class T, class Value, class Index>
inline T sum_nonzeros(const Matrix<T, Value, Index>& a, index p, index end, const T* x) {
  constexpr int N = std::min(32, simd::kBytes) / int(sizeof(T));
  Vec<T, N> part[2] = {};
  for (; p + 2 * N <= end; p += 2 * N) {
    a.prefetch(p);
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      Vec<T, N> values, factors;
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        values[i] = T(a.data[p + u * N + i]);
        factors[i] = x[a.indices[p + u * N + i]];
      }
      part[u] = mul_add<T, N>(values, factors, part[u]);
    }
  }
  T rest = 0;
  for (; p < end; ++p) rest = simd::mul_add(T(a.data[p]), x[a.indices[p]], rest);
  part[0] = part[0] + part[1];
  for (int i = 0; i < N; ++i) rest += part[0][i];
  return rest;
}

template <class T>
struct Out {
  T* data;
  index pitch;
  bool column_major;

  // Stores rows [i, i + n) × columns [j, j + count) from a tile of `width` columns.
  void store(index i, index n, index j, index count, const T* tile, int width) const {
    if (column_major) {
      for (index c = 0; c < count; ++c)
        for (index r = 0; r < n; ++r) data[(j + c) * pitch + i + r] = tile[r * width + c];
    } else {
      for (index r = 0; r < n; ++r)
        std::copy_n(tile + r * width, count, data + (i + r) * pitch + j);
    }
  }
};

// Columns [first, first + count) of B in rows of `width`; columns past the last are zero.
template <class T>
struct Panel {
  index first, count;
  int width;
  Buffer<T> packed;
  const T* values;
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
    // So few products finish before a second thread has started.
    constexpr index kAlone = index(1) << 16;
    const index work = std::max(a_.view.nonzeros, std::max(a_.view.rows, a_.view.cols));
    if (work <= kAlone / std::max<index>(b_.cols, 1)) n_threads = 1;
    const index group = columns_at_once();
    for (index first = 0; first < b_.cols; first += group)
      multiply(first, std::min(group, b_.cols - first), n_threads, stop);
    for (const auto& row : pieces_.long_rows) combine(row);
  }

 private:
  static constexpr int kFull = simd::kLanes<T>;
  static constexpr int kLeast = 16 / int(sizeof(T));
  static constexpr int kTileRows = 16;
  static constexpr index kPackRows = 256;
  static constexpr index kPanelBytes = index(512) << 10;  // half of an L2 of 1 MB
  static constexpr index kGroupBytes = index(32) << 20;

  int full_width() const {
    int width = 4 * kFull;
    while (width > kFull && !fits(kPanelBytes, width)) width /= 2;
    return width;
  }

  bool fits(index bytes, index width) const {
    return a_.view.cols <= bytes / index(sizeof(T)) / width;
  }

  // Returns the number of columns in as many whole panels as fit kGroupBytes.
  index columns_at_once() const {
    const index width = full_width();
    return fits(kGroupBytes, width)
               ? kGroupBytes / index(sizeof(T)) / std::max<index>(a_.view.cols, 1) / width * width
               : width;
  }

  static int width_for(index columns) {
    if (columns == 1) return 1;
    int width = kLeast;
    while (width < columns) width *= 2;
    return width;
  }

  // One loop packs and multiplies. Tasks start in rising order, so a task that waits for the
  // packing waits only for tasks that are already running; a second loop would make all threads
  // wait for each other once more.
  void multiply(index first, index count, int n_threads, Stop& stop) {
    std::vector<Panel<T>> panels = cut_columns(first, count);
    const index n_panels = index(panels.size()), n_pieces = pieces_.size();
    const bool as_it_is = panels[0].values != nullptr;
    const index n_packs =
        as_it_is || a_.view.nonzeros == 0 ? 0 : n_panels * ceil_div(b_.rows, kPackRows);
    std::atomic<index> n_packed{0};
    const auto run = [&](index t, int) {
      if (t < n_packs) {
        const index row = t / n_panels * kPackRows;
        pack(panels[t % n_panels], row, std::min(kPackRows, b_.rows - row));
        n_packed.fetch_add(1, std::memory_order_release);
        return;
      }
      while (n_packed.load(std::memory_order_acquire) < n_packs) std::this_thread::yield();
      multiply_piece(panels[(t - n_packs) / n_pieces], (t - n_packs) % n_pieces);
    };
    if (n_packs == 0) return parallel_ranges(n_panels * n_pieces, n_threads, stop, run);
    parallel_for(n_packs + n_panels * n_pieces, n_threads, stop, run);
  }

  std::vector<Panel<T>> cut_columns(index first, index count) const {
    const index rows = a_.view.nonzeros == 0 ? 0 : a_.view.cols;
    std::vector<Panel<T>> panels;
    if (b_.cols == 1 && is_vector_of_t()) {
      panels.push_back({0, 1, 1, Buffer<T>(), reinterpret_cast<const T*>(b_.data)});
      return panels;
    }
    const int full = full_width();
    for (index c = 0; c < count; c += full) {
      const index n = std::min<index>(full, count - c);
      const int width = width_for(n);
      if (rows > std::numeric_limits<index>::max() / width) throw std::bad_alloc();
      panels.push_back({first + c, n, width, Buffer<T>(rows * width), nullptr});
    }
    return panels;
  }

  bool is_vector_of_t() const {
    return b_.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32) &&
           b_.row_stride == index(sizeof(T)) &&
           reinterpret_cast<std::uintptr_t>(b_.data) % alignof(T) == 0;
  }

  void pack(Panel<T>& panel, index row, index n) const {
    MatrixView part = b_;
    part.data += row * b_.row_stride + panel.first * b_.col_stride;
    part.rows = n;
    part.cols = panel.count;
    T* to = panel.packed.data() + row * panel.width;
    if (std::abs(part.row_stride) >= std::abs(part.col_stride)) {
      for (index r = 0; r < n; ++r) {
        load_row(part, r, to + r * panel.width);
        std::fill(to + r * panel.width + panel.count, to + (r + 1) * panel.width, T(0));
      }
      return;
    }
    std::swap(part.row_stride, part.col_stride);
    std::swap(part.rows, part.cols);
    T column[kPackRows];
    for (index c = 0; c < panel.width; ++c) {
      if (c < panel.count) {
        load_row(part, c, column);
      } else {
        std::fill_n(column, n, T(0));
      }
      for (index r = 0; r < n; ++r) to[r * panel.width + c] = column[r];
    }
  }

  void multiply_piece(const Panel<T>& panel, index piece) {
    if (panel.width == 1) return multiply_piece<1, 1>(panel, piece);
    multiply_wide_piece<kLeast>(panel, piece);
  }

  // Multiplies a panel of Width columns, or of twice, four times … as many.
  template <int Width>
  void multiply_wide_piece(const Panel<T>& panel, index piece) {
    if constexpr (Width < 4 * kFull)
      if (panel.width > Width) return multiply_wide_piece<2 * Width>(panel, piece);
    constexpr int N = std::min(kFull, Width);
    multiply_piece<N, Width / N>(panel, piece);
  }

  template <int N, int NV>
  void multiply_piece(const Panel<T>& panel, index piece) {
    const T* values = panel.values ? panel.values : panel.packed.data();
    const auto sum = [&](index p, index end, T* to) {
      if constexpr (N == 1) {
        *to = sum_nonzeros(a_, p, end, values);
      } else {
        Vec<T, N> sums[NV];
        sum_nonzeros<N, NV>(a_, p, end, values, sums);
        std::memcpy(to, sums, sizeof sums);
      }
    };
    T tile[kTileRows * N * NV];
    const index n_ranges = index(pieces_.ranges.size());
    if (piece >= n_ranges) {
      const index k = piece - n_ranges;
      sum(pieces_.partials[k].first, pieces_.partials[k].last, tile);
      std::copy_n(tile, panel.count, partials_.data() + k * b_.cols + panel.first);
      return;
    }
    const auto range = pieces_.ranges[piece];
    for (index i = range.first; i < range.last; i += kTileRows) {
      const index n = std::min<index>(kTileRows, range.last - i);
      for (index r = 0; r < n; ++r)
        sum(a_.view.start(i + r), a_.view.start(i + r + 1), tile + r * N * NV);
      out_.store(i, n, panel.first, panel.count, tile, N * NV);
    }
  }

  void combine(const RowPieces::LongRow& row) {
    T* total = partials_.data() + row.first_partial * b_.cols;
    for (index k = 1; k < row.n_partials; ++k)
      for (index j = 0; j < b_.cols; ++j) total[j] += total[k * b_.cols + j];
    out_.store(row.row, 1, 0, b_.cols, total, 0);
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

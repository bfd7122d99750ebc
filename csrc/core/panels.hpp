#pragma once
#include <algorithm>

#include "core/buffer.hpp"
#include "core/simd.hpp"

// The dense tile behind the searches: R rows of X times a panel of columns, with accumulators in
// registers. Callers fuse what follows the product (an argmin, a store) with it, which a general
// matrix product does not allow.
namespace ff {

inline constexpr int kPanelVectors = 2;

template <class T>
inline constexpr int kPanelCols = kPanelVectors * simd::kLanes<T>;

// R × 2 accumulators, 2 panel vectors and a broadcast take 27 of 32 registers on v4, and 15 of 16
// on v3 and v2.
inline constexpr int kTileRows = simd::kBytes == 64 ? 12 : 6;

// A sum over the depth is split into parts of this many terms, and the parts are added in order. So
// a row's sums have the same bits for any number of rows in a tile, and rounding errors grow with
// the length of a part plus the number of parts, not with the depth.
inline constexpr index kDepthPart = 256;

// The rows of a matrix (atoms, centroids) as columns of panels of width w: panel p holds columns
// [p·w, (p+1)·w), depth by depth, so that a tile reads it front to back. Columns past the last are
// zero.
template <class T>
class Panels {
 public:
  Panels() = default;
  Panels(index count, index depth)
      : count_(count), depth_(depth), data_(n_panels() * depth * kPanelCols<T>) {
    std::memset(data_.data(), 0, std::size_t(data_.size()) * sizeof(T));
  }

  index count() const { return count_; }
  index depth() const { return depth_; }
  index n_panels() const { return ceil_div(count_, kPanelCols<T>); }
  index padded() const { return n_panels() * kPanelCols<T>; }
  const T* panel(index p) const { return data_.data() + p * depth_ * kPanelCols<T>; }

  void set(index column, const T* values) {
    T* to = data_.data() + (column / kPanelCols<T>)*depth_ * kPanelCols<T> + column % kPanelCols<T>;
    for (index k = 0; k < depth_; ++k) to[k * kPanelCols<T>] = values[k];
  }

 private:
  index count_ = 0, depth_ = 0;
  Buffer<T> data_;
};

// Interleaves R rows that lie ld apart: out[k·R + r] = rows[r·ld + k].
template <int R, class T>
inline void interleave(const T* rows, index ld, index depth, T* out) {
  for (index k = 0; k < depth; ++k)
    for (int r = 0; r < R; ++r) out[k * R + r] = rows[r * ld + k];
}

// The layout of a tile of interleaved rows: element k of row r lies at k·kDepth + r·kRow.
template <int R>
struct Interleaved {
  static constexpr index kRow = 1, kDepth = R, kPart = kDepthPart * R;
};

// The layout of a tile of rows side by side, in parts of kDepthPart: element k of row r lies at
// at(k) + r·kRow. The distance of rows is a constant, so that one register addresses all of them,
// and not a multiple of 64 bytes, so that they do not share cache banks.
template <int R>
struct SideBySide {
  static constexpr index kRow = kDepthPart + 4, kDepth = 1, kPart = R * kRow;
  static constexpr index at(index k) { return k / kDepthPart * kPart + k % kDepthPart; }
  static constexpr index size(index depth) { return ceil_div(depth, kDepthPart) * kPart; }
};

// acc[r][v] += Σ_k x[r][k] · panel[k][v], over at most kDepthPart terms.
template <int R, class Layout, int V, class T>
inline void panel_part(const T* x, const T* panel, index depth, simd::Vec<T> (&acc)[R][V]) {
  using simd::Vec;
  for (index k = 0; k < depth; ++k) {
    Vec<T> c[V];
    for (int v = 0; v < V; ++v) c[v] = simd::load(panel + v * simd::kLanes<T>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec<T> xr = simd::splat(x[r * Layout::kRow]);
      for (int v = 0; v < V; ++v) acc[r][v] = simd::mul_add(xr, c[v], acc[r][v]);
    }
    panel += V * simd::kLanes<T>;
    x += Layout::kDepth;
  }
}

// acc[r][v] += Σ_k x[r][k] · panel[k][v] over any number of terms, part by part.
template <int R, class Layout = Interleaved<R>, int V, class T>
inline void panel_product(const T* x, const T* panel, index depth, simd::Vec<T> (&acc)[R][V]) {
  panel_part<R, Layout>(x, panel, std::min(depth, kDepthPart), acc);
  for (index first = kDepthPart; first < depth; first += kDepthPart) {
    panel += kDepthPart * V * simd::kLanes<T>;
    x += Layout::kPart;
    simd::Vec<T> part[R][V] = {};
    panel_part<R, Layout>(x, panel, std::min(depth - first, kDepthPart), part);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = acc[r][v] + part[r][v];
  }
}

}  // namespace ff

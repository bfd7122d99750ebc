#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/panels.hpp"
#include "core/view.hpp"

// Finds the nearest of K centroids for each row without storing the n × K distances.
namespace ff {

// The coordinates that a search works in: x ↦ (x · shrink − centre) · stretch. Subtracting the
// centre keeps float32 accurate for data far from the origin. shrink ≤ 1 and stretch ≥ 1 are powers
// of two, and 1 unless the magnitudes could overflow or vanish when squared. The centre is rounded
// to few bits, so that for data on a grid (integers) the shift is exact and ties stay ties.
template <class T>
struct Frame {
  std::vector<T> centre;
  T shrink = 1, stretch = 1;

  T scale() const { return shrink * stretch; }

  void load(const MatrixView& x, index row, T* out) const {
    load_row(x, row, out);
    to_frame(out, out);
  }

  void to_frame(const T* in, T* out) const {
    const index d = index(centre.size());
    for (index k = 0; k < d; ++k) out[k] = (in[k] * shrink - centre[k]) * stretch;
  }
};

// Returns Σ x² in double.
template <class T>
inline double squared_norm(const T* x, index d) {
  simd::Vec<double> lanes = {};
  index k = 0;
  for (; k + simd::kLanes<double> <= d; k += simd::kLanes<double>) {
    const auto v = simd::load_wide(x + k);
    lanes = lanes + v * v;
  }
  double rest = simd::reduce_add<double>(lanes);
  for (; k < d; ++k) rest += double(x[k]) * double(x[k]);
  return rest;
}

template <class T>
class Nearest {
 public:
  // The scratch memory of one thread, for the rows of one block.
  class Scratch {
   public:
    explicit Scratch(const Nearest& search)
        : rows(kTileRows * search.depth()),
          interleaved(search.block_rows() * search.depth()),
          best(search.block_rows() * simd::kLanes<T>),
          at(search.block_rows() * simd::kLanes<T>) {}

   private:
    friend class Nearest;
    Buffer<T> rows, interleaved, best;
    Buffer<simd::Int<T>> at;
  };

  Nearest(index n_centroids, index depth)
      : panels_(n_centroids, depth), minus_half_norm_(panels_.padded()) {
    // A block of x and the panels that pass over it share an L2 of 1 MB with other data.
    constexpr index kBlockBytes = index(96) << 10, kGroupBytes = index(256) << 10;
    const index depth_bytes = std::max<index>(depth, 1) * index(sizeof(T));
    block_tiles_ = std::clamp<index>(kBlockBytes / (depth_bytes * kTileRows), 1, 64);
    group_panels_ = std::max<index>(kGroupBytes / (depth_bytes * kPanelCols<T>), 1);
    // The padding of the last panel never wins.
    std::fill_n(minus_half_norm_.data(), panels_.padded(), -std::numeric_limits<T>::infinity());
  }

  index depth() const { return panels_.depth(); }
  index count() const { return panels_.count(); }
  index block_rows() const { return block_tiles_ * kTileRows; }

  // Sets centroid j, given in the frame's coordinates. Call ready() after the last one.
  void set(index j, const T* centroid) {
    panels_.set(j, centroid);
    minus_half_norm_[j] = T(-0.5 * squared_norm(centroid, depth()));
  }

  void ready() {}

  // Writes labels[i] for n ≤ block_rows() rows from `first` on. ‖x−c‖² = ‖x‖² − 2(x·c − ‖c‖²/2), so
  // the nearest centroid has the largest x·c − ‖c‖²/2; ties go to the lowest index.
  void search(const MatrixView& x, const Frame<T>& frame, index first, index n, Scratch& scratch,
              std::int32_t* labels) const {
    const index tiles = ceil_div(n, kTileRows);
    for (index t = 0; t < tiles; ++t) load_tile(x, frame, first, n, t, scratch);
    for (index i = 0; i < tiles * kTileRows; ++i) {
      simd::store(scratch.best.data() + i * kLanes,
                  simd::splat(-std::numeric_limits<T>::infinity()));
      simd::store(scratch.at.data() + i * kLanes, simd::Vec<I>{});
    }
    for (index p = 0; p < panels_.n_panels(); p += group_panels_) {
      const index end = std::min(p + group_panels_, panels_.n_panels());
      for (index t = 0; t < tiles; ++t) search_tile(t, p, end, scratch);
    }
    for (index i = 0; i < n; ++i) labels[i] = std::int32_t(winner(i, scratch));
  }

 private:
  using I = simd::Int<T>;
  static constexpr int kLanes = simd::kLanes<T>;

  void load_tile(const MatrixView& x, const Frame<T>& frame, index first, index n, index t,
                 Scratch& scratch) const {
    for (index r = 0; r < kTileRows; ++r)
      frame.load(x, first + std::min(t * kTileRows + r, n - 1), scratch.rows.data() + r * depth());
    interleave<kTileRows>(scratch.rows.data(), depth(), depth(),
                          scratch.interleaved.data() + t * kTileRows * depth());
  }

  void search_tile(index t, index p, index end, Scratch& scratch) const {
    using simd::Vec;
    const T* x = scratch.interleaved.data() + t * kTileRows * depth();
    T* best = scratch.best.data() + t * kTileRows * kLanes;
    I* at = scratch.at.data() + t * kTileRows * kLanes;
    for (; p < end; ++p) {
      Vec<T> acc[kTileRows][kPanelVectors];
      const T* offset = minus_half_norm_.data() + p * kPanelCols<T>;
      const Vec<T> offset0 = simd::load(offset), offset1 = simd::load(offset + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) acc[r][0] = offset0, acc[r][1] = offset1;
      panel_product<kTileRows>(x, panels_.panel(p), depth(), acc);
      const Vec<I> at0 = simd::splat(I(p * kPanelCols<T>)), at1 = at0 + simd::splat(I(kLanes));
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const auto second = acc[r][1] > acc[r][0];
        const Vec<T> score = simd::max(acc[r][1], acc[r][0]);
        const Vec<T> old = simd::load(best + r * kLanes);
        const auto better = score > old;
        const Vec<I> from = second ? at1 : at0;
        simd::store(best + r * kLanes, simd::max(score, old));
        simd::store(at + r * kLanes, better ? from : simd::load(at + r * kLanes));
      }
    }
  }

  index winner(index i, const Scratch& scratch) const {
    const auto best = simd::load(scratch.best.data() + i * kLanes);
    const auto at = simd::load(scratch.at.data() + i * kLanes) + simd::iota<I>();
    const auto top = simd::splat(simd::reduce_max<T>(best));
    const auto lowest = best == top ? at : simd::splat(std::numeric_limits<I>::max());
    return std::min<index>(simd::reduce_min<I>(lowest), count() - 1);
  }

  Panels<T> panels_;
  Buffer<T> minus_half_norm_;
  index block_tiles_ = 1, group_panels_ = 1;
};

}  // namespace ff

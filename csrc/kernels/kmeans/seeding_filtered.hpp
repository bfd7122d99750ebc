#pragma once
#include "core/parallel.hpp"
#include "kernels/kmeans/coded_tile.hpp"

#if defined(__AVX512VNNI__)

namespace ff {

// Squared distances to the nearest of a growing set of centroids. Rows are coded once, in a quarter
// of their bytes. A new centroid's distance to a row is computed only if its 8-bit bound says that
// it may be nearer than the nearest so far. It is computed as Σ (x − c)², so that a row on a
// centroid has a distance of exactly zero.
class FilteredShrink {
  struct Hit {
    std::int32_t row;  // within the part
    std::uint32_t centroids;
  };

 public:
  class Scratch {
   public:
    explicit Scratch(const FilteredShrink& filter) : row(filter.ld_), hits(filter.part_rows_ + 1) {}

   private:
    friend class FilteredShrink;
    Buffer<float> row;
    Buffer<Hit> hits;  // one more than there are rows: every write goes to the next place
  };

  // Cuts the rows into parts, each of which is coded and shrunk independently.
  FilteredShrink(const MatrixView& x, const Frame<float>& frame, index part_rows, int n_threads,
                 Stop& stop)
      : loader_(x, frame),
        n_(x.rows),
        depth_(x.cols),
        ld_(round_up(depth_, coded::kLanes)),
        quads_(ceil_div(depth_, 4)),
        part_rows_(part_rows),
        part_tiles_(ceil_div(part_rows, kTileRows)) {
    const index parts = ceil_div(n_, part_rows), tiles = parts * part_tiles_;
    codes_ = Buffer<std::int32_t>(tiles * quads_ * kTileRows);
    tiles_ = Buffer<coded::Tile>(tiles);
    norm2_ = Buffer<float>(tiles * kTileRows);
    parallel_ranges(parts, n_threads, stop, [&](index part, int) { code_part(part); });
  }

  // Sets nearest[i] = min(nearest[i], ‖x_i − c‖²) over all centroids, for the rows of a part.
  // Changes nothing and returns false if the bounds are too coarse to be worth it (for example
  // because one outlier sets the scale for all).
  bool shrink(index part, const coded::Centroids& centroids, Scratch& scratch,
              float* nearest) const {
    const index first = part * part_rows_, n = std::min(part_rows_, n_ - first);
    Hit* end = scratch.hits.data();
    index to_measure = 0;
    for (index t = 0; t < n; t += kTileRows)
      to_measure += find_hits(part * part_tiles_ + t / kTileRows, t,
                              std::min<index>(kTileRows, n - t), centroids, nearest, end);
    if (to_measure > kWorthIt * n) return false;
    for (const Hit* hit = scratch.hits.data(); hit != end; ++hit) {
      // Rows that are far apart are fetched from memory while others are measured.
      if (hit + kAhead < end) loader_.prefetch(first + hit[kAhead].row);
      loader_.load(first + hit->row, scratch.row.data());
      float least = nearest[hit->row];
      for (std::uint32_t left = hit->centroids; left; left &= left - 1)
        least = std::min(least,
                         squared_distance(scratch.row.data(), centroids.row(__builtin_ctz(left))));
      nearest[hit->row] = least;
    }
    return true;
  }

 private:
  static constexpr int kLanes = coded::kLanes;
  static constexpr index kWorthIt = 8;  // computed distances per row
  static constexpr index kAhead = 16;

  void code_part(index part) {
    Buffer<float> rows(kTileRows * ld_);
    const index first = part * part_rows_, n = std::min(part_rows_, n_ - first);
    for (index t = 0; t < n; t += kTileRows) {
      const index count = std::min<index>(kTileRows, n - t);
      const index tile = part * part_tiles_ + t / kTileRows;
      for (index r = 0; r < count; ++r)
        loader_.prefetch(first + t + r + kTileRows),
            loader_.load(first + t + r, rows.data() + r * ld_);
      __m512 norm2;
      tiles_[tile] = coded::code_tile(rows.data(), count, depth_, codes(tile), norm2);
      _mm512_mask_storeu_ps(norm2_.data() + tile * kTileRows, coded::lanes_below(kTileRows), norm2);
    }
  }

  // Appends the rows of a tile that some centroid may be nearer to, with those centroids; returns
  // the number of pairs of row and centroid.
  index find_hits(index tile, index first, index n, const coded::Centroids& centroids,
                  const float* nearest, Hit*& hits) const {
    alignas(64) std::int32_t reach[kLanes];
    _mm512_store_si512(reach, to_reach(tile, n, centroids, nearest + first));
    coded::Ints acc[kTileRows][kPanelVectors];
    centroids.bound(codes(tile), tiles_[tile], 0, acc);
    std::uint32_t hit[kTileRows];
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) hit[r] = coded::reaching(acc[r], reach[r]);
    index pairs = 0;
    for (index r = 0; r < n; ++r) {
      *hits = {std::int32_t(first + r), hit[r]};
      hits += hit[r] != 0;
      pairs += __builtin_popcount(hit[r]);
    }
    return pairs;
  }

  // A centroid nearer than D has a score above (‖x‖² − D²)/2.
  coded::Ints to_reach(index tile, index n, const coded::Centroids& centroids,
                       const float* nearest) const {
    const __mmask16 own = coded::lanes_below(n);
    const __m512 norm2 = _mm512_maskz_loadu_ps(own, norm2_.data() + tile * kTileRows);
    const __m512 distance2 = _mm512_maskz_loadu_ps(own, nearest);
    // The sum ‖x‖² has d terms in order, D² a sixteenth of them.
    const float unit = std::numeric_limits<float>::epsilon() * float(8 + depth_);
    const __m512 rounding = _mm512_mul_ps(_mm512_add_ps(norm2, distance2), _mm512_set1_ps(unit));
    const __m512 score =
        _mm512_fmsub_ps(_mm512_sub_ps(norm2, distance2), _mm512_set1_ps(0.5f), rounding);
    return centroids.to_reach(score, tiles_[tile]);
  }

  float squared_distance(const float* x, const float* c) const {
    __m512 sum[4] = {};
    index k = 0;
    const auto add = [&](index at, __m512& to) {
      const __m512 off = _mm512_sub_ps(_mm512_load_ps(x + at), _mm512_load_ps(c + at));
      to = _mm512_fmadd_ps(off, off, to);
    };
    for (; k + 4 * kLanes <= ld_; k += 4 * kLanes)
#  pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) add(k + u * kLanes, sum[u]);
    for (; k < ld_; k += kLanes) add(k, sum[0]);
    return simd::reduce_add<float>(
        _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
  }

  std::int32_t* codes(index tile) { return codes_.data() + tile * quads_ * kTileRows; }
  const std::int32_t* codes(index tile) const { return codes_.data() + tile * quads_ * kTileRows; }

  coded::RowLoader loader_;
  index n_, depth_, ld_, quads_, part_rows_, part_tiles_;
  Buffer<std::int32_t> codes_;
  Buffer<coded::Tile> tiles_;
  Buffer<float> norm2_;
};

}  // namespace ff

#endif

#pragma once
#include "kernels/kmeans/coded_tile.hpp"

#if defined(__AVX512VNNI__)

// Nearest<float> with a filter in front: 8-bit products bound every score from above, and only
// centroids whose bound reaches the best score so far are scored in float32. No centroid that could
// win is skipped, so a coarse filter costs time but does not change the labels.
namespace ff {

class FilteredNearest {
 public:
  class Scratch {
   public:
    explicit Scratch(const FilteredNearest& search)
        : exact(search.exact_),
          rows(kTileRows * search.centroids_.ld()),
          codes(kTileRows * search.centroids_.quads()) {}

   private:
    friend class FilteredNearest;
    Nearest<float>::Scratch exact;
    Buffer<float> rows;
    Buffer<std::int32_t> codes;
  };

  FilteredNearest(index n_centroids, index depth)
      : exact_(n_centroids, depth), centroids_(n_centroids, depth) {}

  index count() const { return exact_.count(); }
  index block_rows() const { return exact_.block_rows(); }

  // Sets centroid j, given in the frame's coordinates. Call ready() after the last one.
  void set(index j, const float* centroid) {
    exact_.set(j, centroid);
    centroids_.set(j, centroid);
  }

  void ready() { centroids_.ready(); }

  // Does what Nearest::search does, but tries the labels that are already there first (−1: none).
  void search(const MatrixView& x, const Frame<float>& frame, index first, index n,
              Scratch& scratch, std::int32_t* labels) const {
    const coded::RowLoader loader(x, frame);
    for (index t = 0; t < n; t += kTileRows) {
      const index rows = std::min<index>(kTileRows, n - t);
      const index scored = search_tile(loader, first + t, rows, scratch, labels + t);
      // If bounds are too coarse to tell centroids apart (for example because one outlier sets the
      // scale for all), the rest of the block is searched without them. On 50,000 rows of kmeans b
      // with wider bounds, scoring 2, 10, 21 and 42 of 1,024 centroids took 11, 15, 18 and 23 ms
      // and the plain tile 33 ms: by extrapolation the plain tile is faster from about 77 on.
      if (scored > rows * (16 + count() / 16) && t + rows < n) {
        exact_.search(x, frame, first + t + rows, n - t - rows, scratch.exact, labels + t + rows);
        return;
      }
    }
  }

 private:
  static constexpr int kLanes = coded::kLanes;
  static constexpr index kCols = coded::kCols;
  static constexpr std::int32_t kNoLabel = std::numeric_limits<std::int32_t>::max();
  static constexpr index kGroup = 8;  // panels that are bounded before their hits are scored
  using Ints = coded::Ints;

  // The rows of a tile, one per lane; lanes past the last row repeat it and are never read.
  struct Tile {
    coded::Tile codes;
    __m512 margin;                   // how far rounding may move a score
    alignas(64) float best[kLanes];  // score of the label
    alignas(64) std::int32_t label[kLanes];
    alignas(64) std::int32_t reach[kLanes];  // accumulators below this score less
  };

  // Labels the rows of a tile; returns how many centroids were scored in float32.
  index search_tile(const coded::RowLoader& loader, index first, index n, Scratch& scratch,
                    std::int32_t* labels) const {
    Tile tile;
    const index ld = centroids_.ld(), n_panels = centroids_.n_panels();
    for (index r = 0; r < n; ++r) {
      loader.prefetch(first + r + kTileRows);
      loader.load(first + r, scratch.rows.data() + r * ld);
    }
    code_rows(n, scratch, tile);
    if (labels[0] >= 0) {
      for (index r = 0; r < kLanes; ++r) tile.label[r] = labels[std::min(r, n - 1)];
    } else {
      highest_bounds(scratch.codes.data(), tile);
    }
    for (index r = 0; r < n; ++r) tile.best[r] = score(scratch.rows.data() + r * ld, tile.label[r]);
    for (index r = n; r < kLanes; ++r) tile.best[r] = tile.best[n - 1];
    set_reach(tile);
    index scored = n;
    for (index p = 0; p < n_panels; p += kGroup) {
      Hits hits;
      const index group = std::min(kGroup, n_panels - p);
      for (index q = 0; q < group; ++q) hit_panel(scratch.codes.data(), tile, p + q, q, hits);
      for (index r = 0; r < n; ++r) {
        const index own = tile.label[r] - p * kCols;  // always among the hits
        const bool here = own >= 0 && own < group * kCols;
        if (hits.count[r] == std::uint32_t(here)) continue;
        if (here) hits.lanes[r][own / kCols] &= ~(1u << own % kCols);
        scored += score_hits(p, group, hits.lanes[r], r, scratch, tile);
      }
    }
    std::copy_n(tile.label, n, labels);
    return scored;
  }

  // The centroids of a group of panels that may beat the labels of a tile.
  struct Hits {
    std::uint32_t lanes[kTileRows][kGroup];
    std::uint32_t count[kTileRows] = {};
  };

  index score_hits(index p, index n_panels, const std::uint32_t (&hits)[kGroup], index r,
                   const Scratch& scratch, Tile& tile) const {
    index scored = 0;
    for (index q = 0; q < n_panels; ++q)
      for (std::uint32_t left = hits[q]; left; left &= left - 1, ++scored) {
        const auto j = std::int32_t((p + q) * kCols) + __builtin_ctz(left);
        const float candidate = score(scratch.rows.data() + r * centroids_.ld(), j);
        if (candidate > tile.best[r] || (candidate == tile.best[r] && j < tile.label[r])) {
          tile.best[r] = candidate;
          tile.label[r] = j;
        }
      }
    set_reach(tile);
    return scored;
  }

  void code_rows(index n, Scratch& scratch, Tile& tile) const {
    __m512 norm2;
    tile.codes =
        coded::code_tile(scratch.rows.data(), n, centroids_.depth(), scratch.codes.data(), norm2);
    // score() adds d/16 terms in order in each lane and then combines the lanes in 4 levels.
    const float unit =
        std::numeric_limits<float>::epsilon() * float(8 + centroids_.depth() / kLanes);
    const __m512 norm = _mm512_mul_ps(_mm512_sqrt_ps(norm2), _mm512_set1_ps(coded::kUp));
    tile.margin = _mm512_fmadd_ps(norm, _mm512_set1_ps(unit * centroids_.max_norm()),
                                  _mm512_set1_ps(unit * centroids_.max_half_norm()));
  }

  void hit_panel(const std::int32_t* x, const Tile& tile, index p, index slot, Hits& hits) const {
    Ints acc[kTileRows][kPanelVectors];
    centroids_.bound(x, tile.codes, p, acc);
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const std::uint32_t lanes = coded::reaching(acc[r], tile.reach[r]);
      hits.lanes[r][slot] = lanes;
      hits.count[r] += std::uint32_t(__builtin_popcount(lanes));
    }
  }

  // Labels a tile without previous labels: the centroid with the highest bound is a good first
  // guess.
  void highest_bounds(const std::int32_t* x, Tile& tile) const {
    alignas(64) std::int32_t top[kTileRows][kLanes], at[kTileRows][kLanes];
    for (index p = 0; p < centroids_.n_panels(); ++p) {
      Ints acc[kTileRows][kPanelVectors];
      centroids_.bound(x, tile.codes, p, acc);
      for (int r = 0; r < kTileRows; ++r) {
        const __mmask16 second = _mm512_cmpgt_epi32_mask(acc[r][1], acc[r][0]);
        const Ints high = _mm512_max_epi32(acc[r][0], acc[r][1]);
        const Ints from = _mm512_mask_blend_epi32(second, _mm512_set1_epi32(int(p * kCols)),
                                                  _mm512_set1_epi32(int(p * kCols) + kLanes));
        const __mmask16 better =
            p == 0 ? __mmask16(0xffff) : _mm512_cmpgt_epi32_mask(high, _mm512_load_si512(top[r]));
        _mm512_mask_store_epi32(top[r], better, high);
        _mm512_mask_store_epi32(at[r], better, from);
      }
    }
    for (int r = 0; r < kTileRows; ++r) {
      const auto high = simd::load(top[r]);
      const auto highest = simd::splat(simd::reduce_max<std::int32_t>(high));
      const auto index_of = simd::load(at[r]) + simd::iota<std::int32_t>();
      const auto lowest = high == highest ? index_of : simd::splat(std::int32_t(kNoLabel));
      tile.label[r] = std::min(simd::reduce_min<std::int32_t>(lowest), std::int32_t(count() - 1));
    }
    for (int r = kTileRows; r < kLanes; ++r) tile.label[r] = tile.label[kTileRows - 1];
  }

  void set_reach(Tile& tile) const {
    const __m512 score = _mm512_sub_ps(_mm512_load_ps(tile.best), tile.margin);
    _mm512_store_si512(tile.reach, centroids_.to_reach(score, tile.codes));
  }

  // Returns x·c − ‖c‖²/2 in float32; the same x and c always give the same bits.
  float score(const float* x, index j) const {
    const float* c = centroids_.row(j);
    const index ld = centroids_.ld();
    __m512 sum[4] = {};
    index k = 0;
    for (; k + 4 * kLanes <= ld; k += 4 * kLanes)
#  pragma GCC unroll 4
      for (int u = 0; u < 4; ++u)
        sum[u] = _mm512_fmadd_ps(_mm512_load_ps(x + k + u * kLanes),
                                 _mm512_load_ps(c + k + u * kLanes), sum[u]);
    for (; k < ld; k += kLanes)
      sum[0] = _mm512_fmadd_ps(_mm512_load_ps(x + k), _mm512_load_ps(c + k), sum[0]);
    const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    return simd::reduce_add<float>(all) - centroids_.half_norm(j);
  }

  Nearest<float> exact_;
  coded::Centroids centroids_;
};

}  // namespace ff

#endif

#pragma once
#include "kernels/nearest.hpp"

#if defined(__AVX512VNNI__)

// Nearest<float> with a filter in front: products of 8-bit integers, four times as many an
// instruction as FMA does in float32, bound every score from above; only centroids whose bound
// reaches the best score met so far are scored in float32. No centroid that could win is lost, so
// the labels do not depend on the filter's coarseness, which costs time only.
//
// For a tile of rows x and centroids c, with x = σq + e and c = τp + f (q, p integers in ±127):
//
//   x·c ≤ στ q·p + ‖e‖‖c‖ + ‖σq‖‖f‖                       (Cauchy-Schwarz on what rounding left)
//   score = x·c − ‖c‖²/2,   b = 1/στ
//   b · score ≤ q·p − b(‖c‖²/2 − max‖e‖ ‖c‖ − max‖σq‖ ‖f‖)
//
// so that the right side, an integer accumulator with an offset per centroid, is compared with
// b · (best score) directly.
namespace ff {

class FilteredNearest {
 public:
  class Scratch {
   public:
    explicit Scratch(const FilteredNearest& search)
        : exact(search.exact_), rows(kTileRows * search.ld_), codes(kLanes * search.quads_) {}

   private:
    friend class FilteredNearest;
    Nearest<float>::Scratch exact;
    Buffer<float> rows;
    Buffer<std::int32_t> codes;  // of 16 rows side by side, four depths a number
  };

  // Beyond this depth a 32-bit accumulator could overflow.
  static constexpr index kMaxDepth = 16384;

  FilteredNearest(index n_centroids, index depth)
      : exact_(n_centroids, depth),
        depth_(depth),
        ld_(round_up(depth, kLanes)),
        quads_(ceil_div(depth, 4)),
        panels_(ceil_div(n_centroids, kCols)),
        centroids_(n_centroids * ld_),
        half_norm_(panels_ * kCols),
        norm_(panels_ * kCols),
        lost_(panels_ * kCols),
        base_(panels_ * kCols),
        codes_(panels_ * quads_ * kCols) {
    std::fill_n(centroids_.data(), n_centroids * ld_, 0.0f);
    // What pads the last panel: products of zero and an offset that no threshold lets through.
    std::fill_n(codes_.data(), codes_.size(), 0);
    for (Buffer<float>* each : {&half_norm_, &norm_, &lost_})
      std::fill_n(each->data(), each->size(), 0.0f);
    std::fill_n(base_.data(), base_.size(), kNever);
  }

  index count() const { return exact_.count(); }
  index block_rows() const { return exact_.block_rows(); }

  // Centroid j, in the frame's coordinates. After the last one: ready().
  void set(index j, const float* centroid) {
    exact_.set(j, centroid);
    std::copy_n(centroid, depth_, centroids_.data() + j * ld_);
    double norm2 = 0;
    for (index k = 0; k < depth_; ++k) {
      norm2 += double(centroid[k]) * double(centroid[k]);
      largest_ = std::max(largest_, std::abs(centroid[k]));
    }
    half_norm_[j] = float(0.5 * norm2);
    norm_[j] = float(std::sqrt(norm2)) * kUp;
  }

  void ready() {
    scale_ = largest_ > 0 ? largest_ / 127 : 1;
    std::vector<std::int8_t> codes(quads_ * 4);
    for (index j = 0; j < count(); ++j) {
      const float* c = centroids_.data() + j * ld_;
      std::int32_t sum = 0;
      double lost2 = 0;
      for (index k = 0; k < depth_; ++k) {
        const int code = int(std::nearbyint(c[k] / scale_));
        codes[k] = std::int8_t(code);
        sum += code;
        const double off = double(c[k]) - double(scale_) * code;
        lost2 += off * off;
      }
      lost_[j] = float(std::sqrt(lost2)) * kUp;
      base_[j] = -kOffset * sum;
      std::int32_t* to = codes_.data() + (j / kCols) * quads_ * kCols + j % kCols;
      for (index g = 0; g < quads_; ++g) std::memcpy(to + g * kCols, codes.data() + 4 * g, 4);
      max_norm_ = std::max(max_norm_, norm_[j]);
      max_half_norm_ = std::max(max_half_norm_, half_norm_[j]);
    }
  }

  // As Nearest::search; what stands in labels (−1: nothing) is tried first.
  void search(const MatrixView& x, const Frame<float>& frame, index first, index n,
              Scratch& scratch, std::int32_t* labels) const {
    for (index t = 0; t < n; t += kTileRows) {
      const index rows = std::min<index>(kTileRows, n - t);
      const index scored = search_tile(x, frame, first + t, rows, scratch, labels + t);
      // Where bounds are too coarse to tell centroids apart (say, one outlier sets the scale for
      // all) the rest of the block goes without them. On 50,000 rows of kmeans b with the bounds
      // widened, 2, 10, 21 and 42 scored of 1,024 took 11, 15, 18 and 23 ms, the plain tile 33: on
      // that line it is the faster one from some 77 on.
      if (scored > rows * (16 + count() / 16) && t + rows < n) {
        exact_.search(x, frame, first + t + rows, n - t - rows, scratch.exact, labels + t + rows);
        return;
      }
    }
  }

 private:
  static constexpr int kLanes = simd::kLanes<float>;
  static constexpr index kCols = kPanelCols<float>;
  static constexpr std::int32_t kOffset = 128;  // x goes in unsigned, as code + 128
  static constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::min() / 2;
  static constexpr std::int32_t kNoLabel = std::numeric_limits<std::int32_t>::max();
  static constexpr float kUp = 1.0001f;  // covers the rounding of a norm
  static constexpr index kGroup = 8;     // panels between two looks at what they hit
  using Ints = __m512i;

  // Rows of a tile as lanes; those past the last repeat it and are never looked at.
  struct Tile {
    float per_unit;                  // b: integer units a unit of score
    float max_lost;                  // max ‖e‖
    float max_norm;                  // max ‖σq‖
    __m512 margin;                   // how far rounding may move a score
    alignas(64) float best[kLanes];  // score of the label
    alignas(64) std::int32_t label[kLanes];
    alignas(64) std::int32_t reach[kLanes];  // an accumulator below this belongs to a lower score
  };

  // How many centroids were scored in float32.
  index search_tile(const MatrixView& x, const Frame<float>& frame, index first, index n,
                    Scratch& scratch, std::int32_t* labels) const {
    Tile tile;
    load_tile(x, frame, first, n, scratch.rows.data());
    quantize(n, scratch, tile);
    if (labels[0] >= 0) {
      for (index r = 0; r < kLanes; ++r) tile.label[r] = labels[std::min(r, n - 1)];
    } else {
      highest_bounds(scratch.codes.data(), tile);
    }
    for (index r = 0; r < n; ++r)
      tile.best[r] = score(scratch.rows.data() + r * ld_, tile.label[r]);
    for (index r = n; r < kLanes; ++r) tile.best[r] = tile.best[n - 1];
    set_reach(tile);
    index scored = n;
    for (index p = 0; p < panels_; p += kGroup) {
      Hits hits;
      const index n_panels = std::min(kGroup, panels_ - p);
      for (index q = 0; q < n_panels; ++q) hit_panel(scratch.codes.data(), tile, p + q, q, hits);
      for (index r = 0; r < n; ++r) {
        const index own = tile.label[r] - p * kCols;  // always among what it hits
        const bool here = own >= 0 && own < n_panels * kCols;
        if (hits.count[r] == std::uint32_t(here)) continue;
        if (here) hits.lanes[r][own / kCols] &= ~(1u << own % kCols);
        scored += score_hits(p, n_panels, hits.lanes[r], r, scratch, tile);
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
        const float candidate = score(scratch.rows.data() + r * ld_, j);
        if (candidate > tile.best[r] || (candidate == tile.best[r] && j < tile.label[r])) {
          tile.best[r] = candidate;
          tile.label[r] = j;
        }
      }
    set_reach(tile);
    return scored;
  }

  void load_tile(const MatrixView& x, const Frame<float>& frame, index first, index n,
                 float* rows) const {
    const bool plain = x.dtype == DType::f32 && x.col_stride == 4;
    const __m512 scale = _mm512_set1_ps(frame.scale);
    for (index r = 0; r < n; ++r, rows += ld_) {
      const char* from = x.row(first + r);
      if (!plain) frame.load(x, first + r, rows);
      for (index k = 0; k < ld_; k += kLanes) {
        const __mmask16 inside = lanes_below(depth_ - k);
        __m512 v;
        if (plain) {
          // The next tile's rows come from memory while this one is searched.
          __builtin_prefetch(from + 4 * k + kTileRows * x.row_stride);
          const __m512 centre = _mm512_maskz_loadu_ps(inside, frame.centre.data() + k);
          v = _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, from + 4 * k), centre);
          v = _mm512_mul_ps(v, scale);
        } else {
          v = _mm512_maskz_loadu_ps(inside, rows + k);
        }
        _mm512_store_ps(rows + k, v);
      }
    }
  }

  static __mmask16 lanes_below(index n) { return __mmask16(n >= kLanes ? 0xffff : (1u << n) - 1); }

  void quantize(index n, Scratch& scratch, Tile& tile) const {
    const float* rows = scratch.rows.data();
    __m512 largest = _mm512_setzero_ps();
    for (index k = 0; k < n * ld_; k += kLanes)
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_load_ps(rows + k)));
    // Fine enough for the rows, coarse enough for offsets to stay below 2²⁹.
    float sigma = simd::reduce_max<float>(largest) / 127;
    sigma = std::max(sigma, (max_half_norm_ + max_norm_) * 4 / (scale_ * 0x1p29f));
    if (!(sigma > 0)) sigma = 1;
    tile.per_unit = 1 / (sigma * scale_);
    const __m512 inverse = _mm512_set1_ps(1 / sigma), step = _mm512_set1_ps(sigma);
    __m512 lost2 = _mm512_setzero_ps(), norm2 = _mm512_setzero_ps();
    std::int32_t* codes = scratch.codes.data();
    for (index first = 0; first < depth_; first += kLanes) {
      __m512 column[kLanes];
      transpose(rows + first, n, column);
      for (index k = 0; k < kLanes && first + k < depth_; k += 4, codes += kLanes) {
        Ints quad = _mm512_setzero_si512();
#  pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) {
          const __m512 value = column[k + byte];
          const Ints code = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
          const __m512 off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(code), step, value);
          lost2 = _mm512_fmadd_ps(off, off, lost2);
          norm2 = _mm512_fmadd_ps(value, value, norm2);
          quad = _mm512_or_si512(
              quad,
              _mm512_slli_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(kOffset)), 8 * byte));
        }
        _mm512_store_si512(codes, quad);
      }
    }
    const __m512 up = _mm512_set1_ps(kUp);
    const __m512 lost = _mm512_mul_ps(_mm512_sqrt_ps(lost2), up);
    const __m512 norm = _mm512_mul_ps(_mm512_sqrt_ps(norm2), up);
    tile.max_lost = simd::reduce_max<float>(lost);
    tile.max_norm = simd::reduce_max<float>(norm) + tile.max_lost;
    // score() adds d/16 terms in order in each lane, then 4 levels of lanes.
    const float unit = std::numeric_limits<float>::epsilon() * float(8 + depth_ / kLanes);
    tile.margin = _mm512_fmadd_ps(norm, _mm512_set1_ps(unit * max_norm_),
                                  _mm512_set1_ps(unit * max_half_norm_));
  }

  // column[k][r] = rows[r][k] of a 16 × 16 block: pairs, quads, then 128-bit lanes.
  void transpose(const float* rows, index n, __m512 (&column)[kLanes]) const {
    __m512 a[kLanes], b[kLanes];
#  pragma GCC unroll 16
    for (index r = 0; r < kLanes; ++r) a[r] = _mm512_load_ps(rows + std::min(r, n - 1) * ld_);
#  pragma GCC unroll 8
    for (int i = 0; i < kLanes; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#  pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4)
#  pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512d low = (__m512d)b[i + h], high = (__m512d)b[i + h + 2];
        a[i + 2 * h] = (__m512)_mm512_unpacklo_pd(low, high);
        a[i + 2 * h + 1] = (__m512)_mm512_unpackhi_pd(low, high);
      }
#  pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 even_top = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
      const __m512 odd_top = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
      const __m512 even_bottom = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
      const __m512 odd_bottom = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
      column[j] = _mm512_shuffle_f32x4(even_top, even_bottom, 0x88);
      column[8 + j] = _mm512_shuffle_f32x4(even_top, even_bottom, 0xdd);
      column[4 + j] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0x88);
      column[12 + j] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0xdd);
    }
  }

  // acc + x·c, four unsigned by four signed bytes a lane. Written out because GCC 12 copies and
  // spills the accumulators around its intrinsic: 63 against 49 ms an assignment of kmeans b.
  static Ints add_products(Ints acc, Ints x, Ints c) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(c));
    return acc;
  }

  // acc[r][·] = q·p + offset: above b · score for each centroid of the panel.
  void bound_panel(const std::int32_t* x, const Tile& tile, index p,
                   Ints (&acc)[kTileRows][kPanelVectors]) const {
    Ints offset[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      const index at = p * kCols + v * kLanes;
      __m512 below = _mm512_loadu_ps(half_norm_.data() + at);
      below = _mm512_fnmadd_ps(_mm512_set1_ps(tile.max_lost), _mm512_loadu_ps(norm_.data() + at),
                               below);
      below = _mm512_fnmadd_ps(_mm512_set1_ps(tile.max_norm), _mm512_loadu_ps(lost_.data() + at),
                               below);
      const Ints units = _mm512_cvtps_epi32(_mm512_mul_ps(below, _mm512_set1_ps(tile.per_unit)));
      offset[v] = _mm512_sub_epi32(_mm512_loadu_si512(base_.data() + at), units);
    }
    Ints sum[kTileRows][kPanelVectors];
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) sum[r][0] = offset[0], sum[r][1] = offset[1];
    const std::int32_t* c = codes_.data() + p * quads_ * kCols;
    for (index g = 0; g < quads_; ++g, c += kCols, x += kLanes) {
      const Ints c0 = _mm512_loadu_si512(c), c1 = _mm512_loadu_si512(c + kLanes);
#  pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const Ints xr = _mm512_set1_epi32(x[r]);
        sum[r][0] = add_products(sum[r][0], xr, c0);
        sum[r][1] = add_products(sum[r][1], xr, c1);
      }
    }
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) acc[r][0] = sum[r][0], acc[r][1] = sum[r][1];
  }

  void hit_panel(const std::int32_t* x, const Tile& tile, index p, index slot, Hits& hits) const {
    Ints acc[kTileRows][kPanelVectors];
    bound_panel(x, tile, p, acc);
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const Ints reach = _mm512_set1_epi32(tile.reach[r]);
      const auto lanes = std::uint32_t(_mm512_cmpge_epi32_mask(acc[r][0], reach)) |
                         std::uint32_t(_mm512_cmpge_epi32_mask(acc[r][1], reach)) << kLanes;
      hits.lanes[r][slot] = lanes;
      hits.count[r] += std::uint32_t(__builtin_popcount(lanes));
    }
  }

  // Where nothing is known of a tile: the centroid with the highest bound is a good first guess.
  void highest_bounds(const std::int32_t* x, Tile& tile) const {
    alignas(64) std::int32_t top[kTileRows][kLanes], at[kTileRows][kLanes];
    for (index p = 0; p < panels_; ++p) {
      Ints acc[kTileRows][kPanelVectors];
      bound_panel(x, tile, p, acc);
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

  // b · (best − rounding), less what float32 may have rounded away in it and in the offsets.
  void set_reach(Tile& tile) const {
    const __m512 per_unit = _mm512_set1_ps(tile.per_unit);
    __m512 units = _mm512_mul_ps(per_unit, _mm512_sub_ps(_mm512_load_ps(tile.best), tile.margin));
    const __m512 rounding =
        _mm512_fmadd_ps(_mm512_abs_ps(units), _mm512_set1_ps(0x1p-21f),
                        _mm512_set1_ps(2 + 0x1p-21f * tile.per_unit *
                                               (max_half_norm_ + max_norm_ * tile.max_lost)));
    units = _mm512_sub_ps(units, rounding);
    units = _mm512_min_ps(_mm512_max_ps(units, _mm512_set1_ps(float(kNever / 2))),
                          _mm512_set1_ps(0x1p30f));
    _mm512_store_si512(tile.reach, _mm512_cvttps_epi32(units));
  }

  // x·c − ‖c‖²/2 in float32; the same for the same x and c, whatever led here.
  float score(const float* x, index j) const {
    const float* c = centroids_.data() + j * ld_;
    __m512 sum[4] = {};
    index k = 0;
    for (; k + 4 * kLanes <= ld_; k += 4 * kLanes)
#  pragma GCC unroll 4
      for (int u = 0; u < 4; ++u)
        sum[u] = _mm512_fmadd_ps(_mm512_load_ps(x + k + u * kLanes),
                                 _mm512_load_ps(c + k + u * kLanes), sum[u]);
    for (; k < ld_; k += kLanes)
      sum[0] = _mm512_fmadd_ps(_mm512_load_ps(x + k), _mm512_load_ps(c + k), sum[0]);
    const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    return simd::reduce_add<float>(all) - half_norm_[j];
  }

  Nearest<float> exact_;
  index depth_, ld_, quads_, panels_;
  Buffer<float> centroids_;                // as they are, rows of ld_
  Buffer<float> half_norm_, norm_, lost_;  // ‖c‖²/2, ‖c‖, ‖f‖
  Buffer<std::int32_t> base_;              // takes the 128 back out of x
  Buffer<std::int32_t> codes_;             // panels of four 8-bit codes
  float largest_ = 0, scale_ = 1, max_norm_ = 0, max_half_norm_ = 0;
};

}  // namespace ff

#endif

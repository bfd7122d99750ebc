#pragma once
#include <cmath>

#include "core/prefetch.hpp"
#include "kernels/kmeans/nearest.hpp"

#if defined(__AVX512VNNI__)

// Rows and centroids as 8-bit integers. Their products, four times as many per instruction as an
// FMA computes in float32, give an upper bound of the float32 score.
//
// For a tile of rows x and centroids c, with x = σq + e and c = τp + f (q, p integers in ±127):
//
//   x·c ≤ στ q·p + ‖e‖‖c‖ + ‖σq‖‖f‖                       (Cauchy-Schwarz on the rounding errors)
//   score = x·c − ‖c‖²/2,   b = 1/στ
//   b · score ≤ q·p − b(‖c‖²/2 − max‖e‖ ‖c‖ − max‖σq‖ ‖f‖)
//
// so that the right side, an integer accumulator with an offset per centroid, can be compared with
// b · (the score to reach) directly.
namespace ff::coded {

inline constexpr int kLanes = simd::kLanes<float>;
inline constexpr index kCols = kPanelCols<float>;
inline constexpr float kUp = 1.0001f;  // covers the rounding of a norm
// Beyond this depth a 32-bit accumulator could overflow.
inline constexpr index kMaxDepth = 16384;

// The largest coordinate in a frame is at least 2⁻⁴⁰: steps need not be finer, and 1/στ stays
// finite.
inline constexpr float kFinest = 0x1p-60f;

using Ints = __m512i;

inline __mmask16 lanes_below(index n) {
  return __mmask16(n >= kLanes ? 0xffff : (1u << n) - 1);
}

// The scale and the bounds of a tile of codes.
struct Tile {
  float sigma;
  float max_lost;  // max ‖e‖
  float max_norm;  // max ‖σq‖
};

// Loads rows in the frame of the search, padded with zeros to whole vectors.
class RowLoader {
 public:
  RowLoader(const MatrixView& x, const Frame<float>& frame)
      : x_(x),
        frame_(frame),
        padded_(round_up(x.cols, kLanes)),
        plain_(x.dtype == DType::f32 && x.col_stride == 4) {}

  void load(index row, float* out) const {
    if (!plain_) {
      frame_.load(x_, row, out);
      std::fill(out + x_.cols, out + padded_, 0.0f);
      return;
    }
    const auto* from = reinterpret_cast<const float*>(x_.row(row));
    const float* centre = frame_.centre.data();
    const __m512 shrink = _mm512_set1_ps(frame_.shrink), stretch = _mm512_set1_ps(frame_.stretch);
    const auto to_frame = [&](__m512 v, __m512 c) {
      return _mm512_mul_ps(_mm512_sub_ps(_mm512_mul_ps(v, shrink), c), stretch);
    };
    // Whole vectors are loaded without a mask: for rows of 256 bytes that straddle cache lines, a
    // masked load took 81 ns a row on Zen 5 and this one 17.
    const index whole = x_.cols / kLanes * kLanes;
    for (index k = 0; k < whole; k += kLanes)
      _mm512_store_ps(out + k, to_frame(_mm512_loadu_ps(from + k), _mm512_loadu_ps(centre + k)));
    if (whole == padded_) return;
    const __mmask16 inside = lanes_below(x_.cols - whole);
    _mm512_store_ps(out + whole, to_frame(_mm512_maskz_loadu_ps(inside, from + whole),
                                          _mm512_maskz_loadu_ps(inside, centre + whole)));
  }

  // Begins to fetch a row that will be loaded soon; it may lie past the end.
  void prefetch(index row) const {
    if (plain_) ff::prefetch(x_.row(row), 4 * x_.cols);
  }

 private:
  const MatrixView& x_;
  const Frame<float>& frame_;
  index padded_;
  bool plain_;
};

// Sets column[k][r] = rows[r][k] for a 16 × 16 block; rows past the n-th repeat it. It interleaves
// pairs, then quads, then 128-bit lanes.
inline void transpose(const float* rows, index ld, index n, __m512 (&column)[kLanes]) {
  __m512 a[kLanes], b[kLanes];
#  pragma GCC unroll 16
  for (index r = 0; r < kLanes; ++r) a[r] = _mm512_load_ps(rows + std::min(r, n - 1) * ld);
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

// Codes n ≤ kTileRows loaded rows. Each number holds four depths, and the numbers of kTileRows rows
// lie side by side; rows past the last repeat it. `norm2` gets each row's ‖x‖².
inline Tile code_tile(const float* rows, index n, index depth, std::int32_t* codes, __m512& norm2) {
  constexpr int kOffset = 128;  // rows are stored unsigned, as code + 128
  const index ld = round_up(depth, kLanes);
  __m512 largest = _mm512_setzero_ps();
  for (index k = 0; k < n * ld; k += kLanes)
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_load_ps(rows + k)));
  Tile tile;
  tile.sigma = std::max(simd::reduce_max<float>(largest) / 127, kFinest);
  const __m512 inverse = _mm512_set1_ps(1 / tile.sigma), step = _mm512_set1_ps(tile.sigma);
  __m512 lost2 = _mm512_setzero_ps();
  norm2 = _mm512_setzero_ps();
  for (index first = 0; first < depth; first += kLanes) {
    __m512 column[kLanes];
    transpose(rows + first, ld, n, column);
    for (index k = 0; k < kLanes && first + k < depth; k += 4, codes += kTileRows) {
      Ints quad = _mm512_setzero_si512();
#  pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte) {
        const __m512 value = column[k + byte];
        const Ints code = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
        const __m512 off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(code), step, value);
        lost2 = _mm512_fmadd_ps(off, off, lost2);
        norm2 = _mm512_fmadd_ps(value, value, norm2);
        const Ints unsigned_code = _mm512_add_epi32(code, _mm512_set1_epi32(kOffset));
        quad = _mm512_or_si512(quad, _mm512_slli_epi32(unsigned_code, 8 * byte));
      }
      _mm512_mask_storeu_epi32(codes, lanes_below(kTileRows), quad);
    }
  }
  const __m512 up = _mm512_set1_ps(kUp);
  tile.max_lost = simd::reduce_max<float>(_mm512_mul_ps(_mm512_sqrt_ps(lost2), up));
  tile.max_norm = simd::reduce_max<float>(_mm512_mul_ps(_mm512_sqrt_ps(norm2), up)) + tile.max_lost;
  return tile;
}

class Centroids {
 public:
  Centroids(index count, index depth)
      : count_(count),
        depth_(depth),
        ld_(round_up(depth, kLanes)),
        quads_(ceil_div(depth, 4)),
        panels_(ceil_div(count, kCols)),
        rows_(count * ld_),
        half_norm_(panels_ * kCols),
        norm_(panels_ * kCols),
        lost_(panels_ * kCols),
        base_(panels_ * kCols),
        codes_(panels_ * quads_ * kCols) {
    std::fill_n(rows_.data(), count * ld_, 0.0f);
    // Padding of the last panel: its products are zero and its offset is below any accumulator to
    // reach.
    std::fill_n(codes_.data(), codes_.size(), 0);
    for (Buffer<float>* each : {&half_norm_, &norm_, &lost_})
      std::fill_n(each->data(), each->size(), 0.0f);
    std::fill_n(base_.data(), base_.size(), kNever);
  }

  index count() const { return count_; }
  index depth() const { return depth_; }
  index ld() const { return ld_; }
  index quads() const { return quads_; }
  index n_panels() const { return panels_; }
  const float* row(index j) const { return rows_.data() + j * ld_; }
  float half_norm(index j) const { return half_norm_[j]; }  // ‖c‖²/2
  float max_half_norm() const { return max_half_norm_; }
  float max_norm() const { return max_norm_; }

  // Sets centroid j, given in the frame's coordinates. Call ready() after the last one.
  void set(index j, const float* centroid) {
    std::copy_n(centroid, depth_, rows_.data() + j * ld_);
    for (index k = 0; k < depth_; ++k) largest_ = std::max(largest_, std::abs(centroid[k]));
    const double norm2 = squared_norm(centroid, depth_);
    half_norm_[j] = float(0.5 * norm2);
    norm_[j] = float(std::sqrt(norm2)) * kUp;
  }

  void ready() {
    tau_ = std::max(largest_ / 127, kFinest);
    std::vector<std::int8_t> codes(quads_ * 4);
    for (index j = 0; j < count_; ++j) {
      const float* c = row(j);
      std::int32_t sum = 0;
      double lost2 = 0;
      for (index k = 0; k < depth_; ++k) {
        const int code = int(std::nearbyint(c[k] / tau_));
        codes[k] = std::int8_t(code);
        sum += code;
        const double off = double(c[k]) - double(tau_) * code;
        lost2 += off * off;
      }
      lost_[j] = float(std::sqrt(lost2)) * kUp;
      base_[j] = -128 * sum;
      std::int32_t* to = codes_.data() + (j / kCols) * quads_ * kCols + j % kCols;
      for (index g = 0; g < quads_; ++g) std::memcpy(to + g * kCols, codes.data() + 4 * g, 4);
      max_norm_ = std::max(max_norm_, norm_[j]);
      max_half_norm_ = std::max(max_half_norm_, half_norm_[j]);
    }
  }

  // Computes acc[r][·] = q·p + offset, which is at least b · score, for each centroid of the panel.
  void bound(const std::int32_t* x, const Tile& tile, index p,
             Ints (&acc)[kTileRows][kPanelVectors]) const {
    Ints offset[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      const index at = p * kCols + v * kLanes;
      __m512 below = _mm512_loadu_ps(half_norm_.data() + at);
      below = _mm512_fnmadd_ps(_mm512_set1_ps(tile.max_lost), _mm512_loadu_ps(norm_.data() + at),
                               below);
      below = _mm512_fnmadd_ps(_mm512_set1_ps(tile.max_norm), _mm512_loadu_ps(lost_.data() + at),
                               below);
      // If rows are tiny compared with a centroid, b is huge; the amount subtracted is then
      // limited.
      const __m512 units = _mm512_min_ps(_mm512_mul_ps(below, _mm512_set1_ps(per_unit(tile))),
                                         _mm512_set1_ps(0x1p29f));
      offset[v] =
          _mm512_sub_epi32(_mm512_loadu_si512(base_.data() + at), _mm512_cvtps_epi32(units));
    }
    Ints sum[kTileRows][kPanelVectors];
#  pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) sum[r][0] = offset[0], sum[r][1] = offset[1];
    const std::int32_t* c = codes_.data() + p * quads_ * kCols;
    for (index g = 0; g < quads_; ++g, c += kCols, x += kTileRows) {
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

  // Returns, one lane per row, the value that an accumulator must reach for its centroid to score
  // more than `score`. It is lowered by what float32 may have rounded away in the score and in the
  // offsets.
  Ints to_reach(__m512 score, const Tile& tile) const {
    const float b = per_unit(tile);
    const __m512 units = _mm512_mul_ps(_mm512_set1_ps(b), score);
    const float offsets = b * (max_half_norm_ + max_norm_ * tile.max_lost);
    const __m512 rounding = _mm512_fmadd_ps(_mm512_abs_ps(units), _mm512_set1_ps(0x1p-21f),
                                            _mm512_set1_ps(2 + 0x1p-21f * offsets));
    // The result is above the padding of a panel and at most a value that no centroid reaches.
    const __m512 within =
        _mm512_min_ps(_mm512_max_ps(_mm512_sub_ps(units, rounding), _mm512_set1_ps(kAny)),
                      _mm512_set1_ps(0x1p30f));
    return _mm512_cvttps_epi32(within);
  }

 private:
  static constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::min() / 2;
  // |q·p| < 2²⁸, and at most 2²⁹ is subtracted.
  static constexpr float kAny = -0x1p29f - 0x1p28f;

  float per_unit(const Tile& tile) const { return 1 / (tile.sigma * tau_); }  // b

  // Returns acc + x·c, four unsigned by four signed bytes per lane. Written in assembly because GCC
  // 12 copies and spills the accumulators around its intrinsic: an assignment of kmeans b takes 63
  // ms with the intrinsic and 49 ms with this.
  static Ints add_products(Ints acc, Ints x, Ints c) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(c));
    return acc;
  }

  index count_, depth_, ld_, quads_, panels_;
  Buffer<float> rows_;                     // the centroids themselves, ld_ apart
  Buffer<float> half_norm_, norm_, lost_;  // ‖c‖²/2, ‖c‖, ‖f‖
  Buffer<std::int32_t> base_;              // cancels the 128 that is added to the codes of x
  Buffer<std::int32_t> codes_;             // panels of four 8-bit codes
  float largest_ = 0, tau_ = 1, max_norm_ = 0, max_half_norm_ = 0;
};

// Returns which centroids of a panel reach, one bit each.
inline std::uint32_t reaching(const Ints (&acc)[kPanelVectors], std::int32_t reach) {
  const Ints least = _mm512_set1_epi32(reach);
  return std::uint32_t(_mm512_cmpge_epi32_mask(acc[0], least)) |
         std::uint32_t(_mm512_cmpge_epi32_mask(acc[1], least)) << kLanes;
}

}  // namespace ff::coded

#endif

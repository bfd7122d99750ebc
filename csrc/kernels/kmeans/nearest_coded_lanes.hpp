#pragma once
#include <cmath>

#include "kernels/kmeans/nearest_lanes.hpp"

#if defined(__AVX512VNNI__)

// LaneNearest<float> with half its multiplications: coordinates are integers of up to 15 bits, two
// per lane, and one instruction computes two products per lane. The search keeps the best and the
// second best score. If these are closer than rounding can have moved them, the row is searched
// again in float32. So a label is either certainly that of the nearest centroid or the one that
// LaneNearest finds.
//
// With x = σq + e and c = σp + f, |x·c − σ² q·p| ≤ ‖e‖‖c‖ + ‖σq‖‖f‖ (Cauchy-Schwarz).
namespace ff {

namespace detail {

inline constexpr int kCodedVectors = 2;  // vectors of rows searched at a time

// centroids: n times P pairs and −‖c‖²/2, all in units of σ². gaps: best minus second best score.
template <int P>
void search_coded(const std::int32_t* x, const std::int32_t* centroids, index n,
                  std::int32_t* labels, std::int32_t* gaps) {
  constexpr int R = kCodedVectors, kLanes = simd::kLanes<float>;
  using Ints = __m512i;
  Ints own[R][P], best[R], second[R], at[R], j = _mm512_setzero_si512();
#  pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#  pragma GCC unroll 8
    for (int p = 0; p < P; ++p) own[r][p] = _mm512_load_si512(x + (r * P + p) * kLanes);
    best[r] = second[r] = _mm512_set1_epi32(std::numeric_limits<std::int32_t>::min());
    at[r] = j;
  }
  for (const std::int32_t* c = centroids; c != centroids + n * (P + 1); c += P + 1) {
    Ints score[R];
#  pragma GCC unroll 2
    for (int r = 0; r < R; ++r) score[r] = _mm512_set1_epi32(c[P]);
#  pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const Ints pair = _mm512_set1_epi32(c[p]);
#  pragma GCC unroll 2
      for (int r = 0; r < R; ++r) score[r] = _mm512_dpwssd_epi32(score[r], own[r][p], pair);
    }
#  pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const __mmask16 better = _mm512_cmpgt_epi32_mask(score[r], best[r]);
      second[r] = _mm512_max_epi32(second[r], _mm512_min_epi32(best[r], score[r]));
      best[r] = _mm512_max_epi32(best[r], score[r]);
      at[r] = _mm512_mask_mov_epi32(at[r], better, j);
    }
    j = _mm512_add_epi32(j, _mm512_set1_epi32(1));
  }
#  pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    _mm512_store_si512(labels + r * kLanes, at[r]);
    _mm512_store_si512(gaps + r * kLanes, _mm512_sub_epi32(best[r], second[r]));
  }
}

using SearchCoded = void (*)(const std::int32_t*, const std::int32_t*, index, std::int32_t*,
                             std::int32_t*);

template <int... P>
SearchCoded coded_kernel(index pairs, std::integer_sequence<int, P...>) {
  static constexpr SearchCoded all[] = {search_coded<P + 1>...};
  return all[pairs - 1];
}

}  // namespace detail

class CodedLaneNearest {
  static constexpr int kLanes = simd::kLanes<float>;
  static constexpr index kStep = detail::kCodedVectors * kLanes;  // rows

 public:
  class Scratch {
   public:
    explicit Scratch(const CodedLaneNearest& search)
        : exact(search.exact_),
          lanes(search.depth_ * kLanes),
          codes(search.pairs_ * kStep),
          close(kBlockRows),
          rows(kBlockRows * search.depth_) {}

   private:
    friend class CodedLaneNearest;
    LaneNearest<float>::Scratch exact;
    Buffer<float> lanes;
    Buffer<std::int32_t> codes;
    Buffer<std::int32_t> close;  // rows of a block to search again
    Buffer<float> rows;          // their coordinates
  };

  // No coordinate of rows or centroids may be larger than `reach`.
  CodedLaneNearest(index n_centroids, index depth, float reach)
      : exact_(n_centroids, depth),
        load_(detail::lane_kernels<float>(depth, std::make_integer_sequence<int, kMaxLaneDepth>())
                  .load),
        search_(detail::coded_kernel(ceil_div(depth, 2),
                                     std::make_integer_sequence<int, kMaxLaneDepth / 2>())),
        depth_(depth),
        pairs_(ceil_div(depth, 2)),
        centroids_(n_centroids * (pairs_ + 1)) {
    // Scores lie between −1.5 d L² and d L²/2, where codes lie between −L and L.
    const double largest = std::min(std::sqrt(0x1p30 / double(depth)), 32767.0);
    sigma_ = std::max(float(reach / std::floor(largest - 1)), 0x1p-60f);
  }

  index count() const { return exact_.count(); }
  index block_rows() const { return kBlockRows; }

  // Sets centroid j, given in the frame's coordinates. Call ready() after the last one.
  void set(index j, const float* centroid) {
    exact_.set(j, centroid);
    std::int32_t* to = centroids_.data() + j * (pairs_ + 1);
    double lost2 = 0;
    for (index p = 0; p < pairs_; ++p) {
      std::int32_t code[2] = {};
      for (index k = 2 * p; k < std::min(2 * p + 2, depth_); ++k) {
        code[k % 2] = std::int32_t(std::nearbyint(centroid[k] / sigma_));
        const double off = double(centroid[k]) - double(sigma_) * code[k % 2];
        lost2 += off * off;
      }
      to[p] = std::int32_t(std::uint32_t(code[1]) << 16 | (std::uint32_t(code[0]) & 0xffff));
    }
    const double norm2 = squared_norm(centroid, depth_), square = double(sigma_) * double(sigma_);
    to[pairs_] = -std::int32_t(std::nearbyint(0.5 * norm2 / square));
    max_norm_ = std::max(max_norm_, float(std::sqrt(norm2)) * kUp);
    max_lost_ = std::max(max_lost_, float(std::sqrt(lost2)) * kUp);
  }

  void ready() {}

  void search(const MatrixView& x, const Frame<float>& frame, index first, index n,
              Scratch& scratch, std::int32_t* labels) const {
    index n_close = 0;
    for (index i = 0; i < n; i += kStep) {
      n_close =
          search_step(x, frame, first + i, std::min(kStep, n - i), i, scratch, labels, n_close);
      // If codes are too coarse (for example because one outlier sets the scale for all), the
      // remaining rows are searched in float32.
      if (n_close > i / 2 + kStep && i + kStep < n) {
        exact_.search(x, frame, first + i + kStep, n - i - kStep, scratch.exact,
                      labels + i + kStep);
        break;
      }
    }
    search_again(x, frame, first, n_close, scratch, labels);
  }

 private:
  static constexpr index kBlockRows = 2048;
  static constexpr float kUp = 1.0001f;  // covers the rounding of a norm

  index search_step(const MatrixView& x, const Frame<float>& frame, index first, index n, index at,
                    Scratch& scratch, std::int32_t* labels, index n_close) const {
    alignas(64) std::int32_t found[kStep], gaps[kStep];
    __m512i rounding[detail::kCodedVectors];
    for (int r = 0; r < detail::kCodedVectors; ++r) {
      const index from = std::min<index>(r * kLanes, n - 1);
      load_(x, frame, first + from, std::clamp<index>(n - from, 1, kLanes), scratch.lanes.data());
      rounding[r] = code_rows(scratch.lanes.data(), scratch.codes.data() + r * pairs_ * kLanes);
    }
    search_(scratch.codes.data(), centroids_.data(), count(), found, gaps);
    std::copy_n(found, n, labels + at);
    for (int r = 0; r < detail::kCodedVectors; ++r) {
      unsigned close = _mm512_cmple_epu32_mask(_mm512_load_si512(gaps + r * kLanes), rounding[r]);
      for (; close; close &= close - 1) {
        const index row = r * kLanes + __builtin_ctz(close);
        if (row < n) scratch.close[n_close++] = std::int32_t(at + row);
      }
    }
    return n_close;
  }

  // Writes pairs of codes of 16 rows; returns how far rounding may have moved two of a row's scores
  // apart.
  __m512i code_rows(const float* lanes, std::int32_t* codes) const {
    const __m512 inverse = _mm512_set1_ps(1 / sigma_), step = _mm512_set1_ps(sigma_);
    __m512 lost2 = _mm512_setzero_ps(), norm2 = _mm512_setzero_ps();
    const auto code = [&](index k) {
      const __m512 value = _mm512_load_ps(lanes + k * kLanes);
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
      const __m512 off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(q), step, value);
      lost2 = _mm512_fmadd_ps(off, off, lost2);
      norm2 = _mm512_fmadd_ps(value, value, norm2);
      return q;
    };
    for (index p = 0; p < pairs_; ++p) {
      const __m512i low = _mm512_and_si512(code(2 * p), _mm512_set1_epi32(0xffff));
      const __m512i high = 2 * p + 1 < depth_ ? code(2 * p + 1) : _mm512_setzero_si512();
      _mm512_store_si512(codes + p * kLanes, _mm512_or_si512(_mm512_slli_epi32(high, 16), low));
    }
    const __m512 lost = _mm512_sqrt_ps(lost2), norm = _mm512_add_ps(_mm512_sqrt_ps(norm2), lost);
    const float units = 2 * kUp / (sigma_ * sigma_);
    const __m512 moved = _mm512_fmadd_ps(lost, _mm512_set1_ps(units * max_norm_),
                                         _mm512_mul_ps(norm, _mm512_set1_ps(units * max_lost_)));
    return _mm512_cvtps_epi32(
        _mm512_min_ps(_mm512_add_ps(moved, _mm512_set1_ps(3)), _mm512_set1_ps(0x1p30f)));
  }

  void search_again(const MatrixView& x, const Frame<float>& frame, index first, index n,
                    Scratch& scratch, std::int32_t* labels) const {
    if (n == 0) return;
    for (index i = 0; i < n; ++i)
      load_row(x, first + scratch.close[i], scratch.rows.data() + i * depth_);
    const index size = index(sizeof(float));
    const MatrixView close{reinterpret_cast<const char*>(scratch.rows.data()),
                           DType::f32,
                           n,
                           depth_,
                           depth_ * size,
                           size};
    std::int32_t found[kBlockRows];
    exact_.search(close, frame, 0, n, scratch.exact, found);
    for (index i = 0; i < n; ++i) labels[scratch.close[i]] = found[i];
  }

  LaneNearest<float> exact_;
  void (*load_)(const MatrixView&, const Frame<float>&, index, index, float*);
  detail::SearchCoded search_;
  index depth_, pairs_;
  Buffer<std::int32_t> centroids_;
  float sigma_ = 1, max_norm_ = 0, max_lost_ = 0;
};

}  // namespace ff

#endif

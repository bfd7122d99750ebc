#pragma once
#include <array>

#include "kernels/kmeans/nearest.hpp"

// Finds the nearest of K centroids for short rows. A lane holds a row, so a few vectors hold all
// coordinates of many rows; centroids are broadcast, and each lane keeps its own best. Nothing is
// reduced across lanes and no accumulator is padded, which is where Nearest spends its time if
// there are few columns to multiply.
namespace ff {

// The most columns that fit the registers together with what the loop needs.
inline constexpr int kMaxLaneDepth = simd::kBytes == 64 ? 16 : 8;

namespace detail {

// The number of vectors of rows searched at a time. Two of them share each broadcast.
template <int D>
inline constexpr int kLaneVectors = 2 * D + 7 <= (simd::kBytes == 64 ? 32 : 16) ? 2 : 1;

template <class T>
struct Quad {
  typedef T Vec __attribute__((vector_size(4 * sizeof(T))));

  static Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, Vec v) { std::memcpy(p, &v, sizeof v); }

  template <int A, int B, int C, int D>
  static Vec shuffle(Vec a, Vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, A, B, C, D);
#else
    using I = simd::Int<T>;
    typedef I Pick __attribute__((vector_size(4 * sizeof(T))));
    return __builtin_shuffle(a, b, Pick{A, B, C, D});
#endif
  }

  static void transpose(Vec (&v)[4]) {
    const Vec ab = shuffle<0, 4, 1, 5>(v[0], v[1]), cd = shuffle<0, 4, 1, 5>(v[2], v[3]);
    const Vec ef = shuffle<2, 6, 3, 7>(v[0], v[1]), gh = shuffle<2, 6, 3, 7>(v[2], v[3]);
    v[0] = shuffle<0, 1, 4, 5>(ab, cd), v[1] = shuffle<2, 3, 6, 7>(ab, cd);
    v[2] = shuffle<0, 1, 4, 5>(ef, gh), v[3] = shuffle<2, 3, 6, 7>(ef, gh);
  }
};

// Sets out[k][lane] = (row first + lane)[k] in the frame; lanes past the n-th repeat it.
template <class T, int D, bool Shrink>
void load_lanes(const MatrixView& x, const Frame<T>& frame, index first, index n, T* out) {
  constexpr int kLanes = simd::kLanes<T>, kQuads = D / 4 * 4;
  const bool plain =
      x.dtype == (sizeof(T) == 4 ? DType::f32 : DType::f64) && x.col_stride == index(sizeof(T));
  const auto to_frame = [&](auto value, auto centre) {
    if constexpr (Shrink) return value * frame.shrink - centre;
    else return (value - centre) * frame.stretch;
  };
  T row[4][D];
  for (int r = 0; r < kLanes; r += std::min(4, kLanes)) {
    const T* from[4];
    for (int i = 0; i < std::min(4, kLanes); ++i) {
      const index at = first + std::min<index>(r + i, n - 1);
      if (plain) std::memcpy(row[i], x.row(at), sizeof row[i]);
      else load_row(x, at, row[i]);
      from[i] = row[i];
    }
    if constexpr (kLanes >= 4) {
      for (int k = 0; k < kQuads; k += 4) {
        typename Quad<T>::Vec v[4];
        const auto centre = Quad<T>::load(frame.centre.data() + k);
        for (int i = 0; i < 4; ++i) v[i] = to_frame(Quad<T>::load(from[i] + k), centre);
        Quad<T>::transpose(v);
        for (int i = 0; i < 4; ++i) Quad<T>::store(out + (k + i) * kLanes + r, v[i]);
      }
    }
    for (int k = kLanes >= 4 ? kQuads : 0; k < D; ++k)
      for (int i = 0; i < std::min(4, kLanes); ++i)
        out[k * kLanes + r + i] = to_frame(from[i][k], frame.centre[k]);
  }
}

// Either form of the frame: it shrinks or it stretches.
template <class T, int D>
void load_lanes(const MatrixView& x, const Frame<T>& frame, index first, index n, T* out) {
  if (frame.shrink == 1) load_lanes<T, D, false>(x, frame, first, n, out);
  else load_lanes<T, D, true>(x, frame, first, n, out);
}

// centroids: n rows of D coordinates and −‖c‖²/2. Ties go to the lowest index, because a later
// centroid must be strictly better.
template <class T, int D>
void search_lanes(const T* x, const T* centroids, index n, std::int32_t* labels) {
  using I = simd::Int<T>;
  constexpr int R = kLaneVectors<D>, kLanes = simd::kLanes<T>;
  simd::Vec<T> own[R][D], best[R];
  simd::Vec<I> at[R], j = {};
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k) own[r][k] = simd::load(x + (r * D + k) * kLanes);
    best[r] = simd::splat(-std::numeric_limits<T>::infinity());
    at[r] = simd::Vec<I>{};
  }
  for (const T* c = centroids; c != centroids + n * (D + 1); c += D + 1) {
    simd::Vec<T> score[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) score[r] = simd::splat(c[D]);
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k) {
      const simd::Vec<T> ck = simd::splat(c[k]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) score[r] = simd::mul_add(own[r][k], ck, score[r]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      at[r] = score[r] > best[r] ? j : at[r];
      best[r] = simd::max(score[r], best[r]);
    }
    j = j + 1;
  }
  for (int r = 0; r < R; ++r)
    for (int lane = 0; lane < kLanes; ++lane) labels[r * kLanes + lane] = std::int32_t(at[r][lane]);
}

// Sets nearest[i] = min(nearest[i], ‖x_i − c‖²) over all centroids. It squares the differences
// themselves, so that a row on a centroid has a distance of exactly zero.
template <class T, int D>
void shrink_lanes(const T* x, const T* centroids, index n, T* nearest) {
  constexpr int R = kLaneVectors<D>, kLanes = simd::kLanes<T>;
  simd::Vec<T> own[R][D], least[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k) own[r][k] = simd::load(x + (r * D + k) * kLanes);
    least[r] = simd::load(nearest + r * kLanes);
  }
  for (const T* c = centroids; c != centroids + n * (D + 1); c += D + 1) {
    simd::Vec<T> sum[R] = {};
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k) {
      const simd::Vec<T> ck = simd::splat(c[k]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const simd::Vec<T> off = own[r][k] - ck;
        sum[r] = simd::mul_add(off, off, sum[r]);
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) least[r] = simd::min(sum[r], least[r]);
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) simd::store(nearest + r * kLanes, least[r]);
}

template <class T>
struct LaneKernels {
  void (*load)(const MatrixView&, const Frame<T>&, index, index, T*);
  void (*search)(const T*, const T*, index, std::int32_t*);
  void (*shrink)(const T*, const T*, index, T*);
  int rows;  // per step
};

template <class T, int... D>
LaneKernels<T> lane_kernels(index depth, std::integer_sequence<int, D...>) {
  static constexpr LaneKernels<T> all[] = {{load_lanes<T, D + 1>, search_lanes<T, D + 1>,
                                            shrink_lanes<T, D + 1>,
                                            kLaneVectors<D + 1> * simd::kLanes<T>}...};
  return all[depth - 1];
}

}  // namespace detail

template <class T>
class LaneNearest {
 public:
  class Scratch {
   public:
    explicit Scratch(const LaneNearest& search) : lanes(search.kernels_.rows * search.depth_) {}

   private:
    friend class LaneNearest;
    Buffer<T> lanes;
  };

  static bool takes(index depth) { return depth >= 1 && depth <= kMaxLaneDepth; }

  LaneNearest(index n_centroids, index depth)
      : kernels_(detail::lane_kernels<T>(depth, std::make_integer_sequence<int, kMaxLaneDepth>())),
        count_(n_centroids),
        depth_(depth),
        centroids_(n_centroids * (depth + 1)) {}

  index count() const { return count_; }
  index block_rows() const { return 2048; }

  // Sets centroid j, given in the frame's coordinates. Call ready() after the last one.
  void set(index j, const T* centroid) {
    T* to = centroids_.data() + j * (depth_ + 1);
    std::copy_n(centroid, depth_, to);
    to[depth_] = T(-0.5 * squared_norm(centroid, depth_));
  }

  void ready() {}

  void search(const MatrixView& x, const Frame<T>& frame, index first, index n, Scratch& scratch,
              std::int32_t* labels) const {
    for (index i = 0; i < n; i += kernels_.rows) {
      load(x, frame, first + i, std::min<index>(kernels_.rows, n - i), scratch.lanes.data());
      search_step(scratch.lanes.data(), std::min<index>(kernels_.rows, n - i), labels + i);
    }
  }

  // Lowers squared distances to the nearest of earlier centroids to include these centroids too.
  void shrink(const MatrixView& x, const Frame<T>& frame, index first, index n, Scratch& scratch,
              T* nearest) const {
    for (index i = 0; i < n; i += kernels_.rows) {
      const index step = std::min<index>(kernels_.rows, n - i);
      load(x, frame, first + i, step, scratch.lanes.data());
      if (step == kernels_.rows) {
        kernels_.shrink(scratch.lanes.data(), centroids_.data(), count_, nearest + i);
      } else {
        T own[2 * kLanes] = {};
        std::copy_n(nearest + i, step, own);
        kernels_.shrink(scratch.lanes.data(), centroids_.data(), count_, own);
        std::copy_n(own, step, nearest + i);
      }
    }
  }

  // Lays out all rows of x as search() needs them, for small problems that are searched many times.
  Buffer<T> lanes(const MatrixView& x, const Frame<T>& frame) const {
    Buffer<T> all(round_up(x.rows, kernels_.rows) * depth_);
    for (index i = 0; i < x.rows; i += kernels_.rows)
      load(x, frame, i, std::min<index>(kernels_.rows, x.rows - i), all.data() + i * depth_);
    return all;
  }

  void search(const Buffer<T>& lanes, index n, std::int32_t* labels) const {
    for (index i = 0; i < n; i += kernels_.rows)
      search_step(lanes.data() + i * depth_, std::min<index>(kernels_.rows, n - i), labels + i);
  }

 private:
  static constexpr int kLanes = simd::kLanes<T>;

  void load(const MatrixView& x, const Frame<T>& frame, index first, index n, T* to) const {
    for (index r = 0; r < kernels_.rows; r += kLanes) {
      const index from = std::min(r, n - 1);
      kernels_.load(x, frame, first + from, std::clamp<index>(n - r, 1, kLanes), to + r * depth_);
    }
  }

  void search_step(const T* lanes, index n, std::int32_t* labels) const {
    if (n == kernels_.rows) return kernels_.search(lanes, centroids_.data(), count_, labels);
    std::int32_t found[2 * kLanes];
    kernels_.search(lanes, centroids_.data(), count_, found);
    std::copy_n(found, n, labels);
  }

  detail::LaneKernels<T> kernels_;
  index count_, depth_;
  Buffer<T> centroids_;  // coordinates and −‖c‖²/2
};

}  // namespace ff

#pragma once
#include <algorithm>

#include "kernels/conv_chain/tile.hpp"

// Windows over one channel each. A tile is a few rows times V vectors of columns: a row of the
// input is read once for all rows of the result whose windows it lies in, because reading it for
// each would take twice as long as the multiply-adds.
namespace ff::conv {

inline constexpr int kTileRows = 4;
// 4 × 4 sums, 4 vectors and a weight take 21 of 32 registers on v4, and 4 × 2 take 11 of 16 below.
inline constexpr int kColumnVectors = simd::kBytes == 64 ? 4 : 2;

// Rows of planes begin at multiples of this many floats.
inline constexpr index kRowAlign = simd::kBytes == 64 ? kLanes<float> : 1;

// Rows of a window that read neighbouring rows of a plane, the later the later: all of them, or
// with strides those of a phase.
struct WindowRows {
  index from;           // the first one's offset
  index weights, step;  // the first one's weights, and how far it is to the next one's
  index count;
};

// Columns of a window that begin in the same vector of a plane's row.
struct WindowColumns {
  index from;                       // the offset of that vector
  std::vector<int> lanes, weights;  // for each column its first lane there, and its number
};

struct DepthwisePlan {
  std::vector<WindowRows> rows;
  std::vector<WindowColumns> columns;
  index in_columns;  // from row to row of a plane
};

// Where a tile lies, and how much of it there is.
struct DepthwiseTile {
  const float* in;
  float* out;
  index out_columns;
  int rows, lanes;  // lanes of the last vector
};

// V vectors of a row and what follows them, to be read from any lane on. On v4 reading aligned
// vectors and permuting them takes two thirds of the time of reading across cache lines; a v3
// processor has no such permutation, and half as many vectors lie across lines.
template <int V>
class RowVectors {
 public:
#if defined(__AVX512F__)
  explicit RowVectors(const float* from) {
    for (int v = 0; v <= V; ++v) at_[v] = simd::load(from + v * kLanes<float>);
  }

  Vec from_lane(int v, int lane) const {
    const auto lanes = (__m512i)(simd::iota<std::int32_t>() + lane);
    return (Vec)_mm512_permutex2var_ps((__m512)at_[v], lanes, (__m512)at_[v + 1]);
  }

 private:
  Vec at_[V + 1];
#else
  explicit RowVectors(const float* from) : from_(from) {}

  Vec from_lane(int v, int lane) const { return simd::load(from_ + v * kLanes<float> + lane); }

 private:
  const float* from_;
#endif
};

// acc[y] += the window's row (r − y) · input row r, for the result's rows y in [Low, High].
template <int Low, int High, int V>
inline void add_input_row(const DepthwisePlan& plan, const float* in, const float* weights,
                          index step, Vec (&acc)[kTileRows][V]) {
  for (const WindowColumns& columns : plan.columns) {
    const RowVectors<V> row(in + columns.from);
    const int n = int(columns.lanes.size());
    for (int j = 0; j < n; ++j) {
      Vec x[V];
      for (int v = 0; v < V; ++v) x[v] = row.from_lane(v, columns.lanes[j]);
#pragma GCC unroll 4
      for (int y = Low; y <= High; ++y) {
        const Vec w = simd::splat(weights[columns.weights[j] - y * step]);
        for (int v = 0; v < V; ++v) acc[y][v] = simd::mul_add(w, x[v], acc[y][v]);
      }
    }
  }
}

template <int V>
void run_depthwise_tile(const DepthwisePlan& plan, const float* weights, float bias,
                        const DepthwiseTile& tile) {
  static_assert(kTileRows == 4);
  Vec acc[kTileRows][V];
#pragma GCC unroll 4
  for (int y = 0; y < kTileRows; ++y)
    for (int v = 0; v < V; ++v) acc[y][v] = simd::splat(bias);
  for (const WindowRows& window : plan.rows) {
    const float* in = tile.in + window.from;
    const float* w = weights + window.weights;
    const index step = window.step;
    for (index r = 0; r < tile.rows + window.count - 1; ++r) {
      const index low = std::max<index>(0, r - window.count + 1);
      switch (low * kTileRows + std::min<index>(tile.rows - 1, r)) {
        case 0:
          add_input_row<0, 0>(plan, in, w, step, acc);
          break;
        case 1:
          add_input_row<0, 1>(plan, in, w, step, acc);
          break;
        case 2:
          add_input_row<0, 2>(plan, in, w, step, acc);
          break;
        case 3:
          add_input_row<0, 3>(plan, in, w, step, acc);
          break;
        case 5:
          add_input_row<1, 1>(plan, in, w, step, acc);
          break;
        case 6:
          add_input_row<1, 2>(plan, in, w, step, acc);
          break;
        case 7:
          add_input_row<1, 3>(plan, in, w, step, acc);
          break;
        case 10:
          add_input_row<2, 2>(plan, in, w, step, acc);
          break;
        case 11:
          add_input_row<2, 3>(plan, in, w, step, acc);
          break;
        default:
          add_input_row<3, 3>(plan, in, w, step, acc);
      }
      in += plan.in_columns;
      w += step;
    }
  }
#pragma GCC unroll 4
  for (int y = 0; y < kTileRows; ++y) {
    if (y < tile.rows) {
      float* to = tile.out + y * tile.out_columns;
      for (int v = 0; v < V - 1; ++v) simd::store(to + v * kLanes<float>, acc[y][v]);
      simd::store_lanes(to + (V - 1) * kLanes<float>, acc[y][V - 1], 0, tile.lanes);
    }
  }
}

// One channel: rows × columns of the result, from a plane.
inline void run_depthwise(const DepthwisePlan& plan, const float* weights, float bias,
                          const float* in, float* out, index rows, index columns,
                          index out_columns) {
  for (index y = 0; y < rows; y += kTileRows) {
    int vectors;
    for (index x = 0; x < columns; x += vectors * kLanes<float>) {
      const index left = ceil_div(columns - x, kLanes<float>);
      vectors = left >= kColumnVectors ? kColumnVectors : left >= 2 ? 2 : 1;
      const index lanes = std::min(columns - x, index(vectors * kLanes<float>));
      const DepthwiseTile tile{in + y * plan.in_columns + x, out + y * out_columns + x, out_columns,
                               int(std::min<index>(kTileRows, rows - y)),
                               int(lanes - (vectors - 1) * kLanes<float>)};
      if (vectors == 1) run_depthwise_tile<1>(plan, weights, bias, tile);
      else if (vectors == 2) run_depthwise_tile<2>(plan, weights, bias, tile);
      else run_depthwise_tile<kColumnVectors>(plan, weights, bias, tile);
    }
  }
}

}  // namespace ff::conv

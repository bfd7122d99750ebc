#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/simd.hpp"
#include "kernels/conv_chain/packed.hpp"

// The tile of all convolutions: R filters times V vectors of positions.
//
// Positions lie along lanes. A window is a list of offsets, the same for all positions, because
// planes are laid out so that a step of the window is a step in memory (layout.hpp). A step of the
// sum loads V vectors, most of them across two cache lines, and R weights, for R · V multiply-adds:
// with 8 × 3 on AVX-512 14 reads of the L1 cache, of which two go in a cycle, for 24 multiply-adds,
// of which two go as well.
namespace ff::conv {

using simd::kLanes;
using Vec = simd::Vec<float>;

inline constexpr int kTileVectors = 3;
// 8 × 3 sums, 3 vectors and a weight take 28 of 32 registers on v4, and 4 × 3 all 16 on v3 and v2.
inline constexpr int kBlockFilters = simd::kBytes == 64 ? 8 : 4;

// Where lanes [lane, lane + count) of a vector go.
struct Segment {
  int lane, count;
  index to;
};

// Vectors of positions: where they are read, and where their results go.
struct Spots {
  std::vector<index> in;
  std::vector<index> whole;        // where all lanes go, or −1: then see the segments
  std::vector<int> first_segment;  // of vector i; its last one is before that of vector i + 1
  std::vector<Segment> segments;

  index size() const { return index(in.size()); }

  void clear() {
    in.clear(), whole.clear(), segments.clear();
    first_segment.assign(1, 0);
  }

  // Ends the vector whose segments were just appended.
  void finish(index from) {
    const int first = first_segment.back(), end = int(segments.size());
    const bool all = end == first + 1 && segments[first].count == kLanes<float>;
    in.push_back(from);
    whole.push_back(all ? segments[first].to : -1);
    first_segment.push_back(end);
  }

  // Appends rows [0, rows) × columns [0, columns) of planes with this pitch of rows; results have
  // `out_pitch`. Vectors go from row to row where that takes fewer of them; else each row begins
  // one.
  void add(index rows, index columns, index pitch, index out_pitch) {
    constexpr index kWidth = kLanes<float>;
    const index end = (rows - 1) * pitch + columns;
    if (rows * ceil_div(columns, kWidth) <= ceil_div(end, kWidth)) {
      for (index y = 0; y < rows; ++y)
        for (index x = 0; x < columns; x += kWidth) {
          segments.push_back({0, int(std::min(kWidth, columns - x)), y * out_pitch + x});
          finish(y * pitch + x);
        }
      return;
    }
    for (index p = 0; p < end; p += kWidth) {
      for (index lane = 0; lane < kWidth && p + lane < end;) {
        const index y = (p + lane) / pitch, x = (p + lane) % pitch;
        const index count = std::min(kWidth - lane, columns - x);
        if (count > 0) segments.push_back({int(lane), int(count), y * out_pitch + x});
        lane += std::min(kWidth - lane, pitch - x);
      }
      if (index(segments.size()) > first_segment.back()) finish(p);
    }
  }

  void store(index i, Vec v, float* plane) const {
    if (whole[i] >= 0) return simd::store(plane + whole[i], v);
    for (int s = first_segment[i]; s < first_segment[i + 1]; ++s)
      simd::store_lanes(plane + segments[s].to, v, segments[s].lane, segments[s].count);
  }
};

// So many blocks of filters make up for a copy of the terms that they share.
inline constexpr index kLeastBlocksToPack = 4;

// What the blocks of a stage share during a call.
struct BlockRun {
  const float* in;
  const std::int32_t* offsets;  // (groups, depth): where the terms of a group's sums lie
  index depth;
  float* panel;                       // scratch for the terms of a tile, or null
  const std::int32_t* panel_offsets;  // (depth)
  const float* weights;
  const float* bias;  // kMostFilters a block, or null
  float* out;
  index out_pitch;  // from plane to plane
};

// Where the terms of a tile's sums lie: term k of vector v at from[v] + offsets[k].
struct Terms {
  const float* from[kTileVectors];
  const std::int32_t* offsets;
};

template <int R, int V>
void run_tile(const BlockRun& run, const FilterBlock& block, index number, const Terms& terms,
              const Spots& spots, index first) {
  const float* from[V];
  for (int v = 0; v < V; ++v) from[v] = terms.from[v];
  const float* weights = run.weights + block.weights;
  const std::int32_t* offset = terms.offsets;
  Vec acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      acc[r][v] = simd::splat(run.bias ? run.bias[number * kMostFilters + r] : 0.0f);
  for (index k = 0; k < run.depth; ++k) {
    const index at = offset[k];
    Vec x[V];
    for (int v = 0; v < V; ++v) x[v] = simd::load(from[v] + at);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec w = simd::splat(weights[r]);
      for (int v = 0; v < V; ++v) acc[r][v] = simd::mul_add(w, x[v], acc[r][v]);
    }
    weights += R;
  }
  bool whole = true;
  index to[V];
  for (int v = 0; v < V; ++v) {
    to[v] = spots.whole[first + v];
    whole &= to[v] >= 0;
  }
  if (whole) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      if (r < block.count)
        for (int v = 0; v < V; ++v)
          simd::store(run.out + block.slots[r] * run.out_pitch + to[v], acc[r][v]);
    return;
  }
  // A copy, for which an index may vary: the sums themselves stay in registers.
  Vec sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = acc[r][v];
  for (int v = 0; v < V; ++v)
    for (int r = 0; r < block.count; ++r)
      spots.store(first + v, sums[r][v], run.out + block.slots[r] * run.out_pitch);
}

template <int V>
void run_width(const BlockRun& run, const FilterBlock& block, index number, const Terms& terms,
               const Spots& spots, index first) {
  if (block.width == 1) return run_tile<1, V>(run, block, number, terms, spots, first);
  if (block.width == 2) return run_tile<2, V>(run, block, number, terms, spots, first);
  if (block.width == 4) return run_tile<4, V>(run, block, number, terms, spots, first);
  if constexpr (kBlockFilters == 8) run_tile<8, V>(run, block, number, terms, spots, first);
}

inline constexpr index kPanelWidth = kTileVectors * kLanes<float>;

// Copies the terms of a tile side by side.
inline Terms pack(const BlockRun& run, const Terms& terms, int vectors) {
  for (index k = 0; k < run.depth; ++k)
    for (int v = 0; v < vectors; ++v)
      simd::store(run.panel + k * kPanelWidth + v * kLanes<float>,
                  simd::load(terms.from[v] + terms.offsets[k]));
  Terms packed{{}, run.panel_offsets};
  for (int v = 0; v < vectors; ++v) packed.from[v] = run.panel + v * kLanes<float>;
  return packed;
}

// Runs blocks [first, last) over all positions. The positions of a tile stay in the L1 cache while
// the blocks of a group go over them.
inline void run_blocks(const BlockRun& run, const std::vector<FilterBlock>& blocks, index first,
                       index last, const Spots& spots) {
  for (index end = first; first < last; first = end) {
    while (end < last && blocks[end].group == blocks[first].group) ++end;
    for (index p = 0; p < spots.size(); p += kTileVectors) {
      const int vectors = int(std::min<index>(kTileVectors, spots.size() - p));
      Terms terms{{}, run.offsets + blocks[first].group * run.depth};
      for (int v = 0; v < vectors; ++v) terms.from[v] = run.in + spots.in[p + v];
      if (run.panel && end - first >= kLeastBlocksToPack) terms = pack(run, terms, vectors);
      for (index b = first; b < end; ++b) {
        if (vectors == 3) run_width<3>(run, blocks[b], b, terms, spots, p);
        else if (vectors == 2) run_width<2>(run, blocks[b], b, terms, spots, p);
        else run_width<1>(run, blocks[b], b, terms, spots, p);
      }
    }
  }
}

}  // namespace ff::conv

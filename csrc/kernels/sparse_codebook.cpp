// Products from codes at the places of a sparse matrix. For few inputs a tile of each is looked up
// by the positions of 16 rows at a time; for more, inputs lie side by side, and each entry's value
// is multiplied with a row of them.
#include "kernels/sparse_codebook.hpp"

#include <algorithm>
#include <vector>

#include "core/buffer.hpp"
#include "kernels/sparse_chunks.hpp"

namespace ff {
namespace {

using Layout = SparseLayout;
using simd::Vec;
constexpr int kLanes = simd::kLanes<float>;
constexpr index kBlockRows = Layout::kBlockRows, kTilePitch = Layout::kTilePitch;

// Most inputs for which looking each of them up takes less than multiplying rows of 16 of them.
constexpr index kLookedUp = 4;

// Terms of a sum in float before it goes to double. Rounding stays below 1e-5 of the sum of
// magnitudes then, even where all of it has one sign.
constexpr int kTerms = 96;

// Calls product(tile, its number in the block) for the tiles of a block, and flush() before a sum
// gets longer than kTerms and after the last.
template <class Product, class Flush>
void for_each_tile(const Layout::RowBlock& block, Product product, Flush flush) {
  int terms = 0;
  for (std::size_t t = 0; t < block.tiles.size(); ++t) {
    const int more = block.tiles[t].depth + 1;
    if (terms + more > kTerms) flush(), terms = 0;
    terms += more;
    product(block.tiles[t], index(t));
  }
  flush();
}

index rows_of(const Layout& layout, const Layout::RowBlock& block) {
  return std::min(kBlockRows, layout.rows - block.first_row);
}

// ---- few inputs ----

std::vector<chunks::TileTable> cut_input(const MatrixView& x, index b, const Layout& layout) {
  std::vector<float> row(x.cols);
  load_row(x, b, row.data());
  std::vector<chunks::TileTable> tables;
  tables.reserve(layout.n_tiles());
  for (index first = 0; first < x.cols; first += Layout::kTileCols) {
    float values[kTilePitch] = {};
    std::copy_n(row.data() + first, std::min(Layout::kTileCols, x.cols - first), values);
    tables.emplace_back(values);
  }
  return tables;
}

// sums[row] += what the strips have for it.
void add_strips(const float* strips, const std::uint8_t* lanes, float* sums) {
  for (index group = 0; group < kBlockRows; group += Layout::kGroupRows)
    for (index r = group; r < group + Layout::kGroupRows; ++r) sums[r] += strips[group + lanes[r]];
}

template <class Values>
void look_up(const MatrixView& x, const Layout& layout, const float* codebook, float* out,
             int n_threads, Stop& stop) {
  std::vector<std::vector<chunks::TileTable>> inputs(x.rows);
  parallel_for(x.rows, n_threads, stop, [&](index b, int) { inputs[b] = cut_input(x, b, layout); });
  const Values values(codebook);
  parallel_for(index(layout.row_blocks.size()), n_threads, stop, [&](index task, int) {
    const Layout::RowBlock& block = layout.row_blocks[task];
    alignas(64) float strips[kBlockRows], sums[kLookedUp][kBlockRows] = {};
    double totals[kLookedUp][kBlockRows] = {};
    for_each_tile(
        block,
        [&](const Layout::Tile& tile, index t) {
          for (index b = 0; b < x.rows; ++b) {
            std::fill_n(strips, kBlockRows, 0.0f);
            chunks::add_tile(block, tile, inputs[b][tile.number], values, strips);
            add_strips(strips, block.lanes.data() + t * kBlockRows, sums[b]);
          }
        },
        [&] {
          for (index b = 0; b < x.rows; ++b)
            for (index r = 0; r < kBlockRows; ++r)
              totals[b][r] += double(sums[b][r]), sums[b][r] = 0;
        });
    for (index b = 0; b < x.rows; ++b)
      for (index r = 0; r < rows_of(layout, block); ++r)
        out[b * layout.rows + block.first_row + r] = float(totals[b][r]);
  });
}

// ---- more inputs ----

// Up to `width` inputs from `first` on, tile by tile, side by side for each column.
Buffer<float> lay_side_by_side(const MatrixView& x, index first, index width, int n_threads,
                               Stop& stop) {
  const index n_tiles = ceil_div(x.cols, Layout::kTileCols), n = std::min(width, x.rows - first);
  Buffer<float> panel(n_tiles * kTilePitch * width);
  parallel_for(n_tiles, n_threads, stop, [&](index tile, int) {
    const index column = tile * Layout::kTileCols;
    MatrixView part = x;
    part.data += first * x.row_stride + column * x.col_stride;
    part.cols = std::min(Layout::kTileCols, x.cols - column);
    float* to = panel.data() + tile * kTilePitch * width;
    std::fill_n(to, kTilePitch * width, 0.0f);
    float row[Layout::kTileCols];
    for (index b = 0; b < n; ++b) {
      load_row(part, b, row);
      for (index c = 0; c < part.cols; ++c) to[c * width + b] = row[c];
    }
  });
  return panel;
}

// sums[row][b] += Σ w x[b]
template <int NV, class Values>
void multiply_tile(const Layout::RowBlock& block, const Layout::Tile& tile,
                   const std::uint8_t* lanes, const float* x, const Values& values, float* sums) {
  constexpr int kWidth = NV * kLanes, kLines = Values::kWide ? 4 : 3;
  std::uint8_t rows[kBlockRows];
  for (index r = 0; r < kBlockRows; ++r)
    rows[r / Layout::kGroupRows * Layout::kGroupRows + lanes[r]] = std::uint8_t(r);
  const Layout::Line* pair = block.pairs.data() + tile.first_pair * kLines;
  const std::uint8_t* strips = block.strips.data() + tile.first_pair * 2;
  for (index chunk = 0; chunk < 2 * tile.n_pairs; ++chunk) {
    const Layout::Line* lines = pair + chunk / 2 * kLines;
    const std::uint8_t* positions = lines[chunk % 2].bytes;
    const chunks::Weights<Values> weights(values, {lines + 2, int(chunk % 2)});
    const std::uint8_t* own_rows = rows + strips[chunk] * Layout::kStripRows;
#pragma GCC unroll 16
    for (int lane = 0; lane < Layout::kStripRows; ++lane) {
      Vec<float> sum[NV] = {};
#pragma GCC unroll 4
      for (int step = 0; step < Layout::kSteps; ++step) {
        const float* from = x + index(positions[Layout::byte_of(lane, step)]) * kWidth;
        const Vec<float> weight = weights.splat(lane, step);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          sum[v] = simd::mul_add(weight, simd::load(from + v * kLanes), sum[v]);
      }
      float* to = sums + index(own_rows[lane]) * kWidth;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        simd::store(to + v * kLanes, simd::load(to + v * kLanes) + sum[v]);
    }
  }
}

template <int NV, class Values>
void multiply_panel(const MatrixView& x, index first, const Layout& layout, const Values& values,
                    float* out, int n_threads, Stop& stop) {
  constexpr int kWidth = NV * kLanes;
  const Buffer<float> panel = lay_side_by_side(x, first, kWidth, n_threads, stop);
  const index n = std::min<index>(kWidth, x.rows - first);
  parallel_for(index(layout.row_blocks.size()), n_threads, stop, [&](index task, int) {
    const Layout::RowBlock& block = layout.row_blocks[task];
    Buffer<float> sums(kBlockRows * kWidth);
    std::vector<double> totals(kBlockRows * kWidth);
    std::fill_n(sums.data(), sums.size(), 0.0f);
    for_each_tile(
        block,
        [&](const Layout::Tile& tile, index t) {
          multiply_tile<NV>(block, tile, block.lanes.data() + t * kBlockRows,
                            panel.data() + tile.number * kTilePitch * kWidth, values, sums.data());
        },
        [&] {
          for (index i = 0; i < sums.size(); ++i) totals[i] += double(sums[i]), sums[i] = 0;
        });
    for (index b = 0; b < n; ++b)
      for (index r = 0; r < rows_of(layout, block); ++r)
        out[(first + b) * layout.rows + block.first_row + r] = float(totals[r * kWidth + b]);
  });
}

template <class Values>
void multiply(const MatrixView& x, const Layout& layout, const float* codebook, float* out,
              int n_threads, Stop& stop) {
  if (x.rows <= kLookedUp) return look_up<Values>(x, layout, codebook, out, n_threads, stop);
  const Values values(codebook);
  for (index first = 0; first < x.rows;) {
    const index left = x.rows - first;
    if (left > kLanes) {
      multiply_panel<2>(x, first, layout, values, out, n_threads, stop);
      first += 2 * kLanes;
    } else {
      multiply_panel<1>(x, first, layout, values, out, n_threads, stop);
      first += kLanes;
    }
  }
}

}  // namespace

void sparse_codebook_matmul(const MatrixView& x, const SparseLayout& layout, const float* codebook,
                            float* out, int n_threads, Stop& stop) {
  std::fill_n(out, x.rows * layout.rows, 0.0f);  // rows without entries
  if (x.rows == 0 || layout.row_blocks.empty()) return;
  if (layout.wide) {
    multiply<chunks::Wide>(x, layout, codebook, out, n_threads, stop);
  } else {
    multiply<chunks::Narrow>(x, layout, codebook, out, n_threads, stop);
  }
}

}  // namespace ff

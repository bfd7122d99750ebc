// Products of codes at the entries of a sparse matrix. For few inputs, a tile of each input is
// looked up by the positions of 16 rows at a time. For more, the inputs lie side by side, and each
// entry's value is multiplied with a row of them.
#include "kernels/sparse_codebook/sparse_codebook.hpp"

#include <algorithm>
#include <vector>

#include "core/prefetch.hpp"
#include "kernels/sparse_codebook/chunks.hpp"

namespace ff {
namespace {

using Layout = SparseLayout;
using simd::Vec;
constexpr int kLanes = simd::kLanes<float>;
constexpr index kBlockRows = Layout::kBlockRows, kTilePitch = Layout::kTilePitch;

// The most inputs for which looking each of them up costs less than multiplying them side by side,
// measured on the matrix of bench/sparse_codebook.py: one thread takes 0.12 ms per input with
// permutes (0.5 ms with gathers or one by one) and 0.8 ms for 1 to 16 inputs side by side.
#if defined(__AVX512VBMI__)
constexpr index kLookedUp = 6;
#else
constexpr index kLookedUp = 1;
#endif

// Terms that are summed in float before the sum goes to double. Rounding then stays below 1e-5 of
// the sum of magnitudes, even if all terms have the same sign.
constexpr int kTerms = 96;

// Calls product(tile, its number in the block) for the tiles of a block, and flush() before a sum
// would get longer than kTerms and after the last tile.
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

// Adds the sums of the strips to sums[row] of the rows they belong to.
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
  parallel_ranges(index(layout.row_blocks.size()), n_threads, stop, [&](index task, int) {
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

// Lays out up to `width` inputs from `first` on: tile by tile, side by side for each column.
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

// The chunks of a tile, grouped by strip.
class StripChunks {
 public:
  StripChunks(const std::uint8_t* strips, int n) {
    for (int c = 0; c < n; ++c) ++begins_[strips[c] + 2];
    for (index s = 2; s <= Layout::kStrips; ++s) begins_[s + 1] += begins_[s];
    for (int c = 0; c < n; ++c) chunks_[begins_[strips[c] + 1]++] = std::uint16_t(c);
  }
  const std::uint16_t* begin(index strip) const { return chunks_ + begins_[strip]; }
  const std::uint16_t* end(index strip) const { return chunks_ + begins_[strip + 1]; }

 private:
  int begins_[Layout::kStrips + 2] = {};
  std::uint16_t chunks_[Layout::kStrips * Layout::kTilePitch / Layout::kSteps + 1];
};

// The rows of a strip whose sums are in registers at a time.
constexpr int kRowsAtOnce = 8;

// Computes sums[row] = Σ w x for kRowsAtOnce rows of the strip from kFirst on; x is a row of NV
// vectors.
template <int NV, int kFirst, class Values>
void multiply_rows(const Layout::Line* pairs, const std::uint16_t* chunk, const std::uint16_t* end,
                   const float* x, const Values& values, Vec<float> (&sums)[kRowsAtOnce][NV]) {
  constexpr int kWidth = NV * kLanes, kLines = Values::kWide ? 4 : 3;
  Vec<float> sum[kRowsAtOnce][NV] = {};
  for (; chunk < end; ++chunk) {
    const Layout::Line* lines = pairs + *chunk / 2 * kLines;
    const std::uint8_t* positions = lines[*chunk % 2].bytes;
    const chunks::Weights<Values, kFirst> weights(values, {lines + 2, *chunk % 2});
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) {
      Vec<float> part[NV] = {};
#pragma GCC unroll 4
      for (int step = 0; step < Layout::kSteps; ++step) {
        const float* from = x + index(positions[Layout::byte_of(kFirst + r, step)]) * kWidth;
        const Vec<float> weight = weights.splat(r, step);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const Vec<float> xs = simd::load(from + v * kLanes);
          part[v] = step ? simd::mul_add(weight, xs, part[v]) : weight * xs;
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = sum[r][v] + part[v];
    }
  }
  for (int r = 0; r < kRowsAtOnce; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = sum[r][v];
}

// Adds Σ w x[b] to sums[row][b].
template <int NV, class Values>
void multiply_tile(const Layout::RowBlock& block, const Layout::Tile& tile,
                   const std::uint8_t* lanes, const float* x, const Values& values, float* sums) {
  constexpr int kWidth = NV * kLanes, kLines = Values::kWide ? 4 : 3;
  std::uint8_t rows[kBlockRows];
  for (index r = 0; r < kBlockRows; ++r)
    rows[r / Layout::kGroupRows * Layout::kGroupRows + lanes[r]] = std::uint8_t(r);
  const Layout::Line* pairs = block.pairs.data() + tile.first_pair * kLines;
  const StripChunks chunks(block.strips.data() + tile.first_pair * 2, 2 * tile.n_pairs);
  // Chunks are read strip by strip and so out of order; the next tile is therefore fetched in
  // advance: 8 cold inputs of bench/sparse_codebook.py then take one thread 0.9 ms, otherwise 1.4.
  const index next = (tile.first_pair + tile.n_pairs) * kLines;
  const index last = index(block.pairs.size()) - 1;
  const index share = ceil_div(tile.n_pairs * kLines, Layout::kStrips);
  for (index strip = 0; strip < Layout::kStrips; ++strip) {
    for (index i = 0; i < share; ++i)
      ff::prefetch(block.pairs.data() + std::min(next + strip * share + i, last));
    const auto *begin = chunks.begin(strip), *end = chunks.end(strip);
    if (begin == end) continue;
    const auto add = [&](const std::uint8_t* own_rows, const Vec<float>(&found)[kRowsAtOnce][NV]) {
      for (int r = 0; r < kRowsAtOnce; ++r) {
        float* to = sums + index(own_rows[r]) * kWidth;
        for (int v = 0; v < NV; ++v)
          simd::store(to + v * kLanes, simd::load(to + v * kLanes) + found[r][v]);
      }
    };
    const std::uint8_t* own_rows = rows + strip * Layout::kStripRows;
    Vec<float> found[kRowsAtOnce][NV];
    multiply_rows<NV, 0>(pairs, begin, end, x, values, found);
    add(own_rows, found);
    multiply_rows<NV, kRowsAtOnce>(pairs, begin, end, x, values, found);
    add(own_rows + kRowsAtOnce, found);
  }
}

template <int NV, class Values>
void multiply_panel(const MatrixView& x, index first, const Layout& layout, const Values& values,
                    float* out, int n_threads, Stop& stop) {
  constexpr int kWidth = NV * kLanes;
  const Buffer<float> panel = lay_side_by_side(x, first, kWidth, n_threads, stop);
  const index n = std::min<index>(kWidth, x.rows - first);
  parallel_ranges(index(layout.row_blocks.size()), n_threads, stop, [&](index task, int) {
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
  std::fill_n(out, x.rows * layout.rows, 0.0f);  // for rows without entries
  if (x.rows == 0 || layout.row_blocks.empty()) return;
  if (layout.wide) {
    multiply<chunks::Wide>(x, layout, codebook, out, n_threads, stop);
  } else {
    multiply<chunks::Narrow>(x, layout, codebook, out, n_threads, stop);
  }
}

}  // namespace ff

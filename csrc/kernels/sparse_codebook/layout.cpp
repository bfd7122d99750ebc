#include "kernels/sparse_codebook/layout.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace ff {
namespace {

using Layout = SparseLayout;
constexpr int kGroupRows = int(Layout::kGroupRows), kStripRows = int(Layout::kStripRows);
constexpr int kSteps = Layout::kSteps;

// Arranges the entries of one block of rows, tile after tile.
class Arranger {
 public:
  Arranger(const std::int64_t* positions, const std::uint8_t* codes, index first, index last,
           index rows, index cols, bool wide)
      : positions_(positions), codes_(codes), cols_(cols), wide_(wide) {
    block_.first_row = index(positions[first] / cols) / Layout::kBlockRows * Layout::kBlockRows;
    index entry = first;
    for (index r = 0; r < Layout::kBlockRows; ++r) {
      const index row = block_.first_row + r;
      next_[r] = entry;
      if (row < rows)
        while (entry < last && positions[entry] < (row + 1) * cols) ++entry;
      end_[r] = entry;
    }
    for (index r = 0; r < Layout::kBlockRows; ++r) tile_[r] = tile_of(r);
  }

  Layout::RowBlock arrange() {
    for (;;) {
      const index tile = *std::min_element(tile_, tile_ + Layout::kBlockRows);
      if (tile == kNoTile) break;
      add_tile(tile);
    }
    block_.tiles.shrink_to_fit();
    block_.pairs.shrink_to_fit();
    block_.strips.shrink_to_fit();
    block_.lanes.shrink_to_fit();
    return std::move(block_);
  }

 private:
  static constexpr index kNoTile = std::numeric_limits<index>::max();

  index column(index r, index entry) const {
    return positions_[entry] - (block_.first_row + r) * cols_;
  }

  index tile_of(index r) const {
    return next_[r] < end_[r] ? column(r, next_[r]) / Layout::kTileCols : kNoTile;
  }

  void add_tile(index tile) {
    n_chunks_ = 0;
    int depth = 0;
    const index first_pair = index(block_.strips.size()) / 2;
    for (index group = 0; group < Layout::kBlockRows; group += kGroupRows)
      depth = std::max(depth, add_group(tile, group));
    if (n_chunks_ % 2) add_chunk(0);
    const index n_pairs = index(block_.strips.size()) / 2 - first_pair;
    block_.tiles.push_back({tile, first_pair, std::int32_t(n_pairs), depth});
  }

  // Adds one group of rows of a tile; returns the number of chunks of its longest strip.
  int add_group(index tile, index group) {
    int counts[kGroupRows], order[kGroupRows];
    index starts[kGroupRows];
    for (int r = 0; r < kGroupRows; ++r) {
      const index row = group + r;
      index& entry = next_[row];
      starts[r] = entry;
      if (tile_[row] == tile) {
        const index limit = (tile + 1) * Layout::kTileCols;
        while (entry < end_[row] && column(row, entry) < limit) ++entry;
        tile_[row] = tile_of(row);
      }
      counts[r] = int(entry - starts[r]);
    }
    sort_rows(counts, order);
    for (int i = 0; i < kGroupRows; ++i) lanes_[order[i]] = std::uint8_t(i);
    block_.lanes.insert(block_.lanes.end(), lanes_, lanes_ + kGroupRows);

    const index first_column = tile * Layout::kTileCols;
    const int depth = (counts[order[0]] + kSteps - 1) / kSteps;
    for (int k = 0; k < depth; ++k)
      for (int strip = 0; strip < kGroupRows; strip += kStripRows) {
        if (counts[order[strip]] <= k * kSteps) break;
        const Chunk chunk = add_chunk(int(group + strip) / kStripRows);
        for (int lane = 0; lane < kStripRows; ++lane) {
          const int r = order[strip + lane];
          for (int step = 0; step < kSteps && k * kSteps + step < counts[r]; ++step) {
            const index entry = starts[r] + k * kSteps + step;
            put(chunk, lane, step, std::uint8_t(column(group + r, entry) - first_column),
                codes_[entry]);
          }
        }
      }
    return depth;
  }

  // Sorts rows by falling count; ties go to the lower row.
  static void sort_rows(const int* counts, int* order) {
    int begins[Layout::kTilePitch + 1] = {};
    for (int r = 0; r < kGroupRows; ++r) ++begins[Layout::kTilePitch - 1 - counts[r] + 1];
    for (int c = 0; c < Layout::kTilePitch; ++c) begins[c + 1] += begins[c];
    for (int r = 0; r < kGroupRows; ++r) order[begins[Layout::kTilePitch - 1 - counts[r]]++] = r;
  }

  struct Chunk {
    Layout::Line *positions, *codes;
    bool second;
  };

  Chunk add_chunk(int strip) {
    const bool second = n_chunks_++ % 2;
    const index lines = wide_ ? 4 : 3;
    if (!second) {
      const index first = index(block_.pairs.size());
      block_.pairs.resize(first + lines);
      for (int i = 0; i < 2; ++i)
        std::memset(block_.pairs[first + i].bytes, Layout::kNowhere, sizeof(Layout::Line));
      for (index i = 2; i < lines; ++i)
        std::memset(block_.pairs[first + i].bytes, 0, sizeof(Layout::Line));
    }
    block_.strips.push_back(std::uint8_t(strip));
    Layout::Line* pair = &block_.pairs[block_.pairs.size() - lines];
    return {pair + second, pair + 2 + (wide_ && second), second};
  }

  void put(const Chunk& chunk, int lane, int step, std::uint8_t position, std::uint8_t code) {
    const int at = Layout::byte_of(lane, step);
    chunk.positions->bytes[at] = position;
    if (wide_) {
      chunk.codes->bytes[at] = code;
    } else {
      chunk.codes->bytes[4 * lane + 2 * chunk.second + step / 2] |=
          std::uint8_t(code << 4 * (step % 2));
    }
  }

  const std::int64_t* positions_;
  const std::uint8_t* codes_;
  const index cols_;
  const bool wide_;
  index next_[Layout::kBlockRows], end_[Layout::kBlockRows], tile_[Layout::kBlockRows];
  std::uint8_t lanes_[kGroupRows];
  index n_chunks_ = 0;
  Layout::RowBlock block_;
};

}  // namespace

index SparseLayout::nbytes() const {
  index sum = index(sizeof(RowBlock) * row_blocks.size());
  for (const auto& block : row_blocks)
    sum += index(block.tiles.size() * sizeof(Tile) + block.pairs.size() * sizeof(Line) +
                 block.strips.size() + block.lanes.size());
  return sum;
}

SparseLayout make_sparse_layout(const std::int64_t* positions, const std::uint8_t* codes, index n,
                                index rows, index cols, bool wide, int n_threads, Stop& stop) {
  std::vector<index> firsts;
  for (index i = 0; i < n;) {
    firsts.push_back(i);
    const index block = index(positions[i] / cols) / Layout::kBlockRows;
    const index end_row = std::min(rows, (block + 1) * Layout::kBlockRows);
    i = std::lower_bound(positions + i, positions + n, std::int64_t(end_row * cols)) - positions;
  }
  firsts.push_back(n);
  SparseLayout layout;
  layout.rows = rows, layout.cols = cols, layout.wide = wide;
  layout.row_blocks.resize(firsts.size() - 1);
  parallel_for(index(layout.row_blocks.size()), n_threads, stop, [&](index b, int) {
    layout.row_blocks[b] =
        Arranger(positions, codes, firsts[b], firsts[b + 1], rows, cols, wide).arrange();
  });
  return layout;
}

}  // namespace ff

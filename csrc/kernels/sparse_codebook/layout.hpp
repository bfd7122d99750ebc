#pragma once
#include <cstdint>
#include <vector>

#include "core/parallel.hpp"

// A sparse matrix of codes in the order in which products read it. Blocks of 256 rows are cut into
// tiles of 255 columns, so that a byte can name a column (255 names none: there the input has a
// zero) and a tile of the input stays in registers. The 64 rows of each group of a tile are sorted
// by their number of entries in the tile and cut into four strips of 16 rows, one row per lane. A
// chunk is what is multiplied at a time: four entries of each row of a strip, padded for rows with
// fewer. Sorting keeps the padding small: in 4096 × 4080 with 10 % entries at random it is 15 % of
// all places, unsorted 29 %. An entry then takes 1.85 bytes with codes of four bits. It takes 3.6
// bytes if only 1 % are entries, and more than the 8 bytes of a float CSR if fewer than 0.2 % are.
namespace ff {

struct SparseLayout {
  static constexpr index kBlockRows = 256, kGroupRows = 64, kStripRows = 16;
  static constexpr index kStrips = kBlockRows / kStripRows;
  static constexpr index kTileCols = 255, kTilePitch = 256;
  static constexpr int kSteps = 4;
  static constexpr std::uint8_t kNowhere = 255;

  struct alignas(64) Line {
    std::uint8_t bytes[64];
  };

  // A tile that has entries. `depth` is the number of chunks of its longest strip.
  struct Tile {
    index number, first_pair;
    std::int32_t n_pairs, depth;
  };

  // Chunks come in pairs: a line of positions for each of the two, then their codes: one line if
  // they have four bits, two lines if eight. Step v of lane l is byte 16 ⌊l / 4⌋ + 4 v + l mod 4 of
  // a line. Codes of four bits fill one 32-bit word per lane: first the steps of the first chunk
  // from the lowest bits on, then those of the second.
  struct RowBlock {
    index first_row;
    std::vector<Tile> tiles;
    std::vector<Line> pairs;
    std::vector<std::uint8_t> strips;  // the strip of each chunk
    std::vector<std::uint8_t> lanes;   // for each tile, each row's place in its sorted group
  };

  index rows = 0, cols = 0;
  bool wide = false;                 // codes have eight bits, otherwise four
  std::vector<RowBlock> row_blocks;  // only blocks that have entries

  static constexpr int byte_of(int lane, int step) { return 16 * (lane / 4) + 4 * step + lane % 4; }

  index n_tiles() const { return ceil_div(cols, kTileCols); }
  index nbytes() const;
};

// Makes the layout of entries whose positions (row · cols + column) rise and lie in the matrix. The
// time is linear in their number. A tile takes at least 474 bytes.
SparseLayout make_sparse_layout(const std::int64_t* positions, const std::uint8_t* codes, index n,
                                index rows, index cols, bool wide, int n_threads, Stop& stop);

}  // namespace ff

#pragma once
#include <cstdint>
#include <vector>

#include "core/parallel.hpp"

// A sparse matrix of codes in the order in which products read it. Blocks of 256 rows are cut into
// tiles of 255 columns, few enough for a byte to name one (255 names none: there the input has a
// zero) and for a tile of the input to stay in registers. Each group of 64 rows of a tile is sorted
// by how many entries its rows have there and cut into four strips of 16 rows, one a lane. What is
// multiplied at a time is a chunk: four entries of each row of a strip, rows that have fewer filled
// up. Sorting keeps the filled places few: of 4096 × 4080 at random with 10 % entries they are 15 %
// of all places, 29 % unsorted. An entry then takes 1.85 bytes with codes of four bits; 3.6 where
// only 1 % are entries, more than a float CSR's 8 where fewer than 0.2 % are.
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

  // A tile that has entries. `depth` is the most chunks that one of its strips has.
  struct Tile {
    index number, first_pair;
    std::int32_t n_pairs, depth;
  };

  // Chunks come in pairs: a line of positions for each, then their codes, of four bits in one line
  // or of eight in two. Step v of lane l is byte 16 ⌊l / 4⌋ + 4 v + l mod 4 of a line. Codes of
  // four bits fill 32-bit words, one a lane: steps of the first chunk from the lowest bits on, then
  // those of the second.
  struct RowBlock {
    index first_row;
    std::vector<Tile> tiles;
    std::vector<Line> pairs;
    std::vector<std::uint8_t> strips;  // of each chunk
    std::vector<std::uint8_t> lanes;   // tile by tile: where each row is among its group's strips
  };

  index rows = 0, cols = 0;
  bool wide = false;                 // codes of eight bits, else of four
  std::vector<RowBlock> row_blocks;  // those that have entries

  static constexpr int byte_of(int lane, int step) { return 16 * (lane / 4) + 4 * step + lane % 4; }

  index n_tiles() const { return ceil_div(cols, kTileCols); }
  index nbytes() const;
};

// Of entries whose positions (row · cols + column) rise and lie in the matrix. Linear in their
// number: a tile takes 474 bytes at least.
SparseLayout make_sparse_layout(const std::int64_t* positions, const std::uint8_t* codes, index n,
                                index rows, index cols, bool wide, int n_threads, Stop& stop);

}  // namespace ff

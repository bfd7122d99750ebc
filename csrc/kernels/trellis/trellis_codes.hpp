#pragma once
#include <cstdint>
#include <vector>

#include "core/buffer.hpp"
#include "core/corrupt.hpp"
#include "core/parallel.hpp"
#include "kernels/trellis/format.hpp"

// Levels as asymmetric numerals (Duda, 2013): a block of rows is a stream of 16-bit words that can
// be read alone, and in it a row's scale, where there are several classes, comes before its levels.
// All is integers but for what levels stand for, so that every processor reads the same.
namespace ff {

// Of 2^14, in each context, how often each symbol comes; one context more for the scales of rows
// where there are several classes.
struct TrellisTables {
  const std::uint16_t* frequencies = nullptr;  // (contexts(), kSymbols), each row 2^14 in all
  trellis::Classes classes;

  bool scaled() const { return classes.count > 1; }
  index contexts() const { return 2 * classes.count + scaled(); }
};

struct TrellisStreams {
  std::vector<std::uint16_t> words;
  std::vector<std::int64_t> lengths;  // words of each block
};

// The streams of (rows, cols) levels. Throws std::invalid_argument where a level or a row's scale
// has no frequency.
TrellisStreams trellis_encode(const std::int32_t* levels, const std::int32_t* row_logs, index rows,
                              index block_rows, const TrellisTables& tables, int n_threads,
                              Stop& stop);

// Reads streams from any words: what is wrong with them is thrown as CorruptData, and nothing
// outside them is read. They must outlive the decoder, which copies all else.
class TrellisDecoder {
 public:
  // Throws CorruptData where frequencies do not make 2^14 in all, or lengths more or less than
  // n_words. `centers` are (2 · classes, kCenters).
  TrellisDecoder(const std::uint16_t* words, index n_words, const std::int64_t* lengths,
                 index n_blocks, index rows, index block_rows, const TrellisTables& tables,
                 const float* centers);
  TrellisDecoder(TrellisDecoder&&) noexcept;
  ~TrellisDecoder();

  index rows() const { return rows_; }
  index cols() const { return classes_.cols; }

  // What rows stand for in units of the grid, (n, cols). Their numbers rise and are below rows().
  // Rows before the last one that is wanted of a block are decoded too; a block that is decoded to
  // its end must end there.
  void decode(const std::int64_t* ids, index n, float* out, int n_threads, Stop& stop) const;

 private:
  struct Context;
  struct Block;
  struct Lane;
  class Reader;

  const std::uint16_t* words_;
  std::vector<index> begins_;  // of blocks, and the end of the last
  index rows_, block_rows_;
  std::vector<std::int8_t> columns_;
  trellis::Classes classes_;
  Buffer<Context> contexts_;
};

}  // namespace ff

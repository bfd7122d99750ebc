#pragma once
#include <cstdint>
#include <vector>

#include "core/buffer.hpp"
#include "core/corrupt.hpp"
#include "core/parallel.hpp"
#include "kernels/trellis/format.hpp"

// Levels as asymmetric numerals (Duda, 2013). A block of rows is a stream of 16-bit words that can
// be read alone; if there are several classes, each row's scale comes before its levels. Everything
// except the decoded values is integers, so that every processor reads the same.
namespace ff {

// How often each symbol occurs in each context, as a share of 2^14; there is one more context for
// the scales of rows if there are several classes.
struct TrellisTables {
  const std::uint16_t* frequencies = nullptr;  // (contexts(), kSymbols), each row has the sum 2^14
  trellis::Classes classes;

  bool scaled() const { return classes.count > 1; }
  index contexts() const { return 2 * classes.count + scaled(); }
};

struct TrellisStreams {
  std::vector<std::uint16_t> words;
  std::vector<std::int64_t> lengths;  // words of each block
};

// Returns the streams of (rows, cols) levels. Throws std::invalid_argument if the frequency of a
// level or of a row's scale is zero.
TrellisStreams trellis_encode(const std::int32_t* levels, const std::int32_t* row_logs, index rows,
                              index block_rows, const TrellisTables& tables, int n_threads,
                              Stop& stop);

// Reads streams from any words. Throws CorruptData if they are faulty and never reads outside them.
// The words must outlive the decoder, which copies everything else.
class TrellisDecoder {
 public:
  // Throws CorruptData if the frequencies of a context do not sum to 2^14, or the lengths do not
  // sum to n_words. `centers` is (2 · classes, kCenters).
  TrellisDecoder(const std::uint16_t* words, index n_words, const std::int64_t* lengths,
                 index n_blocks, index rows, index block_rows, const TrellisTables& tables,
                 const float* centers);
  TrellisDecoder(TrellisDecoder&&) noexcept;
  ~TrellisDecoder();

  index rows() const { return rows_; }
  index cols() const { return classes_.cols; }

  // Writes the decoded rows `ids` in units of the grid, (n, cols). ids rise and are below rows().
  // Rows of a block before its last requested one are decoded too; a block that is decoded to its
  // end must end there.
  void decode(const std::int64_t* ids, index n, float* out, int n_threads, Stop& stop) const;

 private:
  struct Context;
  struct Block;
  struct Lane;
  class Reader;

  const std::uint16_t* words_;
  std::vector<index> begins_;  // where blocks begin, and the end of the last
  index rows_, block_rows_;
  std::vector<std::int8_t> columns_;
  trellis::Classes classes_;
  Buffer<Context> contexts_;
};

}  // namespace ff

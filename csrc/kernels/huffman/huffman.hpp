#pragma once
#include <functional>
#include <limits>
#include <memory>

#include "core/bytes.hpp"
#include "core/parallel.hpp"

namespace ff {

// A view of symbols of one byte each, or of two (wide).
struct SymbolsView {
  const void* data = nullptr;
  bool wide = false;
  index size = 0;
};

struct HuffmanOptions {
  int max_length = 0;                 // bits of a word, at most 20; 0: chosen by the encoder
  index block_size = index(1) << 20;  // symbols, a power of two in [2^12, 2^22]
};

// Writes the form that format.hpp describes into the memory that allocate(its size in bytes)
// returns. Throws std::invalid_argument if max_length is too small for the number of different
// symbols.
void huffman_encode(const SymbolsView& symbols, const HuffmanOptions& options,
                    const std::function<std::uint8_t*(index)>& allocate, int n_threads, Stop& stop);

// Reads that form from any bytes. Throws CorruptData if they are faulty and never reads outside
// them. The bytes must outlive the decoder.
class HuffmanDecoder {
 public:
  // Reads and checks the header, and that there are enough bytes for the number of symbols that it
  // declares: at most 16,384 symbols a byte.
  // Throws CorruptData as well if the bytes declare more than max_symbols symbols.
  HuffmanDecoder(const std::uint8_t* data, index size,
                 index max_symbols = std::numeric_limits<index>::max());
  ~HuffmanDecoder();

  bool wide() const;
  index n_symbols() const;
  // Writes n_symbols() symbols of one byte each, or of two if wide().
  void decode(void* symbols, int n_threads, Stop& stop) const;

 private:
  struct Header;
  std::unique_ptr<Header> header_;
};

}  // namespace ff

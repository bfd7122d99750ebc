#pragma once
#include <functional>
#include <memory>

#include "core/bytes.hpp"
#include "core/parallel.hpp"

namespace ff {

// Symbols of one byte each, or of two (wide), that somebody else owns.
struct SymbolsView {
  const void* data = nullptr;
  bool wide = false;
  index size = 0;
};

struct HuffmanOptions {
  int max_length = 0;                 // bits of a word, at most 20; 0: chosen
  index block_size = index(1) << 20;  // symbols, a power of two in [2^12, 2^22]
};

// The stored form that format.hpp describes, into what allocate(its bytes) gives. Throws
// std::invalid_argument where max_length is too small for as many different symbols as there are.
void huffman_encode(const SymbolsView& symbols, const HuffmanOptions& options,
                    const std::function<std::uint8_t*(index)>& allocate, int n_threads, Stop& stop);

// Reads that form from any bytes: what is wrong with them is thrown as CorruptData, and nothing
// outside them is read. They must outlive the decoder.
class HuffmanDecoder {
 public:
  // Reads and checks the header, and that the bytes are enough for as many symbols as it declares:
  // no more than 16,384 a byte.
  HuffmanDecoder(const std::uint8_t* data, index size);
  ~HuffmanDecoder();

  bool wide() const;
  index n_symbols() const;
  // n_symbols() symbols of one byte, or two where wide().
  void decode(void* symbols, int n_threads, Stop& stop) const;

 private:
  struct Header;
  std::unique_ptr<Header> header_;
};

}  // namespace ff

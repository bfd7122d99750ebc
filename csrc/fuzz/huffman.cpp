// Any bytes must be decoded or refused with CorruptData. Checksums always count as right here
// (checksum.hpp), so that the code after their check is reached.
#include "kernels/huffman/huffman.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr ff::index kMostPerByte = 16384, kLargest = ff::index(1) << 20;
  try {
    const ff::HuffmanDecoder decoder(data, ff::index(size));
    if (decoder.n_symbols() > kMostPerByte * ff::index(size)) __builtin_trap();
    if (decoder.n_symbols() > kLargest) return 0;  // for speed
    std::vector<std::uint8_t> symbols(decoder.n_symbols() * (decoder.wide() ? 2 : 1));
    ff::Stop stop;
    decoder.decode(symbols.data(), 1, stop);
  } catch (const ff::CorruptData&) {
    return 0;
  }
  return 0;
}

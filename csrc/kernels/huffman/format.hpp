#pragma once
#include <string>
#include <vector>

#include "core/checksum.hpp"
#include "kernels/huffman/code.hpp"

// The header in front of the blocks of Huffman-coded data (numbers are little-endian; a varint has
// seven bits a byte, lowest first):
//
//   "H", 1                magic and version
//   flags                 bit 0: symbols have two bytes; bits 1 and 2: the kind (0 coded, 1 raw,
//                         2 constant); bits 3 and 4: log2 of the group; the other bits are zero
//   varint                number of symbols; if it is 0, only the checksum follows
//   constant              varint: the symbol; then one zero byte per 16,384 symbols, rounded up
//   coded and raw         log2 of the block size in symbols
//   coded                 symbol_bits; the last symbols, too few to fill a group, in one or two
//                         bytes each; the code lengths
//   coded and raw         for each block a varint: 2 · its bytes + (1 if it is raw)
//   4 bytes               checksum of everything before
//
// A letter of the code is a group of 1, 2 or 4 neighbouring symbols in symbol_bits bits each, the
// first symbol lowest. A block is a checksum of 4 bytes (seeded by the header's and the block's
// number) and its content: raw symbols, or kStreams streams with the same number of letters (the
// last may have fewer; a block of less than kFewLetters letters is one stream). The content begins
// with the size of each stream except the last, in 3 bytes.
namespace ff::huffman {

inline constexpr index kConstantRun = 16384;
inline constexpr int kStreams = 6;
inline constexpr index kFewLetters = 4096;
inline constexpr int kChecksumBytes = 4, kSizeBytes = 3;
inline constexpr int kMinBlockLog = 12, kMaxBlockLog = 22;

enum class Kind { coded, raw, constant };

struct Format {
  bool wide = false;
  Kind kind = Kind::coded;
  int group = 1, symbol_bits = 1, block_log = kMinBlockLog;
  index n_symbols = 0;
  std::uint32_t constant = 0;
  std::vector<std::uint16_t> rest;  // n_symbols % group symbols
  Lengths lengths;

  struct Block {
    index size;  // bytes, including the checksum
    bool raw;
  };
  std::vector<Block> blocks;

  int symbol_bytes() const { return wide ? 2 : 1; }
  index n_letters() const { return index(1) << symbol_bits * group; }
  index in_groups() const { return n_symbols / group * group; }
  index n_blocks() const { return ceil_div(in_groups(), index(1) << block_log); }
  index block_begin(index i) const { return i << block_log; }
  index block_end(index i) const { return std::min((i + 1) << block_log, in_groups()); }
};

inline int streams_of(index n_letters) {
  return n_letters < kFewLetters ? 1 : kStreams;
}

inline std::uint64_t block_seed(std::uint32_t header_checksum, index block) {
  return std::uint64_t(header_checksum) << 32 | std::uint64_t(block);
}

inline Bytes write_header(const Format& f) {
  Bytes out = {'H', 1};
  int log_group = 0;
  while (1 << log_group < f.group) ++log_group;
  out.push_back(std::uint8_t(int(f.wide) | int(f.kind) << 1 | log_group << 3));
  put_varint(out, std::uint64_t(f.n_symbols));
  if (f.n_symbols && f.kind == Kind::constant) {
    put_varint(out, f.constant);
    out.resize(out.size() + ceil_div(f.n_symbols, kConstantRun), 0);
  } else if (f.n_symbols) {
    out.push_back(std::uint8_t(f.block_log));
    if (f.kind == Kind::coded) {
      out.push_back(std::uint8_t(f.symbol_bits));
      for (const auto symbol : f.rest) put_fixed(out, symbol, f.symbol_bytes());
      const Bytes lengths = lengths_to_bytes(f.lengths);
      out.insert(out.end(), lengths.begin(), lengths.end());
    }
    for (const auto& block : f.blocks)
      put_varint(out, 2 * std::uint64_t(block.size) + unsigned(block.raw));
  }
  put_fixed(out, checksum(out.data(), index(out.size()), 0), kChecksumBytes);
  return out;
}

namespace detail {

inline void require(bool held, const char* what) {
  if (!held) throw CorruptData(std::string("data must ") + what);
}

inline void read_constant(ByteReader& in, Format& f) {
  f.constant = std::uint32_t(in.varint("a symbol"));
  require(f.constant >> 8 * f.symbol_bytes() == 0,
          "hold a symbol of its dtype, got a larger number");
  const index zeros = ceil_div(f.n_symbols, kConstantRun);
  const std::uint8_t* p = in.take(zeros, "a zero for every 16,384 symbols");
  require(std::all_of(p, p + zeros, [](int byte) { return byte == 0; }),
          "hold a zero byte for every 16,384 symbols, got another byte");
}

inline void read_code(ByteReader& in, Format& f) {
  f.symbol_bits = int(in.fixed(1, "the bits of a symbol"));
  require(
      f.symbol_bits >= 1 && f.symbol_bits <= 8 * f.symbol_bytes() && f.symbol_bits * f.group <= 16,
      "name 1 to 16 bits for a letter and symbols that fit their dtype, got other widths");
  for (index i = f.in_groups(); i < f.n_symbols; ++i)
    f.rest.push_back(std::uint16_t(in.fixed(f.symbol_bytes(), "the last symbols")));
  f.lengths = lengths_from_bytes(in, f.n_letters());
}

// A letter takes at least one bit, so the number of bytes bounds the number of symbols.
inline void read_blocks(ByteReader& in, Format& f) {
  require(f.n_blocks() <= in.left(), "hold a size for each block, got data that ends before it");
  for (index i = 0; i < f.n_blocks(); ++i) {
    const std::uint64_t stored = in.varint("the size of a block");
    const Format::Block block{index(stored >> 1), (stored & 1) != 0};
    const index n = f.block_end(i) - f.block_begin(i), content = block.size - kChecksumBytes;
    require(block.raw || f.kind == Kind::coded,
            "hold only raw blocks if its header says so, got a coded block");
    require(block.raw ? content == n * f.symbol_bytes() : content > 0 && n / f.group <= content * 8,
            "hold blocks of a size that their symbols can take, got an impossible size");
    f.blocks.push_back(block);
  }
}

}  // namespace detail

// Reads the header and leaves the reader at the first block. By then all sizes are checked against
// the bytes that there are, so it is safe to allocate what the header declares.
inline Format read_header(ByteReader& in, std::uint32_t& header_checksum) {
  using detail::require;
  const std::uint8_t* begin = in.rest();
  const index start = in.position();
  require(in.fixed(1, "a header") == 'H', "begin with \"H\", got another byte");
  const int version = int(in.fixed(1, "a version"));
  require(version == 1, "be of version 1, the only known one, got another version");
  const int flags = int(in.fixed(1, "flags"));
  Format f;
  f.wide = flags & 1;
  f.kind = Kind(flags >> 1 & 3);
  f.group = 1 << (flags >> 3 & 3);
  require(flags < 32 && int(f.kind) <= int(Kind::constant) && f.group <= 4 &&
              (f.kind == Kind::coded || f.group == 1),
          "have known flags, got unknown ones");
  f.n_symbols = index(in.varint("the number of symbols"));
  if (f.n_symbols && f.kind == Kind::constant) {
    detail::read_constant(in, f);
  } else if (f.n_symbols) {
    f.block_log = int(in.fixed(1, "the block size"));
    require(f.block_log >= kMinBlockLog && f.block_log <= kMaxBlockLog,
            "have blocks of 2^12 to 2^22 symbols, got another size");
    if (f.kind == Kind::coded) detail::read_code(in, f);
    detail::read_blocks(in, f);
  }
  const index size = in.position() - start;
  header_checksum = std::uint32_t(in.fixed(kChecksumBytes, "a checksum of its header"));
  require(checksum_fits(begin, size, 0, header_checksum),
          "match its checksums, but the header does not");
  index left = in.left();
  for (const auto& block : f.blocks) {
    require(block.size <= left, "hold all blocks that its header names, got data that ends before");
    left -= block.size;
  }
  require(left == 0, "end with its last block, got more bytes");
  return f;
}

}  // namespace ff::huffman

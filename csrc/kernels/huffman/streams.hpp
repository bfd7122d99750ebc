#pragma once
#include <algorithm>

#include "core/buffer.hpp"
#include "kernels/huffman/code.hpp"

// The words of a prefix code in streams of bits that are written forward and read backward. The
// encoder puts each word above the bits before it, so the decoder, which starts at the end, finds a
// word's first bit on top and the last symbols first. A one above the last bit marks the end.
// Reading backward allows a look-up to store 8 bytes whose upper bytes are symbols and whose lower
// bytes are overwritten later, without a shift in between.
//
// What limits decoding, on one core of Zen 5 for pairs of 16 symbols with 2.9 bits of entropy
// (bench/coding.py, "gaussian"), is the number of instructions. A look-up of 12 bits gives 3.5
// symbols for 11 instructions, including a sixth of the refill and a spill or two; it takes 2.1
// cycles, 0.62 a symbol, at 5 instructions a cycle. 4, 5, 6, 7 and 8 streams at once give 3.9, 5.4,
// 5.8, 5.0 and 5.8 G symbols/s: up to 6, a look-up waits for the one before it in its stream
// (shift, load, shift: 7 cycles); beyond that, registers run out. No gain came from shifting by a
// register, which saves a copy per look-up; from prefetching the symbols' place; from three streams
// after the other three (5 % slower); or from looking up longer words on the way (0.4 % smaller, 8
// % slower). 13 bits would need 64 KB, more than L1 holds, and give 6 % more symbols.
//
// A letter stands for `group` symbols, each in `symbol_bits` bits, the first symbol lowest.
namespace ff::huffman {

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
inline constexpr bool kLittleEndian = false;
#else
inline constexpr bool kLittleEndian = true;
#endif

// At most seven bits of the stream are pending after a flush; the number of words between two
// flushes is what fits 64 bits with them.
template <int Group, class Symbol, class Word>
index write_stream(const Symbol* symbols, index n_letters, int symbol_bits, int max_length,
                   const Word* words, std::uint8_t* out) {
  const std::uint8_t* begin = out;
  std::uint64_t bits = 0;
  int fill = 0;
  const auto put = [&](index i) {
    std::uint32_t letter = symbols[i * Group];
    for (int g = 1; g < Group; ++g)
      letter |= std::uint32_t(symbols[i * Group + g]) << g * symbol_bits;
    const Word word = words[letter];
    bits |= std::uint64_t(word.bits) << fill;
    fill += int(word.length);
  };
  const auto flush = [&] {
    store64(out, bits);
    out += fill >> 3;
    bits >>= fill & ~7;
    fill &= 7;
  };
  index i = 0;
  if (max_length <= 14) {
    for (; i + 4 <= n_letters; i += 4) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) put(i + k);
      flush();
    }
  }
  for (; i < n_letters; ++i) {
    put(i);
    flush();
  }
  bits |= std::uint64_t(1) << fill;
  store64(out, bits);
  return out - begin + 1;
}

// Bytes that write_stream may touch after the end of the words.
inline constexpr index kStreamSlack = 8;

// The tables that the decoder looks up with the next kTableBits bits.
class DecodeTable {
 public:
  // 4,096 entries of 8 bytes, 32 KB, fit the L1 cache of any processor with AVX2.
  static constexpr int kTableBits = 12;
  // Bytes of symbols in an entry of `many`.
  static constexpr int kPayload = 6;

  // `many` holds as many whole letters as the bits contain and kPayload has room for: their symbols
  // in the upper bytes, the first letter uppermost; in byte 1 their number of bytes; in byte 0
  // their length in bits. It is made only if no word is longer than kTableBits. `one` holds the
  // first letter alone, with length 0 if its word is longer.
  DecodeTable(const CanonicalCode& code, int group, int bits_of_symbol, int symbol_bytes)
      : symbol_bits(bits_of_symbol),
        symbol_mask((std::uint32_t(1) << bits_of_symbol) - 1),
        code_(code),
        one_(index(1) << kTableBits) {
    index filled = 0;  // shorter words first, from the low end
    for (int l = 1; l <= kTableBits; ++l)
      for (std::uint32_t rank = code.first[l]; rank < code.first[l + 1]; ++rank) {
        const index end = filled + (index(1) << (kTableBits - l));
        std::fill(&one_[0] + filled, &one_[0] + end,
                  CanonicalCode::Found{code.by_rank[rank], std::uint8_t(l)});
        filled = end;
      }
    std::fill(&one_[0] + filled, &one_[0] + one_.size(), CanonicalCode::Found{0, 0});
    const int letter_bytes = group * symbol_bytes;
    if (!kLittleEndian || letter_bytes > kPayload || code.max_length > kTableBits) return;
    many_ = Buffer<std::uint64_t>(one_.size());
    for (index i = 0; i < many_.size(); ++i) {
      std::uint64_t payload = 0;
      int length = 0, bytes = 0;
      while (bytes + letter_bytes <= kPayload) {
        const auto next = one_[i << length & (many_.size() - 1)];
        if (length + next.length > kTableBits) break;
        for (int g = group - 1; g >= 0; --g) {
          bytes += symbol_bytes;
          payload |= std::uint64_t(next.letter >> g * symbol_bits & symbol_mask)
                     << (64 - 8 * bytes);
        }
        length += next.length;
      }
      many_[i] = payload | std::uint64_t(bytes) << 8 | std::uint64_t(length);
    }
  }

  const int symbol_bits;
  const std::uint32_t symbol_mask;

  // Returns null if `many` has not been made.
  const std::uint64_t* many() const { return many_.data(); }

  // Returns the letter whose word these bits, left-aligned in 64, begin with.
  CanonicalCode::Found letter(std::uint64_t bits) const {
    const auto found = one_[index(bits >> (64 - kTableBits))];
    if (found.length) return found;
    return code_.find(std::uint32_t(bits >> (64 - kMaxLength)), kTableBits + 1);
  }

 private:
  const CanonicalCode& code_;
  Buffer<std::uint64_t> many_;
  Buffer<CanonicalCode::Found> one_;
};

// Reads one stream: bits of [begin, …) from the top, symbols of [first, …) from the end.
template <int Group, class Symbol>
struct Reader {
  const std::uint8_t* begin;
  Symbol* first;
  const std::uint8_t* in = nullptr;  // where `bits` was loaded from
  std::uint64_t bits = 0;            // the next bit on top; below the unread bits a single 1
  Symbol* out;

  Reader(const std::uint8_t* data, index size, Symbol* symbols, index n)
      : begin(data), first(symbols), out(symbols + n) {
    if (size == 0 || data[size - 1] == 0)
      throw CorruptData("data must mark the end of each stream, found no mark");
    left_ = 8 * (size - 1) + 31 - __builtin_clz(data[size - 1]);
  }

  // Switches to bits in a register; returns false if the stream is too short for that.
  bool enter() {
    if (left_ < 64) return false;
    in = begin + (left_ + 7) / 8 - 8;
    bits = (load64(in) | 1) << (-left_ & 7);
    return true;
  }
  void leave() { left_ = 8 * (in - begin) + 64 - __builtin_ctzll(bits); }

  // Reads letter by letter to the end and checks every bound.
  void finish(const DecodeTable& table) {
    while (out > first) {
      const auto found = table.letter(peek());
      left_ -= found.length;
      if (left_ < 0) break;
      out -= Group;
      for (int g = 0; g < Group; ++g)
        out[g] = Symbol(found.letter >> g * table.symbol_bits & table.symbol_mask);
    }
    if (left_ != 0)
      throw CorruptData(
          "data must hold streams that end with their last symbol, got one that does not");
  }

 private:
  index left_;  // unread bits; out of date between enter() and leave()

  // Returns the next 57 bits or more on top, followed by zeros after the last.
  std::uint64_t peek() const {
    const index end = (left_ + 7) / 8;
    std::uint64_t x = 0;
    if (end >= 8) {
      x = load64(begin + end - 8);
    } else {
      for (index i = 0; i < end; ++i) x |= std::uint64_t(begin[i]) << 8 * (8 - end + i);
    }
    return x << (-left_ & 7);
  }
};

// Returns how many rounds of four look-ups are safe. A round takes at most 7 + 48 bits, which moves
// `in` by at most 6 bytes, and makes at most 24 bytes of symbols. A look-up writes 8 bytes; the
// lower ones may not be final yet but must lie in this stream's part of the output.
template <int Group, class Symbol>
index safe_rounds(const Reader<Group, Symbol>& s) {
  const index room = (s.out - s.first) * index(sizeof(Symbol)) - 8;
  return std::min((s.in - s.begin) / 6, room / (4 * DecodeTable::kPayload));
}

// Reads rounds of four look-ups for `N` streams at once, until one of them is near its end.
template <int N, int Group, class Symbol>
void read_rounds(Reader<Group, Symbol>* streams, const std::uint64_t* many) {
  for (;;) {
    index rounds = safe_rounds(streams[0]);
    for (int k = 1; k < N; ++k) rounds = std::min(rounds, safe_rounds(streams[k]));
    if (rounds <= 0) return;
    std::uint64_t bits[N];
    std::uint8_t* out[N];
    const std::uint8_t* in[N];
    for (int k = 0; k < N; ++k) {
      bits[k] = streams[k].bits;
      in[k] = streams[k].in;
      out[k] = reinterpret_cast<std::uint8_t*>(streams[k].out);
    }
    for (; rounds > 0; --rounds) {
#pragma GCC unroll 4
      for (int look = 0; look < 4; ++look) {
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
          const std::uint64_t entry = many[bits[k] >> (64 - DecodeTable::kTableBits)];
          bits[k] <<= entry & 63;
          std::memcpy(out[k] - 8, &entry, 8);
          out[k] -= entry >> 8 & 255;
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        const int used = __builtin_ctzll(bits[k]);
        in[k] -= used >> 3;
        bits[k] = (load64(in[k]) | 1) << (used & 7);
      }
    }
    for (int k = 0; k < N; ++k) {
      streams[k].bits = bits[k];
      streams[k].in = in[k];
      streams[k].out = reinterpret_cast<Symbol*>(out[k]);
    }
  }
}

}  // namespace ff::huffman

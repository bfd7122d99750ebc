#pragma once
#include <algorithm>

#include "core/buffer.hpp"
#include "kernels/huffman/code.hpp"

// Words of a prefix code in streams of bits, written forward and read backward: the encoder puts
// each word above the bits that it has, so that the decoder, which begins at the end, finds a
// word's first bit on top and the last symbols first. A one above the last bit marks where that is.
// Reading backward, a look-up may store 8 bytes of which the upper ones are symbols and the lower
// ones nothing, with no shift in between.
//
// What limits decoding, one core of Zen 5, pairs of 16 symbols with 2.9 bits of entropy
// (bench/coding.py, "gaussian"): instructions. A look-up of 12 bits gives 3.5 symbols for 11 of
// them, a sixth of the refill and a spill or two included: 2.1 cycles, 0.62 a symbol, 5
// instructions a cycle. Streams at once: 4, 5, 6, 7, 8 give 3.9, 5.4, 5.8, 5.0 and 5.8 G symbols/s;
// up to 6 a look-up waits for the one before it in its stream (shift, load, shift: 7 cycles), from
// there on registers run out. No gain: shifting by a register, which saves a copy a look-up;
// prefetching where symbols go; three streams after the other three (5 % slower); looking longer
// words up on the way (0.4 % smaller, 8 % slower). 13 bits would need 64 KB, more than L1 holds,
// and give 6 % more symbols.
//
// A letter stands for `group` symbols, each in `symbol_bits` bits, the first symbol lowest.
namespace ff::huffman {

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
inline constexpr bool kLittleEndian = false;
#else
inline constexpr bool kLittleEndian = true;
#endif

// Seven bits of the stream may be pending; what else fits 64 bits is how many words go between two
// flushes.
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

// Bytes that write_stream may touch beyond the words' own.
inline constexpr index kStreamSlack = 8;

// What the decoder looks up with the next kTableBits bits.
class DecodeTable {
 public:
  // 4,096 entries of 8 bytes, 32 KB, fit the L1 cache of any processor that has AVX2.
  static constexpr int kTableBits = 12;
  // Bytes of symbols in an entry of `many`.
  static constexpr int kPayload = 6;

  // `many`: as many whole letters as the bits hold and kPayload has room for, their symbols in the
  // upper bytes, the first letter uppermost; byte 1 their number of bytes, byte 0 their length in
  // bits. Made only where no word is longer than kTableBits. `one`: the first letter alone, of
  // length 0 where its word is longer.
  DecodeTable(const CanonicalCode& code, int group, int bits_of_symbol, int symbol_bytes)
      : symbol_bits(bits_of_symbol),
        symbol_mask((std::uint32_t(1) << bits_of_symbol) - 1),
        code_(code),
        one_(index(1) << kTableBits) {
    index filled = 0;  // shorter words first: they take the low end
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

  // Null where it has not been made.
  const std::uint64_t* many() const { return many_.data(); }

  // The letter that these bits, left-aligned in 64, begin with.
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

// One stream while it is read: bits of [begin, …) from the top, symbols of [first, …) from the end.
template <int Group, class Symbol>
struct Reader {
  const std::uint8_t* begin;
  Symbol* first;
  const std::uint8_t* in = nullptr;  // where `bits` was loaded from
  std::uint64_t bits = 0;            // the next bit on top; below the unread ones a single 1
  Symbol* out;

  Reader(const std::uint8_t* data, index size, Symbol* symbols, index n)
      : begin(data), first(symbols), out(symbols + n) {
    if (size == 0 || data[size - 1] == 0)
      throw CorruptData("data must mark the end of each stream, found no mark");
    left_ = 8 * (size - 1) + 31 - __builtin_clz(data[size - 1]);
  }

  // Goes over to bits in a register; false where the stream is too short for that.
  bool enter() {
    if (left_ < 64) return false;
    in = begin + (left_ + 7) / 8 - 8;
    bits = (load64(in) | 1) << (-left_ & 7);
    return true;
  }
  void leave() { left_ = 8 * (in - begin) + 64 - __builtin_ctzll(bits); }

  // Letter by letter to the end, with every bound checked.
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
      throw CorruptData("data must hold streams as long as their symbols, got others");
  }

 private:
  index left_;  // unread bits; out of date between enter and leave

  // The next 57 bits or more on top, zeros after the last.
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

// How many rounds of four look-ups are safe: one takes at most 7 + 48 bits, which moves `in` by 6
// bytes at most, and makes at most 24 bytes of symbols; a look-up writes 8 bytes, whose lower ones
// may belong to nobody yet but must lie in this stream's part.
template <int Group, class Symbol>
index safe_rounds(const Reader<Group, Symbol>& s) {
  const index room = (s.out - s.first) * index(sizeof(Symbol)) - 8;
  return std::min((s.in - s.begin) / 6, room / (4 * DecodeTable::kPayload));
}

// Rounds of four look-ups for `N` streams at once, until one of them is near its end.
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

#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/bytes.hpp"

// Prefix codes: the optimal lengths under a limit, the canonical words of given lengths, and the
// lengths as stored bytes.
namespace ff::huffman {

using Counts = std::vector<std::uint64_t>;
using Lengths = std::vector<std::uint8_t>;  // of each letter's word; 0: the letter does not occur

inline constexpr int kMaxLength = 20;

// Returns the lengths that minimise Σ count · length with no length above max_length, by
// package-merge (Larmore and Hirschberg, 1990). Letters of count 0 get length 0; at least two and
// at most 2^max_length letters must occur. Takes O(n · max_length) after sorting. Ties go first to
// packages of lighter letters, then to the lower letter, so the counts alone determine the result.
inline Lengths optimal_lengths(const Counts& counts, int max_length) {
  std::vector<std::uint32_t> letters;
  for (std::size_t i = 0; i < counts.size(); ++i)
    if (counts[i]) letters.push_back(std::uint32_t(i));
  std::stable_sort(letters.begin(), letters.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return counts[a] < counts[b]; });
  const std::size_t n = letters.size();
  // List k holds, by rising weight, the letters and the pairs of neighbours of list k − 1. Only
  // which entries are letters has to be kept.
  std::vector<std::vector<bool>> is_letter(max_length);
  std::vector<std::uint64_t> list, next;
  for (int k = 0; k < max_length; ++k) {
    next.clear();
    const std::size_t pairs = list.size() / 2;
    std::size_t letter = 0, pair = 0;
    while (letter < n || pair < pairs) {
      const bool take = pair == pairs || (letter < n && counts[letters[letter]] <=
                                                            list[2 * pair] + list[2 * pair + 1]);
      next.push_back(take ? counts[letters[letter]] : list[2 * pair] + list[2 * pair + 1]);
      is_letter[k].push_back(take);
      take ? ++letter : ++pair;
    }
    list.swap(next);
  }
  // Take the first 2n − 2 entries of the last list, from the list before it the pairs that these
  // contain, and so on. Every list in which a letter is taken adds one to its length.
  Lengths lengths(counts.size(), 0);
  std::size_t taken = 2 * n - 2;
  for (int k = max_length - 1; k >= 0; --k) {
    std::size_t n_letters = 0;
    for (std::size_t i = 0; i < taken; ++i) n_letters += is_letter[k][i];
    for (std::size_t i = 0; i < n_letters; ++i) ++lengths[letters[i]];
    taken = 2 * (taken - n_letters);
  }
  return lengths;
}

// The canonical code: words are numbered in order of length, then letter, so that the lengths
// determine everything. Left-aligned in kMaxLength bits, a word of length l is less than limit[l]
// and at least limit[l − 1].
struct CanonicalCode {
  // The rank of the first word of each length; after the longest, the number of words.
  std::array<std::uint32_t, kMaxLength + 2> first{};
  std::array<std::uint32_t, kMaxLength + 1> limit{};
  std::vector<std::uint16_t> by_rank;  // letters by rank
  int max_length = 0;

  // Returns whether the lengths make a complete prefix code of at least two words. If they do, any
  // kMaxLength bits begin with exactly one word.
  bool assign(const Lengths& lengths) {
    std::array<std::uint32_t, kMaxLength + 1> counts{};
    for (const int length : lengths) {
      if (length > kMaxLength) return false;
      ++counts[length];
    }
    std::uint64_t end = 0;
    std::uint32_t rank = 0;
    for (int l = 1; l <= kMaxLength; ++l) {
      first[l] = rank;
      rank += counts[l];
      end += std::uint64_t(counts[l]) << (kMaxLength - l);
      if (end > std::uint64_t(1) << kMaxLength) return false;
      limit[l] = std::uint32_t(end);
      if (counts[l]) max_length = l;
    }
    first[kMaxLength + 1] = rank;
    if (rank < 2 || end != std::uint64_t(1) << kMaxLength) return false;
    by_rank.resize(rank);
    auto place = first;
    for (std::size_t i = 0; i < lengths.size(); ++i)
      if (lengths[i]) by_rank[place[lengths[i]]++] = std::uint16_t(i);
    return true;
  }

  // Returns the word of length l with rank r, in its l low bits.
  std::uint32_t word(int l, std::uint32_t rank) const {
    return (limit[l - 1] >> (kMaxLength - l)) + rank - first[l];
  }

  struct Found {
    std::uint16_t letter;
    std::uint8_t length;
  };
  // Returns the letter whose word these kMaxLength bits begin with; the word must have at least l
  // bits.
  Found find(std::uint32_t bits, int l = 1) const {
    while (bits >= limit[l]) ++l;
    return {by_rank[first[l] + ((bits - limit[l - 1]) >> (kMaxLength - l))], std::uint8_t(l)};
  }
};

// Lengths as bits, lowest bit of each byte first. Neighbours are often alike, so a length is coded
// by its difference from the last one that was not 0 (at first 4). The difference is a number v in
// Elias' gamma code (v + 1 has k bits: k − 1 zeros, then those bits from the top):
//   v = 0: the same;  1, 2, 4, 5, 6, 7 …: one more, one less, two more, two less, …;  3: a run of
//   zeros, followed by its length less one in the same code. Zeros at the end are not coded.
namespace detail {

class BitWriter {
 public:
  void gamma(std::uint32_t v) {
    int k = 0;
    while ((v + 1) >> (k + 1)) ++k;
    for (int i = 0; i < k; ++i) bit(false);
    for (int i = k; i >= 0; --i) bit((v + 1) >> i & 1);
  }
  Bytes bytes;

 private:
  void bit(bool b) {
    if (used_ == 0) bytes.push_back(0);
    bytes.back() |= std::uint8_t(b << used_);
    used_ = (used_ + 1) % 8;
  }
  int used_ = 0;
};

class BitReader {
 public:
  BitReader(const std::uint8_t* data, index size) : data_(data), end_(size * 8) {}
  std::uint32_t gamma() {
    int k = 0;
    while (!bit())
      if (++k > 17) fail();
    std::uint32_t v = 1;
    for (; k > 0; --k) v = v << 1 | std::uint32_t(bit());
    return v - 1;
  }
  // Checks that the rest of the last byte is zero; returns how many bytes have been read.
  index finish() {
    while (at_ % 8)
      if (bit()) fail();
    return at_ / 8;
  }
  [[noreturn]] static void fail() {
    throw CorruptData(
        "data must hold the code lengths of a complete prefix code, got lengths that make none");
  }

 private:
  bool bit() {
    if (at_ == end_) fail();
    const bool b = data_[at_ / 8] >> at_ % 8 & 1;
    ++at_;
    return b;
  }
  const std::uint8_t* data_;
  index end_, at_ = 0;
};

inline constexpr int kFirstGuess = 4;

}  // namespace detail

inline Bytes lengths_to_bytes(const Lengths& lengths) {
  detail::BitWriter out;
  const auto end = lengths.rend() - std::find_if(lengths.rbegin(), lengths.rend(),
                                                 [](int length) { return length != 0; });
  int last = detail::kFirstGuess;
  for (index i = 0; i < end; ++i) {
    if (lengths[i] == 0) {
      index run = 1;
      while (lengths[i + run] == 0) ++run;
      out.gamma(3);
      out.gamma(std::uint32_t(run - 1));
      i += run - 1;
      continue;
    }
    const int more = lengths[i] - last;
    const int v = more > 0 ? 2 * more - 1 : -2 * more;  // 0, 1, 2, 3, …
    out.gamma(std::uint32_t(v < 3 ? v : v + 1));
    last = lengths[i];
  }
  return std::move(out.bytes);
}

// Reads the lengths of `n_letters` letters; throws CorruptData unless they make a complete code.
// The reader notices when the code is complete, so the bytes need no count; the rest of the last
// byte must be zero.
inline Lengths lengths_from_bytes(ByteReader& from, index n_letters) {
  detail::BitReader in(from.rest(), from.left());
  Lengths lengths(n_letters, 0);
  int last = detail::kFirstGuess;
  std::uint64_t filled = 0;
  index i = 0;
  while (filled < std::uint64_t(1) << kMaxLength) {
    if (i == n_letters) in.fail();
    const int v = int(in.gamma());
    if (v == 3) {
      const index run = index(in.gamma()) + 1;
      if (run >= n_letters - i) in.fail();
      i += run;
      continue;
    }
    const int zigzag = v < 3 ? v : v - 1;
    last += zigzag % 2 ? (zigzag + 1) / 2 : -zigzag / 2;
    if (last < 1 || last > kMaxLength) in.fail();
    lengths[i++] = std::uint8_t(last);
    filled += std::uint64_t(1) << (kMaxLength - last);
  }
  if (filled > std::uint64_t(1) << kMaxLength) in.fail();
  from.take(in.finish(), "code lengths");
  return lengths;
}

}  // namespace ff::huffman

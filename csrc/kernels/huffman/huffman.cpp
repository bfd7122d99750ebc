// Huffman coding in blocks: format.hpp describes how it is stored, code.hpp makes the words, and
// streams.hpp writes and reads them.
//
// All blocks share one code. It codes single symbols, or groups of two or four if single symbols
// waste more than 0.5 %: for symbols of four bits with an entropy of 2.9 bits, single symbols take
// 1.6 % more than the entropy and pairs 0.9 %.
#include "kernels/huffman/huffman.hpp"

#include <atomic>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "kernels/huffman/format.hpp"
#include "kernels/huffman/streams.hpp"

namespace ff {
namespace {

using namespace huffman;

constexpr index kCountChunk = index(1) << 20;
constexpr int kMaxGroupBits = 10;
constexpr double kTolerableWaste = 0.005;

struct Word {
  std::uint32_t bits, length;
};

struct Code {
  int group = 1, symbol_bits = 1;
  Lengths lengths;
  double bits = 0;  // of all letters together
};

// Calls call(symbols, std::integral_constant<int, group>).
template <class Call>
void with_types(const SymbolsView& s, int group, Call call) {
  const auto with_group = [&](const auto* symbols) {
    if (group == 4) {
      call(symbols, std::integral_constant<int, 4>());
    } else if (group == 2) {
      call(symbols, std::integral_constant<int, 2>());
    } else {
      call(symbols, std::integral_constant<int, 1>());
    }
  };
  if (s.wide) {
    with_group(static_cast<const std::uint16_t*>(s.data));
  } else {
    with_group(static_cast<const std::uint8_t*>(s.data));
  }
}

// Counts the letters. Counts are integers, so the order of adding does not matter.
Counts count_letters(const SymbolsView& s, int group, int symbol_bits, int n_threads, Stop& stop) {
  const index n = s.size / group, size = index(1) << symbol_bits * group;
  std::vector<Counts> partial(n_threads);
  with_types(s, group, [&](const auto* symbols, auto size_of_group) {
    constexpr int g = decltype(size_of_group)::value;
    parallel_for(ceil_div(n, kCountChunk), n_threads, stop, [&](index chunk, int worker) {
      // Four counters for each letter, because equal neighbours would wait for each other.
      constexpr int kWays = 4;
      Counts& mine = partial[worker];
      if (mine.empty()) mine.assign(size, 0);
      std::vector<std::uint32_t> counts(kWays * size, 0);
      std::uint32_t* ways[kWays];
      for (int way = 0; way < kWays; ++way) ways[way] = counts.data() + way * size;
      const auto letter = [&](index i) {
        std::uint32_t bits = symbols[i * g];
        for (int k = 1; k < g; ++k) bits |= std::uint32_t(symbols[i * g + k]) << k * symbol_bits;
        return bits;
      };
      const index last = std::min((chunk + 1) * kCountChunk, n);
      index i = chunk * kCountChunk;
      for (; i + kWays <= last; i += kWays)
        for (int way = 0; way < kWays; ++way) ++ways[way][letter(i + way)];
      for (; i < last; ++i) ++ways[0][letter(i)];
      for (std::size_t k = 0; k < counts.size(); ++k) mine[k % size] += counts[k];
    });
  });
  Counts total(size, 0);
  for (const Counts& counts : partial)
    for (index i = 0; i < index(counts.size()); ++i) total[i] += counts[i];
  return total;
}

double entropy_bits(const Counts& counts) {
  double n = 0, sum = 0;
  for (const auto c : counts) n += double(c);
  for (const auto c : counts)
    if (c) sum += double(c) * std::log2(n / double(c));
  return sum;
}

int ceil_log2(index n) {
  int bits = 0;
  while (index(1) << bits < n) ++bits;
  return bits;
}

index n_different(const Counts& counts) {
  return index(counts.size()) - std::count(counts.begin(), counts.end(), 0u);
}

// Returns the longest word to allow: as long as one look-up reads, or longer if there are so many
// letters that this limit would waste much.
int default_length(index n_letters) {
  constexpr index kManyLetters = 1024;
  if (n_letters <= kManyLetters) return DecodeTable::kTableBits;
  return std::min(kMaxLength, ceil_log2(n_letters) + 4);
}

Code code_for(const Counts& counts, int group, int symbol_bits, int max_length) {
  if (max_length == 0) max_length = default_length(n_different(counts));
  Code code{group, symbol_bits, optimal_lengths(counts, max_length), 0};
  for (std::size_t i = 0; i < counts.size(); ++i) code.bits += double(counts[i]) * code.lengths[i];
  return code;
}

// Returns the number of bits that every symbol fits.
int bits_of_symbols(const SymbolsView& s, int n_threads, Stop& stop) {
  std::atomic<unsigned> all{0};
  with_types(s, 1, [&](const auto* symbols, auto) {
    parallel_for(ceil_div(s.size, kCountChunk), n_threads, stop, [&](index chunk, int) {
      unsigned mine = 0;
      const index last = std::min((chunk + 1) * kCountChunk, s.size);
      for (index i = chunk * kCountChunk; i < last; ++i) mine |= symbols[i];
      all.fetch_or(mine, std::memory_order_relaxed);
    });
  });
  return std::max(1, ceil_log2(index(all.load()) + 1));
}

// Returns the counts of symbols from those of their pairs, plus the last symbol if it has no pair.
Counts split_pairs(const Counts& pairs, const SymbolsView& s, int symbol_bits) {
  Counts counts(std::size_t(1) << symbol_bits, 0);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    counts[i % counts.size()] += pairs[i];
    counts[i >> symbol_bits] += pairs[i];
  }
  if (s.size % 2)
    with_types(s, 1, [&](const auto* symbols, auto) { ++counts[symbols[s.size - 1]]; });
  return counts;
}

struct LetterCounts {
  int symbol_bits;
  Counts symbols, pairs;  // pairs: only if coding pairs is possible
};

LetterCounts count_all(const SymbolsView& s, int n_threads, Stop& stop) {
  LetterCounts counts{bits_of_symbols(s, n_threads, stop), {}, {}};
  if (2 * counts.symbol_bits <= kMaxGroupBits && s.size > 1) {
    counts.pairs = count_letters(s, 2, counts.symbol_bits, n_threads, stop);
    counts.symbols = split_pairs(counts.pairs, s, counts.symbol_bits);
  } else {
    counts.symbols = count_letters(s, 1, counts.symbol_bits, n_threads, stop);
  }
  return counts;
}

// Chooses groups as long as that saves bytes and their letters fit.
Code choose_code(const SymbolsView& s, const LetterCounts& counts, int max_length, int n_threads,
                 Stop& stop) {
  const index different = n_different(counts.symbols);
  if (max_length && ceil_log2(different) > max_length)
    throw std::invalid_argument(
        "max_length must be at least " + std::to_string(ceil_log2(different)) + " for " +
        std::to_string(different) + " different symbols, got " + std::to_string(max_length));
  Code best = code_for(counts.symbols, 1, counts.symbol_bits, max_length);
  const double tolerable = entropy_bits(counts.symbols) * (1 + kTolerableWaste);
  const int longest = s.wide ? 2 : 4;  // groups that fit an entry of DecodeTable
  for (int group = 2; group <= longest && group * counts.symbol_bits <= kMaxGroupBits; group *= 2) {
    if (s.size < group || best.bits <= tolerable) break;
    const Counts letters =
        group == 2 ? counts.pairs : count_letters(s, group, counts.symbol_bits, n_threads, stop);
    const index n = n_different(letters);
    if (n < 2 || (max_length && ceil_log2(n) > max_length)) break;
    Code grouped = code_for(letters, group, counts.symbol_bits, max_length);
    const auto cost = [](const Code& c) {
      return c.bits + 8.0 * double(lengths_to_bytes(c.lengths).size());
    };
    if (cost(grouped) < cost(best)) best = std::move(grouped);
  }
  return best;
}

std::vector<Word> words_of(const Lengths& lengths) {
  CanonicalCode code;
  code.assign(lengths);
  std::vector<Word> words(lengths.size());
  for (std::uint32_t rank = 0; rank < code.by_rank.size(); ++rank) {
    const int letter = code.by_rank[rank], length = lengths[letter];
    words[letter] = {code.word(length, rank), std::uint32_t(length)};
  }
  return words;
}

// Writes the content of one block: the sizes of its streams and the streams.
template <int Group, class Symbol>
index write_streams(const Symbol* symbols, index n_letters, const Code& code, int max_length,
                    const Word* words, std::uint8_t* out) {
  const int streams = streams_of(n_letters);
  const index each = ceil_div(n_letters, streams);
  std::uint8_t* to = out + (streams - 1) * kSizeBytes;
  for (int k = 0; k < streams; ++k) {
    const index first = k * each, n = std::min(each, n_letters - first);
    const index size =
        write_stream<Group>(symbols + first * Group, n, code.symbol_bits, max_length, words, to);
    if (k + 1 < streams)
      for (int b = 0; b < kSizeBytes; ++b) out[k * kSizeBytes + b] = std::uint8_t(size >> 8 * b);
    to += size;
  }
  return to - out;
}

void put_checksum(std::uint8_t* block, index size, std::uint64_t seed) {
  const std::uint32_t sum = checksum(block + kChecksumBytes, size - kChecksumBytes, seed);
  for (int b = 0; b < kChecksumBytes; ++b) block[b] = std::uint8_t(sum >> 8 * b);
}

template <class Symbol>
void copy_symbols(const Symbol* from, index n, std::uint8_t* to) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  for (index i = 0; i < n; ++i)
    for (std::size_t b = 0; b < sizeof(Symbol); ++b)
      to[i * sizeof(Symbol) + b] = std::uint8_t(from[i] >> 8 * b);
#else
  std::memcpy(to, from, std::size_t(n) * sizeof(Symbol));
#endif
}

// Writes the blocks, each with room for its checksum, and their sizes into the format.
template <int Group, class Symbol>
std::vector<Buffer<std::uint8_t>> write_blocks(const Symbol* symbols, const Code& code, Format& f,
                                               int n_threads, Stop& stop) {
  std::vector<Word> words;
  int max_length = 0;
  if (f.kind == Kind::coded) {
    words = words_of(code.lengths);
    max_length = *std::max_element(code.lengths.begin(), code.lengths.end());
  }
  std::vector<Buffer<std::uint8_t>> blocks(f.n_blocks());
  f.blocks.resize(f.n_blocks());
  parallel_for(f.n_blocks(), n_threads, stop, [&](index i, int) {
    const Symbol* from = symbols + f.block_begin(i);
    const index n = f.block_end(i) - f.block_begin(i);
    const index raw = kChecksumBytes + n * index(sizeof(Symbol));
    const index room = n / Group * max_length / 8 + kStreams * (1 + kStreamSlack + kSizeBytes);
    Buffer<std::uint8_t> block(kChecksumBytes + std::max(room, n * index(sizeof(Symbol))));
    index size = raw;
    if (f.kind == Kind::coded)
      size = kChecksumBytes + write_streams<Group>(from, n / Group, code, max_length, words.data(),
                                                   block.data() + kChecksumBytes);
    f.blocks[i] = {std::min(size, raw), size >= raw};
    if (size >= raw) copy_symbols(from, n, block.data() + kChecksumBytes);
    blocks[i] = std::move(block);
  });
  return blocks;
}

void join(const Bytes& header, const Format& f, const std::vector<Buffer<std::uint8_t>>& blocks,
          std::uint8_t* out, int n_threads, Stop& stop) {
  std::vector<index> begin = {index(header.size())};
  for (const auto& block : f.blocks) begin.push_back(begin.back() + block.size);
  ByteReader end(header.data() + header.size() - kChecksumBytes, kChecksumBytes);
  const auto header_checksum = std::uint32_t(end.fixed(kChecksumBytes, "a checksum"));
  std::copy(header.begin(), header.end(), out);
  parallel_for(index(blocks.size()), n_threads, stop, [&](index i, int) {
    std::memcpy(out + begin[i], blocks[i].data(), std::size_t(f.blocks[i].size));
    put_checksum(out + begin[i], f.blocks[i].size, block_seed(header_checksum, i));
  });
}

}  // namespace

void huffman_encode(const SymbolsView& symbols, const HuffmanOptions& options,
                    const std::function<std::uint8_t*(index)>& allocate, int n_threads,
                    Stop& stop) {
  Format f;
  f.wide = symbols.wide;
  f.n_symbols = symbols.size;
  f.block_log = ceil_log2(options.block_size);
  const auto header_alone = [&] {
    const Bytes header = write_header(f);
    std::copy(header.begin(), header.end(), allocate(index(header.size())));
  };
  if (symbols.size == 0) return header_alone();
  const LetterCounts counts = count_all(symbols, n_threads, stop);
  if (n_different(counts.symbols) == 1) {
    f.kind = Kind::constant;
    while (!counts.symbols[f.constant]) ++f.constant;
    return header_alone();
  }
  const Code code = choose_code(symbols, counts, options.max_length, n_threads, stop);
  const double lengths_bits = 8.0 * double(lengths_to_bytes(code.lengths).size());
  f.group = code.group, f.symbol_bits = code.symbol_bits, f.lengths = code.lengths;
  if (code.bits + lengths_bits >= 8.0 * f.symbol_bytes() * double(symbols.size)) {
    f.kind = Kind::raw;
    f.group = 1;
  }
  with_types(symbols, f.group, [&](const auto* data, auto group) {
    for (index i = f.in_groups(); i < f.n_symbols; ++i) f.rest.push_back(data[i]);
    const auto blocks = write_blocks<decltype(group)::value>(data, code, f, n_threads, stop);
    const Bytes header = write_header(f);
    index size = index(header.size());
    for (const auto& block : f.blocks) size += block.size;
    join(header, f, blocks, allocate(size), n_threads, stop);
  });
}

struct HuffmanDecoder::Header {
  Format format;
  std::uint32_t checksum = 0;
  const std::uint8_t* blocks = nullptr;
  CanonicalCode code;
};

namespace {

// Finds the streams of a block and decodes them.
template <int Group, class Symbol>
void read_streams(const std::uint8_t* data, index size, const DecodeTable& table, Symbol* symbols,
                  index n) {
  const index n_letters = n / Group;
  const int streams = streams_of(n_letters);
  const index each = ceil_div(n_letters, streams);
  ByteReader in(data, size);
  index sizes[kStreams];
  for (int k = 0; k + 1 < streams; ++k)
    sizes[k] = index(in.fixed(kSizeBytes, "the size of each stream"));
  std::vector<Reader<Group, Symbol>> readers;
  for (int k = 0; k < streams; ++k) {
    const index first = k * each, letters = std::min(each, n_letters - first);
    const index bytes = k + 1 < streams ? sizes[k] : in.left();
    readers.emplace_back(in.take(bytes, "all its streams"), bytes, symbols + first * Group,
                         letters * Group);
  }
  // If one stream is too short to be read through a register, all are read letter by letter.
  bool entered = table.many() != nullptr && streams == kStreams;
  for (auto& reader : readers) entered = entered && reader.enter();
  if (entered) {
    read_rounds<kStreams>(readers.data(), table.many());
    for (auto& reader : readers) read_rounds<1>(&reader, table.many());
    for (auto& reader : readers) reader.leave();
  }
  for (auto& reader : readers) reader.finish(table);
}

template <class Symbol>
void read_raw(const std::uint8_t* data, index n, Symbol* symbols) {
  for (index i = 0; i < n; ++i) {
    Symbol symbol = 0;
    for (std::size_t b = 0; b < sizeof(Symbol); ++b)
      symbol = Symbol(symbol | data[i * sizeof(Symbol) + b] << 8 * b);
    symbols[i] = symbol;
  }
}

}  // namespace

HuffmanDecoder::HuffmanDecoder(const std::uint8_t* data, index size, index max_symbols)
    : header_(std::make_unique<Header>()) {
  ByteReader in(data, size);
  header_->format = read_header(in, header_->checksum);
  if (n_symbols() > max_symbols)
    throw CorruptData("data must hold at most " + std::to_string(max_symbols) + " symbols, got " +
                      std::to_string(n_symbols()));
  header_->blocks = in.rest();
  if (!header_->format.lengths.empty()) header_->code.assign(header_->format.lengths);
}

HuffmanDecoder::~HuffmanDecoder() = default;

bool HuffmanDecoder::wide() const {
  return header_->format.wide;
}

index HuffmanDecoder::n_symbols() const {
  return header_->format.n_symbols;
}

void HuffmanDecoder::decode(void* symbols, int n_threads, Stop& stop) const {
  const Format& f = header_->format;
  std::unique_ptr<const DecodeTable> table;
  if (f.kind == Kind::coded)
    table = std::make_unique<DecodeTable>(header_->code, f.group, f.symbol_bits, f.symbol_bytes());
  std::vector<index> begin = {0};
  for (const auto& block : f.blocks) begin.push_back(begin.back() + block.size);
  with_types({symbols, f.wide, f.n_symbols}, f.group, [&](const auto* first, auto group) {
    using Symbol = std::remove_const_t<std::remove_pointer_t<decltype(first)>>;
    auto* out = static_cast<Symbol*>(symbols);
    if (f.kind == Kind::constant) std::fill_n(out, f.n_symbols, Symbol(f.constant));
    parallel_for(index(f.blocks.size()), n_threads, stop, [&](index i, int) {
      const std::uint8_t* block = header_->blocks + begin[i];
      const std::uint8_t* content = block + kChecksumBytes;
      const index bytes = f.blocks[i].size - kChecksumBytes;
      const auto sum = std::uint32_t(ByteReader(block, kChecksumBytes).fixed(kChecksumBytes, ""));
      if (!checksum_fits(content, bytes, block_seed(header_->checksum, i), sum))
        throw CorruptData("data must match its checksums, but block " + std::to_string(i) +
                          " does not");
      const index n = f.block_end(i) - f.block_begin(i);
      Symbol* to = out + f.block_begin(i);
      if (f.blocks[i].raw) {
        read_raw(content, n, to);
      } else {
        read_streams<decltype(group)::value>(content, bytes, *table, to, n);
      }
    });
    std::copy(f.rest.begin(), f.rest.end(), out + f.in_groups());
  });
}

}  // namespace ff

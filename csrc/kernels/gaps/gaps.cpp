#include "kernels/gaps/gaps.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ff {
namespace {

constexpr index kChunk = index(1) << 16;

index chunk_end(index chunk, index n) {
  return std::min((chunk + 1) * kChunk, n);
}

// Returns the gap of entry i less 1: the number of positions it skips.
std::int64_t skipped(const std::int64_t* positions, index i) {
  return positions[i] - (i ? positions[i - 1] : -1) - 1;
}

// Returns how many fillers, each of which spans 2^b positions, or escapes, which span one less, a
// gap over this many zeros needs.
std::int64_t bridges(std::int64_t zeros, int n_bits, bool escape) {
  return escape ? zeros / ((1 << n_bits) - 1) : zeros >> n_bits;
}

// Returns before[c] = the sum of of(k) for the chunks k before c; it has one entry more than there
// are chunks.
template <class Of>
std::vector<std::int64_t> sums_before(index n_chunks, int n_threads, Stop& stop, Of of) {
  std::vector<std::int64_t> before(n_chunks + 1, 0);
  parallel_for(n_chunks, n_threads, stop, [&](index c, int) { before[c + 1] = of(c); });
  for (index c = 0; c < n_chunks; ++c) before[c + 1] += before[c];
  return before;
}

}  // namespace

void check_positions(const std::int64_t* positions, index n, std::int64_t size, int n_threads,
                     Stop& stop) {
  std::vector<index> faults(ceil_div(n, kChunk), n);
  parallel_for(index(faults.size()), n_threads, stop, [&](index c, int) {
    const index end = chunk_end(c, n);
    index i = c * kChunk;
    while (i < end && positions[i] < size && positions[i] > (i ? positions[i - 1] : -1)) ++i;
    if (i < end) faults[c] = i;
  });
  for (const index i : faults) {
    if (i == n) continue;
    throw std::invalid_argument("positions must rise and be in [0, " + std::to_string(size) +
                                "), got " + std::to_string(positions[i]) + " at [" +
                                std::to_string(i) + "]" +
                                (i ? " after " + std::to_string(positions[i - 1]) : ""));
  }
}

FillerCounts count_fillers(const std::int64_t* positions, index n, bool escape, int n_threads,
                           Stop& stop) {
  std::vector<FillerCounts> partial(ceil_div(n, kChunk), FillerCounts{});
  parallel_for(index(partial.size()), n_threads, stop, [&](index c, int) {
    FillerCounts counts{};
    for (index i = c * kChunk; i < chunk_end(c, n); ++i) {
      const std::int64_t zeros = skipped(positions, i);
      // If a field needs none, wider fields need none either.
      for (int b = 1; b <= kMaxGapBits; ++b) {
        const std::int64_t n_bridges = bridges(zeros, b, escape);
        if (n_bridges == 0) break;
        counts[b] += n_bridges;
      }
    }
    partial[c] = counts;
  });
  FillerCounts total{};
  for (const auto& counts : partial)
    for (int b = 1; b <= kMaxGapBits; ++b) total[b] += counts[b];
  return total;
}

int best_gap_bits(const FillerCounts& fillers, index n, int value_bits) {
  int best = 1;
  const auto bits = [&](int b) { return double(n + fillers[b]) * double(b + value_bits); };
  for (int b = 2; b <= kMaxGapBits; ++b)
    if (bits(b) < bits(best)) best = b;
  return best;
}

template <class Field>
void write_gaps(const std::int64_t* positions, index n, int n_bits, bool escape, Field* fields,
                std::int64_t* fillers, int n_threads, Stop& stop) {
  const index n_chunks = ceil_div(n, kChunk);
  const auto before = sums_before(n_chunks, n_threads, stop, [&](index c) {
    std::int64_t sum = 0;
    for (index i = c * kChunk; i < chunk_end(c, n); ++i)
      sum += bridges(skipped(positions, i), n_bits, escape);
    return sum;
  });
  const auto largest = Field((1 << n_bits) - 1);
  const std::int64_t reach = largest + (escape ? 0 : 1);
  parallel_for(n_chunks, n_threads, stop, [&](index c, int) {
    index filler = before[c], entry = c * kChunk + filler;
    for (index i = c * kChunk; i < chunk_end(c, n); ++i) {
      const std::int64_t zeros = skipped(positions, i);
      const std::int64_t n_bridges = bridges(zeros, n_bits, escape);
      for (std::int64_t k = 0; k < n_bridges; ++k) {
        fillers[filler++] = entry;
        fields[entry++] = largest;
      }
      fields[entry++] = Field(zeros - n_bridges * reach);
    }
  });
}

template <class Field>
Buffer<std::int64_t> read_gaps(const Field* fields, index n, int n_bits, bool escape,
                               std::int64_t size, int n_threads, Stop& stop) {
  const index n_chunks = ceil_div(n, kChunk);
  const auto largest = Field((1 << n_bits) - 1);
  const auto escapes = sums_before(n_chunks, n_threads, stop, [&](index c) {
    return escape ? std::count(fields + c * kChunk, fields + chunk_end(c, n), largest) : 0;
  });
  const auto before = sums_before(n_chunks, n_threads, stop, [&](index c) {
    std::int64_t sum = 0;
    Field all = 0;
    for (index i = c * kChunk; i < chunk_end(c, n); ++i) sum += fields[i], all |= fields[i];
    if (all > largest)
      throw CorruptData("gaps must be in [0, " + std::to_string(1 << n_bits) +
                        "), got a larger one");
    return sum + (chunk_end(c, n) - c * kChunk) - (escapes[c + 1] - escapes[c]);
  });
  if (before[n_chunks] > size)
    throw CorruptData("gaps must lead to positions in [0, " + std::to_string(size) + "), got " +
                      std::to_string(before[n_chunks] - 1));
  Buffer<std::int64_t> positions(n - escapes[n_chunks]);
  parallel_for(n_chunks, n_threads, stop, [&](index c, int) {
    std::int64_t position = before[c] - 1;
    std::int64_t* to = positions.data() + c * kChunk - escapes[c];
    for (index i = c * kChunk; i < chunk_end(c, n); ++i) {
      if (escape && fields[i] == largest) position += largest;
      else *to++ = position += std::int64_t(fields[i]) + 1;
    }
  });
  return positions;
}

#define FF_GAPS(Field)                                                                        \
  template void write_gaps(const std::int64_t*, index, int, bool, Field*, std::int64_t*, int, \
                           Stop&);                                                            \
  template Buffer<std::int64_t> read_gaps(const Field*, index, int, bool, std::int64_t, int, Stop&)
FF_GAPS(std::uint8_t);
FF_GAPS(std::uint16_t);
#undef FF_GAPS

}  // namespace ff

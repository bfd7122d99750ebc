#pragma once
#include <algorithm>
#include <cstring>

#include "core/prefetch.hpp"
#include "kernels/codebook/tables.hpp"
#include "kernels/sparse_codebook/layout.hpp"

// Products of the chunks of a sparse layout with a tile of one input, and the weights of a chunk,
// by the fastest means of each level: byte permutes, gathers, or one entry after the other.
namespace ff::chunks {

using Layout = SparseLayout;
using Line = Layout::Line;
inline constexpr int kSteps = Layout::kSteps, kStripRows = int(Layout::kStripRows);

// The codes of one chunk of a pair.
struct ChunkCodes {
  const Line* lines;  // the pair's lines of codes, which follow its positions
  int half;

  const std::uint8_t* wide() const { return lines[half].bytes; }
  int narrow(int lane, int step) const {
    return lines[0].bytes[4 * lane + 2 * half + step / 2] >> 4 * (step % 2) & 15;
  }
};

#if defined(__AVX2__)

using tables::Floats;
using tables::kLanes;  // rows of a strip that a vector holds: all 16 or half of them
inline constexpr int kPieces = kStripRows / kLanes;

#  if defined(__AVX512F__)
// Widens the bytes of a line to indices, step by step.
[[gnu::always_inline]] inline void widen(const std::uint8_t* line, __m512i (&indices)[kSteps]) {
  const __m512i by_step = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(by_step, _mm512_loadu_si512(line));
  indices[0] = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes));
  indices[1] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 1));
  indices[2] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 2));
  indices[3] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 3));
}

inline Floats gather(const float* values, __m512i indices) {
  return (Floats)_mm512_i32gather_ps(indices, values, 4);
}

// Only the low four bits of each lane are used.
inline __m512i shift_down(const std::uint8_t* words, int bits) {
  return _mm512_srli_epi32(_mm512_loadu_si512(words), bits);
}

inline Floats splat_lane(Floats v, int lane) {
  return (Floats)_mm512_permutexvar_ps(_mm512_set1_epi32(lane), (__m512)v);
}
#  else
[[gnu::always_inline]] inline void widen(const std::uint8_t* line, __m256i (&indices)[kSteps]) {
  const __m256i by_step = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line)), by_step);
  const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
  indices[0] = _mm256_cvtepu8_epi32(low);
  indices[1] = _mm256_cvtepu8_epi32(_mm_srli_si128(low, 8));
  indices[2] = _mm256_cvtepu8_epi32(high);
  indices[3] = _mm256_cvtepu8_epi32(_mm_srli_si128(high, 8));
}

inline Floats gather(const float* values, __m256i indices) {
  return (Floats)_mm256_i32gather_ps(values, indices, 4);
}

inline __m256i shift_down(const std::uint8_t* words, int bits) {
  return _mm256_srli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), bits);
}

inline Floats splat_lane(Floats v, int lane) {
  return (Floats)_mm256_permutevar8x32_ps((__m256)v, _mm256_set1_epi32(lane));
}
#  endif

#  if defined(__AVX512VBMI__)
// 256 floats, looked up 64 at a time by permutes of their bytes: block(line, sink) calls sink with
// the values of each step.
using Table256 = tables::BytePlanes<8, 4>;
#  else
// Does the same by gathers, for as many rows as a vector holds.
struct Table256 {
  explicit Table256(const float* from) { std::memcpy(values, from, sizeof values); }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* line, Sink&& sink) const {
    decltype(shift_down(line, 0)) indices[kSteps];
    widen(line, indices);
#    pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step) sink(step, gather(values, indices[step]));
  }

  float values[256];
};
#  endif
using TileTable = Table256;

// A table of 16 values in registers.
struct Narrow {
  static constexpr bool kWide = false;
  explicit Narrow(const float* values) : table(values) {}

  [[gnu::always_inline]] void load(const ChunkCodes& codes, int piece,
                                   Floats (&weights)[kSteps]) const {
    const std::uint8_t* words = codes.lines->bytes + 4 * kLanes * piece;
#  pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step) {
      auto index = shift_down(words, 16 * codes.half + 4 * step);
      weights[step] = table[index];
    }
  }

  tables::Table16 table;
};

struct Wide {
  static constexpr bool kWide = true;
  explicit Wide(const float* values) : table(values) {}

  [[gnu::always_inline]] void load(const ChunkCodes& codes, int piece,
                                   Floats (&weights)[kSteps]) const {
    table.block(codes.wide() + kSteps * kLanes * piece,
                [&](int step, Floats found)
                    __attribute__((always_inline)) { weights[step] = found; });
  }

  Table256 table;
};

// The weights of 8 rows of a chunk; splat() returns one of them in all lanes of a vector.
template <class Values, int kFirst>
struct Weights {
  Weights(const Values& values, const ChunkCodes& codes) {
    values.load(codes, kFirst / kLanes, found);
  }
  [[gnu::always_inline]] Floats splat(int row, int step) const {
    return splat_lane(found[step], kFirst % kLanes + row);
  }
  Floats found[kSteps];
};

template <class Values>
[[gnu::always_inline]] inline void add_chunk(const Line& positions, const ChunkCodes& codes,
                                             const TileTable& x, const Values& values,
                                             float* sums) {
  for (int piece = 0; piece < kPieces; ++piece, sums += kLanes) {
    Floats weights[kSteps], products[2] = {};
    values.load(codes, piece, weights);
    x.block(positions.bytes + kSteps * kLanes * piece,
            [&](int step, Floats found) __attribute__((always_inline)) {
              products[step % 2] = simd::mul_add(weights[step], found, products[step % 2]);
            });
    simd::store(sums, simd::load(sums) + (products[0] + products[1]));
  }
}

#else

struct TileTable {
  explicit TileTable(const float* from) { std::memcpy(values, from, sizeof values); }
  float values[Layout::kTilePitch];
};

// Looks up one value at a time.
template <bool kBytes>
struct Entries {
  static constexpr bool kWide = kBytes;
  explicit Entries(const float* from) : table(from) {}
  float at(const ChunkCodes& codes, int lane, int step) const {
    return table[kWide ? int(codes.wide()[Layout::byte_of(lane, step)]) : codes.narrow(lane, step)];
  }
  const float* table;
};
using Narrow = Entries<false>;
using Wide = Entries<true>;

template <class Values, int kFirst>
struct Weights {
  Weights(const Values& values, const ChunkCodes& codes) {
    for (int step = 0; step < kSteps; ++step)
      for (int row = 0; row < 8; ++row) found[step][row] = values.at(codes, kFirst + row, step);
  }
  [[gnu::always_inline]] simd::Vec<float> splat(int row, int step) const {
    return simd::splat(found[step][row]);
  }
  float found[kSteps][8];
};

template <class Values>
[[gnu::always_inline]] inline void add_chunk(const Line& positions, const ChunkCodes& codes,
                                             const TileTable& x, const Values& values,
                                             float* sums) {
#  pragma GCC unroll 16
  for (int lane = 0; lane < kStripRows; ++lane) {
    float product[2] = {};
#  pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step)
      product[step % 2] =
          simd::mul_add(values.at(codes, lane, step),
                        x.values[positions.bytes[Layout::byte_of(lane, step)]], product[step % 2]);
    sums[lane] += product[0] + product[1];
  }
}

#endif

// Adds the products of a tile's chunks to sums[16 strip + lane].
template <class Values>
void add_tile(const Layout::RowBlock& block, const Layout::Tile& tile, const TileTable& table,
              const Values& from, float* sums) {
  // How far ahead lines are fetched. With 6 KB one thread takes 145 µs for 1.7 million cold entries
  // of bench/sparse_codebook.py, without prefetching 170.
  constexpr index kAhead = 96;
  constexpr int kLines = Values::kWide ? 4 : 3;
  const TileTable x = table;
  const Values values = from;
  const Line* lines = block.pairs.data();
  const index last = index(block.pairs.size()) - 1, end = tile.first_pair + tile.n_pairs;
  const std::uint8_t* strips = block.strips.data();
  for (index p = tile.first_pair; p < end; ++p) {
    const Line* pair = lines + p * kLines;
    for (int i = 0; i < kLines; ++i) ff::prefetch(lines + std::min(p * kLines + kAhead + i, last));
    add_chunk(pair[0], {pair + 2, 0}, x, values, sums + kStripRows * strips[2 * p]);
    add_chunk(pair[1], {pair + 2, 1}, x, values, sums + kStripRows * strips[2 * p + 1]);
  }
}

}  // namespace ff::chunks

#pragma once
#include "kernels/codebook_tables.hpp"
#include "kernels/sparse_layout.hpp"

// Products of one chunk of a sparse layout with a tile of one input, by what the level can do best.
namespace ff::chunks {

using Layout = SparseLayout;
using Line = Layout::Line;

// Codes of a pair, as look-ups take them. A chunk's codes in the order of its positions or, narrow,
// the step's low four bits of every lane's word.
struct PairCodes {
  const Line* lines;  // those of the codes
  int half;

  const std::uint8_t* wide() const { return lines[half].bytes; }
  int narrow(int lane, int step) const {
    return lines[0].bytes[4 * lane + 2 * half + step / 2] >> 4 * (step % 2) & 15;
  }
};

#if defined(__AVX512VBMI__)

// A tile is a table of 256 floats, looked up 64 at a time by permutes of its bytes: no gathers.
using TileTable = tables::BytePlanes<8, 4>;

struct Narrow {
  static constexpr bool kWide = false;
  explicit Narrow(const float* values) : table(values) {}

  void load(const PairCodes& codes, tables::Floats (&weights)[4]) const {
    const __m512i words = _mm512_load_si512(codes.lines->bytes);
    const __m512i own = codes.half ? _mm512_srli_epi32(words, 16) : words;
#  pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) weights[step] = table[_mm512_srli_epi32(own, 4 * step)];
  }

  tables::Table16 table;
};

struct Wide {
  static constexpr bool kWide = true;
  explicit Wide(const float* values) : table(values) {}

  void load(const PairCodes& codes, tables::Floats (&weights)[4]) const {
    table.block(codes.wide(), [&](int step, auto found)
                                  __attribute__((always_inline)) { weights[step] = found; });
  }

  tables::BytePlanes<8, 4> table;
};

// Weights of a chunk, one at a time in all lanes of a vector.
template <class Values>
struct Weights {
  Weights(const Values& values, const PairCodes& codes) { values.load(codes, found); }
  [[gnu::always_inline]] tables::Floats splat(int lane, int step) const {
    return (tables::Floats)_mm512_permutexvar_ps(_mm512_set1_epi32(lane), (__m512)found[step]);
  }
  tables::Floats found[4];
};

template <class Values>
[[gnu::always_inline]] inline void add_chunk(const Line& positions, const PairCodes& codes,
                                             const TileTable& x, const Values& values,
                                             float* sums) {
  tables::Floats weights[4], products[2] = {};
  values.load(codes, weights);
  x.block(positions.bytes, [&](int step, auto found) __attribute__((always_inline)) {
    products[step % 2] = simd::mul_add(weights[step], found, products[step % 2]);
  });
  simd::store(sums, simd::load(sums) + (products[0] + products[1]));
}

#else

struct TileTable {
  explicit TileTable(const float* from) { std::memcpy(values, from, sizeof values); }
  float values[Layout::kTilePitch];
};

template <bool Wide_>
struct Scalar {
  static constexpr bool kWide = Wide_;
  explicit Scalar(const float* from) : table(from) {}
  float at(const PairCodes& codes, int lane, int step) const {
    return table[kWide ? int(codes.wide()[Layout::byte_of(lane, step)]) : codes.narrow(lane, step)];
  }
  const float* table;
};
using Narrow = Scalar<false>;
using Wide = Scalar<true>;

// Weights of a chunk, one at a time in all lanes of a vector.
template <class Values>
struct Weights {
  Weights(const Values& values, const PairCodes& codes) {
    for (int step = 0; step < 4; ++step)
      for (int lane = 0; lane < 16; ++lane) found[16 * step + lane] = values.at(codes, lane, step);
  }
  [[gnu::always_inline]] simd::Vec<float> splat(int lane, int step) const {
    return simd::splat(found[16 * step + lane]);
  }
  float found[64];
};

template <class Values>
[[gnu::always_inline]] inline void add_chunk(const Line& positions, const PairCodes& codes,
                                             const TileTable& x, const Values& values,
                                             float* sums) {
#  pragma GCC unroll 16
  for (int lane = 0; lane < 16; ++lane) {
    float product[2] = {};
#  pragma GCC unroll 4
    for (int step = 0; step < 4; ++step)
      product[step % 2] =
          simd::mul_add(values.at(codes, lane, step),
                        x.values[positions.bytes[Layout::byte_of(lane, step)]], product[step % 2]);
    sums[lane] += product[0] + product[1];
  }
}

#endif

// sums[16 strip + lane] += what the tile's chunks give.
template <class Values>
void add_tile(const Layout::RowBlock& block, const Layout::Tile& tile, const TileTable& table,
              const Values& from, float* sums) {
  constexpr int kLines = Values::kWide ? 4 : 3;
  const TileTable x = table;
  const Values values = from;
  const Line* pair = block.pairs.data() + tile.first_pair * kLines;
  const std::uint8_t* strips = block.strips.data() + tile.first_pair * 2;
  for (std::int32_t p = 0; p < tile.n_pairs; ++p, pair += kLines, strips += 2) {
    add_chunk(pair[0], {pair + 2, 0}, x, values, sums + 16 * strips[0]);
    add_chunk(pair[1], {pair + 2, 1}, x, values, sums + 16 * strips[1]);
  }
}

}  // namespace ff::chunks

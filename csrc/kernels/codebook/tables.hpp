#pragma once
#include <algorithm>
#include <cstring>

#include "core/simd.hpp"
#include "core/types.hpp"

// Scalar codebooks in registers: permutes turn a block of codes into their values. The values of a
// block come in the cheapest order; column(position) returns the column of each, and x is brought
// into this order once.
namespace ff::tables {

using Floats = simd::Vec<float>;
inline constexpr int kLanes = simd::kLanes<float>;

#if defined(__AVX512F__)
struct Table16 {
  explicit Table16(const float* values) : table(_mm512_loadu_ps(values)) {}
  Floats operator[](__m512i index) const {  // the low four bits of each lane count
    return (Floats)_mm512_permutexvar_ps(index, table);
  }
  __m512 table;
};

#elif defined(__AVX2__)
struct Table16 {
  explicit Table16(const float* values)
      : low(_mm256_loadu_ps(values)), high(_mm256_loadu_ps(values + 8)) {}
  Floats operator[](__m256i index) const {
    const __m256 from_low = _mm256_permutevar8x32_ps(low, index);
    const __m256 from_high = _mm256_permutevar8x32_ps(high, index);
    return (Floats)_mm256_blendv_ps(from_low, from_high,
                                    _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
  }
  __m256 low, high;
};
#endif

#if defined(__AVX2__)
// Codes of 1, 2 or 4 bits in their packed form: a 32-bit lane holds 32 / Bits of them, and step s
// shifts code s of every lane down. Look-ups use four bits, so a table with fewer entries is
// repeated.
template <int Bits>
struct Nibbles {
  static constexpr bool kPacked = true;
  static constexpr index kCodesLane = 32 / Bits, kBlock = kLanes * kCodesLane;

  explicit Nibbles(const float* values) : table(repeat(values).data) {}

  static index column(index position) { return position % kLanes * kCodesLane + position / kLanes; }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* codes, Sink&& sink) const {
#  if defined(__AVX512F__)
    const __m512i lanes = _mm512_loadu_si512(codes);
#    pragma GCC unroll 32
    for (int s = 0; s < kCodesLane; ++s) sink(s, table[_mm512_srli_epi32(lanes, s * Bits)]);
#  else
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
#    pragma GCC unroll 32
    for (int s = 0; s < kCodesLane; ++s) {
      __m256i index = _mm256_srli_epi32(lanes, s * Bits);
      sink(s, table[index]);
    }
#  endif
  }

 private:
  struct Repeated {
    float data[16];
  };
  static Repeated repeat(const float* values) {
    Repeated all;
    for (int i = 0; i < 16; ++i) all.data[i] = values[i & ((1 << Bits) - 1)];
    return all;
  }

  Table16 table;
};

// Codes of one byte each; values are gathered from memory.
struct Gathered {
  static constexpr bool kPacked = false;
  static constexpr index kBlock = kLanes;

  explicit Gathered(const float* values) : table(values) {}
  static index column(index position) { return position; }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* codes, Sink&& sink) const {
#  if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    sink(0, (Floats)_mm512_i32gather_ps(_mm512_cvtepu8_epi32(bytes), table, 4));
#  else
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    sink(0, (Floats)_mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(bytes), 4));
#  endif
  }

  const float* table;
};
#endif

#if defined(__SSSE3__) && !defined(__AVX2__)
// Codes of 1, 2 or 4 bits by byte shuffles: a table of 16 entries for each byte of the values.
template <int Bits>
struct ByteShuffles {
  static constexpr bool kPacked = true;
  static constexpr index kCodesByte = 8 / Bits, kBlock = 16 * kCodesByte;

  explicit ByteShuffles(const float* values) {
    alignas(16) std::uint8_t planes[4][16] = {};
    for (int i = 0; i < 1 << Bits; ++i) {
      std::uint8_t bytes[4];
      std::memcpy(bytes, values + i, 4);
      for (int p = 0; p < 4; ++p) planes[p][i] = bytes[p];
    }
    for (int p = 0; p < 4; ++p)
      table[p] = _mm_load_si128(reinterpret_cast<const __m128i*>(planes[p]));
  }

  // A step gives code s of each of 16 bytes, in four vectors of four bytes each.
  static index column(index position) { return position % 16 * kCodesByte + position / 16; }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* codes, Sink&& sink) const {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __m128i mask = _mm_set1_epi8((1 << Bits) - 1);
#  pragma GCC unroll 8
    for (int s = 0; s < kCodesByte; ++s) {
      const __m128i index = _mm_and_si128(_mm_srli_epi16(bytes, s * Bits), mask);
      const __m128i b0 = _mm_shuffle_epi8(table[0], index), b1 = _mm_shuffle_epi8(table[1], index);
      const __m128i b2 = _mm_shuffle_epi8(table[2], index), b3 = _mm_shuffle_epi8(table[3], index);
      const __m128i low0 = _mm_unpacklo_epi8(b0, b1), high0 = _mm_unpacklo_epi8(b2, b3);
      const __m128i low1 = _mm_unpackhi_epi8(b0, b1), high1 = _mm_unpackhi_epi8(b2, b3);
      sink(4 * s, (Floats)_mm_unpacklo_epi16(low0, high0));
      sink(4 * s + 1, (Floats)_mm_unpackhi_epi16(low0, high0));
      sink(4 * s + 2, (Floats)_mm_unpacklo_epi16(low1, high1));
      sink(4 * s + 3, (Floats)_mm_unpackhi_epi16(low1, high1));
    }
  }

  __m128i table[4];
};
#endif

#if defined(__AVX512F__)
// Codes of up to 6 bits, one per byte: 32 entries are two registers and one permute.
template <int Entries>
struct Permuted {
  static_assert(Entries == 32 || Entries == 64);
  static constexpr bool kPacked = false;
  static constexpr index kBlock = kLanes;

  explicit Permuted(const float* values) {
    for (int i = 0; i < Entries / 16; ++i) table[i] = _mm512_loadu_ps(values + 16 * i);
  }
  static index column(index position) { return position; }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* codes, Sink&& sink) const {
    const __m512i index =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    __m512 value = _mm512_permutex2var_ps(table[0], index, table[1]);
    if constexpr (Entries == 64) {
      const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
      value = _mm512_mask_mov_ps(value, upper, _mm512_permutex2var_ps(table[2], index, table[3]));
    }
    sink(0, (Floats)value);
  }

  __m512 table[Entries / 16];
};
#endif

#if defined(__AVX512VBMI__)
// One table for each byte of the values: a permute looks up 64 bytes, and the bytes are then
// joined. Values widened from 16 bits have zeros as low bytes, which need no table: Bytes is the
// number of upper bytes that do (bfloat16 2, float16 3). Codes of 8 bits are bytes already. For
// shorter codes, eight codes are spread to eight bytes and shifted. Look-ups use six bits, so
// tables with fewer entries are repeated; codes of 7 and 8 bits have tables of two and four
// registers.
template <int Bits, int Bytes>
struct BytePlanes {
  static_assert(Bits <= 8);
  static constexpr bool kPacked = true;
  static constexpr index kBlock = 64;
  static constexpr int kRegisters = Bits == 8 ? 4 : Bits == 7 ? 2 : 1;

  explicit BytePlanes(const float* values) {
    float repeated[64];
    if (Bits < 6) {
      for (int i = 0; i < 64; ++i) repeated[i] = values[i & ((1 << Bits) - 1)];
      values = repeated;
    }
    for (int q = 0; q < kRegisters; ++q) split(values + 64 * q, q);
    alignas(64) std::uint8_t bytes[64], shifts[64];
    for (int i = 0; i < 64; ++i) {
      bytes[i] = std::uint8_t(std::min(i / 8 * Bits + i % 8, 8 * Bits - 1));
      shifts[i] = std::uint8_t(i % 8 * Bits);
    }
    spread = _mm512_load_si512(bytes);
    shift = _mm512_load_si512(shifts);
  }

  // Two rounds of interleaving put a quarter of each 128-bit lane into each vector.
  static index column(index position) {
    const index vector = position / 16, lane = position % 16 / 4;
    return 16 * lane + 4 * vector + position % 4;
  }

  template <class Sink>
  [[gnu::always_inline]] void block(const std::uint8_t* codes, Sink&& sink) const {
    values(indices(codes), sink);
  }

  template <class Sink>
  [[gnu::always_inline]] void values(__m512i index, Sink&& sink) const {
    const __m512i zero = _mm512_setzero_si512();
    const __mmask64 upper = _mm512_movepi8_mask(index);
    const auto plane = [&](int p) __attribute__((always_inline)) -> __m512i {
      p -= 4 - Bytes;
      if (p < 0) return zero;
      if constexpr (Bits < 7) return _mm512_permutexvar_epi8(index, table[p][0]);
      else if constexpr (Bits == 7)
        return _mm512_permutex2var_epi8(table[p][0], index, table[p][1]);
      else
        return _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(table[p][0], index, table[p][1]),
                                    upper,
                                    _mm512_permutex2var_epi8(table[p][2], index, table[p][3]));
    };
    const __m512i b0 = plane(0), b1 = plane(1), b2 = plane(2), b3 = plane(3);
    const __m512i high_low = _mm512_unpacklo_epi8(b2, b3), high_high = _mm512_unpackhi_epi8(b2, b3);
    const __m512i low_low = Bytes > 2 ? _mm512_unpacklo_epi8(b0, b1) : zero;
    const __m512i low_high = Bytes > 2 ? _mm512_unpackhi_epi8(b0, b1) : zero;
    sink(0, (Floats)_mm512_unpacklo_epi16(low_low, high_low));
    sink(1, (Floats)_mm512_unpackhi_epi16(low_low, high_low));
    sink(2, (Floats)_mm512_unpacklo_epi16(low_high, high_high));
    sink(3, (Floats)_mm512_unpackhi_epi16(low_high, high_high));
  }

  __m512i indices(const std::uint8_t* codes) const {
    if constexpr (Bits == 8) return _mm512_loadu_si512(codes);
    constexpr __mmask64 kOwn = (std::uint64_t(1) << (8 * Bits % 64)) - 1;  // only the block
    const __m512i packed = _mm512_maskz_loadu_epi8(kOwn, codes);
    return _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(spread, packed));
  }

  // Splits 64 values into their bytes: first within each lane, then across the four lanes of each
  // of four vectors.
  void split(const float* values, int q) {
    const __m512i by_byte = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    const __m512i low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(2));
    __m512i v[4];
    for (int i = 0; i < 4; ++i)
      v[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(values + 16 * i), by_byte);
    const __m512i low01 = _mm512_permutex2var_epi32(v[0], low, v[1]);
    const __m512i low23 = _mm512_permutex2var_epi32(v[2], low, v[3]);
    const __m512i high01 = _mm512_permutex2var_epi32(v[0], high, v[1]);
    const __m512i high23 = _mm512_permutex2var_epi32(v[2], high, v[3]);
    const __m512i planes[4] = {
        _mm512_shuffle_i64x2(low01, low23, 0x44), _mm512_shuffle_i64x2(low01, low23, 0xee),
        _mm512_shuffle_i64x2(high01, high23, 0x44), _mm512_shuffle_i64x2(high01, high23, 0xee)};
    for (int p = 0; p < Bytes; ++p) table[p][q] = planes[4 - Bytes + p];
  }

  __m512i table[Bytes][kRegisters], spread, shift;
};
#endif

}  // namespace ff::tables

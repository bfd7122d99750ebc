#pragma once
#include <algorithm>
#include <utility>

#include "core/simd.hpp"
#include "core/types.hpp"
#include "kernels/codebook/tables.hpp"

// Multiplies a few rows of W with a few inputs, with every sum in a register: each loaded value of
// x is used for all the rows and each value of W for all the inputs.
namespace ff::tiles {

using tables::Floats;
using tables::kLanes;

inline constexpr int kRows = 3;
inline constexpr int kInputs = simd::kBytes == 64 ? 8 : 4;  // 24 or 12 sums

// kColumns: columns whose products go into one short sum. kSpans: short sums that go into one
// longer sum. This makes at most 128 + 16 + 4 roundings, 9e-6, before the rest is added in double.
inline constexpr index kColumns = std::min(1024, 128 * kLanes);
inline constexpr index kSpans = 16;

// Rows that are already decoded in memory.
struct Decoded {
  static constexpr int kVectors = 1;

  void go_on(int) { first += kLanes; }
  Floats values(int row, int) const { return simd::load(first + row * pitch); }

  const float* first;
  index pitch;
};

#if defined(__AVX512F__)
// Rows that are decoded while they are multiplied: one more permute for each vector of W costs less
// than storing and loading it. 4096 × 4096 codes of 4 bits with 8 inputs on one thread of Zen 5
// take 1.5 ms, and 2.9 ms when decoded into L1 first; the multiply-adds alone would take 1.25 ms at
// peak speed.
template <int Bits>
struct Packed {
  using Table = tables::Nibbles<Bits>;
  static constexpr int kVectors = int(Table::kCodesLane);

  void go_on(int n_rows) {
    for (int r = 0; r < n_rows; ++r) _mm_prefetch(codes + r * pitch + ahead, _MM_HINT_T0);
    codes += 64;
  }
  Floats values(int row, int vector) const {
    const __m512i lanes = _mm512_loadu_si512(codes + row * pitch);
    const __m512 table = _mm512_load_ps(tables + row * 16);
    return (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(lanes, vector * Bits), table);
  }

  const std::uint8_t* codes;
  index pitch;
  const float* tables;  // [row][16], aligned
  index ahead;          // distance from the codes in use to those to fetch
};
#endif

// Keeps a loaded value in its register: compilers like to fold the load into each multiply-add that
// uses it, and the loop is then limited by loads. (The packed product above takes 1.5 ms like that
// and 1.3 ms with this.)
inline void hold([[maybe_unused]] Floats& v) {
#if defined(__SSE2__)
  asm("" : "+v"(v));
#endif
}

// Computes sums[r·kInputs + b] += Σ_k w[r][k] x[k][b] over `blocks` blocks of kVectors vectors.
template <int R, int B, class Source>
void multiply(Source w, const float* x, index blocks, Floats* sums) {
  Floats sum[R][B] = {};
  for (index k = 0; k < blocks; ++k, w.go_on(R), x += Source::kVectors * B * kLanes) {
#pragma GCC unroll 32
    for (int v = 0; v < Source::kVectors; ++v) {
      Floats wk[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) wk[r] = w.values(r, v);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        Floats xk = simd::load(x + (v * B + b) * kLanes);
        hold(xk);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) sum[r][b] = simd::mul_add(wk[r], xk, sum[r][b]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r * kInputs + b] = sums[r * kInputs + b] + sum[r][b];
}

template <class Source>
using Product = void (*)(Source, const float*, index, Floats*);

namespace detail {
template <class Source, int R, int... B>
Product<Source> product(int n_inputs, std::integer_sequence<int, B...>) {
  static constexpr Product<Source> all[] = {multiply<R, B + 1, Source>...};
  return all[n_inputs - 1];
}
}  // namespace detail

// Returns multiply() for kRows rows or for one, and for n_inputs ≤ kInputs inputs. Left-over rows
// are multiplied one by one: there are at most two of them, and a version for two rows would add a
// third to what has to be compiled here.
template <class Source>
Product<Source> product(index n_rows, index n_inputs) {
  const auto sizes = std::make_integer_sequence<int, kInputs>();
  if (n_rows == kRows) return detail::product<Source, kRows>(int(n_inputs), sizes);
  return detail::product<Source, 1>(int(n_inputs), sizes);
}

}  // namespace ff::tiles

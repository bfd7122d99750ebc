#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/types.hpp"

#if defined(__SSE2__)
#  include <immintrin.h>
#endif

// The widest vectors of the level that is being compiled, by the vector extensions that GCC and
// Clang share. Rounding is explicit: mul_add rounds once on levels with FMA and twice on others,
// and the scalar form rounds like the vector form, so a tail gives the same bits as a full vector.
namespace ff::simd {

#if defined(FASTFACTOR_BINDINGS)
#  error "bindings are compiled once for all levels: what they include must not depend on the level"
#endif

#if defined(__AVX512F__)
inline constexpr int kBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kBytes = 32;
#else
inline constexpr int kBytes = 16;
#endif

namespace detail {
template <class T>
struct Types;
template <>
struct Types<float> {
  typedef float Vec __attribute__((vector_size(kBytes)));
  typedef std::int32_t Int;
};
template <>
struct Types<double> {
  typedef double Vec __attribute__((vector_size(kBytes)));
  typedef std::int64_t Int;
};
template <>
struct Types<std::int32_t> {
  typedef std::int32_t Vec __attribute__((vector_size(kBytes)));
  typedef std::int32_t Int;
};
template <>
struct Types<std::int64_t> {
  typedef std::int64_t Vec __attribute__((vector_size(kBytes)));
  typedef std::int64_t Int;
};
}  // namespace detail

template <class T>
using Vec = typename detail::Types<T>::Vec;
template <class T>  // the integer as wide as T: what comparisons of Vec<T> give
using Int = typename detail::Types<T>::Int;
template <class T>
inline constexpr int kLanes = kBytes / int(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x − 0 keeps every bit of x, the sign of zero included
}

template <class T>
inline Vec<T> iota() {
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = T(i);
  return v;
}

// A full vector of doubles from the numbers at p.
inline Vec<double> load_wide(const double* p) {
  return load(p);
}

inline Vec<double> load_wide(const float* p) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return Vec<double>{double(p[0]), double(p[1])};
#endif
}

// a·b + c
inline float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline double mul_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

inline Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < kLanes<float>; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

inline Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < kLanes<double>; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

// Multiplies the lower halves of the lanes as unsigned numbers.
inline Vec<std::int64_t> multiply_low_halves(Vec<std::int64_t> a, Vec<std::int64_t> b) {
#if defined(__AVX512F__)
  return (Vec<std::int64_t>)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Vec<std::int64_t>)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Vec<std::int64_t>)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  for (int i = 0; i < kLanes<std::int64_t>; ++i)
    a[i] = std::int64_t(std::uint64_t(std::uint32_t(a[i])) * std::uint32_t(b[i]));
  return a;
#endif
}

// min is a < b ? a : b and max is a > b ? a : b, with the operand order of minps and maxps.
template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}

template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

// The same for floats and doubles, in one instruction: GCC 12 compiles the form above to a
// comparison and a blend, which doubles the latency of a running maximum.
inline Vec<float> min(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

inline Vec<float> max(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec<double> min(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_min_pd((__m128d)a, (__m128d)b);
#else
  return a < b ? a : b;
#endif
}

inline Vec<double> max(Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec<float> abs(Vec<float> v) {
  return (Vec<float>)((Vec<std::int32_t>)v & splat<std::int32_t>(0x7fffffff));
}

inline Vec<double> abs(Vec<double> v) {
  return (Vec<double>)((Vec<std::int64_t>)v & splat<std::int64_t>(0x7fffffffffffffff));
}

namespace detail {
// Lane i takes lane (i + Shift) mod lanes.
template <int Shift, class T, int... I>
inline Vec<T> rotate(Vec<T> v, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, ((I + Shift) % int(sizeof...(I)))...);
#else
  return __builtin_shuffle(v, Vec<Int<T>>{((I + Shift) % int(sizeof...(I)))...});
#endif
}

template <int By, class V, int... I>
inline V exclusive_or(V v, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (I ^ By)...);
#else
  return __builtin_shuffle(v, Vec<std::int32_t>{(I ^ By)...});
#endif
}

template <int First, class V, int... I>
inline V every_other(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * I + First)...);
#else
  return __builtin_shuffle(a, b, Vec<std::int32_t>{(2 * I + First)...});
#endif
}

template <class T, int Shift, class Op>
inline T fold(Vec<T> v, Op op) {
  v = op(v, rotate<Shift, T>(v, std::make_integer_sequence<int, kLanes<T>>()));
  if constexpr (Shift > 1) return fold<T, Shift / 2>(v, op);
  else return v[0];
}
}  // namespace detail

// Lane i takes lane i ^ By.
template <int By>
inline Vec<float> exclusive_or_lanes(Vec<float> v) {
  if constexpr (By == 0) return v;
  else return detail::exclusive_or<By>(v, std::make_integer_sequence<int, kLanes<float>>());
}

// The even (First 0) or odd (1) lanes of a, then those of b.
template <int First>
inline Vec<float> every_other(Vec<float> a, Vec<float> b) {
  return detail::every_other<First>(a, b, std::make_integer_sequence<int, kLanes<float>>());
}

template <class T>
inline T reduce_min(Vec<T> v) {
  return detail::fold<T, kLanes<T> / 2>(v, [](Vec<T> a, Vec<T> b) { return min(a, b); });
}

template <class T>
inline T reduce_max(Vec<T> v) {
  return detail::fold<T, kLanes<T> / 2>(v, [](Vec<T> a, Vec<T> b) { return max(a, b); });
}

// The sum of the lanes. Halves are added to halves, so the order of additions is fixed.
template <class T>
inline T reduce_add(Vec<T> v) {
  return detail::fold<T, kLanes<T> / 2>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}

// Bit i is whether lane i of a comparison's result is set.
inline unsigned mask_bits(Vec<std::int32_t> m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX2__)
  return unsigned(_mm256_movemask_ps((__m256)m));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_ps((__m128)m));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<std::int32_t>; ++i) bits |= unsigned(m[i] != 0) << i;
  return bits;
#endif
}

inline unsigned mask_bits(Vec<std::int64_t> m) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask((__m512i)m);
#elif defined(__AVX2__)
  return unsigned(_mm256_movemask_pd((__m256d)m));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_pd((__m128d)m));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<std::int64_t>; ++i) bits |= unsigned(m[i] != 0) << i;
  return bits;
#endif
}

// Bit i is whether a[i] < b[i].
inline unsigned less_bits(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#else
  return mask_bits((Vec<std::int32_t>)(a < b));
#endif
}

inline unsigned less_bits(Vec<std::int32_t> a, Vec<std::int32_t> b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b);
#else
  return mask_bits((Vec<std::int32_t>)(a < b));
#endif
}

inline unsigned less_bits(Vec<std::int64_t> a, Vec<std::int64_t> b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi64_mask((__m512i)a, (__m512i)b);
#else
  return mask_bits((Vec<std::int64_t>)(a < b));
#endif
}

// Writes the lanes whose bit is set, one after the other from p on, and returns their number. May
// write up to a whole vector: it compresses in a register, because the compressing store is slow on
// Zen 4 and 5.
inline int compress(std::int32_t* p, Vec<std::int32_t> v, unsigned bits) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(__mmask16(bits), (__m512i)v));
#else
  std::int32_t lanes[kLanes<std::int32_t>];
  store(lanes, v);
  for (unsigned left = bits; left; left &= left - 1) *p++ = lanes[__builtin_ctz(left)];
#endif
  return __builtin_popcount(bits);
}

inline int compress(std::int64_t* p, Vec<std::int64_t> v, unsigned bits) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi64(__mmask8(bits), (__m512i)v));
#else
  std::int64_t lanes[kLanes<std::int64_t>];
  store(lanes, v);
  for (unsigned left = bits; left; left &= left - 1) *p++ = lanes[__builtin_ctz(left)];
#endif
  return __builtin_popcount(bits);
}

// Writes lanes [first, first + count) of v to p, p + 1, … and nothing else; count is at least 1.
inline void store_lanes(float* p, Vec<float> v, int first, int count) {
#if defined(__AVX512F__)
  const auto mask = __mmask16(((1u << count) - 1) << first);
  _mm512_mask_storeu_ps(p - first, mask, (__m512)v);
#elif defined(__AVX2__)
  const Vec<std::int32_t> lane = iota<std::int32_t>() - first;
  const auto mask = (lane >= 0) & (lane < count);
  _mm256_maskstore_ps(p - first, (__m256i)mask, (__m256)v);
#else
  float lanes[kLanes<float>];
  store(lanes, v);
  std::memcpy(p, lanes + first, std::size_t(count) * sizeof(float));
#endif
}

}  // namespace ff::simd

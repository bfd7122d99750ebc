#pragma once
#include "core/bytes.hpp"
#include "core/simd.hpp"

namespace ff {

namespace detail {

// Multiply with carry: x = carry · 2^32 + low ↦ low · kFactor + carry. Different x below
// kFactor · 2^32 have different results.
inline constexpr std::uint64_t kFactor = 0xffffffe5u;

inline std::uint64_t sum_step(std::uint64_t sum, std::uint64_t word) {
  sum ^= word;
  return (sum & 0xffffffffu) * kFactor + (sum >> 32);
}

inline simd::Vec<std::int64_t> sum_step(simd::Vec<std::int64_t> sum,
                                        simd::Vec<std::int64_t> words) {
  using Lanes = simd::Vec<std::int64_t>;
  typedef std::uint64_t Unsigned __attribute__((vector_size(sizeof(Lanes))));
  sum ^= words;
  const Lanes product =
      simd::multiply_low_halves(sum, simd::splat<std::int64_t>(std::int64_t(kFactor)));
  return (Lanes)((Unsigned)product + ((Unsigned)sum >> 32));
}

}  // namespace detail

// A checksum of 32 bits, which protects against accidents but not against an attacker. Every step
// but the last is practically one to one: a changed word changes its lane, and the lane changes the
// 64-bit sum. The last step, 64 bits to 32, hides one change in 2^32. Sixteen lanes are at least
// two vectors at every width, whose latencies overlap; the result is the same on every processor.
inline std::uint32_t checksum(const std::uint8_t* data, index size, std::uint64_t seed) {
  constexpr int kSumLanes = 16;
  constexpr int kWidth = simd::kLanes<std::int64_t>, kVectors = kSumLanes / kWidth;
  std::int64_t lanes[kSumLanes];
  for (int i = 0; i < kSumLanes; ++i)
    lanes[i] = std::int64_t(seed + std::uint64_t(i) * 0x9e3779b97f4a7c15u);
  simd::Vec<std::int64_t> sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = simd::load(lanes + v * kWidth);
  index at = 0;
  for (; at + 8 * kSumLanes <= size; at += 8 * kSumLanes)
    for (int v = 0; v < kVectors; ++v) {
      std::int64_t words[kWidth];
      for (int i = 0; i < kWidth; ++i)
        words[i] = std::int64_t(load64(data + at + 8 * (v * kWidth + i)));
      sums[v] = detail::sum_step(sums[v], simd::load(words));
    }
  for (int v = 0; v < kVectors; ++v) simd::store(lanes + v * kWidth, sums[v]);
  std::uint64_t all = detail::sum_step(seed, std::uint64_t(size));
  for (; at + 8 <= size; at += 8) all = detail::sum_step(all, load64(data + at));
  std::uint64_t rest = 0;
  for (int i = 0; at + i < size; ++i) rest |= std::uint64_t(data[at + i]) << 8 * i;
  all = detail::sum_step(all, rest);
  for (int i = 0; i < kSumLanes; ++i) all = detail::sum_step(all, std::uint64_t(lanes[i]));
  all = (all ^ all >> 32) * 0xd6e8feb86659fd93u;
  return std::uint32_t(all >> 32);
}

// A fuzzer would hardly find data with a matching checksum, so builds for fuzzing accept any.
inline bool checksum_fits(const std::uint8_t* data, index size, std::uint64_t seed,
                          std::uint32_t expected) {
#if defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
  (void)expected;
  return checksum(data, size, seed) <= 0xffffffffu;
#else
  return checksum(data, size, seed) == expected;
#endif
}

}  // namespace ff

#pragma once
#include <cstdint>

namespace ff {

// Random numbers that are a function of (seed, stream, counter), so the order in which threads draw
// does not matter. Each of the three is mixed in by the finaliser of SplitMix64 (Steele, Lea, Flood
// 2014).
inline std::uint64_t mix64(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : key_(mix64(mix64(seed) ^ stream)) {}

  std::uint64_t bits() { return mix64(key_ ^ mix64(counter_++)); }

  // Uniform in [0, 1), 53 bits.
  double uniform() { return double(bits() >> 11) * 0x1p-53; }

  // Uniform in [0, n): the high word of a 128-bit product. Its bias, n / 2⁶⁴, is negligible.
  std::uint64_t below(std::uint64_t n) {
    return std::uint64_t((static_cast<unsigned __int128>(bits()) * n) >> 64);
  }

 private:
  std::uint64_t key_;
  std::uint64_t counter_ = 0;
};

}  // namespace ff

#pragma once
#include <algorithm>
#include <cstdint>

#include "core/types.hpp"

// The stored form of trellis-coded levels: buckets of magnitudes, Ungerboeck's code of 64 states
// (1982) and the classes of weights, whose tables give the cost of a level.
//
// Two quantizers with step 2, shifted by 1, share a grid of step 1 (Marcellin and Fischer, 1990;
// entropy-coded: Fischer and Wang, 1992; zero in both: Joshi, Fischer and Marcellin, 1995). A row
// starts in state 0; the parity of each level leads to the next state, whose lowest bit selects the
// quantizer. A level's context is twice its class plus that bit.
namespace ff::trellis {

inline constexpr int kStates = 64;
inline constexpr int kLargest = 65535;  // magnitude of a level
inline constexpr int kDirect = 16;      // magnitudes with their own bucket
inline constexpr int kBuckets = kDirect + 8 * 12;
inline constexpr int kSymbols = 2 * kBuckets - 1;  // signed buckets: 0, +1, −1, +2, …
inline constexpr int kCenters = 3;                 // for magnitudes 1, 2, and more
inline constexpr int kMostClasses = 128;

// Parity checks 103 and 024 (octal). A state's quantizer does not depend on the last parity, so the
// context of the next level is known before this level is read.
inline constexpr int kFeedback = 0103 >> 1, kInput = 024 >> 1;

inline constexpr int next_state(int state, int parity) {
  return state >> 1 ^ kFeedback * (state & 1) ^ kInput * parity;
}
// Returns the state that leads to this one by a parity; its quantizer is this state's highest bit.
inline constexpr int state_before(int state, int parity) {
  const int quantizer = state >> 5;
  return 2 * ((state & 31) ^ (kFeedback & 31) * quantizer ^ kInput * parity) + quantizer;
}

// Returns the number of plain bits: above kDirect there are eight buckets per octave, and plain
// bits select the magnitude within the bucket.
inline constexpr int plain_bits(int bucket) {
  return bucket < kDirect ? 0 : (bucket - kDirect) / 8 + 1;
}
inline constexpr int first_of(int bucket) {
  return bucket < kDirect ? bucket : (8 + bucket % 8) << plain_bits(bucket);
}
inline int bucket_of(int magnitude) {
  if (magnitude < kDirect) return magnitude;
  const int shift = 28 - __builtin_clz(unsigned(magnitude));
  return kDirect + 8 * (shift - 1) + (magnitude >> shift) - 8;
}

// Returns the place of a level in units of the grid; `center` is how far its point is moved
// outwards.
inline float point_of(int magnitude, int quantizer, float center) {
  return magnitude ? float(2 * magnitude - quantizer) + center : 0.0f;
}

// The class of each weight, from 4 log₂ of the scales of its column and of its row.
struct Classes {
  const std::int8_t* columns = nullptr;
  index cols = 0;
  int shift = 0, count = 1;

  // Writes twice the class of each weight of a row.
  void twice(int row_log, std::uint8_t* out) const {
    const int most = count - 1, by = shift;
    for (index j = 0; j < cols; ++j)
      out[j] = std::uint8_t(2 * std::clamp((columns[j] + row_log) >> by, 0, most));
  }
};

}  // namespace ff::trellis

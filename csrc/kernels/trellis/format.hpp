#pragma once
#include <algorithm>
#include <cstdint>

#include "core/types.hpp"

// Trellis-coded levels as they are stored: buckets of magnitudes, Ungerboeck's code of 64 states
// (1982) and the classes of weights, whose tables say what a level takes.
//
// Two quantizers with step 2, shifted by 1, share a grid of step 1 (Marcellin and Fischer, 1990;
// entropy-coded: Fischer and Wang, 1992; zero in both: Joshi, Fischer and Marcellin, 1995). A row
// starts in state 0; the parity of each level leads to the next state, whose lowest bit is the
// quantizer. A level's context is twice its class plus that bit.
namespace ff::trellis {

inline constexpr int kStates = 64;
inline constexpr int kLargest = 65535;  // magnitude of a level
inline constexpr int kDirect = 16;      // magnitudes with a bucket of their own
inline constexpr int kBuckets = kDirect + 8 * 12;
inline constexpr int kSymbols = 2 * kBuckets - 1;  // 0, +1, −1, +2, …: of buckets, signed
inline constexpr int kCenters = 3;                 // of magnitudes 1, 2, and more
inline constexpr int kMostClasses = 128;

// Parity checks 103 and 024 (octal). A state's quantizer does not depend on the parity before it,
// so that the context of the next level is known before this one is read.
inline constexpr int kFeedback = 0103 >> 1, kInput = 024 >> 1;

inline constexpr int next_state(int state, int parity) {
  return state >> 1 ^ kFeedback * (state & 1) ^ kInput * parity;
}
// What leads to a state by a parity: its quantizer is the state's highest bit.
inline constexpr int state_before(int state, int parity) {
  const int quantizer = state >> 5;
  return 2 * ((state & 31) ^ (kFeedback & 31) * quantizer ^ kInput * parity) + quantizer;
}

// Above kDirect, eight buckets an octave; which of its magnitudes it is, plain bits say.
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

// Where a level lies in units of the grid; `center` says how far off its point outwards.
inline float point_of(int magnitude, int quantizer, float center) {
  return magnitude ? float(2 * magnitude - quantizer) + center : 0.0f;
}

// The class of a weight from 4 log₂ of the scales of its column and of its row.
struct Classes {
  const std::int8_t* columns = nullptr;
  index cols = 0;
  int shift = 0, count = 1;

  // Twice the class of each weight of a row.
  void twice(int row_log, std::uint8_t* out) const {
    const int most = count - 1, by = shift;
    for (index j = 0; j < cols; ++j)
      out[j] = std::uint8_t(2 * std::clamp((columns[j] + row_log) >> by, 0, most));
  }
};

}  // namespace ff::trellis

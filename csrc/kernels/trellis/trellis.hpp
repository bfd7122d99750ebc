#pragma once
#include <cstdint>

#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/trellis/format.hpp"

namespace ff {

// What levels are chosen by: of each context (2 · class + quantizer) the bits that a level of each
// bucket takes, and how far reconstructions lie from their points of the grid, outwards.
struct TrellisCosts {
  trellis::Classes classes;
  const float* bits = nullptr;     // (contexts, kBuckets)
  const float* centers = nullptr;  // (contexts, kCenters)
  float rate_weight = 0;           // of a bit, in squared steps
};

inline constexpr int kTrellisPlaces = trellis::kCenters + 1;  // magnitudes 0, 1, 2, and more
inline constexpr int kTrellisSums = 3;                        // of weights · away^0, ^1, ^2

// Levels of least Σ weight · (value − reconstruction)² + rate_weight · bits, row by row, by the
// Viterbi algorithm in float32; values are in units of `step`. Of equal costs the even level is
// taken, then the smaller one, then the lowest last state. Adds up what came of it: of each context
// how often each bucket came, and over each of its kTrellisPlaces the sums of weight, weight · away
// and weight · away², away = |value| − |point of the grid|, in float64 by chunks of rows. Throws
// std::invalid_argument where a value is not finite. `levels` may be null.
void trellis_quantize(const MatrixView& values, float step, const MatrixView& weights,
                      const std::int32_t* row_logs, const TrellisCosts& costs, std::int32_t* levels,
                      std::int64_t* counts, double* sums, int n_threads, Stop& stop);

}  // namespace ff

#pragma once
#include <cstdint>

#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/trellis/format.hpp"

namespace ff {

// The costs by which levels are chosen. For each context (2 · class + quantizer): the bits that a
// level of each bucket takes, and how far reconstructions lie outwards from their points of the
// grid.
struct TrellisCosts {
  trellis::Classes classes;
  const float* bits = nullptr;     // (contexts, kBuckets)
  const float* centers = nullptr;  // (contexts, kCenters)
  float rate_weight = 0;           // squared steps per bit
};

inline constexpr int kTrellisPlaces = trellis::kCenters + 1;  // for magnitudes 0, 1, 2, and more
inline constexpr int kTrellisSums = 3;                        // Σ weights · away^0, ^1, ^2

// Chooses the levels with the least Σ weight · (value − reconstruction)² + rate_weight · bits, row
// by row, by the Viterbi algorithm in float32; values are in units of `step`. Ties go to the even
// level, then to the smaller one, then to the lowest last state. Adds to `counts` how often each
// bucket occurs in each context, and to `sums`, for each context and each of its kTrellisPlaces,
// the sums of weight, weight · away and weight · away², where away = |value| − |point of the grid|,
// in float64 by chunks of rows. Throws std::invalid_argument if a value is not finite. `levels` may
// be null.
void trellis_quantize(const MatrixView& values, float step, const MatrixView& weights,
                      const std::int32_t* row_logs, const TrellisCosts& costs, std::int32_t* levels,
                      std::int64_t* counts, double* sums, int n_threads, Stop& stop);

}  // namespace ff

#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/buffer.hpp"
#include "kernels/trellis/format.hpp"

// The costs of a column for each quantizer and parity. The candidates of a quantizer are four
// neighbouring levels, two of each parity, around the one nearest to the value.
namespace ff::trellis {

typedef float Four __attribute__((vector_size(16)));
inline constexpr index kTile = 64;  // columns whose costs are found at a time

typedef std::int32_t FourInts __attribute__((vector_size(16)));

// The costs of the better even and the better odd level of each quantizer.
struct Least {
  float cost[2][2];  // quantizer, parity
};

// Which levels these are.
struct Chosen {
  std::int32_t lowest[2];      // the lowest candidate of each quantizer
  std::int32_t further[2][2];  // quantizer, parity: −1 if it is the larger of the two, else 0

  int level(int quantizer, int parity) const {
    const int first = lowest[quantizer];
    return first + ((first ^ parity) & 1) + (further[quantizer][parity] & 2);
  }
};

// Points and rates of candidates in the order even, odd, even, odd.
struct Candidates {
  float points[4], rates[4];
};

class CostTables {
 public:
  CostTables(const float* bits, const float* centers, float rate_weight, index contexts)
      : bits_(bits), centers_(centers), rate_weight_(rate_weight), table_(contexts * kTabled) {
    constexpr int kLevels = kTabled + 3;
    float points[kLevels], rates[kLevels];
    for (index context = 0; context < contexts; ++context) {
      for (int level = 0; level < kLevels; ++level)
        points[level] = point(context, level), rates[level] = rate(context, level);
      for (int lowest = 0; lowest < kTabled; ++lowest)
        for (int k = 0; k < 4; ++k) {
          Candidates& to = table_[context * kTabled + lowest];
          to.points[k ^ (lowest & 1)] = points[lowest + k];
          to.rates[k ^ (lowest & 1)] = rates[lowest + k];
        }
    }
  }

  // Computes weight · (size − point)² + rate of the better candidates of n ≤ kTile columns.
  void find(const float* sizes, const float* weights, const std::uint8_t* twice, index n,
            Chosen* chosen, Least* least) const {
    float near[kTile];
    std::int32_t lowest[2][kTile];
    for (index j = 0; j < n; ++j) {
      near[j] = std::min(sizes[j], kFarthest);
      for (int quantizer = 0; quantizer < 2; ++quantizer) {
        const float half = (near[j] + float(quantizer)) * 0.5f;
        lowest[quantizer][j] = std::max(int(std::min(half, float(kLargest - 2))) - 1, 0);
      }
    }
    for (index j = 0; j < n; ++j) {
      const Four size = near[j] - Four{}, weight = weights[j] - Four{};
      for (int quantizer = 0; quantizer < 2; ++quantizer) {
        const int from = lowest[quantizer][j];
        const index context = twice[j] + quantizer;
        Candidates made;
        const Candidates* of = &made;
        if (__builtin_expect(from < kTabled, 1)) of = &table_[context * kTabled + from];
        else made = candidates(context, from);
        Four points, rates;
        std::memcpy(&points, of->points, sizeof points);
        std::memcpy(&rates, of->rates, sizeof rates);
        const Four away = size - points;
        const Four costs = weight * (away * away) + rates;
        const Four larger = upper_half(costs);
        const FourInts further = larger < costs;
        const Four best = further ? larger : costs;
        std::memcpy(least[j].cost[quantizer], &best, sizeof least[j].cost[quantizer]);
        std::memcpy(chosen[j].further[quantizer], &further, sizeof chosen[j].further[quantizer]);
        chosen[j].lowest[quantizer] = from;
      }
    }
  }

 private:
  // Beyond every level. Larger sizes are cut to this: no level fits them better, and squares stay
  // in float32.
  static constexpr float kFarthest = 4 * (kLargest + 1);
  static constexpr int kTabled = 64;  // levels whose candidates are tabled for each context

  static Four upper_half(Four v) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, 2, 3, 2, 3);
#else
    return __builtin_shuffle(v, FourInts{2, 3, 2, 3});
#endif
  }

  float point(index context, int level) const {
    const float center = level ? centers_[context * kCenters + std::min(level, kCenters) - 1] : 0;
    return point_of(level, int(context & 1), center);
  }

  float rate(index context, int level) const {
    return rate_weight_ * bits_[context * kBuckets + bucket_of(level)];
  }

  Candidates candidates(index context, int lowest) const {
    Candidates made;
    for (int k = 0; k < 4; ++k) {
      made.points[k ^ (lowest & 1)] = point(context, lowest + k);
      made.rates[k ^ (lowest & 1)] = rate(context, lowest + k);
    }
    return made;
  }

  const float *bits_, *centers_;
  float rate_weight_;
  Buffer<Candidates> table_;
};

}  // namespace ff::trellis

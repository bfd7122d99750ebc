// The Viterbi algorithm over 64 states, row after row.
//
// A column needs the least cost of each quantizer and parity: four numbers, each for the better of
// two levels (costs.hpp). Then every state takes the better of its two predecessors: 8 additions, 4
// minima, 4 comparisons and 8 permutes of 16 floats, about 20 cycles where a permute takes one or
// two (steps.hpp). Measured on 8192 × 256 (bench/trellis.py, AVX-512), a column takes about 55
// cycles: these 20, about 13 for the costs, and the rest for the sums and for tracing back, where
// each state waits for the one after it.
#include "kernels/trellis/trellis.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/buffer.hpp"
#include "core/rows.hpp"
#include "kernels/trellis/costs.hpp"
#include "kernels/trellis/steps.hpp"

namespace ff {
namespace {

using namespace trellis;

// Pieces of rows whose sums are combined in order, each long enough to be worth waking a thread.
struct Pieces {
  static constexpr index kValues = 1 << 14;

  explicit Pieces(const MatrixView& x)
      : n(x.rows),
        size(std::max(ceil_div(x.rows, 256), ceil_div(kValues, std::max<index>(x.cols, 1)))) {}
  index count() const { return ceil_div(n, size); }

  const index n, size;
};

// One thread's scratch memory and its counts of buckets.
class Coder {
 public:
  Coder(const TrellisCosts& costs, const CostTables& tables, const MatrixView& values,
        const MatrixView& weights, float step)
      : counts(2 * costs.classes.count * kBuckets, 0),
        costs_(costs),
        tables_(tables),
        view_(values),
        values_(values),
        weights_(weights),
        step_(step),
        twice_(costs.classes.cols),
        sizes_(costs.classes.cols),
        chosen_(costs.classes.cols),
        decisions_(costs.classes.cols) {}

  std::vector<std::int64_t> counts;

  void code_row(index i, int row_log, std::int32_t* levels, double* sums) {
    const float* values = values_[i];
    const float* weights = weights_[i];
    const index cols = costs_.classes.cols;
    if (!measure(values)) throw_not_finite(view_, i, "values");
    costs_.classes.twice(row_log, twice_.data());
    Paths paths;
    for (index first = 0; first < cols; first += kTile) {
      const index n = std::min(kTile, cols - first);
      tables_.find(sizes_.data() + first, weights + first, twice_.data() + first, n,
                   chosen_.data() + first, least_);
      for (index j = 0; j < n; ++j) decisions_[first + j] = paths.step(least_[j]);
      paths.lower();
    }
    trace_back(paths.best_state(), values, weights, levels, sums);
  }

 private:
  // Computes magnitudes in units of the grid, limited to the largest float; returns whether all
  // values are finite.
  bool measure(const float* values) {
    constexpr float kMost = std::numeric_limits<float>::max();
    int finite = 1;
    for (std::size_t j = 0; j < sizes_.size(); ++j) {
      sizes_[j] = std::min(std::abs(values[j] / step_), kMost);
      finite &= int(std::abs(values[j]) <= kMost);
    }
    return finite;
  }

  // Follows the path back from its last state, writes its levels and adds them to counts and sums.
  // One loop does both, since each alone would wait for what it has just written.
  void trace_back(int state, const float* values, const float* weights, std::int32_t* levels,
                  double* sums) {
    for (index j = index(sizes_.size()) - 1; j >= 0; --j) {
      const int parity = int(decisions_[j] >> state & 1), quantizer = state >> 5;
      const int level = chosen_[j].level(quantizer, parity);
      const index context = twice_[j] + quantizer;
      state = state_before(state, parity);
      if (levels) levels[j] = values[j] < 0 ? -level : level;
      ++counts[context * kBuckets + bucket_of(level)];
      const double away = sizes_[j] - point_of(level, quantizer, 0), weight = weights[j];
      double* to = sums + (context * kTrellisPlaces + std::min(level, kCenters)) * kTrellisSums;
      to[0] += weight;
      to[1] += weight * away;
      to[2] += weight * away * away;
    }
  }

  const TrellisCosts& costs_;
  const CostTables& tables_;
  const MatrixView& view_;
  Rows<float> values_, weights_;
  const float step_;
  std::vector<std::uint8_t> twice_;
  std::vector<float> sizes_;
  std::vector<Chosen> chosen_;
  std::vector<std::uint64_t> decisions_;
  Least least_[kTile];
};

}  // namespace

void trellis_quantize(const MatrixView& values, float step, const MatrixView& weights,
                      const std::int32_t* row_logs, const TrellisCosts& costs, std::int32_t* levels,
                      std::int64_t* counts, double* sums, int n_threads, Stop& stop) {
  const index contexts = 2 * costs.classes.count;
  const index n_sums = contexts * kTrellisPlaces * kTrellisSums;
  const Pieces pieces(values);
  const CostTables tables(costs.bits, costs.centers, costs.rate_weight, contexts);
  Buffer<double> partial(pieces.count() * n_sums);
  std::vector<Coder> coders;
  for (int worker = 0; worker < n_threads; ++worker)
    coders.emplace_back(costs, tables, values, weights, step);
  parallel_for(pieces.count(), n_threads, stop, [&](index piece, int worker) {
    double* own = partial.data() + piece * n_sums;
    std::fill_n(own, n_sums, 0.0);
    const index last = std::min(values.rows, (piece + 1) * pieces.size);
    for (index i = piece * pieces.size; i < last && !stop.requested(); ++i)
      coders[worker].code_row(i, row_logs[i], levels ? levels + i * values.cols : nullptr, own);
  });
  std::fill_n(counts, contexts * kBuckets, std::int64_t(0));
  for (const Coder& coder : coders)
    for (index k = 0; k < contexts * kBuckets; ++k) counts[k] += coder.counts[k];
  std::fill_n(sums, n_sums, 0.0);
  for (index piece = 0; piece < pieces.count(); ++piece)
    for (index k = 0; k < n_sums; ++k) sums[k] += partial[piece * n_sums + k];
}

}  // namespace ff

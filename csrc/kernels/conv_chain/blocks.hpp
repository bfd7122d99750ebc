#pragma once
#include "kernels/conv_chain/depthwise.hpp"
#include "kernels/conv_chain/layout.hpp"
#include "kernels/conv_chain/tile.hpp"

// How the results of a call are cut into blocks.
namespace ff::conv {

// What the planes of a worker may take: with the weights about an L2 cache. Blocks of half or twice
// the size are as fast where they fit the image as well.
inline constexpr index kScratchFloats = index(1) << 18;

// The planes that the first stage reads.
inline Layout first_layout(const ConvChain& chain, const Axis& rows, const Axis& columns,
                           const Blocks& blocks) {
  index width = columns.elements(blocks.columns);
  if (chain.stages[chain.pivot].depthwise) width = round_up(width, kRowAlign);
  else if (blocks.n_columns == 1) width -= shared_zeros(columns);
  return {columns.phases, rows.phases, rows.elements(blocks.rows), width};
}

class BlockChoice {
 public:
  BlockChoice(const ConvChain& chain, const Axis& rows, const Axis& columns, index images)
      : chain_(chain), rows_(rows), columns_(columns), images_(images) {}

  // Whole rows if a few of them fit, and else parts of rows.
  Blocks choose() const {
    constexpr index kFewRows = 4, kFewColumns = 64;
    for (index n = 1;; ++n) {
      const index columns = ceil_div(columns_.out, n);
      const Blocks few(rows_, columns_, std::min(kFewRows, rows_.out), columns);
      if (scratch_floats(few) <= kScratchFloats || columns <= kFewColumns)
        return choose_rows(columns);
    }
  }

  // What a block of so many rows costs, in multiply-adds of vectors.
  double block_cost(const Blocks& blocks, index rows) const {
    // To load a vector or to store a result takes as long as these multiply-adds.
    constexpr double kLoad = 4, kStore = 3;
    const Layout layout = first_layout(chain_, rows_, columns_, blocks);
    const index plane = vectors(layout.size());
    const index windows = std::min(rows * vectors(blocks.columns),
                                   vectors((rows - 1) * layout.columns + blocks.columns));
    double sum = double(plane) * kLoad * double(chain_.in_channels);
    for (int s = 0; s < int(chain_.stages.size()); ++s) {
      const PackedConv& stage = chain_.stages[s];
      const index at = s < chain_.pivot    ? plane
                       : s == chain_.pivot ? windows
                                           : vectors(rows * blocks.columns);
      sum += double(at) *
             (double(stage.weights.size()) + kStore * double(stage.blocks.size()) * kBlockFilters);
    }
    return sum;
  }

 private:
  static index vectors(index positions) { return ceil_div(positions, kLanes<float>); }

  index scratch_floats(const Blocks& blocks) const {
    index planes = chain_.in_channels, compact = 0;
    for (int s = 0; s + 1 < int(chain_.stages.size()); ++s)
      (s < chain_.pivot ? planes : compact) += chain_.stages[s].planes;
    return planes * first_layout(chain_, rows_, columns_, blocks).size() +
           compact * blocks.rows * blocks.columns;
  }

  // The number of rows at which a call costs least, of those that fit.
  Blocks choose_rows(index columns) const {
    constexpr index kMostRows = 64;
    Blocks best(rows_, columns_, 1, columns);
    double least = cost(best);
    for (index rows = 2; rows <= std::min(rows_.out, kMostRows); ++rows) {
      const Blocks blocks(rows_, columns_, rows, columns);
      if (scratch_floats(blocks) > kScratchFloats) break;
      const double own = cost(blocks);
      if (own < least) least = own, best = blocks;
    }
    return best;
  }

  // What a call costs on one, two and four threads together. Lanes without a result count, and so
  // do threads that wait for the last block.
  double cost(const Blocks& blocks) const {
    const index n = blocks.count() * images_, partial = blocks.n_columns * images_;
    const double whole = block_cost(blocks, blocks.rows);
    const double last = block_cost(blocks, rows_.out - (blocks.n_rows - 1) * blocks.rows);
    double sum = double(n - partial) * whole + double(partial) * last;
    for (const index threads : {2, 4}) sum += double(round_up(n, threads)) * whole;
    return sum;
  }

  const ConvChain& chain_;
  const Axis& rows_;
  const Axis& columns_;
  const index images_;
};

}  // namespace ff::conv

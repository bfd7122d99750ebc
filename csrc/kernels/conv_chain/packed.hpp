#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "core/buffer.hpp"

namespace ff {

// One convolution of a chain as the caller gives it.
struct ConvStage {
  const float* weight;  // (filters, group_channels, kernel[0], kernel[1])
  index filters, group_channels, groups;
  std::array<index, 2> kernel;
  std::vector<std::int32_t> order;  // its input channel i is channel order[i] of what comes before

  index channels() const { return group_channels * groups; }
};

inline constexpr int kMostFilters = 8;  // of a block

// Filters of one group, which read the same channels and are computed together.
struct FilterBlock {
  index group;
  index weights;     // where they begin among the packed weights: (depth, width)
  int width, count;  // filters computed, of which the first `count` are stored
  std::array<std::int32_t, kMostFilters> filters, slots;  // a filter's result is plane `slot`
};

struct PackedConv {
  index group_channels, groups;
  std::array<index, 2> kernel;
  std::vector<std::int32_t> source;  // the plane that holds input channel i
  std::vector<FilterBlock> blocks;   // of one group after the other
  Buffer<float> weights;
  index planes;    // that the stage writes at a time
  bool depthwise;  // each block is one filter, over a window of one channel

  index taps() const { return kernel[0] * kernel[1]; }
  index depth() const { return group_channels * taps(); }
};

// Some groups of the last windowed stage, with the blocks of the stage before it that they read.
// The two stages run part by part, so that what is between them stays in the L1 or L2 cache.
struct ChainPart {
  index front_first, front_last;  // blocks of the stage before; none if there is no such stage
  index first, last;              // blocks of the last windowed stage
};

// Parts of which the stage after the last windowed one reads all filters in some of its groups, and
// nothing else. These groups run when the parts have run, before the next section.
struct ChainSection {
  index first_part, last_part;
  index first, last;  // blocks of the stage after
};

// A chain of convolutions, its weights in the order in which the kernel of this level reads them.
// Along each axis at most one stage has a window. Orders are not carried out: they are in `source`
// and in the slots of blocks.
struct ConvChain {
  // order: result channel i is filter order[i] of the last stage. Orders are permutations.
  ConvChain(const std::vector<ConvStage>& stages, const std::vector<std::int32_t>& order);

  index in_channels, out_channels;
  std::array<index, 2> kernel{1, 1};  // of the whole chain
  std::array<int, 2> owner{-1, -1};   // the stage with the window along an axis, −1 for none
  int pivot = 0;                      // the last stage with a window, or the first stage
  std::vector<PackedConv> stages;
  std::vector<ChainPart> parts;
  std::vector<ChainSection> sections;

  index nbytes() const;
};

}  // namespace ff

#pragma once
#include <limits>
#include <stdexcept>

#include "kernels/conv_chain/blocks.hpp"

// Where the stages of a chain find what they read, and leave what they write, in a block's planes.
namespace ff::conv {

struct StagePlan {
  Layout in;                                // of the planes that the stage reads
  index in_pitch;                           // from plane to plane
  std::vector<std::int32_t> offsets;        // (groups, depth): where the terms of sums lie
  std::vector<std::int32_t> panel_offsets;  // (depth): where they lie in a packed panel, if any
  DepthwisePlan depthwise;                  // instead of these
  Spots spots;                              // of stages before the pivot, which fill whole planes
};

class Planner {
 public:
  Planner(const ConvChain& chain, const Axis& rows, const Axis& columns)
      : chain_(chain), rows_(rows), columns_(columns) {}

  std::vector<StagePlan> plan(const Blocks& blocks) const {
    std::vector<StagePlan> plans;
    Layout layout = first_layout(chain_, rows_, columns_, blocks);
    for (int s = 0; s < int(chain_.stages.size()); ++s) {
      // A vector may begin at the last position; zeros that rows share follow the last row, no more
      // of them than there are in a window.
      StagePlan plan;
      plan.in = layout;
      plan.in_pitch = plane_pitch(layout.size() + columns_.span + 2 * kLanes<float>);
      const index channels = index(chain_.stages[s].source.size());
      if (plan.in_pitch > std::numeric_limits<std::int32_t>::max() / channels)
        throw std::invalid_argument(
            "dilation must be smaller: the channels under a window take more than 8 GB");
      if (chain_.owner[0] == s) layout.row_phases = 1, layout.rows = blocks.rows;
      if (chain_.owner[1] == s) layout.column_phases = 1;
      if (s == chain_.pivot) layout = {1, 1, blocks.rows, blocks.columns};
      if (chain_.stages[s].depthwise) find_window(plan, chain_.stages[s]);
      else find_offsets(plan, chain_.stages[s]);
      if (s < chain_.pivot) fill_planes(plan, layout);
      plans.push_back(std::move(plan));
    }
    return plans;
  }

 private:
  // Where element i of a window along rows, or columns, lies.
  index row_offset(const Layout& layout, index i) const {
    const index y = i * rows_.dilation;
    return y % rows_.stride * layout.row_phase() + y / rows_.stride * layout.columns;
  }

  index column_offset(const Layout& layout, index j) const {
    const index x = j * columns_.dilation;
    return x % columns_.stride * layout.column_phase() + x / columns_.stride;
  }

  // Offsets from the position of the output on.
  void find_offsets(StagePlan& plan, const PackedConv& stage) const {
    for (const std::int32_t source : stage.source)
      for (index i = 0; i < stage.kernel[0]; ++i)
        for (index j = 0; j < stage.kernel[1]; ++j)
          plan.offsets.push_back(std::int32_t(source * plan.in_pitch + row_offset(plan.in, i) +
                                              column_offset(plan.in, j)));
    if (stage.taps() == 1)
      for (index k = 0; k < stage.depth(); ++k)
        plan.panel_offsets.push_back(std::int32_t(k * kPanelWidth));
  }

  void find_window(StagePlan& plan, const PackedConv& stage) const {
    DepthwisePlan& window = plan.depthwise;
    window.in_columns = plan.in.columns;
    const auto [height, width] = stage.kernel;
    const index apart = rows_.dilation == 1 ? rows_.stride : height;
    for (index i = 0; i < std::min(apart, height); ++i)
      window.rows.push_back(
          {row_offset(plan.in, i), i * width, apart * width, ceil_div(height - i, apart)});
    for (int j = 0; j < int(width); ++j) {
      const index at = column_offset(plan.in, j);
      const int lane = int(at % kLanes<float>);
      const auto same = [&](const WindowColumns& columns) { return columns.from == at - lane; };
      auto found = std::find_if(window.columns.begin(), window.columns.end(), same);
      if (found == window.columns.end()) found = window.columns.insert(found, {at - lane, {}, {}});
      found->lanes.push_back(lane);
      found->weights.push_back(j);
    }
  }

  // Positions of a stage that writes planes of this layout.
  static void fill_planes(StagePlan& plan, const Layout& out) {
    const index size = out.column_phase();
    plan.spots.clear();
    for (index phase = 0; phase < out.column_phases; ++phase)
      for (index p = 0; p < size; p += kLanes<float>) {
        const int count = int(std::min<index>(kLanes<float>, size - p));
        plan.spots.segments.push_back({0, count, phase * size + p});
        plan.spots.finish(phase * plan.in.column_phase() + p);
      }
  }

  const ConvChain& chain_;
  const Axis& rows_;
  const Axis& columns_;
};

}  // namespace ff::conv

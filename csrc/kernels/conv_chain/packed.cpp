#include "kernels/conv_chain/packed.hpp"

#include <algorithm>
#include <numeric>

#include "kernels/conv_chain/tile.hpp"

namespace ff {
namespace {

// A part reads at least this many channels: blocks of filters are then nearly full.
constexpr index kPartChannels = 16;

struct Output {
  std::int32_t filter, slot;
};

// How many of the filters that are left go into the next block, and its width. Five or six filters
// take less time as four and the rest than as eight.
std::pair<int, int> next_block(index left, bool depthwise) {
  if (depthwise) return {1, 1};
  if (left >= kBlockFilters - 1) return {int(std::min<index>(left, kBlockFilters)), kBlockFilters};
  if (left >= 3) return {int(std::min<index>(left, 4)), 4};
  return {int(left), int(left)};
}

class Packer {
 public:
  Packer(const ConvStage& stage, PackedConv& packed) : stage_(stage), packed_(packed) {}

  // Appends blocks for these filters.
  void add(std::vector<Output> outputs) {
    const index per_group = stage_.filters / stage_.groups;
    const auto group = [&](const Output& o) { return o.filter / per_group; };
    std::stable_sort(outputs.begin(), outputs.end(),
                     [&](const Output& a, const Output& b) { return group(a) < group(b); });
    for (std::size_t i = 0, end = 0; i < outputs.size(); i = end) {
      while (end < outputs.size() && group(outputs[end]) == group(outputs[i])) ++end;
      cut(outputs.data() + i, index(end - i), group(outputs[i]));
    }
  }

  // Lays out the weights of all blocks.
  void finish() {
    packed_.weights = Buffer<float>(size_);
    const index depth = packed_.depth();
    for (const FilterBlock& block : packed_.blocks)
      for (int r = 0; r < block.width; ++r) {
        float* to = packed_.weights.data() + block.weights + r;
        const float* from = r < block.count ? stage_.weight + block.filters[r] * depth : nullptr;
        for (index k = 0; k < depth; ++k) to[k * block.width] = from ? from[k] : 0;
      }
  }

 private:
  void cut(const Output* outputs, index n, index group) {
    while (n > 0) {
      const auto [count, width] = next_block(n, packed_.depthwise);
      FilterBlock block{group, size_, width, count, {}, {}};
      for (int r = 0; r < count; ++r) {
        block.filters[r] = outputs[r].filter;
        block.slots[r] = outputs[r].slot;
      }
      packed_.blocks.push_back(block);
      size_ += packed_.depth() * width;
      outputs += count;
      n -= count;
    }
  }

  const ConvStage& stage_;
  PackedConv& packed_;
  index size_ = 0;
};

std::vector<Output> outputs_in_order(const std::vector<std::int32_t>& order) {
  std::vector<Output> outputs;
  for (std::size_t i = 0; i < order.size(); ++i) outputs.push_back({order[i], std::int32_t(i)});
  return outputs;
}

std::vector<Output> all_outputs(const ConvStage& stage) {
  std::vector<std::int32_t> order(stage.filters);
  std::iota(order.begin(), order.end(), 0);
  return outputs_in_order(order);
}

bool windowed(const ConvStage& stage) {
  return stage.kernel[0] > 1 || stage.kernel[1] > 1;
}

}  // namespace

ConvChain::ConvChain(const std::vector<ConvStage>& given, const std::vector<std::int32_t>& order)
    : in_channels(0), out_channels(index(order.size())), kernel{1, 1}, owner{-1, -1}, pivot(0) {
  const int n = int(given.size());
  for (int s = 0; s < n; ++s) {
    if (windowed(given[s])) pivot = s;
    for (int axis = 0; axis < 2; ++axis)
      if (given[s].kernel[axis] > 1) owner[axis] = s, kernel[axis] = given[s].kernel[axis];
  }
  for (int s = 0; s < n; ++s) {
    const ConvStage& stage = given[s];
    const index planes = s == n - 1 ? out_channels : stage.filters;
    const bool depthwise =
        s == pivot && stage.group_channels == 1 && stage.filters == stage.groups && windowed(stage);
    stages.push_back({stage.filters,
                      stage.group_channels,
                      stage.groups,
                      stage.kernel,
                      stage.order,
                      {},
                      {},
                      planes,
                      depthwise});
  }
  in_channels = given[0].channels();
  for (int s = 0; s < n; ++s) {
    if (s == pivot || s == pivot - 1) continue;
    Packer packer(given[s], stages[s]);
    packer.add(s == n - 1 ? outputs_in_order(order) : all_outputs(given[s]));
    packer.finish();
  }

  const ConvStage& last = given[pivot];
  Packer pivot_packer(last, stages[pivot]);
  const auto outputs = pivot == n - 1 ? outputs_in_order(order) : all_outputs(last);
  if (pivot == 0) {
    pivot_packer.add(outputs);
    pivot_packer.finish();
    part_planes = 0;
    parts.push_back({0, 0, 0, index(stages[0].blocks.size())});
    return;
  }
  Packer front_packer(given[pivot - 1], stages[pivot - 1]);
  const index part_groups = std::min(ceil_div(kPartChannels, last.group_channels), last.groups);
  part_planes = part_groups * last.group_channels;
  stages[pivot - 1].planes = part_planes;
  for (index group = 0; group < last.groups; group += part_groups) {
    const index end = std::min(group + part_groups, last.groups);
    const auto channel = last.order.begin() + group * last.group_channels;
    const index n_channels = (end - group) * last.group_channels;
    ChainPart part;
    part.front_first = index(stages[pivot - 1].blocks.size());
    part.first = index(stages[pivot].blocks.size());
    front_packer.add(outputs_in_order({channel, channel + n_channels}));
    std::vector<Output> own;
    for (const Output& o : outputs)
      if (o.filter / (last.filters / last.groups) >= group &&
          o.filter / (last.filters / last.groups) < end)
        own.push_back(o);
    pivot_packer.add(own);
    part.front_last = index(stages[pivot - 1].blocks.size());
    part.last = index(stages[pivot].blocks.size());
    parts.push_back(part);
    for (index c = 0; c < n_channels; ++c)
      stages[pivot].source[group * last.group_channels + c] = std::int32_t(c);
  }
  front_packer.finish();
  pivot_packer.finish();
}

index ConvChain::nbytes() const {
  index total = 0;
  for (const PackedConv& stage : stages)
    total += stage.weights.size() * index(sizeof(float)) +
             index(stage.blocks.size() * sizeof(FilterBlock)) +
             index(stage.source.size() * sizeof(std::int32_t));
  return total;
}

}  // namespace ff

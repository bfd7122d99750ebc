#include "kernels/conv_chain/packed.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "kernels/conv_chain/tile.hpp"

namespace ff {
namespace {

// A part reads at least this many channels: blocks of filters are then nearly full.
constexpr index kPartChannels = 16;
// And a section hands at least this many on.
constexpr index kSectionChannels = 64;

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

// A stage whose filter order[i] is result i.
std::vector<Output> outputs_in_order(const std::int32_t* order, index n) {
  std::vector<Output> outputs;
  for (index i = 0; i < n; ++i) outputs.push_back({order[i], std::int32_t(i)});
  return outputs;
}

bool windowed(const ConvStage& stage) {
  return stage.kernel[0] > 1 || stage.kernel[1] > 1;
}

// Which groups of a stage the stage after it reads together, and by which of its groups.
struct Reading {
  std::vector<index> groups;
  index first, last;  // groups of the stage after
};

// If a group is read by several, all is one section.
std::vector<Reading> readings(const ConvStage& stage, const ConvStage& next) {
  const index per_group = stage.filters / stage.groups;
  std::vector<index> reader(stage.groups, -1);
  bool apart = true;
  for (index c = 0; c < next.channels(); ++c) {
    index& known = reader[next.order[c] / per_group];
    const index group = c / next.group_channels;
    apart &= known < 0 || known == group;
    known = group;
  }
  const index at_once = apart ? ceil_div(kSectionChannels, next.group_channels) : next.groups;
  std::vector<Reading> found;
  for (index group = 0; group < next.groups; group += at_once) {
    const index end = std::min(group + at_once, next.groups);
    found.push_back({{}, group, end});
    for (index g = 0; g < stage.groups; ++g)
      if (!apart || (reader[g] >= group && reader[g] < end)) found.back().groups.push_back(g);
  }
  return found;
}

// Cuts the last stage with a window, and the stages before and after it, into sections and parts.
class Sections {
 public:
  Sections(const std::vector<ConvStage>& given, const std::vector<Output>& results,
           ConvChain& chain)
      : given_(given), results_(results), chain_(chain), stage_(given[chain.pivot]) {
    const int s = chain.pivot;
    if (s > 0) front_.emplace(given[s - 1], chain.stages[s - 1]);
    own_.emplace(stage_, chain.stages[s]);
    if (!is_last()) next_.emplace(given[s + 1], chain.stages[s + 1]);
  }

  void cut() {
    if (is_last()) {
      std::vector<index> groups(stage_.groups);
      std::iota(groups.begin(), groups.end(), 0);
      add_section(groups, results_);
    } else {
      for (const Reading& reading : readings(stage_, given_[chain_.pivot + 1]))
        add_reading(reading);
      next_->finish();
    }
    own_->finish();
    if (front_) front_->finish();
  }

 private:
  bool is_last() const { return chain_.pivot + 1 == int(given_.size()); }
  index group_of(std::int32_t filter) const { return filter / (stage_.filters / stage_.groups); }

  void add_reading(const Reading& reading) {
    const ConvStage& next = given_[chain_.pivot + 1];
    PackedConv& packed = chain_.stages[chain_.pivot + 1];
    std::vector<Output> outputs;
    for (index c = reading.first * next.group_channels; c < reading.last * next.group_channels;
         ++c) {
      packed.source[c] = std::int32_t(outputs.size());
      outputs.push_back({next.order[c], packed.source[c]});
    }
    PackedConv& own = chain_.stages[chain_.pivot];
    own.planes = std::max(own.planes, index(outputs.size()));
    add_section(reading.groups, outputs);

    const index per_group = next.filters / next.groups;
    std::vector<Output> theirs;
    const bool ends = chain_.pivot + 2 == int(given_.size());
    for (index f = 0; f < next.filters; ++f) {
      const Output output = ends ? results_[f] : Output{std::int32_t(f), std::int32_t(f)};
      const index group = output.filter / per_group;
      if (group >= reading.first && group < reading.last) theirs.push_back(output);
    }
    chain_.sections.back().first = index(packed.blocks.size());
    next_->add(theirs);
    chain_.sections.back().last = index(packed.blocks.size());
  }

  void add_section(const std::vector<index>& groups, const std::vector<Output>& outputs) {
    std::vector<std::vector<Output>> of_group(stage_.groups);
    for (const Output& output : outputs) of_group[group_of(output.filter)].push_back(output);
    const index first = index(chain_.parts.size());
    const index at_once = front_ ? ceil_div(kPartChannels, stage_.group_channels) : stage_.groups;
    for (index i = 0; i < index(groups.size()); i += at_once)
      add_part(groups.data() + i, std::min(at_once, index(groups.size()) - i), of_group);
    chain_.sections.push_back({first, index(chain_.parts.size()), 0, 0});
  }

  void add_part(const index* groups, index n, const std::vector<std::vector<Output>>& of_group) {
    PackedConv& own = chain_.stages[chain_.pivot];
    ChainPart part{0, 0, index(own.blocks.size()), 0};
    std::vector<std::int32_t> channels;
    for (index i = 0; i < n; ++i) {
      own_->add(of_group[groups[i]]);
      for (index c = groups[i] * stage_.group_channels; c < (groups[i] + 1) * stage_.group_channels;
           ++c) {
        if (front_) own.source[c] = std::int32_t(channels.size());
        channels.push_back(stage_.order[c]);
      }
    }
    part.last = index(own.blocks.size());
    if (front_) {
      PackedConv& front = chain_.stages[chain_.pivot - 1];
      front.planes = std::max(front.planes, index(channels.size()));
      part.front_first = index(front.blocks.size());
      front_->add(outputs_in_order(channels.data(), index(channels.size())));
      part.front_last = index(front.blocks.size());
    }
    chain_.parts.push_back(part);
  }

  const std::vector<ConvStage>& given_;
  const std::vector<Output>& results_;
  ConvChain& chain_;
  const ConvStage& stage_;
  std::optional<Packer> front_, own_, next_;
};

}  // namespace

ConvChain::ConvChain(const std::vector<ConvStage>& given, const std::vector<std::int32_t>& order)
    : in_channels(given.front().channels()), out_channels(given.back().filters) {
  const int n = int(given.size());
  for (int s = 0; s < n; ++s) {
    if (windowed(given[s])) pivot = s;
    for (int axis = 0; axis < 2; ++axis)
      if (given[s].kernel[axis] > 1) owner[axis] = s, kernel[axis] = given[s].kernel[axis];
  }
  for (int s = 0; s < n; ++s) {
    const ConvStage& stage = given[s];
    const bool depthwise =
        s == pivot && stage.group_channels == 1 && stage.filters == stage.groups && windowed(stage);
    stages.push_back(
        {stage.group_channels, stage.groups, stage.kernel, stage.order, {}, {}, 0, depthwise});
  }
  const std::vector<Output> results = outputs_in_order(order.data(), out_channels);
  Sections(given, results, *this).cut();
  for (int s = 0; s < n; ++s) {
    if (s >= pivot - 1 && s <= pivot + 1) continue;
    std::vector<Output> outputs;
    for (index f = 0; f < given[s].filters; ++f)
      outputs.push_back(s == n - 1 ? results[f] : Output{std::int32_t(f), std::int32_t(f)});
    stages[s].planes = given[s].filters;
    Packer packer(given[s], stages[s]);
    packer.add(outputs);
    packer.finish();
  }
  if (pivot + 1 < n) stages[pivot + 1].planes = given[pivot + 1].filters;
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

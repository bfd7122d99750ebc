#include "kernels/conv_chain/conv_chain.hpp"

#include <cstring>

#include "kernels/conv_chain/load.hpp"
#include "kernels/conv_chain/plan.hpp"

namespace ff {
namespace {

using namespace conv;

struct Scratch {
  std::vector<Buffer<float>> planes;  // what stage s reads
  Buffer<float> panel;
  // Positions of the last stage with a window, of those after it, and of the last one of these.
  Spots window_spots, inner_spots, last_spots;
};

class Product {
 public:
  Product(const ImagesView& x, const ConvChain& chain, const ConvSteps& steps, const float* bias,
          float* out)
      : x_(x),
        chain_(chain),
        rows_(axis(0, steps)),
        columns_(axis(1, steps)),
        blocks_(choice().choose()),
        plans_(Planner(chain, rows_, columns_).plan(blocks_)),
        out_(out) {
    if (bias) spread(bias);
  }

  void run(int n_threads, Stop& stop) {
    // So small a call finishes before a second thread has started.
    constexpr double kAlone = double(1 << 21) / kLanes<float>;
    const index n = x_.shape[0] * blocks_.count();
    if (double(n) * choice().block_cost(blocks_, blocks_.rows) < kAlone) n_threads = 1;
    std::vector<Scratch> scratch(n_threads);
    parallel_for(n, n_threads, stop, [&](index task, int worker) {
      if (scratch[worker].planes.empty()) allocate(scratch[worker]);
      const index block = task % blocks_.count();
      run_block(task / blocks_.count(), block / blocks_.n_columns, block % blocks_.n_columns,
                scratch[worker]);
    });
  }

 private:
  Axis axis(int i, const ConvSteps& steps) const {
    return {x_.shape[2 + i], chain_.kernel[i], steps.stride[i], steps.padding[i],
            steps.dilation[i]};
  }

  BlockChoice choice() const { return {chain_, rows_, columns_, x_.shape[0]}; }

  int n_stages() const { return int(chain_.stages.size()); }
  index n_blocks(int s) const { return index(chain_.stages[s].blocks.size()); }

  void spread(const float* bias) {
    for (const FilterBlock& block : chain_.stages.back().blocks)
      for (int r = 0; r < kMostFilters; ++r)
        bias_.push_back(r < block.count ? bias[block.slots[r]] : 0);
  }

  void allocate(Scratch& scratch) const {
    std::size_t depth = 0;
    for (int s = 0; s < n_stages(); ++s) {
      const index planes = s == 0 ? chain_.in_channels : chain_.stages[s - 1].planes;
      const index pitch = plans_[s].in_pitch, size = plans_[s].in.size();
      scratch.planes.emplace_back(planes * pitch);
      for (index p = 0; p < planes; ++p)  // the rest is written before it is read
        std::fill_n(scratch.planes[s].data() + p * pitch + size, pitch - size, 0.0f);
      depth = std::max(depth, plans_[s].panel_offsets.size());
    }
    scratch.panel = Buffer<float>(index(depth) * kPanelWidth);
  }

  void run_block(index image, index row_block, index column_block, Scratch& scratch) {
    const index first_row = row_block * blocks_.rows, first_column = column_block * blocks_.columns;
    const index rows = std::min(blocks_.rows, rows_.out - first_row);
    const index columns = std::min(blocks_.columns, columns_.out - first_column);
    const int last = n_stages() - 1, pivot = chain_.pivot;
    float* out = out_ + image * chain_.out_channels * rows_.out * columns_.out +
                 first_row * columns_.out + first_column;

    ImageLoader(x_, rows_, columns_, plans_[0].in, plans_[0].in_pitch)
        .load(image, first_row, first_column, scratch.planes[0].data());
    for (int s = 0; s < pivot - 1; ++s) run_stage(s, 0, n_blocks(s), plans_[s].spots, scratch, out);
    find_spots(rows, columns, scratch);
    const auto spots_of = [&](int s) -> const Spots& {
      return s == last ? scratch.last_spots : scratch.inner_spots;
    };
    for (const ChainSection& section : chain_.sections) {
      for (index i = section.first_part; i < section.last_part; ++i)
        run_part(chain_.parts[i], rows, columns, scratch, out);
      if (pivot < last)
        run_stage(pivot + 1, section.first, section.last, spots_of(pivot + 1), scratch, out);
    }
    for (int s = pivot + 2; s <= last; ++s) run_stage(s, 0, n_blocks(s), spots_of(s), scratch, out);
  }

  void find_spots(index rows, index columns, Scratch& scratch) const {
    const bool ends = chain_.pivot == n_stages() - 1;
    scratch.window_spots.clear();
    scratch.window_spots.add(rows, columns, plans_[chain_.pivot].in.columns,
                             ends ? columns_.out : columns);
    scratch.inner_spots.clear();
    scratch.inner_spots.add(1, rows * columns, 0, 0);
    scratch.last_spots.clear();
    if (columns == columns_.out) scratch.last_spots.add(1, rows * columns, 0, 0);
    else scratch.last_spots.add(rows, columns, columns, columns_.out);
  }

  void run_part(const ChainPart& part, index rows, index columns, Scratch& scratch, float* out) {
    const int s = chain_.pivot;
    if (s > 0)
      run_stage(s - 1, part.front_first, part.front_last, plans_[s - 1].spots, scratch, out);
    if (chain_.stages[s].depthwise) run_windows(part, rows, columns, scratch, out);
    else run_stage(s, part.first, part.last, scratch.window_spots, scratch, out);
  }

  void run_stage(int s, index first, index last, const Spots& spots, Scratch& scratch, float* out) {
    const PackedConv& stage = chain_.stages[s];
    const bool ends = s == n_stages() - 1;
    const BlockRun run{scratch.planes[s].data(),
                       plans_[s].offsets.data(),
                       stage.depth(),
                       plans_[s].panel_offsets.empty() ? nullptr : scratch.panel.data(),
                       plans_[s].panel_offsets.data(),
                       stage.weights.data(),
                       ends && !bias_.empty() ? bias_.data() : nullptr,
                       ends ? out : scratch.planes[s + 1].data(),
                       ends ? rows_.out * columns_.out : plans_[s + 1].in_pitch};
    run_blocks(run, stage.blocks, first, last, spots);
  }

  // The last stage with a window, where that is over one channel for each filter.
  void run_windows(const ChainPart& part, index rows, index columns, Scratch& scratch, float* out) {
    const int s = chain_.pivot;
    const PackedConv& stage = chain_.stages[s];
    const bool ends = s == n_stages() - 1;
    float* to = ends ? out : scratch.planes[s + 1].data();
    for (index b = part.first; b < part.last; ++b) {
      const FilterBlock& block = stage.blocks[b];
      run_depthwise(
          plans_[s].depthwise, stage.weights.data() + block.weights,
          ends && !bias_.empty() ? bias_[b * kMostFilters] : 0,
          scratch.planes[s].data() + stage.source[block.group] * plans_[s].in_pitch,
          to + block.slots[0] * (ends ? rows_.out * columns_.out : plans_[s + 1].in_pitch), rows,
          columns, ends ? columns_.out : columns);
    }
  }

  const ImagesView& x_;
  const ConvChain& chain_;
  const Axis rows_, columns_;
  const Blocks blocks_;
  const std::vector<StagePlan> plans_;
  float* out_;
  std::vector<float> bias_;
};

}  // namespace

void conv_chain(const ImagesView& x, const ConvChain& chain, const ConvSteps& steps,
                const float* bias, float* out, int n_threads, Stop& stop) {
  Product(x, chain, steps, bias, out).run(n_threads, stop);
}

}  // namespace ff

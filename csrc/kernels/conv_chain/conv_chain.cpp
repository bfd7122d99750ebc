#include "kernels/conv_chain/conv_chain.hpp"

#include <cstring>
#include <limits>
#include <stdexcept>

#include "core/rows.hpp"
#include "kernels/conv_chain/depthwise.hpp"
#include "kernels/conv_chain/layout.hpp"
#include "kernels/conv_chain/tile.hpp"

namespace ff {
namespace {

using namespace conv;

// What a worker's planes may take of the L2 cache, beside the weights.
constexpr index kScratchFloats = index(1024) << 8;

// The planes that a stage reads, and those of the stage after it.
struct StagePlan {
  Layout in;
  index in_pitch;
  std::vector<std::int32_t> offsets, panel_offsets;
  DepthwisePlan depthwise;  // instead of offsets
  Spots spots;              // of stages before the last with a window, which fill whole planes
};

struct Scratch {
  std::vector<Buffer<float>> planes;  // what stage s reads
  Buffer<float> panel;
  // Positions of the last stage with a window, of those after it, and of the last one of these.
  Spots window_spots, inner_spots, last_spots;
};

Buffer<float> zeros(index size) {
  Buffer<float> buffer(size);
  std::memset(buffer.data(), 0, std::size_t(size) * sizeof(float));
  return buffer;
}

// Rows [0, rows) × columns [0, columns) of planes with this pitch of rows; results have
// `out_pitch`. Vectors go from row to row where that takes fewer of them, else each row begins one.
void add_rows(Spots& spots, index rows, index columns, index pitch, index out_pitch) {
  constexpr index kWidth = kLanes<float>;
  const index end = (rows - 1) * pitch + columns;
  if (rows * ceil_div(columns, kWidth) <= ceil_div(end, kWidth)) {
    for (index y = 0; y < rows; ++y)
      for (index x = 0; x < columns; x += kWidth) {
        spots.segments.push_back({0, int(std::min(kWidth, columns - x)), y * out_pitch + x});
        spots.finish(y * pitch + x);
      }
    return;
  }
  for (index p = 0; p < end; p += kWidth) {
    for (index lane = 0; lane < kWidth && p + lane < end;) {
      const index y = (p + lane) / pitch, x = (p + lane) % pitch;
      const index count = std::min(kWidth - lane, columns - x);
      if (count > 0) spots.segments.push_back({int(lane), int(count), y * out_pitch + x});
      lane += std::min(kWidth - lane, pitch - x);
    }
    if (index(spots.segments.size()) > spots.first_segment.back()) spots.finish(p);
  }
}

class Product {
 public:
  Product(const ImagesView& x, const ConvChain& chain, const ConvSteps& steps, const float* bias,
          float* out)
      : x_(x),
        chain_(chain),
        rows_(axis(0, steps)),
        columns_(axis(1, steps)),
        blocks_(choose_blocks()),
        out_(out) {
    plan();
    if (bias) spread(bias);
  }

  void run(int n_threads, Stop& stop) {
    const index n = x_.shape[0] * blocks_.count();
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

  int n_stages() const { return int(chain_.stages.size()); }

  Layout first_layout(const Blocks& blocks) const {
    return {
        columns_.phases, rows_.phases, rows_.elements(blocks.rows),
        columns_.elements(blocks.columns) - (blocks.n_columns == 1 ? shared_zeros(columns_) : 0)};
  }

  index scratch_floats(const Blocks& blocks) const {
    index planes = chain_.in_channels, compact = 0;
    for (int s = 0; s < n_stages() - 1; ++s)
      (s < chain_.pivot ? planes : compact) += chain_.stages[s].planes;
    return planes * first_layout(blocks).size() + compact * blocks.rows * blocks.columns;
  }

  // Whole rows if a few of them fit, and else parts of rows.
  Blocks choose_blocks() const {
    constexpr index kFewRows = 4, kFewColumns = 64;
    for (index n = 1;; ++n) {
      const index columns = ceil_div(columns_.out, n);
      const Blocks few(rows_, columns_, std::min(kFewRows, rows_.out), columns);
      if (scratch_floats(few) <= kScratchFloats || columns <= kFewColumns)
        return choose_rows(columns);
    }
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

  // What a call costs on one, two and four threads together, in multiply-adds of vectors. Lanes
  // without a result count, and so do threads that wait for the last block.
  double cost(const Blocks& blocks) const {
    const index n = blocks.count() * x_.shape[0], partial = blocks.n_columns * x_.shape[0];
    const double whole = block_cost(blocks, blocks.rows);
    const double last = block_cost(blocks, rows_.out - (blocks.n_rows - 1) * blocks.rows);
    double sum = double(n - partial) * whole + double(partial) * last;
    for (const index threads : {2, 4}) sum += double(round_up(n, threads)) * whole;
    return sum;
  }

  double block_cost(const Blocks& blocks, index rows) const {
    // To load a vector or to store a result takes as long as these multiply-adds.
    constexpr double kLoad = 4, kStore = 3;
    const Layout layout = first_layout(blocks);
    const index plane = vectors(layout.size());
    const index windows = std::min(rows * vectors(blocks.columns),
                                   vectors((rows - 1) * layout.columns + blocks.columns));
    double sum = double(plane) * kLoad * double(chain_.in_channels);
    for (int s = 0; s < n_stages(); ++s) {
      const PackedConv& stage = chain_.stages[s];
      const index at = s < chain_.pivot    ? plane
                       : s == chain_.pivot ? windows
                                           : vectors(rows * blocks.columns);
      sum += double(at) *
             (double(stage.weights.size()) + kStore * double(stage.blocks.size()) * kBlockFilters);
    }
    return sum;
  }

  static index vectors(index positions) { return ceil_div(positions, kLanes<float>); }

  void plan() {
    Layout layout = first_layout(blocks_);
    plans_.resize(n_stages());
    for (int s = 0; s < n_stages(); ++s) {
      StagePlan& plan = plans_[s];
      plan.in = layout;
      // A vector may begin at the last position; zeros that rows share follow the last row, no more
      // of them than there are in a window.
      plan.in_pitch = plane_pitch(layout.size() + columns_.span + 2 * kLanes<float>);
      if (chain_.owner[0] == s) layout.row_phases = 1, layout.rows = blocks_.rows;
      if (chain_.owner[1] == s) layout.column_phases = 1;
      if (s == chain_.pivot) layout = {1, 1, blocks_.rows, blocks_.columns};
      if (chain_.stages[s].depthwise) find_window(plan, chain_.stages[s]);
      else find_offsets(plan, chain_.stages[s]);
      if (s < chain_.pivot) fill_planes(plan, layout);
    }
  }

  // Where element i of a window along rows, or columns, lies.
  index row_offset(const Layout& layout, index i) const {
    const index y = i * rows_.dilation;
    return y % rows_.phases * layout.row_phase() + y / rows_.phases * layout.columns;
  }

  index column_offset(const Layout& layout, index j) const {
    const index x = j * columns_.dilation;
    return x % columns_.phases * layout.column_phase() + x / columns_.phases;
  }

  // Where the terms of a sum lie, from the position of the output on.
  void find_offsets(StagePlan& plan, const PackedConv& stage) const {
    if (plan.in_pitch > std::numeric_limits<std::int32_t>::max() / index(stage.source.size()))
      throw std::invalid_argument(
          "dilation must be smaller: the channels under a window take more "
          "than 8 GB");
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
    const index apart = rows_.dilation == 1 ? rows_.phases : height;
    for (index i = 0; i < std::min(apart, height); ++i)
      window.rows.push_back(
          {row_offset(plan.in, i), i * width, apart * width, ceil_div(height - i, apart)});
    for (index j = 0; j < width; ++j) window.columns.push_back(column_offset(plan.in, j));
  }

  // Positions of a stage that writes planes of this layout.
  static void fill_planes(StagePlan& plan, const Layout& out) {
    const index size = out.column_phase();
    plan.spots.clear();
    for (index phase = 0; phase < out.column_phases; ++phase) {
      for (index p = 0; p < size; p += kLanes<float>) {
        const int count = int(std::min<index>(kLanes<float>, size - p));
        plan.spots.segments.push_back({0, count, phase * size + p});
        plan.spots.finish(phase * plan.in.column_phase() + p);
      }
    }
  }

  void spread(const float* bias) {
    for (const FilterBlock& block : chain_.stages.back().blocks)
      for (int r = 0; r < kMostFilters; ++r)
        bias_.push_back(r < block.count ? bias[block.slots[r]] : 0);
  }

  void allocate(Scratch& scratch) const {
    for (int s = 0; s < n_stages(); ++s) {
      const index planes = s == 0 ? chain_.in_channels : chain_.stages[s - 1].planes;
      scratch.planes.push_back(zeros(planes * plans_[s].in_pitch));
    }
    std::size_t depth = 0;
    for (const StagePlan& plan : plans_) depth = std::max(depth, plan.panel_offsets.size());
    scratch.panel = Buffer<float>(index(depth) * kPanelWidth);
  }

  void run_block(index image, index row_block, index column_block, Scratch& scratch) {
    const index first_row = row_block * blocks_.rows, first_column = column_block * blocks_.columns;
    const index rows = std::min(blocks_.rows, rows_.out - first_row);
    const index columns = std::min(blocks_.columns, columns_.out - first_column);
    const int last = n_stages() - 1, pivot = chain_.pivot;
    float* out = out_ + image * chain_.out_channels * rows_.out * columns_.out +
                 first_row * columns_.out + first_column;

    load(image, first_row, first_column, scratch);
    for (int s = 0; s < pivot - 1; ++s) run_stage(s, 0, n_blocks(s), plans_[s].spots, scratch, out);
    scratch.window_spots.clear();
    add_rows(scratch.window_spots, rows, columns, plans_[pivot].in.columns,
             pivot == last ? columns_.out : columns);
    scratch.inner_spots.clear();
    add_rows(scratch.inner_spots, 1, rows * columns, 0, 0);
    scratch.last_spots.clear();
    if (columns == columns_.out) add_rows(scratch.last_spots, 1, rows * columns, 0, 0);
    else add_rows(scratch.last_spots, rows, columns, columns, columns_.out);
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

  void run_part(const ChainPart& part, index rows, index columns, Scratch& scratch, float* out) {
    const int s = chain_.pivot;
    if (s > 0)
      run_stage(s - 1, part.front_first, part.front_last, plans_[s - 1].spots, scratch, out);
    if (chain_.stages[s].depthwise) run_windows(part, rows, columns, scratch, out);
    else run_stage(s, part.first, part.last, scratch.window_spots, scratch, out);
  }

  index n_blocks(int s) const { return index(chain_.stages[s].blocks.size()); }

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

  // Fills the planes that the first stage reads.
  void load(index image, index first_row, index first_column, Scratch& scratch) const {
    const StagePlan& plan = plans_[0];
    const Layout& layout = plan.in;
    const index from = columns_.element(first_column, 0, 0);
    const index first = std::clamp<index>(from, 0, x_.shape[3]);
    const index last = std::clamp<index>(
        columns_.element(first_column, columns_.phases - 1, layout.columns - 1) + 1, first,
        x_.shape[3]);
    for (index c = 0; c < chain_.in_channels; ++c) {
      const MatrixView channel{
          x_.data + image * x_.strides[0] + c * x_.strides[1] + first * x_.strides[3],
          x_.dtype,
          x_.shape[2],
          last - first,
          x_.strides[2],
          x_.strides[3]};
      Rows<float> rows(channel);
      float* plane = scratch.planes[0].data() + c * plan.in_pitch;
      for (index phase = 0; phase < layout.row_phases; ++phase)
        for (index q = 0; q < layout.rows; ++q) {
          const index y = rows_.element(first_row, phase, q);
          const float* row = y >= 0 && y < x_.shape[2] && last > first ? rows[y] : nullptr;
          float* to = plane + phase * layout.row_phase() + q * layout.columns;
          for (index p = 0; p < layout.column_phases; ++p)
            split_row(row, first, last, first_column, p, to + p * layout.column_phase());
        }
    }
  }

  // Columns [first, last) of the image lie at `row`, or the row is zero.
  void split_row(const float* row, index first, index last, index first_column, index phase,
                 float* to) const {
    const index n = plans_[0].in.columns;
    const auto before = [&](index column) {  // places of the phase before this column
      return std::clamp<index>(
          ceil_div(column - columns_.element(first_column, phase, 0) + n * columns_.stride,
                   columns_.stride) -
              n,
          0, n);
    };
    const index begin = row ? before(first) : n, end = row ? before(last) : n;
    std::fill(to, to + begin, 0.0f);
    std::fill(to + end, to + n, 0.0f);
    if (begin >= end) return;
    const float* from = row + columns_.element(first_column, phase, begin) - first;
    if (columns_.stride == 1) {
      std::memcpy(to + begin, from, std::size_t(end - begin) * sizeof(float));
    } else if (columns_.stride == 2) {  // which compilers turn into vectors
      for (index q = 0; q < end - begin; ++q) to[begin + q] = from[q * 2];
    } else {
      for (index q = 0; q < end - begin; ++q) to[begin + q] = from[q * columns_.stride];
    }
  }

  const ImagesView& x_;
  const ConvChain& chain_;
  const Axis rows_, columns_;
  const Blocks blocks_;
  float* out_;
  std::vector<StagePlan> plans_;
  std::vector<float> bias_;
};

}  // namespace

void conv_chain(const ImagesView& x, const ConvChain& chain, const ConvSteps& steps,
                const float* bias, float* out, int n_threads, Stop& stop) {
  Product(x, chain, steps, bias, out).run(n_threads, stop);
}

}  // namespace ff

#include "kernels/conv_chain/conv_chain.hpp"

#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/conv_chain/layout.hpp"
#include "kernels/conv_chain/tile.hpp"

namespace ff {
namespace {

using namespace conv;

// What a worker's planes may take of the L2 cache, beside the weights.
constexpr index kScratchFloats = index(512) << 8;
// A call is cut into at least so many blocks, if it has so many rows.
constexpr index kLeastBlocks = 12;

// The planes that a stage reads, and those of the stage after it.
struct StagePlan {
  Layout in;
  index in_pitch;
  std::vector<std::int32_t> offsets;
  Spots spots;  // of stages before the last with a window, which fill whole planes
};

struct Scratch {
  std::vector<Buffer<float>> planes;  // what stage s reads
  Buffer<float> row;
  Spots spots;
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
        blocks_(rows_, columns_, 1, 1),
        out_(out) {
    blocks_ = choose_blocks();
    shared_ = blocks_.n_columns == 1 ? shared_zeros(columns_) : 0;
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

  index plane_size(const Blocks& b) const {
    return rows_.phases * rows_.elements(b.rows) * columns_.phases * columns_.elements(b.columns);
  }

  index scratch_floats(const Blocks& b) const {
    index planes = chain_.in_channels, compact = 0;
    for (int s = 0; s < n_stages() - 1; ++s)
      (s < chain_.pivot ? planes : compact) += chain_.stages[s].planes;
    return planes * plane_size(b) + compact * b.rows * b.columns;
  }

  // Whole rows, and as many as fit; if only a few fit, parts of rows.
  Blocks choose_blocks() const {
    constexpr index kFewRows = 4, kFewColumns = 64;
    const index enough = std::max<index>(rows_.out * x_.shape[0] / kLeastBlocks, 1);
    for (index n = 1;; ++n) {
      index most = std::min(enough, rows_.out);
      Blocks blocks(rows_, columns_, most, n);
      while (most > 1 && scratch_floats(blocks) > kScratchFloats)
        blocks = Blocks(rows_, columns_, --most, n);
      if (most >= std::min(kFewRows, enough) || blocks.columns <= kFewColumns) return blocks;
    }
  }

  void plan() {
    Layout layout{columns_.phases, rows_.phases, rows_.elements(blocks_.rows),
                  columns_.elements(blocks_.columns) - shared_};
    plans_.resize(n_stages());
    for (int s = 0; s < n_stages(); ++s) {
      StagePlan& plan = plans_[s];
      plan.in = layout;
      // A vector may begin at the last position; zeros that rows share follow the last row.
      plan.in_pitch = plane_pitch(layout.size() + shared_ + 2 * kLanes<float>);
      if (chain_.owner[0] == s) layout.row_phases = 1, layout.rows = blocks_.rows;
      if (chain_.owner[1] == s) layout.column_phases = 1;
      if (s == chain_.pivot) layout = {1, 1, blocks_.rows, blocks_.columns};
      find_offsets(s);
      if (s < chain_.pivot) fill_planes(plan, layout);
    }
  }

  // Where the terms of a sum lie, from the position of the output on.
  void find_offsets(int s) {
    StagePlan& plan = plans_[s];
    const PackedConv& stage = chain_.stages[s];
    std::vector<index> window;
    for (index i = 0; i < stage.kernel[0]; ++i)
      for (index j = 0; j < stage.kernel[1]; ++j) {
        const index y = i * dilation(rows_, stage.kernel[0]);
        const index x = j * dilation(columns_, stage.kernel[1]);
        window.push_back(x % columns_.phases * plan.in.column_phase() +
                         y % rows_.phases * plan.in.row_phase() +
                         y / rows_.phases * plan.in.columns + x / columns_.phases);
      }
    if (plan.in_pitch > std::numeric_limits<std::int32_t>::max() / index(stage.source.size()))
      throw std::invalid_argument(
          "dilation must be smaller: a window with its channels takes more "
          "than 8 GB");
    for (const std::int32_t source : stage.source)
      for (const index at : window)
        plan.offsets.push_back(std::int32_t(source * plan.in_pitch + at));
  }

  static index dilation(const Axis& axis, index kernel) {
    return kernel > 1 ? axis.span / (kernel - 1) : 0;
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
    scratch.row = Buffer<float>(x_.shape[3]);
  }

  void run_block(index image, index row_block, index column_block, Scratch& scratch) {
    const index first_row = rows_.out * row_block / blocks_.n_rows;
    const index first_column = columns_.out * column_block / blocks_.n_columns;
    const index rows = rows_.out * (row_block + 1) / blocks_.n_rows - first_row;
    const index columns = columns_.out * (column_block + 1) / blocks_.n_columns - first_column;
    const int last = n_stages() - 1, pivot = chain_.pivot;
    float* out = out_ + image * chain_.out_channels * rows_.out * columns_.out +
                 first_row * columns_.out + first_column;

    load(image, first_row, first_column, scratch);
    for (int s = 0; s < pivot - 1; ++s) run_stage(s, 0, n_blocks(s), plans_[s].spots, scratch, out);
    scratch.spots.clear();
    add_rows(scratch.spots, rows, columns, plans_[pivot].in.columns,
             pivot == last ? columns_.out : columns);
    for (const ChainPart& part : chain_.parts) {
      if (pivot > 0)
        run_stage(pivot - 1, part.front_first, part.front_last, plans_[pivot - 1].spots, scratch,
                  out);
      run_stage(pivot, part.first, part.last, scratch.spots, scratch, out);
    }
    for (int s = pivot + 1; s <= last; ++s) {
      scratch.spots.clear();
      if (s == last && columns < columns_.out)
        add_rows(scratch.spots, rows, columns, columns, columns_.out);
      else add_rows(scratch.spots, 1, rows * columns, 0, 0);
      run_stage(s, 0, n_blocks(s), scratch.spots, scratch, out);
    }
  }

  index n_blocks(int s) const { return index(chain_.stages[s].blocks.size()); }

  void run_stage(int s, index first, index last, const Spots& spots, Scratch& scratch, float* out) {
    const PackedConv& stage = chain_.stages[s];
    const bool ends = s == n_stages() - 1;
    const BlockRun run{scratch.planes[s].data(),
                       plans_[s].offsets.data(),
                       stage.depth(),
                       stage.weights.data(),
                       ends && !bias_.empty() ? bias_.data() : nullptr,
                       ends ? out : scratch.planes[s + 1].data(),
                       ends ? rows_.out * columns_.out : plans_[s + 1].in_pitch};
    run_blocks(run, stage.blocks, first, last, spots);
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
      MatrixView channel{
          x_.data + image * x_.strides[0] + c * x_.strides[1] + first * x_.strides[3],
          x_.dtype,
          x_.shape[2],
          last - first,
          x_.strides[2],
          x_.strides[3]};
      float* plane = scratch.planes[0].data() + c * plan.in_pitch;
      for (index phase = 0; phase < layout.row_phases; ++phase)
        for (index q = 0; q < layout.rows; ++q) {
          const index row = rows_.element(first_row, phase, q);
          float* to = plane + phase * layout.row_phase() + q * layout.columns;
          const bool exists = row >= 0 && row < x_.shape[2] && last > first;
          if (exists) load_row(channel, row, scratch.row.data());
          for (index p = 0; p < layout.column_phases; ++p)
            split_row(exists ? scratch.row.data() : nullptr, first, last, first_column, p,
                      to + p * layout.column_phase());
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
    } else {
      for (index q = begin; q < end; ++q) to[q] = from[(q - begin) * columns_.stride];
    }
  }

  const ImagesView& x_;
  const ConvChain& chain_;
  const Axis rows_, columns_;
  Blocks blocks_;
  index shared_ = 0;
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

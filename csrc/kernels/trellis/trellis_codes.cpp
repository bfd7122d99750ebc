// Streams of trellis-coded levels; writer.hpp describes how they are written.
#include "kernels/trellis/trellis_codes.hpp"

#include <string>

#include "kernels/trellis/writer.hpp"

namespace ff {

using namespace trellis;

namespace {

// Returns the blocks of a task: at least `least`, and enough to be worth waking a thread.
index blocks_per_task(index block_rows, index cols, index least) {
  constexpr index kLevels = 1 << 14;
  return std::max(least, ceil_div(kLevels, std::max<index>(block_rows * cols, 1)));
}

}  // namespace

TrellisStreams trellis_encode(const std::int32_t* levels, const std::int32_t* row_logs, index rows,
                              index block_rows, const TrellisTables& tables, int n_threads,
                              Stop& stop) {
  const auto shares = shares_of(tables);
  const index n_blocks = ceil_div(rows, block_rows), cols = tables.classes.cols;
  std::vector<std::vector<std::uint16_t>> blocks(n_blocks);
  std::vector<Writer> writers;
  for (int worker = 0; worker < n_threads; ++worker) writers.emplace_back(tables, shares);
  const index each = blocks_per_task(block_rows, cols, 1);
  parallel_for(ceil_div(n_blocks, each), n_threads, stop, [&](index task, int worker) {
    for (index block = task * each; block < std::min((task + 1) * each, n_blocks); ++block) {
      const index first = block * block_rows, n = std::min(block_rows, rows - first);
      index size = 0;
      const std::uint16_t* words =
          writers[worker].write(levels + first * cols, row_logs + first, n, size, stop);
      blocks[block].assign(words, words + size);
    }
  });
  TrellisStreams streams;
  for (const auto& block : blocks) {
    streams.lengths.push_back(index(block.size()));
    streams.words.insert(streams.words.end(), block.begin(), block.end());
  }
  return streams;
}

namespace {

// next_state() for an even level.
struct NextStates {
  constexpr NextStates() : of() {
    for (int state = 0; state < kStates; ++state) of[state] = std::uint8_t(next_state(state, 0));
  }
  constexpr std::uint32_t operator[](std::uint32_t state) const { return of[state]; }

  std::uint8_t of[kStates];
};
constexpr NextStates kNext;

// The words of all streams. Past the end the last word is repeated, and `at` shows that.
struct Words {
  const std::uint16_t* data;
  index last;

  // Has no branch: one level in eight would mispredict it at 2 bits.
  void refill(std::uint32_t& state, index& at) const {
    const std::uint32_t word = data[std::min(at, last)], low = state < kLow;
    state = state << 16 * low | (word & (0 - low));
    at += low;
  }
};

constexpr int kLanes = 4;  // blocks that one thread reads side by side
constexpr index kBlocksPerTask = 8;

}  // namespace

// What each place means in one context.
struct TrellisDecoder::Context {
  struct Symbol {
    std::uint16_t start, frequency;
    float value;
  };

  // The highest bits of a place give the first symbol there, and few places need a later one. So
  // the decoder reads 1 KB per context instead of 16 KB, and the nearest caches hold many contexts.
  static constexpr int kSkipped = 4;

  std::uint8_t firsts[kTotal >> kSkipped];
  Symbol symbols[kSymbols];
  float outer;  // centre of the largest magnitudes

  void fill(const std::uint16_t* frequencies, const std::uint16_t* starts, int quantizer,
            const float* centers) {
    std::uint32_t filled = 0;
    for (int s = 0; s < kSymbols; ++s) {
      const int bucket = (s + 1) / 2;
      const float center = bucket ? centers[std::min(bucket, kCenters) - 1] : 0;
      const float point = point_of(first_of(bucket), quantizer, center);
      symbols[s] = {starts[s], frequencies[s], s && s % 2 == 0 ? -point : point};
      const std::uint32_t end = std::uint32_t(starts[s]) + frequencies[s];
      for (; filled << kSkipped < end; ++filled) firsts[filled] = std::uint8_t(s);
    }
    outer = centers[kCenters - 1];
  }
};

TrellisDecoder::TrellisDecoder(const std::uint16_t* words, index n_words,
                               const std::int64_t* lengths, index n_blocks, index rows,
                               index block_rows, const TrellisTables& tables, const float* centers)
    : words_(words),
      begins_(1, 0),
      rows_(rows),
      block_rows_(block_rows),
      columns_(tables.classes.columns, tables.classes.columns + tables.classes.cols),
      classes_(tables.classes) {
  classes_.columns = columns_.data();
  for (index block = 0; block < n_blocks; ++block) {
    if (lengths[block] < 2 || lengths[block] > n_words - begins_.back())
      throw CorruptData("lengths must be at least 2 and " + std::to_string(n_words) +
                        " in all, got " + std::to_string(lengths[block]) + " at " +
                        std::to_string(block));
    begins_.push_back(begins_.back() + lengths[block]);
  }
  if (begins_.back() != n_words)
    throw CorruptData("words must have length " + std::to_string(begins_.back()) + ", got " +
                      std::to_string(n_words));
  const auto starts = starts_of(tables);
  const float none[kCenters] = {};
  contexts_ = Buffer<Context>(tables.contexts());
  for (index c = 0; c < tables.contexts(); ++c)
    contexts_[c].fill(tables.frequencies + c * kSymbols, starts.data() + c * kSymbols, int(c & 1),
                      c < 2 * classes_.count ? centers + c * kCenters : none);
}

TrellisDecoder::TrellisDecoder(TrellisDecoder&&) noexcept = default;
TrellisDecoder::~TrellisDecoder() = default;

// A block to decode, and the range of the requested rows that lie in it.
struct TrellisDecoder::Block {
  index number, first, last;
};

// The current position in a block.
struct TrellisDecoder::Lane {
  std::uint32_t state = 0;
  index at = 0, end = 0;  // in words
  index row = 0, n_rows = 0;
  Block block{};
  int row_log = 0;
  std::vector<std::uint8_t> twice;
  std::vector<float> unwanted;
};

// Reads the blocks of a task, several side by side: the steps for one level depend on each other
// and take about 20 cycles, and the processor overlaps those of several blocks.
class TrellisDecoder::Reader {
 public:
  Reader(const TrellisDecoder& from, const std::int64_t* ids, float* out)
      : from_(from),
        words_{from.words_, from.begins_.back() - 1},
        ids_(ids),
        out_(out),
        lanes_(kLanes) {}

  void read(const Block* blocks, const Block* end, Stop& stop) {
    int active = 0;
    for (index rows = 1;; ++rows) {
      if (rows % kRowsUnstopped == 0 && stop.requested()) return;
      while (active < kLanes && blocks < end) begin(lanes_[active++], *blocks++);
      if (active == 0) return;
      switch (active) {
        case 1:
          read_row<1>();
          break;
        case 2:
          read_row<2>();
          break;
        case 3:
          read_row<3>();
          break;
        default:
          read_row<kLanes>();
      }
      for (int k = active - 1; k >= 0; --k)
        if (finished(lanes_[k])) std::swap(lanes_[k], lanes_[--active]);
    }
  }

 private:
  void begin(Lane& lane, const Block& block) {
    lane.block = block;
    lane.at = from_.begins_[block.number];
    lane.end = from_.begins_[block.number + 1];
    lane.state = std::uint32_t(from_.words_[lane.at]) << 16 | from_.words_[lane.at + 1];
    lane.at += 2;
    if (lane.state < kLow)
      throw CorruptData("states must be at least " + std::to_string(kLow) + ", got " +
                        std::to_string(lane.state));
    lane.row = block.number * from_.block_rows_;
    lane.n_rows = std::min(from_.rows_, lane.row + from_.block_rows_);
    lane.twice.resize(from_.cols());
    lane.row_log = 0;
    from_.classes_.twice(0, lane.twice.data());
  }

  // Ends a row; returns whether it was the last requested row of its block.
  bool finished(Lane& lane) const {
    if (lane.at > lane.end)
      throw CorruptData("data must hold every level, got a lane that ends too early");
    if (lane.block.first < lane.block.last && ids_[lane.block.first] == lane.row)
      ++lane.block.first;
    ++lane.row;
    if (lane.row == lane.n_rows && (lane.at != lane.end || lane.state != kLow))
      throw CorruptData("data must end with its last level, got a lane that goes on");
    return lane.block.first == lane.block.last;
  }

  template <int N>
  void read_row() {
    std::uint32_t state[N], trellis[N] = {};
    index at[N];
    const std::uint8_t* twice[N];
    float* out[N];
    for (int k = 0; k < N; ++k) {
      Lane& lane = lanes_[k];
      if (from_.classes_.count > 1) begin_row(lane);
      state[k] = lane.state, at[k] = lane.at;
      twice[k] = lane.twice.data();
      out[k] = destination(lane);
    }
    const Words words = words_;
    const Context* contexts = from_.contexts_.data();
    const index cols = from_.cols();
    for (index j = 0; j < cols; ++j) {
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        const Context& context = contexts[twice[k][j] + (trellis[k] & 1)];
        std::uint32_t s = next(context, words, state[k], at[k]);
        if (__builtin_expect(s < 2 * kDirect - 1, 1)) {
          out[k][j] = context.symbols[s].value;
          trellis[k] = kNext[trellis[k]] ^ ((s + 1) & 2) * (kInput / 2);
        } else {
          const int quantizer = int(trellis[k] & 1);
          const int magnitude = next_plain(s, words, state[k], at[k]);
          const float point = point_of(magnitude, quantizer, context.outer);
          out[k][j] = s & 1 ? point : -point;
          trellis[k] = std::uint32_t(next_state(int(trellis[k]), magnitude & 1));
        }
      }
    }
    for (int k = 0; k < N; ++k) lanes_[k].state = state[k], lanes_[k].at = at[k];
  }

  void begin_row(Lane& lane) {
    const Context& context = from_.contexts_[2 * from_.classes_.count];
    const std::uint32_t s = next(context, words_, lane.state, lane.at);
    int row_log = int((s + 1) / 2);
    if (row_log >= kDirect) row_log = next_plain(s, words_, lane.state, lane.at);
    if (s % 2 == 0) row_log = -row_log;
    if (row_log == lane.row_log) return;
    lane.row_log = row_log;
    from_.classes_.twice(row_log, lane.twice.data());
  }

  float* destination(Lane& lane) {
    if (ids_[lane.block.first] == lane.row) return out_ + lane.block.first * from_.cols();
    lane.unwanted.resize(from_.cols());
    return lane.unwanted.data();
  }

  // Reads one symbol.
  static std::uint32_t next(const Context& context, const Words& words, std::uint32_t& state,
                            index& at) {
    const std::uint32_t place = state & kPlaces;
    std::uint32_t s = context.firsts[place >> Context::kSkipped];
    const auto* symbol = context.symbols + s;
    while (place - symbol->start >= symbol->frequency) ++symbol, ++s;
    state = (state >> kTotalBits) * symbol->frequency + place - symbol->start;
    words.refill(state, at);
    return s;
  }

  // Reads the plain bits after a symbol that stands for several magnitudes; returns the magnitude.
  static int next_plain(std::uint32_t s, const Words& words, std::uint32_t& state, index& at) {
    const int bucket = int(s + 1) / 2, shift = kTotalBits - plain_bits(bucket);
    const std::uint32_t place = state & kPlaces;
    state = (state >> kTotalBits << shift) + (place & ((1u << shift) - 1));
    words.refill(state, at);
    return first_of(bucket) + int(place >> shift);
  }

  const TrellisDecoder& from_;
  const Words words_;
  const std::int64_t* ids_;
  float* out_;
  std::vector<Lane> lanes_;
};

void TrellisDecoder::decode(const std::int64_t* ids, index n, float* out, int n_threads,
                            Stop& stop) const {
  std::vector<Block> blocks;
  for (index i = 0; i < n; ++i) {
    const index number = ids[i] / block_rows_;
    if (blocks.empty() || blocks.back().number != number) blocks.push_back({number, i, i});
    blocks.back().last = i + 1;
  }
  const index n_blocks = index(blocks.size());
  const index each = blocks_per_task(block_rows_, cols(), kBlocksPerTask);
  parallel_for(ceil_div(n_blocks, each), n_threads, stop, [&](index task, int) {
    const index first = task * each, last = std::min(first + each, n_blocks);
    Reader(*this, ids, out).read(blocks.data() + first, blocks.data() + last, stop);
  });
}

}  // namespace ff

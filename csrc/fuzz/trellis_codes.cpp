// The input gives sizes, columns, tables, lengths and words. Either CorruptData is thrown, or each
// row decoded alone equals the same row of all decoded at once. What follows the sizes is also
// taken as levels, which must come back after encoding.
#include "kernels/trellis/trellis_codes.hpp"

#include <cstring>
#include <optional>

namespace {

using ff::index;
namespace trellis = ff::trellis;

struct Input {
  const std::uint8_t* data;
  index size;

  int byte() { return size > 0 ? (--size, *data++) : 0; }
  int signed_byte() { return std::int8_t(byte()); }
};

struct Tables {
  std::vector<std::int8_t> columns;
  std::vector<std::uint16_t> frequencies;
  ff::TrellisTables view;

  Tables(Input& in, index cols, int classes, int shift, bool whole) {
    for (index j = 0; j < cols; ++j) columns.push_back(std::int8_t(in.signed_byte()));
    view.classes = {columns.data(), cols, shift, classes};
    for (index context = 0; context < view.contexts(); ++context) fill(in, whole);
    view.frequencies = frequencies.data();
  }

  // Raises a few symbols chosen by the input; if the table is whole, every symbol has at least 1.
  // Level 0 gets the rest of 2^14, or nothing if the sum is larger, which must be refused.
  void fill(Input& in, bool whole) {
    std::vector<int> table(trellis::kSymbols, whole ? 1 : 0);
    for (int k = in.byte() % 6; k > 0; --k) table[in.byte() % trellis::kSymbols] += 16 * in.byte();
    int sum = 0;
    for (std::size_t s = 1; s < table.size(); ++s) sum += table[s];
    table[0] = std::max((1 << 14) - sum, 0);
    frequencies.insert(frequencies.end(), table.begin(), table.end());
  }
};

std::optional<std::vector<float>> decode(const ff::TrellisDecoder& decoder, index first,
                                         index last) {
  std::vector<std::int64_t> ids;
  for (index i = first; i < last; ++i) ids.push_back(i);
  std::vector<float> out(ids.size() * decoder.cols());
  ff::Stop stop;
  try {
    decoder.decode(ids.data(), index(ids.size()), out.data(), 1, stop);
  } catch (const ff::CorruptData&) {
    return std::nullopt;
  }
  return out;
}

void try_words(Input in, const Tables& tables, index rows, index block_rows) {
  std::vector<std::int64_t> lengths(ff::ceil_div(rows, block_rows));
  for (auto& length : lengths) length = in.byte();
  std::vector<std::uint16_t> words(in.size / 2);
  if (!words.empty()) std::memcpy(words.data(), in.data, words.size() * 2);
  if (!lengths.empty()) {
    lengths.back() = index(words.size());
    for (std::size_t k = 0; k + 1 < lengths.size(); ++k) lengths.back() -= lengths[k];
  }
  const std::vector<float> centers(2 * tables.view.classes.count * trellis::kCenters, 0.25f);
  const ff::TrellisDecoder decoder(words.data(), index(words.size()), lengths.data(),
                                   index(lengths.size()), rows, block_rows, tables.view,
                                   centers.data());
  const index cols = decoder.cols();
  const auto all = decode(decoder, 0, rows);
  for (index i = 0; all && i < rows; ++i) {
    const auto one = decode(decoder, i, i + 1);
    if (!one || (cols && std::memcmp(one->data(), all->data() + i * cols, cols * sizeof(float))))
      __builtin_trap();
  }
}

void try_levels(Input in, const Tables& tables, index rows, index block_rows) {
  const index cols = tables.view.classes.cols;
  std::vector<std::int32_t> row_logs(rows), levels(rows * cols);
  for (auto& log : row_logs) log = in.signed_byte();
  for (auto& level : levels) {
    level = in.signed_byte();
    if (level == 100) level = -trellis::kLargest + in.byte();
  }
  ff::Stop stop;
  const auto streams =
      ff::trellis_encode(levels.data(), row_logs.data(), rows, block_rows, tables.view, 1, stop);
  const std::vector<float> centers(2 * tables.view.classes.count * trellis::kCenters, 0);
  const ff::TrellisDecoder decoder(streams.words.data(), index(streams.words.size()),
                                   streams.lengths.data(), index(streams.lengths.size()), rows,
                                   block_rows, tables.view, centers.data());
  const auto all = decode(decoder, 0, rows);
  if (!all) __builtin_trap();
  for (index i = 0; i < rows; ++i)
    for (index j = 0, state = 0; j < cols; ++j) {
      const int level = levels[i * cols + j];
      const float point = trellis::point_of(std::abs(level), int(state & 1), 0);
      if ((*all)[i * cols + j] != (level < 0 ? -point : point)) __builtin_trap();
      state = trellis::next_state(int(state), level & 1);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in{data, ff::index(size)};
  const ff::index rows = in.byte() % 40, cols = in.byte() % 40, block_rows = 1 + in.byte() % 9;
  const int many = in.byte(), classes = many == 255 ? trellis::kMostClasses : 1 + many % 5;
  const int shift = in.byte() % 9, kind = in.byte();
  try {
    const Tables tables(in, cols, classes, shift, kind % 2 == 0);
    if (kind % 3 == 0 && kind % 2 == 0) try_levels(in, tables, rows, block_rows);
    try_words(in, tables, rows, block_rows);
  } catch (const ff::CorruptData&) {
    return 0;
  }
  return 0;
}

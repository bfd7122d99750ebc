// Width, size of the array, gaps: positions that rise and fit, and encode to the same gaps again,
// or CorruptData.
#include "kernels/gaps/gaps.hpp"

#include <cstring>

namespace {

template <class Field>
void try_gaps(const std::uint8_t* data, std::size_t size, int n_bits, std::int64_t array_size) {
  const ff::index n = ff::index(size / sizeof(Field));
  std::vector<Field> gaps(n), again(n);
  if (n) std::memcpy(gaps.data(), data, n * sizeof(Field));
  std::vector<std::int64_t> positions(n);
  ff::Stop stop;
  try {
    ff::read_gaps(gaps.data(), n, n_bits, array_size, positions.data(), 1, stop);
  } catch (const ff::CorruptData&) {
    return;
  }
  ff::check_positions(positions.data(), n, array_size, 1, stop);
  if (ff::count_fillers(positions.data(), n, 1, stop)[n_bits] != 0) __builtin_trap();
  ff::write_gaps(positions.data(), n, n_bits, again.data(), nullptr, 1, stop);
  if (gaps != again) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 5) return 0;
  const int n_bits = 1 + data[0] % ff::kMaxGapBits;
  std::uint32_t array_size;
  std::memcpy(&array_size, data + 1, 4);
  if (n_bits <= 8) try_gaps<std::uint8_t>(data + 5, size - 5, n_bits, array_size);
  try_gaps<std::uint16_t>(data + 5, size - 5, n_bits, array_size);
  return 0;
}

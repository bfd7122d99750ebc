// The input gives the width, whether the largest gap is an escape, the size of the array, and gaps.
// They must decode to positions that rise, fit and encode to the same gaps, or throw CorruptData.
#include "kernels/gaps/gaps.hpp"

#include <cstring>

namespace {

template <class Field>
void try_gaps(const std::uint8_t* data, std::size_t size, int n_bits, bool escape,
              std::int64_t array_size) {
  std::vector<Field> gaps(size / sizeof(Field));
  if (!gaps.empty()) std::memcpy(gaps.data(), data, gaps.size() * sizeof(Field));
  ff::Buffer<std::int64_t> positions;
  ff::Stop stop;
  try {
    positions =
        ff::read_gaps(gaps.data(), ff::index(gaps.size()), n_bits, escape, array_size, 1, stop);
  } catch (const ff::CorruptData&) {
    return;
  }
  // Escapes after the last position have no effect.
  const auto largest = Field((1 << n_bits) - 1);
  while (escape && !gaps.empty() && gaps.back() == largest) gaps.pop_back();
  const ff::index n = positions.size();
  ff::check_positions(positions.data(), n, array_size, 1, stop);
  const auto n_fillers = ff::count_fillers(positions.data(), n, escape, 1, stop)[n_bits];
  if (n + n_fillers != ff::index(gaps.size())) __builtin_trap();
  std::vector<Field> again(gaps.size());
  std::vector<std::int64_t> fillers(n_fillers);
  ff::write_gaps(positions.data(), n, n_bits, escape, again.data(), fillers.data(), 1, stop);
  if (gaps != again) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 5) return 0;
  const int n_bits = 1 + data[0] % ff::kMaxGapBits;
  const bool escape = data[0] & 128;
  std::uint32_t array_size;
  std::memcpy(&array_size, data + 1, 4);
  if (n_bits <= 8) try_gaps<std::uint8_t>(data + 5, size - 5, n_bits, escape, array_size);
  try_gaps<std::uint16_t>(data + 5, size - 5, n_bits, escape, array_size);
  return 0;
}

#pragma once
#include <array>
#include <vector>

#include "core/buffer.hpp"
#include "core/corrupt.hpp"
#include "core/parallel.hpp"

// Stores the positions of the nonzeros of a flat array as gaps of a few bits (Han, Mao and Dally,
// 2016). The gap of an entry is its position minus that of the entry before it (minus −1 for the
// first), and its field holds the gap less one. A field of b bits bridges at most 2^b positions;
// wider gaps are cut by fillers, entries with the largest field. A filler has a position like any
// entry, one at which the array is zero. With `escape`, for positions without stored values, an
// entry with the largest field has no position: it skips 2^b − 1 positions, and the gap continues
// in the next entry.
namespace ff {

inline constexpr int kMaxGapBits = 16;

// Throws std::invalid_argument unless the positions rise and are in [0, size).
void check_positions(const std::int64_t* positions, index n, std::int64_t size, int n_threads,
                     Stop& stop);

// At [b], b ≥ 1: how many fillers or escapes fields of b bits need.
using FillerCounts = std::array<index, kMaxGapBits + 1>;
FillerCounts count_fillers(const std::int64_t* positions, index n, bool escape, int n_threads,
                           Stop& stop);

// Returns the width for which n + fillers entries of width + value_bits bits take the least space;
// ties go to the smallest width.
int best_gap_bits(const FillerCounts& fillers, index n, int value_bits);

// Writes the fields, 1 or 2 bytes each, and the rising indices of the entries that are fillers or
// escapes. `fields` needs room for n + fillers[n_bits] entries and `fillers` for fillers[n_bits],
// as count_fillers() returns them.
template <class Field>
void write_gaps(const std::int64_t* positions, index n, int n_bits, bool escape, Field* fields,
                std::int64_t* fillers, int n_threads, Stop& stop);

// Returns the position of every entry, including fillers but not escapes. Throws CorruptData if a
// field needs more than n_bits or an entry lies at `size` or beyond.
template <class Field>
Buffer<std::int64_t> read_gaps(const Field* fields, index n, int n_bits, bool escape,
                               std::int64_t size, int n_threads, Stop& stop);

}  // namespace ff

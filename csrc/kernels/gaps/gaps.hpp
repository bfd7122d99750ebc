#pragma once
#include <array>
#include <vector>

#include "core/buffer.hpp"
#include "core/corrupt.hpp"
#include "core/parallel.hpp"

// Positions of the nonzeros of a flat array as gaps of a few bits (Han, Mao and Dally, 2016). The
// gap of an entry is its position less that of the entry before it (less −1 for the first), and its
// field holds the gap less one. A field of b bits bridges 2^b positions at most: fillers, entries
// with the largest field, cut a wider gap. A filler stands for a position as any entry does, one
// where the array is zero. With `escape`, for positions that have no values beside them, an entry
// with the largest field stands for no position: it passes over 2^b − 1 of them, and the gap goes
// on in the next entry.
namespace ff {

inline constexpr int kMaxGapBits = 16;

// Throws std::invalid_argument unless the positions rise from 0 on and stay below `size`.
void check_positions(const std::int64_t* positions, index n, std::int64_t size, int n_threads,
                     Stop& stop);

// How many fillers or escapes a width of b bits takes, at [b], b ≥ 1.
using FillerCounts = std::array<index, kMaxGapBits + 1>;
FillerCounts count_fillers(const std::int64_t* positions, index n, bool escape, int n_threads,
                           Stop& stop);

// The width for which n + fillers entries of width + value_bits bits take least; of equals the
// smallest.
int best_gap_bits(const FillerCounts& fillers, index n, int value_bits);

// Fields of 1 or 2 bytes each, and which of the entries are fillers or escapes, rising. Room for n
// and fillers[n_bits] of the former, fillers[n_bits] of the latter.
template <class Field>
void write_gaps(const std::int64_t* positions, index n, int n_bits, bool escape, Field* fields,
                std::int64_t* fillers, int n_threads, Stop& stop);

// The position of every entry, of fillers too, but not of escapes. Throws CorruptData where a field
// needs more than n_bits, or entries lead past `size`.
template <class Field>
Buffer<std::int64_t> read_gaps(const Field* fields, index n, int n_bits, bool escape,
                               std::int64_t size, int n_threads, Stop& stop);

}  // namespace ff

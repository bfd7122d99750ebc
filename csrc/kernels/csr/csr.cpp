#include "kernels/csr/csr.hpp"

#include <algorithm>
#include <stdexcept>

namespace ff {
namespace {

constexpr index kCheckChunk = index(1) << 16;

// Returns the first i in [first, last) whose column lies outside [0, cols), or last. Groups are
// tested without a branch; a negative column is a huge unsigned one.
template <class I>
index first_outside(const I* indices, index first, index last, index cols) {
  using U = std::make_unsigned_t<I>;
  constexpr index kGroup = 64;
  const index top = index(std::numeric_limits<I>::max());
  if (cols == 0) return first;
  const U largest = U(std::min(cols - 1, top));
  for (; first < last; first += kGroup) {
    const index end = std::min(first + kGroup, last);
    unsigned outside = 0;
    for (index i = first; i < end; ++i) outside |= unsigned(U(indices[i]) > largest);
    if (outside) {
      while (U(indices[first]) <= largest) ++first;
      return first;
    }
  }
  return last;
}

// Returns the first fault in [0, n) that find(first, last) reports for a chunk, or n if there is
// none.
template <class Find>
index first_fault(index n, int n_threads, Stop& stop, Find find) {
  std::vector<index> faults(ceil_div(n, kCheckChunk), n);
  parallel_for(index(faults.size()), n_threads, stop, [&](index c, int) {
    const index first = c * kCheckChunk, last = std::min(first + kCheckChunk, n);
    const index fault = find(first, last);
    if (fault < last) faults[c] = fault;
  });
  for (const index fault : faults)
    if (fault < n) return fault;
  return n;
}

[[noreturn]] void throw_lie(const std::string& what) {
  throw std::invalid_argument(what);
}

}  // namespace

void check_csr(const CsrView& a, const std::string& name, int n_threads, Stop& stop) {
  if (a.start(0) != 0)
    throw_lie(name + "indptr must begin at 0, got " + std::to_string(a.start(0)));
  const index row = first_fault(a.rows, n_threads, stop, [&](index first, index last) {
    while (first < last && a.start(first) <= a.start(first + 1)) ++first;
    return first;
  });
  if (row < a.rows)
    throw_lie(name + "indptr must not fall, got " + std::to_string(a.start(row)) + " and then " +
              std::to_string(a.start(row + 1)) + " at [" + std::to_string(row + 1) + "]");
  if (a.start(a.rows) != a.nonzeros)
    throw_lie(name + "indptr must end at the number of nonzeros, " + std::to_string(a.nonzeros) +
              ", got " + std::to_string(a.start(a.rows)));
  const auto at = [&](index i) {
    return a.wide_indices ? index(static_cast<const std::int64_t*>(a.indices)[i])
                          : index(static_cast<const std::int32_t*>(a.indices)[i]);
  };
  const index i = first_fault(a.nonzeros, n_threads, stop, [&](index first, index last) {
    return a.wide_indices
               ? first_outside(static_cast<const std::int64_t*>(a.indices), first, last, a.cols)
               : first_outside(static_cast<const std::int32_t*>(a.indices), first, last, a.cols);
  });
  if (i < a.nonzeros)
    throw_lie(name + "indices must be in [0, " + std::to_string(a.cols) + "), got " +
              std::to_string(at(i)) + " at [" + std::to_string(i) + "]");
}

RowPieces cut_rows(const CsrView& a) {
  // Row i belongs to piece ⌊(start(i) + i) / kSize⌋. Counting rows as well as nonzeros bounds a
  // piece of empty rows; a long row is always the last one of its piece.
  constexpr index size = RowPieces::kSize;
  RowPieces pieces;
  index first = 0;
  while (first < a.rows) {
    const index limit = ((a.start(first) + first) / size + 1) * size;
    index low = first + 1, high = a.rows;  // low becomes the first row of the next piece
    while (low < high) {
      const index middle = low + (high - low) / 2;
      if (a.start(middle) + middle < limit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    index last = low;
    const index from = a.start(last - 1), to = a.start(last);
    if (to - from > size) {
      --last;
      const index partial = index(pieces.partials.size());
      for (index p = from; p < to; p += size)
        pieces.partials.push_back({p, std::min(p + size, to)});
      pieces.long_rows.push_back({last, partial, index(pieces.partials.size()) - partial});
    }
    if (last > first) pieces.ranges.push_back({first, last});
    first = low;
  }
  return pieces;
}

}  // namespace ff

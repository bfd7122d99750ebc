#pragma once
#include <algorithm>

#include "kernels/conv_chain/conv_chain.hpp"

// How a block of the result is cut from an image, and how the channels that it needs lie in scratch
// memory.
//
// A plane is a channel with its padding. Where a window moves with stride s along an axis, rows (or
// columns) are split into s phases, p, p + s, p + 2s, …: neighbouring outputs then read
// neighbouring elements, and the window's element i is a fixed offset from the output's own
// position. A plane lies as (phases of columns, phases of rows, rows, columns). Where the whole
// width is one block, the zeros to the right of a row are those to the left of the next.
namespace ff::conv {

struct Axis {
  index size, out;  // elements of the image, and of the result
  index stride, padding, dilation;
  index span;    // from the window's first element to its last
  index phases;  // that windows read

  Axis(index n, index kernel, index step, index pad, index apart)
      : size(n),
        out(conv_outputs(n, kernel, step, pad, apart)),
        stride(step),
        padding(pad),
        dilation(apart),
        span(apart * (kernel - 1)),
        phases(std::min(step, span + 1)) {}

  // Elements of a phase for n outputs.
  index elements(index n) const { return n + span / stride; }
  // The image's element at place `at` of a phase, in the block of outputs from `first` on.
  index element(index first, index phase, index at) const {
    return (first + at) * stride + phase - padding;
  }
};

struct Layout {
  index column_phases, row_phases, rows, columns;

  index row_phase() const { return rows * columns; }
  index column_phase() const { return row_phases * row_phase(); }
  index size() const { return column_phases * column_phase(); }
};

// How many columns at the end of each row are zero, as are as many at the beginning of the next.
inline index shared_zeros(const Axis& columns) {
  const index width = columns.elements(columns.out);
  const auto fits = [&](index n) {
    for (index phase = 0; phase < columns.phases; ++phase)
      if (columns.element(0, phase, width - n) < columns.size ||
          columns.element(0, phase, n - 1) >= 0)
        return false;
    return true;
  };
  index n = width - columns.out;
  while (n > 0 && !fits(n)) --n;
  return n;
}

// How the result of an image is cut: blocks of `rows` × `columns`, the last ones smaller.
struct Blocks {
  index rows, columns, n_rows, n_columns;

  Blocks(const Axis& row, const Axis& column, index height, index width)
      : rows(height),
        columns(width),
        n_rows(ceil_div(row.out, height)),
        n_columns(ceil_div(column.out, width)) {}

  index count() const { return n_rows * n_columns; }
};

// Distances from plane to plane are odd multiples of a cache line, so that planes do not meet in
// the same sets of a cache. The floats after a plane's end are zero.
inline index plane_pitch(index size) {
  constexpr index kLine = index(kCacheLine / sizeof(float));
  return (ceil_div(size, kLine) | 1) * kLine;
}

}  // namespace ff::conv

#pragma once
#include <algorithm>

#include "core/buffer.hpp"
#include "kernels/codebook/codebook.hpp"
#include "kernels/codebook/tables.hpp"

// One row of codes from left to right: its values, in the order of the look-up that makes them.
namespace ff {

// Columns at a time: a multiple of every look-up's block, few enough for L1 beside the operand.
inline constexpr index kColumnBlock = 1024;

// The same for vectors of any length: whole ones, and a multiple of 16, so that codes begin on a
// byte and columns on a vector of any level.
inline index column_block(index dim, index most = kColumnBlock) {
  return std::max<index>(most / (16 * dim), 1) * 16 * dim;
}

// What one worker knows of the row it is at. Codes are unpacked and tables widened here.
class CodeRow {
 public:
  CodeRow(const PackedView& packed, const CodebookView& codebook)
      : packed_(packed),
        codebook_(codebook),
        codes_(kColumnBlock),
        table_(std::max<index>(codebook.table_size(), kLongestTable)) {
    std::fill_n(table_.data(), table_.size(), 0.0f);
  }

  void go_to(index row) {
    // Tables that all rows share stay where they are.
    if (codebook_.rows > 1) loaded_book_ = loaded_group_ = -1;
    row_ = row;
  }

  const PackedView& packed() const { return packed_; }
  const CodebookView& codebook() const { return codebook_; }
  index columns() const { return packed_.shape.cols * codebook_.dim; }

  const float* table(index book, index group) {
    if (book != loaded_book_ || group != loaded_group_) {
      codebook_.load(book, row_, group, table_.data());
      loaded_book_ = book, loaded_group_ = group;
    }
    return table_.data();
  }

  // As they are stored; `first` a multiple of 8.
  const std::uint8_t* bits(index book, index first) const {
    return packed_.row(row_, book) + first / 8 * packed_.shape.n_bits;
  }

  // One a byte, at most kColumnBlock of them; `first` a multiple of 8.
  const std::uint8_t* codes(index book, index first, index n) {
    const std::uint8_t* from = bits(book, first);
    if (packed_.shape.n_bits == 8) return from;
    unpack_row(from, n, packed_.shape.n_bits, codes_.data());
    return codes_.data();
  }

 private:
  static constexpr index kLongestTable = 256;  // entries that a look-up may load, used or not

  const PackedView& packed_;
  const CodebookView& codebook_;
  Buffer<std::uint8_t> codes_;
  Buffer<float> table_;
  index row_ = 0, loaded_book_ = -1, loaded_group_ = -1;
};

// Loops below must become one, their sums in registers. GCC 12 leaves calls in it otherwise: one
// input against 4096 × 4096 codes of 4 bits then took 1.26 ms on one thread, 0.54 so.
#define FASTFACTOR_INLINE __attribute__((always_inline))

// Scalar codes of one codebook by look-up Table: vector(position, v, values) for vector v of the
// block at `position` of the columns [first, last), scalar(position, value) for the rest; positions
// count from `first`, which is a multiple of the look-up's block.
template <class Table, class Vector, class Scalar>
[[gnu::always_inline]] inline void walk_scalars(CodeRow& row, index first, index last,
                                                Vector&& vector, Scalar&& scalar) {
  const index group_size = row.codebook().group_size;
  const int n_bits = row.packed().shape.n_bits;
  const index whole = last - (last - first) % Table::kBlock;
  const std::uint8_t* codes =
      Table::kPacked ? row.bits(0, first) : row.codes(0, first, last - first);
  for (index c = first; c < last;) {
    const index group = c / group_size, end = std::min(last, (group + 1) * group_size);
    const float* values = row.table(0, group);
    if (c < whole) {
      const Table table(values);
      for (; c < std::min(end, whole); c += Table::kBlock) {
        const index at = c - first;
        table.block(codes + (Table::kPacked ? at / 8 * n_bits : at),
                    [&](int v, auto found) FASTFACTOR_INLINE { vector(at, v, found); });
      }
    }
    for (; c < end; ++c) {
      const index at = c - first;
      if (Table::kPacked) {
        const int shift = int(at * n_bits % 8), mask = (1 << n_bits) - 1;
        const std::uint8_t* byte = codes + at * n_bits / 8;
        const int bits = shift + n_bits > 8 ? byte[0] | byte[1] << 8 : byte[0];
        scalar(at, values[bits >> shift & mask]);
      } else {
        scalar(at, values[codes[at]]);
      }
    }
  }
}

// What a look-up offers to the products.
struct Lookup {
  index block;  // columns that change places among each other
  index (*column)(index position);
  float (*dot)(CodeRow&, const float* x);  // with x in that order
  void (*decode)(CodeRow&, index first, index last, float* out);
};

template <class Table>
float dot_scalars(CodeRow& row, const float* x) {
  using tables::Floats;
  // Sums of 64 terms a lane and 4 lanes, of 16 of those, and the rest in double: at most 90
  // roundings, which stay below 1e-5 of the sum of magnitudes however long the row.
  constexpr index kBlock = Table::kPacked ? 256 * tables::kLanes : kColumnBlock;
  constexpr index kSpan = 16 * kBlock;
  double total = 0;
  const index columns = row.columns();
  for (index begin = 0; begin < columns; begin += kSpan) {
    const index end = std::min(columns, begin + kSpan);
    Floats sum = {};
    for (index first = begin; first < end; first += kBlock) {
      Floats part[4] = {};
      float rest = 0;
      const float* xs = x + first;
      walk_scalars<Table>(
          row, first, std::min(end, first + kBlock),
          [&](index at, int v, Floats values) FASTFACTOR_INLINE {
            part[v % 4] =
                simd::mul_add(values, simd::load(xs + at + v * tables::kLanes), part[v % 4]);
          },
          [&](index at, float value) { rest = simd::mul_add(value, xs[at], rest); });
      sum = sum + ((part[0] + part[1]) + (part[2] + part[3]));
      total += double(rest);
    }
    total += double(simd::reduce_add<float>(sum));
  }
  return float(total);
}

template <class Table>
void decode_scalars(CodeRow& row, index first, index last, float* out) {
  walk_scalars<Table>(
      row, first, last,
      [&](index at, int v, tables::Floats values)
          FASTFACTOR_INLINE { simd::store(out + at + v * tables::kLanes, values); },
      [&](index at, float value) { out[at] = value; });
}

template <class Table>
Lookup lookup_by() {
  return {Table::kBlock, Table::column, dot_scalars<Table>, decode_scalars<Table>};
}

// Any codes: vectors, several codebooks, groups that begin anywhere. Columns stay in order; `first`
// is a multiple of column_block(dim), and no more columns than that are asked for.
void decode_any(CodeRow& row, index first, index last, float* out);

// The look-up that suits; block 1 and no dot: decode_any.
Lookup choose_lookup(const PackedView& packed, const CodebookView& codebook);

}  // namespace ff

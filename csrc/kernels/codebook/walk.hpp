#pragma once
#include <algorithm>

#include "core/buffer.hpp"
#include "kernels/codebook/codebook.hpp"
#include "kernels/codebook/tables.hpp"

// Reads one row of codes from left to right: its values come in the order of the look-up that makes
// them.
namespace ff {

// Columns processed at a time: a multiple of every look-up's block, few enough to stay in L1 with
// the operand.
inline constexpr index kColumnBlock = 1024;

// Returns such a number for code vectors of length dim: whole code vectors, and a multiple of 16 of
// them, so that codes begin on a byte and columns on a SIMD vector at any level.
inline index column_block(index dim, index most = kColumnBlock) {
  return std::max<index>(most / (16 * dim), 1) * 16 * dim;
}

// The current row of one worker. Unpacks codes and widens tables.
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
    // Tables that all rows share stay loaded.
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

  // Returns the codes in packed form; `first` must be a multiple of 8.
  const std::uint8_t* bits(index book, index first) const {
    return packed_.row(row_, book) + first / 8 * packed_.shape.n_bits;
  }

  // Returns at most kColumnBlock codes, one per byte; `first` must be a multiple of 8.
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

// The loops below must be inlined into one with its sums in registers. GCC 12 otherwise leaves
// calls in it: one input with 4096 × 4096 codes of 4 bits then took 1.26 ms on one thread, instead
// of 0.54.
#define FASTFACTOR_INLINE __attribute__((always_inline))

// Walks the scalar codes of one codebook with look-up Table. Calls vector(position, v, values) for
// vector v of the block at `position` of the columns [first, last), and scalar(position, value) for
// the rest. Positions count from `first`, which is a multiple of the look-up's block.
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

// What a look-up provides for the products.
struct Lookup {
  index block;  // columns are permuted only within a block
  index (*column)(index position);
  float (*dot)(CodeRow&, const float* x);  // x in the order of column()
  void (*decode)(CodeRow&, index first, index last, float* out);
};

template <class Table>
float dot_scalars(CodeRow& row, const float* x) {
  using tables::Floats;
  // A partial sum has at most 64 terms per lane; 4 of these, and then 16 such blocks, are added in
  // float and the rest in double. That makes at most 90 roundings, which stay below 1e-5 of the sum
  // of magnitudes for a row of any length.
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

// Decodes any codes: vectors, several codebooks, groups that begin anywhere. Columns stay in order;
// `first` must be a multiple of column_block(dim), and last − first at most that.
void decode_any(CodeRow& row, index first, index last, float* out);

// Returns the look-up that suits; block 1 and a null dot stand for decode_any.
Lookup choose_lookup(const PackedView& packed, const CodebookView& codebook);

}  // namespace ff

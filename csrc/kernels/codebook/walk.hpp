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
        reads_stored_(codebook.is_float() && codebook.table_size() >= kWholeTable),
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
    if (reads_stored_) return codebook_.stored(book, row_, group);
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
  static constexpr index kWholeTable = 16;  // of tables that long, none loads more than there are

  const PackedView& packed_;
  const CodebookView& codebook_;
  const bool reads_stored_;
  Buffer<std::uint8_t> codes_;
  Buffer<float> table_;
  index row_ = 0, loaded_book_ = -1, loaded_group_ = -1;
};

// The loops below must be inlined into one with its sums in registers. GCC 12 otherwise leaves
// calls in it: one input with 4096 × 4096 codes of 4 bits then took 1.26 ms on one thread, instead
// of 0.54.
#define FASTFACTOR_INLINE __attribute__((always_inline))

// Returns one of the codes that look-up Table reads.
template <class Table>
[[gnu::always_inline]] inline int code_at(const std::uint8_t* codes, index at, int n_bits) {
  if (!Table::kPacked) return codes[at];
  const int shift = int(at * n_bits % 8), mask = (1 << n_bits) - 1;
  const std::uint8_t* byte = codes + at * n_bits / 8;
  const int bits = shift + n_bits > 8 ? byte[0] | byte[1] << 8 : byte[0];
  return bits >> shift & mask;
}

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
      scalar(at, values[code_at<Table>(codes, at, n_bits)]);
    }
  }
}

// What a look-up provides for the products.
struct Lookup {
  index block;  // columns are permuted only within a block
  index (*column)(index position);
  // Writes the products of x, in the order of column(), with the rows [first, last).
  void (*dot)(CodeRow&, index first, index last, const float* x, float* out);
  void (*decode)(CodeRow&, index first, index last, float* out);
};

// Columns whose products are added in four sums of vectors, which have at most 64 terms per lane.
template <class Table>
inline constexpr index kSumBlock = Table::kPacked ? 256 * tables::kLanes : kColumnBlock;

// Returns the product of a row of at most kSumBlock columns that have one table. Around the few
// look-ups of such a row, the loops of dot_long() took as long as the look-ups.
template <class Table>
[[gnu::always_inline]] inline float dot_short(const Table& table, CodeRow& row, const float* x) {
  using tables::Floats;
  const int n_bits = row.packed().shape.n_bits;
  const index columns = row.columns(), whole = columns - columns % Table::kBlock;
  const std::uint8_t* codes = Table::kPacked ? row.bits(0, 0) : row.codes(0, 0, columns);
  Floats part[4] = {};
  for (index c = 0; c < whole; c += Table::kBlock)
    table.block(
        codes + (Table::kPacked ? c / 8 * n_bits : c), [&](int v, Floats values) FASTFACTOR_INLINE {
          part[v % 4] = simd::mul_add(values, simd::load(x + c + v * tables::kLanes), part[v % 4]);
        });
  float rest = 0;
  if (whole < columns) {
    const float* values = row.table(0, 0);
    for (index c = whole; c < columns; ++c)
      rest = simd::mul_add(values[code_at<Table>(codes, c, n_bits)], x[c], rest);
  }
  const Floats sum = (part[0] + part[1]) + (part[2] + part[3]);
  return float(0.0 + double(rest) + double(simd::reduce_add<float>(sum)));
}

template <class Table>
float dot_long(CodeRow& row, const float* x) {
  using tables::Floats;
  // 4 sums of vectors, and then 16 blocks of columns, are added in float and the rest in double.
  // That makes at most 90 roundings, which stay below 1e-5 of the sum of magnitudes for a row of
  // any length.
  constexpr index kBlock = kSumBlock<Table>, kSpan = 16 * kBlock;
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
void dot_scalars(CodeRow& row, index first, index last, const float* x, float* out) {
  const bool is_short = row.codebook().groups == 1 && row.columns() <= kSumBlock<Table>;
  if (is_short && row.codebook().rows == 1) {
    const Table table(row.table(0, 0));
    for (index r = first; r < last; ++r) row.go_to(r), out[r] = dot_short(table, row, x);
  } else if (is_short) {
    for (index r = first; r < last; ++r) {
      row.go_to(r);
      out[r] = dot_short(Table(row.table(0, 0)), row, x);
    }
  } else {
    for (index r = first; r < last; ++r) row.go_to(r), out[r] = dot_long<Table>(row, x);
  }
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

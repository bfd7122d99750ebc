// Several inputs: tiles of W, decoded in registers if a permute can do that, otherwise in L1.
#include "kernels/codebook/tiles.hpp"

#include <vector>

#include "kernels/codebook/products.hpp"

namespace ff {
namespace {

using tables::Floats;
using tables::kLanes;
using tiles::kInputs;
using tiles::kRows;

// Sums of some rows for a batch: [tile of inputs][row][input of the tile].
class Sums {
 public:
  Sums(index n_rows, index batch)
      : n_rows_(n_rows), batch_(batch), sums_(n_rows * round_up(batch, kInputs)) {
    totals_.resize(sums_.size());
  }

  void clear() {
    std::fill_n(sums_.data(), sums_.size(), Floats{});
    std::fill(totals_.begin(), totals_.end(), 0.0);
  }

  Floats* at(index row, index first_input) {
    return sums_.data() + first_input * n_rows_ + row * kInputs;
  }

  void fold() {
    for (index i = 0; i < sums_.size(); ++i) {
      totals_[i] += double(simd::reduce_add<float>(sums_[i]));
      sums_[i] = Floats{};
    }
  }

  // Writes the sums; rows of W become columns of `out`, whose rows are `pitch` elements apart.
  void store(index n_rows, float* out, index pitch) const {
    for (index b = 0; b < batch_; ++b)
      for (index r = 0; r < n_rows; ++r)
        out[b * pitch + r] =
            float(totals_[b / kInputs * kInputs * n_rows_ + r * kInputs + b % kInputs]);
  }

 private:
  index n_rows_, batch_;
  Buffer<Floats> sums_;
  std::vector<double> totals_;
};

// Multiplies n_rows rows with all inputs, for `blocks` blocks of Source from column `first` on.
template <class Rows>
void multiply_span(index n_rows, const Inputs& inputs, index first, index blocks, Sums& sums,
                   const Rows& rows) {
  for (index b = 0; b < inputs.batch; b += kInputs)
    for (index r = 0; r < n_rows;) {
      auto source = rows(r);
      const index n = n_rows - r < kRows ? 1 : kRows;
      tiles::product<decltype(source)>(n, std::min<index>(kInputs, inputs.batch - b))(
          source, inputs.at(b, first), blocks, sums.at(r, b));
      r += n;
    }
}

void multiply_decoded(const PackedView& packed, const CodebookView& codebook, const Lookup& lookup,
                      const Inputs& inputs, float* out, int n_threads, Stop& stop) {
  constexpr index kTaskRows = 4 * kRows;
  const index rows = packed.shape.rows, columns = packed.shape.cols * codebook.dim;
  const index block = column_block(codebook.dim, tiles::kColumns);
  // A cache line longer than the block, so that rows do not fall on the same lines of L1.
  const index pitch = round_up(block, kLanes) + 16;
  struct Scratch {
    CodeRow row;
    Buffer<float> w;
    Sums sums;
  };
  PerWorker<Scratch> scratch(n_threads);
  parallel_ranges(ceil_div(rows, kTaskRows), n_threads, stop, [&](index task, int worker) {
    const index first_row = task * kTaskRows, n = std::min(kTaskRows, rows - first_row);
    Scratch& my = scratch.of(worker, [&] {
      return Scratch{CodeRow(packed, codebook), Buffer<float>(kTaskRows * pitch),
                     Sums(kTaskRows, inputs.batch)};
    });
    my.sums.clear();
    index spans = 0;
    for (index first = 0; first < columns; first += block) {
      const index last = std::min(first + block, columns), width = round_up(last - first, kLanes);
      for (index r = 0; r < n; ++r) {
        my.row.go_to(first_row + r);
        lookup.decode(my.row, first, last, my.w.data() + r * pitch);
        std::fill(my.w.data() + r * pitch + (last - first), my.w.data() + r * pitch + width, 0.0f);
      }
      for (index k = 0; k < width; k += tiles::kColumns) {
        multiply_span(n, inputs, first + k, std::min(tiles::kColumns, width - k) / kLanes, my.sums,
                      [&](index r) { return tiles::Decoded{my.w.data() + r * pitch + k, pitch}; });
        if (++spans % tiles::kSpans == 0) my.sums.fold();
      }
    }
    my.sums.fold();
    my.sums.store(n, out + first_row, rows);
  });
}

#if defined(__AVX512F__)
// Loads the tables of n rows: [group][row][16].
template <int Bits>
void load_tables(const CodebookView& codebook, index first_row, index n, index pitch, float* to) {
  for (index group = 0; group < codebook.groups; ++group)
    for (index r = 0; r < n; ++r) {
      float* table = to + (group * pitch + r) * 16;
      codebook.load(0, first_row + r, group, table);
      for (int i = 1 << Bits; i < 16; ++i) table[i] = table[i - (1 << Bits)];
    }
}

// Groups must be whole blocks of the look-up.
template <int Bits>
void multiply_packed(const PackedView& packed, const CodebookView& codebook, const Lookup& lookup,
                     const Inputs& inputs, float* out, int n_threads, Stop& stop) {
  constexpr index kTaskRows = 8 * kRows;
  using Source = tiles::Packed<Bits>;
  constexpr index kBlock = Source::Table::kBlock;
  const index rows = packed.shape.rows, columns = packed.shape.cols;
  const index whole = columns - columns % kBlock, width = round_up(columns - whole, kLanes);
  struct Scratch {
    CodeRow row;
    Buffer<float> tables, rest;
    Sums sums;
  };
  PerWorker<Scratch> scratch(n_threads);
  parallel_ranges(ceil_div(rows, kTaskRows), n_threads, stop, [&](index task, int worker) {
    const index first_row = task * kTaskRows, n = std::min(kTaskRows, rows - first_row);
    Scratch& my = scratch.of(worker, [&] {
      return Scratch{CodeRow(packed, codebook), Buffer<float>(codebook.groups * kTaskRows * 16),
                     Buffer<float>(kTaskRows * kBlock), Sums(kTaskRows, inputs.batch)};
    });
    load_tables<Bits>(codebook, first_row, n, kTaskRows, my.tables.data());
    for (index r = 0; r < n && width > 0; ++r) {
      my.row.go_to(first_row + r);
      lookup.decode(my.row, whole, columns, my.rest.data() + r * kBlock);
      std::fill(my.rest.data() + r * kBlock + (columns - whole),
                my.rest.data() + r * kBlock + width, 0.0f);
    }
    my.sums.clear();
    index spans = 0;
    for (index c = 0; c < whole;) {
      const index group = c / codebook.group_size;
      const index next = std::min({whole, c + tiles::kColumns, (group + 1) * codebook.group_size});
      // How far ahead the next codes are: the next span of these rows, or after the last span the
      // first one of the next task's rows.
      const index ahead = next < whole ? (next - c) / 8 * Bits
                          : first_row + 2 * kTaskRows <= rows
                              ? n * packed.shape.row_bytes() - c / 8 * Bits
                              : 0;
      multiply_span(n, inputs, c, (next - c) / kBlock, my.sums, [&](index r) {
        return Source{packed.row(first_row + r, 0) + c / 8 * Bits, packed.shape.row_bytes(),
                      my.tables.data() + (group * kTaskRows + r) * 16, ahead};
      });
      if (++spans % tiles::kSpans == 0) my.sums.fold();
      c = next;
    }
    if (width > 0)
      multiply_span(n, inputs, whole, width / kLanes, my.sums,
                    [&](index r) { return tiles::Decoded{my.rest.data() + r * kBlock, kBlock}; });
    my.sums.fold();
    my.sums.store(n, out + first_row, rows);
  });
}
#endif

}  // namespace

void multiply_tiles(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                    const Lookup& lookup, float* out, int n_threads, Stop& stop) {
  const Inputs inputs = arrange(x, lookup, kInputs, n_threads, stop);
#if defined(__AVX512F__)
  if (lookup.dot && packed.shape.n_bits == 4)
    return multiply_packed<4>(packed, codebook, lookup, inputs, out, n_threads, stop);
  if (lookup.dot && packed.shape.n_bits == 2)
    return multiply_packed<2>(packed, codebook, lookup, inputs, out, n_threads, stop);
  if (lookup.dot && packed.shape.n_bits == 1)
    return multiply_packed<1>(packed, codebook, lookup, inputs, out, n_threads, stop);
#endif
  multiply_decoded(packed, codebook, lookup, inputs, out, n_threads, stop);
}

}  // namespace ff

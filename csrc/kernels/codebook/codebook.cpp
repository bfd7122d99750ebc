// Products of packed codes and the codebooks they index, in one of three ways. One input with
// scalar codes: values are looked up in registers and multiplied at once. Few inputs with code
// vectors shared by all rows: partial products are tabulated first and then summed. Otherwise:
// tiles of a few rows and a few inputs.
#include "kernels/codebook/codebook.hpp"

#include <vector>

#include "kernels/codebook/products.hpp"

namespace ff {
namespace {

using tables::kLanes;

// Returns whether sums of tabulated products cost less than tiles. For 4096 × 4096 on one thread of
// Zen 5 with byte permutes, sums take 1.3 ms · books / dim per input; tiles take 0.17 ms per input
// plus 9 ms · books / dim to decode. Without byte permutes a look-up is a load and costs five times
// as much, so sums pay for one or two inputs only.
bool sums_pay(const CodebookView& codebook, index batch) {
#if defined(__AVX512VBMI__)
  constexpr index kLongest = 64;  // products are summed in float
  return batch * (8 * codebook.books - codebook.dim) <= 56 * codebook.books &&
         codebook.dim <= kLongest;
#else
  (void)codebook;
  return batch <= 2;
#endif
}

// ---- one input, scalar codes ----

void multiply_one(const PackedView& packed, const CodebookView& codebook, const Lookup& lookup,
                  const float* x, float* out, int n_threads, Stop& stop) {
  constexpr index kTaskCodes = index(1) << 18;
  const index rows = packed.shape.rows;
  const index task_rows = std::max<index>(kTaskCodes / std::max<index>(packed.shape.cols, 1), 1);
  PerWorker<CodeRow> code_rows(n_threads);
  parallel_ranges(ceil_div(rows, task_rows), n_threads, stop, [&](index task, int worker) {
    CodeRow& row = code_rows.of(worker, [&] { return CodeRow(packed, codebook); });
    lookup.dot(row, task * task_rows, std::min(rows, (task + 1) * task_rows), x, out);
  });
}

}  // namespace

Inputs arrange(const MatrixView& x, const Lookup& lookup, index tile, int n_threads, Stop& stop) {
  Inputs inputs{x.rows, tile, round_up(x.cols, kLanes), {}};
  inputs.values = Buffer<float>(x.rows * inputs.width);
  const index whole = x.cols - x.cols % lookup.block;
  std::vector<index> columns(lookup.block);
  for (index p = 0; p < lookup.block; ++p) columns[p] = lookup.column(p);
  parallel_for(x.rows, n_threads, stop, [&](index b, int) {
    std::vector<float> row(inputs.width), moved(lookup.block);
    load_row(x, b, row.data());
    for (index first = 0; first < whole && lookup.block > 1; first += lookup.block) {
      for (index p = 0; p < lookup.block; ++p) moved[p] = row[first + columns[p]];
      std::copy(moved.begin(), moved.end(), row.begin() + first);
    }
    const index tile_of_b = b / tile * tile, size = inputs.tile_size(tile_of_b);
    float* to = inputs.values.data() + tile_of_b * inputs.width + b % tile * kLanes;
    for (index k = 0; k < inputs.width; k += kLanes)
      simd::store(to + k * size, simd::load(row.data() + k));
  });
  return inputs;
}

void CodebookView::load(index book, index row, index group, float* out) const {
  const index size = dtype == DType::f32 ? 4 : 2;
  const MatrixView view{data + place(book, row, group) * size, dtype, 1, table_size(), 0, size};
  load_row(view, 0, out);
}

void codebook_matmul(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                     float* out, int n_threads, Stop& stop) {
  const index batch = x.rows;
  if (batch == 0 || packed.shape.rows == 0) return;
  if (x.cols == 0) return void(std::fill_n(out, batch * packed.shape.rows, 0.0f));
  const Lookup lookup = choose_lookup(packed, codebook);
  if (lookup.dot && batch == 1) {
    const Inputs inputs = arrange(x, lookup, 1, n_threads, stop);
    multiply_one(packed, codebook, lookup, inputs.at(0, 0), out, n_threads, stop);
  } else if (!lookup.dot && codebook.rows == 1 && packed.shape.rows >= codebook.entries &&
             sums_pay(codebook, batch)) {
    const Inputs inputs = arrange(x, lookup, 1, n_threads, stop);
    multiply_sums(inputs, packed, codebook, out, n_threads, stop);
  } else {
    multiply_tiles(x, packed, codebook, lookup, out, n_threads, stop);
  }
}

void codebook_rows(const PackedView& packed, const CodebookView& codebook, const std::int64_t* ids,
                   index n, float* out, int n_threads, Stop& stop) {
  const index columns = packed.shape.cols * codebook.dim, block = column_block(codebook.dim);
  constexpr index kTaskValues = index(1) << 16;
  const index task_rows = std::max<index>(kTaskValues / std::max<index>(columns, 1), 1);
  parallel_ranges(ceil_div(n, task_rows), n_threads, stop, [&](index task, int) {
    CodeRow row(packed, codebook);
    for (index i = task * task_rows; i < std::min(n, (task + 1) * task_rows); ++i) {
      row.go_to(ids ? index(ids[i]) : i);
      for (index first = 0; first < columns; first += block)
        decode_any(row, first, std::min(first + block, columns), out + i * columns + first);
    }
  });
}

}  // namespace ff

// Products from packed codes and the codebooks they index. One input against scalar codes: values
// come out of registers and are multiplied as they come. One or two inputs against vectors that all
// rows share: products of the input's pieces with every code vector first, then sums of those (the
// asymmetric distance of product quantization, H. Jégou, M. Douze, C. Schmid 2011). Else a few rows
// are decoded into cache and multiplied with all inputs.
#include "kernels/codebook.hpp"

#include <vector>

#include "kernels/codebook_products.hpp"

namespace ff {
namespace {

using simd::Vec;
constexpr int kLanes = simd::kLanes<float>;

// Inputs up to which a table of products beats decoding.
constexpr index kTableBatch = 2;

// ---- one input, scalar codes ----

void multiply_one(const PackedView& packed, const CodebookView& codebook, const Lookup& lookup,
                  const float* x, float* out, int n_threads, Stop& stop) {
  constexpr index kTaskCodes = index(1) << 18;
  const index rows = packed.shape.rows;
  const index task_rows = std::max<index>(kTaskCodes / std::max<index>(packed.shape.cols, 1), 1);
  parallel_for(ceil_div(rows, task_rows), n_threads, stop, [&](index task, int) {
    CodeRow row(packed, codebook);
    for (index r = task * task_rows; r < std::min(rows, (task + 1) * task_rows); ++r) {
      row.go_to(r);
      out[r] = lookup.dot(row, x);
    }
  });
}

// ---- few inputs, vectors that all rows share ----

// Products of pieces of one input with every code vector: at(book, j)[entry].
class ProductTable {
 public:
  ProductTable(const PackedView& packed, const CodebookView& codebook)
      : codebook_(codebook),
        pitch_(round_up(codebook.entries, kLanes)),
        span_(std::clamp<index>(
            kTableBytes / (codebook.books * pitch_ * index(sizeof(float))) / 8 * 8, 8,
            round_up(packed.shape.cols, 8))),
        across_(codebook.books * codebook.groups * codebook.dim * pitch_),
        products_(codebook.books * span_ * pitch_) {}

  index span() const { return span_; }  // codes a row at a time, a multiple of 8
  index pitch() const { return pitch_; }

  // Code vectors, entries side by side.
  void load_vectors() {
    const index d = codebook_.dim;
    std::vector<float> table(codebook_.table_size());
    std::fill_n(across_.data(), across_.size(), 0.0f);
    for (index book = 0; book < codebook_.books; ++book)
      for (index group = 0; group < codebook_.groups; ++group) {
        codebook_.load(book, 0, group, table.data());
        float* to = across_.data() + (book * codebook_.groups + group) * d * pitch_;
        for (index e = 0; e < codebook_.entries; ++e)
          for (index k = 0; k < d; ++k) to[k * pitch_ + e] = table[e * d + k];
      }
  }

  void fill(const float* x, index first, index n, int n_threads, Stop& stop) {
    constexpr index kTask = 16;
    const index tasks = ceil_div(n, kTask);
    parallel_for(codebook_.books * tasks, n_threads, stop, [&](index task, int) {
      const index book = task / tasks, begin = task % tasks * kTask;
      for (index j = begin; j < std::min(n, begin + kTask); ++j) {
        const float* piece = x + (first + j) * codebook_.dim;
        const index group = (first + j) * codebook_.dim / codebook_.group_size;
        multiply(piece, vectors(book, group), products_.data() + (book * span_ + j) * pitch_);
      }
    });
  }

  const float* at(index book, index j) const {
    return products_.data() + (book * span_ + j) * pitch_;
  }

 private:
  static constexpr index kTableBytes = index(512) << 10;

  const float* vectors(index book, index group) const {
    return across_.data() + (book * codebook_.groups + group) * codebook_.dim * pitch_;
  }

  void multiply(const float* piece, const float* vectors, float* to) const {
    for (index e = 0; e < pitch_; e += kLanes) {
      Vec<float> sum = {};
      for (index k = 0; k < codebook_.dim; ++k)
        sum = simd::mul_add(simd::splat(piece[k]), simd::load(vectors + k * pitch_ + e), sum);
      simd::store(to + e, sum);
    }
  }

  const CodebookView& codebook_;
  const index pitch_, span_;
  Buffer<float> across_, products_;
};

float sum_products(const float* products, index pitch, const std::uint8_t* codes, index n) {
  float sum[4] = {};
  index j = 0;
  for (; j + 4 <= n; j += 4, products += 4 * pitch)
    for (int u = 0; u < 4; ++u) sum[u] += products[u * pitch + codes[j + u]];
  for (; j < n; ++j, products += pitch) sum[0] += products[codes[j]];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void multiply_by_table(const PackedView& packed, const CodebookView& codebook, const Inputs& inputs,
                       index batch, float* out, int n_threads, Stop& stop) {
  // Codes whose products are added in float before they go to double; a multiple of 8, a table of
  // 256 entries then takes 128 KB.
  constexpr index kPiece = 128, kRows = 128;
  const index rows = packed.shape.rows, cols = packed.shape.cols;
  ProductTable table(packed, codebook);
  table.load_vectors();
  std::vector<double> y(rows);
  for (index b = 0; b < batch; ++b) {
    std::fill(y.begin(), y.end(), 0.0);
    for (index first = 0; first < cols; first += table.span()) {
      const index n = std::min(table.span(), cols - first);
      table.fill(inputs.at(b, 0), first, n, n_threads, stop);
      parallel_for(ceil_div(rows, kRows), n_threads, stop, [&](index task, int) {
        CodeRow row(packed, codebook);
        for (index book = 0; book < codebook.books; ++book)
          for (index piece = 0; piece < n; piece += kPiece)
            for (index r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r) {
              const index count = std::min(kPiece, n - piece);
              row.go_to(r);
              y[r] += double(sum_products(table.at(book, piece), table.pitch(),
                                          row.codes(book, first + piece, count), count));
            }
      });
    }
    for (index r = 0; r < rows; ++r) out[b * rows + r] = float(y[r]);
  }
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
    for (index first = 0; first < whole; first += lookup.block) {
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
  const index at = (book * rows + (rows > 1 ? row : 0)) * groups + group;
  const MatrixView view{data + at * table_size() * size, dtype, 1, table_size(), 0, size};
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
  } else if (!lookup.dot && codebook.rows == 1 && batch <= kTableBatch &&
             packed.shape.rows >= codebook.entries) {
    const Inputs inputs = arrange(x, lookup, 1, n_threads, stop);
    multiply_by_table(packed, codebook, inputs, batch, out, n_threads, stop);
  } else {
    multiply_tiles(x, packed, codebook, lookup, out, n_threads, stop);
  }
}

void codebook_rows(const PackedView& packed, const CodebookView& codebook, const std::int64_t* ids,
                   index n, float* out, int n_threads, Stop& stop) {
  const index columns = packed.shape.cols * codebook.dim, block = column_block(codebook.dim);
  constexpr index kTaskValues = index(1) << 16;
  const index task_rows = std::max<index>(kTaskValues / std::max<index>(columns, 1), 1);
  parallel_for(ceil_div(n, task_rows), n_threads, stop, [&](index task, int) {
    CodeRow row(packed, codebook);
    for (index i = task * task_rows; i < std::min(n, (task + 1) * task_rows); ++i) {
      row.go_to(ids ? index(ids[i]) : i);
      for (index first = 0; first < columns; first += block)
        decode_any(row, first, std::min(first + block, columns), out + i * columns + first);
    }
  });
}

}  // namespace ff

// Few inputs, vectors that all rows share: products of the input's pieces with every code vector
// first, then sums of those.
#include <vector>

#include "kernels/codebook_products.hpp"

namespace ff {
namespace {

using simd::Vec;
constexpr int kLanes = simd::kLanes<float>;

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

}  // namespace

void multiply_sums(const MatrixView& x, const PackedView& packed, const CodebookView& codebook,
                   const Lookup& lookup, float* out, int n_threads, Stop& stop) {
  // Codes whose products are added in float before they go to double; a multiple of 8, a table of
  // 256 entries then takes 128 KB.
  constexpr index kPiece = 128, kRows = 128;
  const index rows = packed.shape.rows, cols = packed.shape.cols;
  const Inputs inputs = arrange(x, lookup, 1, n_threads, stop);
  ProductTable table(packed, codebook);
  table.load_vectors();
  std::vector<double> y(rows);
  for (index b = 0; b < x.rows; ++b) {
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

}  // namespace ff

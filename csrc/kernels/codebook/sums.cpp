// Sums of products on levels without byte permutes: loads from a table in cache.
#include <vector>

#include "kernels/codebook/products.hpp"
#include "kernels/codebook/vectors.hpp"

#if !defined(__AVX512VBMI__)
namespace ff {
namespace {

float sum_products(const float* products, index pitch, const std::uint8_t* codes, index n) {
  float sum[4] = {};
  index j = 0;
  for (; j + 4 <= n; j += 4, products += 4 * pitch)
    for (int u = 0; u < 4; ++u) sum[u] += products[u * pitch + codes[j + u]];
  for (; j < n; ++j, products += pitch) sum[0] += products[codes[j]];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

void multiply_sums(const Inputs& inputs, const PackedView& packed, const CodebookView& codebook,
                   float* out, int n_threads, Stop& stop) {
  // kPiece: codes whose products are added in float before they go to double. It is a multiple of
  // 8; a table of 256 entries then takes 128 KB.
  constexpr index kPiece = 128, kRows = 128, kTask = 16, kTableBytes = index(512) << 10;
  const index rows = packed.shape.rows, cols = packed.shape.cols, books = codebook.books;
  const index pitch = round_up(codebook.entries, simd::kLanes<float>);
  const index span = std::clamp<index>(kTableBytes / (books * pitch * index(sizeof(float))) / 8 * 8,
                                       8, round_up(cols, 8));
  const CodeVectors vectors(codebook, pitch);
  Buffer<float> products(books * span * pitch);  // [book][code of the span][entry]
  const auto at = [&](index book, index j) { return products.data() + (book * span + j) * pitch; };
  std::vector<double> y(rows);
  for (index b = 0; b < inputs.batch; ++b) {
    std::fill(y.begin(), y.end(), 0.0);
    for (index first = 0; first < cols; first += span) {
      const index n = std::min(span, cols - first), pieces = ceil_div(n, kTask);
      parallel_for(books * pieces, n_threads, stop, [&](index task, int) {
        const index book = task / pieces, begin = task % pieces * kTask;
        for (index j = begin; j < std::min(n, begin + kTask); ++j)
          vectors.multiply(inputs.at(b, 0), book, first + j, at(book, j));
      });
      parallel_ranges(ceil_div(rows, kRows), n_threads, stop, [&](index task, int) {
        CodeRow row(packed, codebook);
        for (index book = 0; book < books; ++book)
          for (index piece = 0; piece < n; piece += kPiece)
            for (index r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r) {
              const index count = std::min(kPiece, n - piece);
              row.go_to(r);
              y[r] += double(sum_products(at(book, piece), pitch,
                                          row.codes(book, first + piece, count), count));
            }
      });
    }
    for (index r = 0; r < rows; ++r) out[b * rows + r] = float(y[r]);
  }
}

}  // namespace ff
#endif

// Sums of products by byte permutes: one vector holds 64 rows of one column of codes, and the table
// that they index, the products of one piece of x, lies in registers.
#include <vector>

#include "kernels/codebook/products.hpp"
#include "kernels/codebook/vectors.hpp"

#if defined(__AVX512VBMI__)
namespace ff {
namespace {

using tables::Floats;
using tables::kLanes;
constexpr index kByteRows = 64;  // one per byte of a vector
constexpr index kColumns = 16;   // columns of codes transposed at a time
constexpr index kPlaneRows = 8 * kByteRows;
constexpr index kPart = 64;       // products added in float before they go to a sum
constexpr index kParts = 16;      // sums added in float before they go to double
constexpr index kTileInputs = 8;  // inputs that share a transposition
constexpr index kTableBytes = index(1) << 20;
constexpr index kAheadOfTables = 8;  // pairs of lines of codes fetched for each table

// Transposes kByteRows × kColumns bytes: to[column · pitch + row].
void transpose(const std::uint8_t* from, index from_pitch, std::uint8_t* to, index pitch) {
  __m512i a[16], b[16];
#  pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const auto row = [&](int lane) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (16 * lane + i) * from_pitch));
    };
    a[i] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
    a[i] = _mm512_inserti32x4(_mm512_inserti32x4(a[i], row(2), 2), row(3), 3);
  }
  // Four rounds, each of which brings rows that are eight apart next to each other.
  const auto interleave = [](const __m512i* x, __m512i* y) FASTFACTOR_INLINE {
#  pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      y[2 * i] = _mm512_unpacklo_epi8(x[i], x[i + 8]);
      y[2 * i + 1] = _mm512_unpackhi_epi8(x[i], x[i + 8]);
    }
  };
  interleave(a, b), interleave(b, a), interleave(a, b), interleave(b, a);
#  pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * pitch, a[i]);
}

// Codes of one book, column by column: [column][row], with kPlaneRows rows.
class Columns {
 public:
  Columns(const PackedView& packed, const CodebookView& codebook, index span)
      : row_(packed, codebook), staged_(kByteRows * span), columns_(kPlaneRows * span) {}

  // Loads rows from `first_row` on, columns [first, first + n); rows are padded to kByteRows with
  // zeros.
  void load(index first_row, index n_rows, index book, index first, index n) {
    const PackedShape& shape = row_.packed().shape;
    const index width = round_up(n, kColumns);
    for (index r = 0; r < n_rows; r += kByteRows) {
      const std::uint8_t* from = row_.packed().row(first_row + r, book) + first / 8 * shape.n_bits;
      index pitch = shape.row_bytes();
      if (shape.n_bits < 8 || n_rows - r < kByteRows || n < width) {
        std::fill_n(staged_.data(), kByteRows * width, std::uint8_t(0));
        for (index i = 0; i < std::min(kByteRows, n_rows - r); ++i) {
          row_.go_to(first_row + r + i);
          std::copy_n(row_.codes(book, first, n), n, staged_.data() + i * width);
        }
        from = staged_.data(), pitch = width;
      }
      for (index j = 0; j < n; j += kColumns)
        transpose(from + j, pitch, columns_.data() + j * kPlaneRows + r, kPlaneRows);
    }
  }

  const std::uint8_t* column(index j) const { return columns_.data() + j * kPlaneRows; }

 private:
  CodeRow row_;
  Buffer<std::uint8_t> staged_, columns_;
};

// Fetches codes that will be needed into L2, a few lines at a time: requested all at once, they
// would wait for each other.
class Ahead {
 public:
  Ahead(const PackedView& packed, index first_row, index book, index first, index n)
      : pitch_(packed.shape.row_bytes()), bytes_(packed.shape.n_bits * n / 8) {
    if (first_row + kPlaneRows > packed.shape.rows) return;
    from_ = packed.row(first_row, book) + first / 8 * packed.shape.n_bits;
    left_ = kPlaneRows;
  }

  // Fetches one line of each of two rows, n times.
  void fetch(index n) {
    for (index i = 0; i < n && left_ >= 2; ++i) {
      _mm_prefetch(from_ + at_, _MM_HINT_T1);
      _mm_prefetch(from_ + pitch_ + at_, _MM_HINT_T1);
      at_ += 64;
      if (at_ >= bytes_) at_ = 0, left_ -= 2, from_ += 2 * pitch_;
    }
  }

 private:
  const std::uint8_t* from_ = nullptr;
  index pitch_, bytes_, at_ = 0, left_ = 0;
};

// Adds table[codes[r]] to sums[r], in the table's order of 64 rows.
template <class Table>
void add_products(const Table& products, const std::uint8_t* codes, index n_rows, float* sums) {
  const Table table = products;  // in registers
  for (index r = 0; r < n_rows; r += kByteRows)
    table.values(_mm512_loadu_si512(codes + r), [&](int v, Floats values) FASTFACTOR_INLINE {
      float* to = sums + r + v * kLanes;
      simd::store(to, simd::load(to) + values);
    });
}

struct PlaneScratch {
  Columns codes;
  Buffer<float> part, sum;
};

// Adds the products of the n columns of a span, whose tables are given, to totals[r].
template <class Table>
void add_span(const Table* products, PlaneScratch& my, index n, index n_rows, Ahead& ahead,
              double* totals) {
  const index padded = round_up(n_rows, kByteRows);
  for (index begin = 0; begin < n; begin += kPart * kParts) {
    std::fill_n(my.sum.data(), padded, 0.0f);
    const index end = std::min(n, begin + kPart * kParts);
    for (index first = begin; first < end; first += kPart) {
      std::fill_n(my.part.data(), padded, 0.0f);
      for (index j = first; j < std::min(end, first + kPart); ++j) {
        ahead.fetch(kPlaneRows / 128);
        add_products(products[j], my.codes.column(j), padded, my.part.data());
      }
      for (index r = 0; r < padded; r += kLanes)
        simd::store(my.sum.data() + r,
                    simd::load(my.sum.data() + r) + simd::load(my.part.data() + r));
    }
    for (index at = 0; at < padded; ++at) {
      const index r = at / kByteRows * kByteRows + Table::column(at % kByteRows);
      if (r < n_rows) totals[r] += double(my.sum[at]);
    }
  }
}

template <class Table>
void multiply(const Inputs& inputs, const PackedView& packed, const CodebookView& codebook,
              float* out, int n_threads, Stop& stop) {
  constexpr index kEntries = 64 * Table::kRegisters;
  const index rows = packed.shape.rows, cols = packed.shape.cols;
  const index tile = std::min(inputs.batch, kTileInputs);
  const CodeVectors vectors(codebook, kEntries);
  const index most = std::min(kTableBytes / (tile * index(sizeof(Table))), kColumnBlock);
  // Spans of equal size, so that no small one is left over.
  const index span = round_up(ceil_div(cols, ceil_div(cols, most)), kColumns);
  Buffer<Table> tables(tile * span);
  PerWorker<PlaneScratch> scratch(n_threads);
  std::vector<double> totals(inputs.batch * rows, 0.0);
  // Makes the tables for columns [first, first + n) and the inputs from `input` on, then processes
  // all rows.
  const auto add = [&](index input, index n_inputs, index book, index first, index n) {
    const index pieces = ceil_div(n, kColumns), row_tasks = ceil_div(rows, kPlaneRows);
    PerWorker<Ahead> own_codes(n_threads);
    parallel_for(n_inputs * pieces, n_threads, stop, [&](index task, int worker) {
      const index b = task / pieces, begin = task % pieces * kColumns;
      Ahead& ahead = own_codes.of(worker, [&] {
        const index first_row = first_of_range(row_tasks, n_threads, worker) * kPlaneRows;
        return Ahead(packed, first_row, book, first, n);
      });
      alignas(64) float products[kEntries];
      for (index j = begin; j < std::min(n, begin + kColumns); ++j) {
        ahead.fetch(kAheadOfTables);
        vectors.multiply(inputs.at(input + b, 0), book, first + j, products);
        new (&tables[b * span + j]) Table(products);
      }
    });
    parallel_ranges(row_tasks, n_threads, stop, [&](index task, int worker) {
      const index first_row = task * kPlaneRows, n_rows = std::min(kPlaneRows, rows - first_row);
      PlaneScratch& my = scratch.of(worker, [&] {
        return PlaneScratch{Columns(packed, codebook, span), Buffer<float>(kPlaneRows),
                            Buffer<float>(kPlaneRows)};
      });
      my.codes.load(first_row, n_rows, book, first, n);
      Ahead ahead(packed, first_row + kPlaneRows, book, first, n);
      for (index b = 0; b < n_inputs; ++b)
        add_span(&tables[b * span], my, n, n_rows, ahead,
                 totals.data() + (input + b) * rows + first_row);
    });
  };
  for (index input = 0; input < inputs.batch; input += tile)
    for (index book = 0; book < codebook.books; ++book)
      for (index first = 0; first < cols; first += span)
        add(input, std::min(tile, inputs.batch - input), book, first, std::min(span, cols - first));
  std::transform(totals.begin(), totals.end(), out, [](double y) { return float(y); });
}

}  // namespace

void multiply_sums(const Inputs& inputs, const PackedView& packed, const CodebookView& codebook,
                   float* out, int n_threads, Stop& stop) {
  if (packed.shape.n_bits > 6)
    return multiply<tables::BytePlanes<8, 4>>(inputs, packed, codebook, out, n_threads, stop);
  multiply<tables::BytePlanes<6, 4>>(inputs, packed, codebook, out, n_threads, stop);
}

}  // namespace ff
#endif

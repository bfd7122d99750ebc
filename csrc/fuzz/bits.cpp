// The input gives bits per code, codebooks, rows, codes per row, and packed bytes. They are
// unpacked if the sizes fit, and must pack to the same bits again.
#include "kernels/bits/bits.hpp"

#include <vector>

namespace {

template <class Code>
void try_codes(const std::uint8_t* packed, ff::index n, const ff::PackedShape& shape,
               ff::IntType type) {
  std::vector<Code> codes(shape.takes(n) ? shape.books * shape.rows * shape.cols : 0);
  ff::Stop stop;
  if (!ff::unpack_codes(packed, n, shape, codes.data(), 1, stop)) return;
  ff::CodesView view;
  view.data = reinterpret_cast<const char*>(codes.data());
  view.type = type;
  view.books = shape.books, view.rows = shape.rows, view.cols = shape.cols;
  view.col_stride = sizeof(Code), view.row_stride = shape.cols * view.col_stride;
  view.book_stride = shape.rows * view.row_stride;
  std::vector<std::uint8_t> again(n);
  ff::pack_codes(view, shape.n_bits, again.data(), 1, stop);
  const ff::index segment = shape.segment_bytes();
  const int unused = int(segment * 8 - shape.cols * shape.n_bits);
  for (ff::index i = 0; i < n; ++i) {
    const bool last = (i + 1) % segment == 0;
    if ((packed[i] ^ again[i]) & (last ? 255 >> unused : 255)) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 6) return 0;
  ff::PackedShape shape;
  shape.n_bits = 1 + data[0] % ff::kMaxCodeBits;
  shape.books = 1 + data[1] % 4;
  shape.rows = data[2] | data[3] << 8;
  shape.cols = data[4] | data[5] << 8;
  const std::uint8_t* packed = data + 6;
  const ff::index n = ff::index(size) - 6;
  if (shape.n_bits <= 8) try_codes<std::uint8_t>(packed, n, shape, ff::IntType::u8);
  else if (shape.n_bits <= 16) try_codes<std::uint16_t>(packed, n, shape, ff::IntType::u16);
  else try_codes<std::uint32_t>(packed, n, shape, ff::IntType::u32);
  return 0;
}

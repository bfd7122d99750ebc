#pragma once
#include <string>

#include "core/parallel.hpp"
#include "core/types.hpp"

namespace ff {

inline constexpr int kMaxCodeBits = 32;

enum class IntType { i8, i16, i32, i64, u8, u16, u32, u64 };

// A read-only view of codes of any integer type with any strides (in bytes).
struct CodesView {
  const char* data = nullptr;
  IntType type = IntType::u8;
  index books = 1, rows = 0, cols = 0;
  index book_stride = 0, row_stride = 0, col_stride = 0;
};

// Packed codes. Row i holds the codes of codebook 0, then those of codebook 1, …; the codes of each
// codebook begin on a byte. Code j fills bits [j·n_bits, (j + 1)·n_bits) of these; bit k is bit k
// mod 8 (0 is the least significant) of byte ⌊k / 8⌋. Bits after the last code are zero.
struct PackedShape {
  int n_bits = 8;  // 1 … kMaxCodeBits
  index books = 1, rows = 0, cols = 0;

  index segment_bytes() const { return cols / 8 * n_bits + ceil_div(cols % 8 * n_bits, 8); }
  index row_bytes() const { return books * segment_bytes(); }
  bool takes(index size) const {
    if (rows == 0 || cols == 0) return size == 0;
    return size % row_bytes() == 0 && size / row_bytes() == rows;
  }
};

// Packs every code. Throws std::invalid_argument for the first one (by codebook, row and column)
// that needs more bits; the content of `packed` is then unspecified.
void pack_codes(const CodesView& codes, int n_bits, std::uint8_t* packed, int n_threads,
                Stop& stop);

// Writes codes (books, rows, cols); Code must be the narrowest of 1, 2 and 4 bytes that holds
// n_bits. Returns false, and writes nothing, if the shape does not take exactly `size` bytes.
template <class Code>
bool unpack_codes(const std::uint8_t* packed, index size, const PackedShape& shape, Code* codes,
                  int n_threads, Stop& stop);

// Writes the first n codes of a row that begins at `packed`, one per byte; reads nothing after the
// last.
void unpack_row(const std::uint8_t* packed, index n, int n_bits, std::uint8_t* codes);

}  // namespace ff

// Up to 8 bits, packing and unpacking take eight codes a step, eight bytes on one side and n_bits
// bytes on the other, with one load, one pext or pdep, and one store. One thread of Zen 5 packs 8 G
// and unpacks 12 G codes/s (16M codes of 2 to 6 bits into fresh memory); with shifts, on levels
// without BMI2, 2 and 3. Wider codes, which are stored but never multiplied, pass one by one
// through a buffer of bits.
#include "kernels/bits/bits.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#if defined(__BMI2__)
#  include <immintrin.h>
#endif

namespace ff {
namespace {

constexpr index kTaskCodes = index(1) << 16;
constexpr index kBlockCodes = 4096;  // codes that pack converts at a time; a multiple of 8

// Joins the low n_bits of eight bytes, and spreads them to eight bytes again.
struct Octet {
  int n_bits;
  std::uint64_t mask;  // the bits in use, byte by byte

  explicit Octet(int bits)
      : n_bits(bits), mask(0x0101010101010101u * ((std::uint64_t(1) << bits) - 1)) {}

#if defined(__BMI2__)
  std::uint64_t together(std::uint64_t bytes) const { return _pext_u64(bytes, mask); }
  std::uint64_t apart(std::uint64_t bits) const { return _pdep_u64(bits, mask); }
#else
  // Joins pairs of lanes three times: 8 → 16 → 32 → 64 bits wide.
  std::uint64_t together(std::uint64_t x) const {
    x &= mask;
    x = (x & 0x00ff00ff00ff00ffu) | (x >> 8 & 0x00ff00ff00ff00ffu) << n_bits;
    x = (x & 0x0000ffff0000ffffu) | (x >> 16 & 0x0000ffff0000ffffu) << 2 * n_bits;
    return (x & 0xffffffffu) | x >> 32 << 4 * n_bits;
  }
  std::uint64_t apart(std::uint64_t x) const {
    const std::uint64_t low32 = (std::uint64_t(1) << 4 * n_bits) - 1;
    const std::uint64_t low16 = 0x0000000100000001u * ((std::uint64_t(1) << 2 * n_bits) - 1);
    const std::uint64_t low8 = 0x0001000100010001u * ((std::uint64_t(1) << n_bits) - 1);
    x = (x & low32) | (x >> 4 * n_bits & low32) << 32;
    x = (x & low16) | (x >> 2 * n_bits & low16) << 16;
    return (x & low8) | (x >> n_bits & low8) << 8;
  }
#endif
};

// Loads at most eight bytes in memory order as a number, the first byte lowest.
inline std::uint64_t load_bytes(const std::uint8_t* p, index n) {
  std::uint64_t x = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  std::memcpy(&x, p, std::size_t(n));
#else
  for (index i = 0; i < n; ++i) x |= std::uint64_t(p[i]) << 8 * i;
#endif
  return x;
}

inline void store_bytes(std::uint8_t* p, std::uint64_t x, index n) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  std::memcpy(p, &x, std::size_t(n));
#else
  for (index i = 0; i < n; ++i) p[i] = std::uint8_t(x >> 8 * i);
#endif
}

inline index bytes_of(index n_codes, int n_bits) {
  return n_codes / 8 * n_bits + ceil_div(n_codes % 8 * n_bits, 8);
}

void pack_row(const std::uint8_t* codes, index n, int n_bits, std::uint8_t* packed) {
  if (n_bits == 8) {
    std::memcpy(packed, codes, std::size_t(n));
    return;
  }
  const Octet octet(n_bits);
  index i = 0;
  // Stores eight bytes although only n_bits are final; the next step overwrites the rest.
  for (const index end = bytes_of(n, n_bits); i + 8 <= n && i / 8 * n_bits + 8 <= end; i += 8)
    store_bytes(packed + i / 8 * n_bits, octet.together(load_bytes(codes + i, 8)), 8);
  for (; i < n; i += 8) {
    const index count = std::min<index>(8, n - i);
    store_bytes(packed + i / 8 * n_bits, octet.together(load_bytes(codes + i, count)),
                ceil_div(count * n_bits, 8));
  }
}

void pack_row(const std::uint32_t* codes, index n, int n_bits, std::uint8_t* packed) {
  std::uint64_t bits = 0;
  int held = 0;  // less than 32 between codes
  for (index i = 0; i < n; ++i) {
    bits |= std::uint64_t(codes[i]) << held;
    held += n_bits;
    if (held < 32) continue;
    store_bytes(packed, bits, 4);
    packed += 4, bits >>= 32, held -= 32;
  }
  store_bytes(packed, bits, ceil_div(held, 8));
}

template <class Code>
void unpack_row(const std::uint8_t* packed, index n, int n_bits, Code* codes) {
  const std::uint64_t mask = (std::uint64_t(1) << n_bits) - 1;
  std::uint64_t bits = 0;
  int held = 0;
  index left = bytes_of(n, n_bits);
  for (index i = 0; i < n; ++i) {
    if (held < n_bits) {
      const index count = std::min<index>(left, 4);
      bits |= (count == 4 ? load_bytes(packed, 4) : load_bytes(packed, count)) << held;
      packed += count, left -= count, held += 32;
    }
    codes[i] = Code(bits & mask);
    bits >>= n_bits, held -= n_bits;
  }
}

// Calls body(row, first, last) for pieces of rows; a task takes about kTaskCodes codes, in several
// rows if they are short.
template <class Body>
void for_pieces(index rows, index cols, int n_threads, Stop& stop, Body body) {
  if (rows == 0 || cols == 0) return;
  const index pieces = ceil_div(cols, kTaskCodes);
  const index group = std::max<index>(1, kTaskCodes / cols);
  parallel_ranges(ceil_div(rows, group) * pieces, n_threads, stop, [&](index task, int) {
    const index first = task % pieces * kTaskCodes, last = std::min(first + kTaskCodes, cols);
    const index row = task / pieces * group;
    for (index r = row; r < std::min(row + group, rows); ++r) body(r, first, last);
  });
}

template <class T>
std::uint64_t code_at(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return std::uint64_t(value);  // negative values become too large
}

// Converts codes to the width that packing takes; returns whether all of them are below the limit.
template <class T, class Code>
bool narrow(const char* p, index stride, index n, std::uint64_t limit, Code* out) {
  std::uint64_t all = 0;
  const auto loop = [&](index step) {
    for (index j = 0; j < n; ++j) {
      const std::uint64_t code = code_at<T>(p + j * step);
      all |= code;
      out[j] = Code(code);
    }
  };
  if (stride == index(sizeof(T))) {
    loop(sizeof(T));
  } else {
    loop(stride);
  }
  return all < limit;  // the limit is a power of two
}

template <class T, class Code>
void pack_from(const CodesView& codes, int n_bits, std::uint8_t* packed, int n_threads,
               Stop& stop) {
  const PackedShape shape{n_bits, codes.books, codes.rows, codes.cols};
  const index segment = shape.segment_bytes(), row_bytes = shape.row_bytes();
  const std::uint64_t limit = std::uint64_t(1) << n_bits;
  const auto row_of = [&](index r) {
    return codes.data + r / codes.rows * codes.book_stride + r % codes.rows * codes.row_stride;
  };
  std::atomic<bool> fits{true};
  const index rows = codes.books * codes.rows;
  for_pieces(rows, codes.cols, n_threads, stop, [&](index r, index first, index last) {
    Code block[kBlockCodes];
    std::uint8_t* to = packed + r % codes.rows * row_bytes + r / codes.rows * segment;
    for (index j = first; j < last; j += kBlockCodes) {
      const index n = std::min(kBlockCodes, last - j);
      if (!narrow<T, Code>(row_of(r) + j * codes.col_stride, codes.col_stride, n, limit, block))
        fits.store(false, std::memory_order_relaxed);
      pack_row(block, n, n_bits, to + j / 8 * n_bits);
    }
  });
  if (fits.load()) return;
  for (index r = 0; r < rows; ++r)
    for (index j = 0; j < codes.cols; ++j) {
      const char* p = row_of(r) + j * codes.col_stride;
      if (code_at<T>(p) < limit) continue;
      T value;
      std::memcpy(&value, p, sizeof value);
      throw std::invalid_argument("codes must be in [0, " + std::to_string(limit) + "), got " +
                                  std::to_string(value) + " at [" +
                                  (codes.books > 1 ? std::to_string(r / codes.rows) + ", " : "") +
                                  std::to_string(r % codes.rows) + ", " + std::to_string(j) + "]");
    }
}

template <class T>
void pack(const CodesView& codes, int n_bits, std::uint8_t* packed, int n_threads, Stop& stop) {
  if (n_bits <= 8) return pack_from<T, std::uint8_t>(codes, n_bits, packed, n_threads, stop);
  pack_from<T, std::uint32_t>(codes, n_bits, packed, n_threads, stop);
}

}  // namespace

void unpack_row(const std::uint8_t* packed, index n, int n_bits, std::uint8_t* codes) {
  if (n_bits == 8) {
    std::memcpy(codes, packed, std::size_t(n));
    return;
  }
  const Octet octet(n_bits);
  index i = 0;
  for (const index end = bytes_of(n, n_bits); i + 8 <= n && i / 8 * n_bits + 8 <= end; i += 8)
    store_bytes(codes + i, octet.apart(load_bytes(packed + i / 8 * n_bits, 8)), 8);
  for (; i < n; i += 8) {
    const index count = std::min<index>(8, n - i);
    const index bytes = ceil_div(count * n_bits, 8);
    store_bytes(codes + i, octet.apart(load_bytes(packed + i / 8 * n_bits, bytes)), count);
  }
}

void pack_codes(const CodesView& codes, int n_bits, std::uint8_t* packed, int n_threads,
                Stop& stop) {
  switch (codes.type) {
    case IntType::i8:
      return pack<std::int8_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::i16:
      return pack<std::int16_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::i32:
      return pack<std::int32_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::i64:
      return pack<std::int64_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::u8:
      return pack<std::uint8_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::u16:
      return pack<std::uint16_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::u32:
      return pack<std::uint32_t>(codes, n_bits, packed, n_threads, stop);
    case IntType::u64:
      return pack<std::uint64_t>(codes, n_bits, packed, n_threads, stop);
  }
}

template <class Code>
bool unpack_codes(const std::uint8_t* packed, index size, const PackedShape& shape, Code* codes,
                  int n_threads, Stop& stop) {
  const index segment = shape.segment_bytes(), row_bytes = shape.row_bytes();
  if (!shape.takes(size)) return false;
  const auto piece = [&](index r, index first, index last) {
    const std::uint8_t* from = packed + r % shape.rows * row_bytes + r / shape.rows * segment;
    unpack_row(from + first / 8 * shape.n_bits, last - first, shape.n_bits,
               codes + r * shape.cols + first);
  };
  for_pieces(shape.books * shape.rows, shape.cols, n_threads, stop, piece);
  return true;
}

#define FF_UNPACK(Code) \
  template bool unpack_codes(const std::uint8_t*, index, const PackedShape&, Code*, int, Stop&)
FF_UNPACK(std::uint8_t);
FF_UNPACK(std::uint16_t);
FF_UNPACK(std::uint32_t);
#undef FF_UNPACK

}  // namespace ff

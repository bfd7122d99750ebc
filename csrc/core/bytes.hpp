#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/corrupt.hpp"
#include "core/types.hpp"

// Stored numbers: little-endian on every processor, and read within bounds.
namespace ff {

inline std::uint64_t little_endian(std::uint64_t x) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  return __builtin_bswap64(x);
#else
  return x;
#endif
}

inline std::uint64_t load64(const std::uint8_t* p) {
  std::uint64_t x;
  std::memcpy(&x, p, 8);
  return little_endian(x);
}

inline void store64(std::uint8_t* p, std::uint64_t x) {
  x = little_endian(x);
  std::memcpy(p, &x, 8);
}

using Bytes = std::vector<std::uint8_t>;

inline void put_fixed(Bytes& to, std::uint64_t x, int n_bytes) {
  for (int i = 0; i < n_bytes; ++i) to.push_back(std::uint8_t(x >> 8 * i));
}

// Writes seven bits per byte, lowest first; all bytes but the last have the top bit set.
inline void put_varint(Bytes& to, std::uint64_t x) {
  for (; x >= 128; x >>= 7) to.push_back(std::uint8_t(x | 128));
  to.push_back(std::uint8_t(x));
}

// Reads forward through bytes that may end anywhere and hold anything.
class ByteReader {
 public:
  ByteReader(const std::uint8_t* data, index size) : data_(data), size_(size) {}

  index position() const { return position_; }
  index left() const { return size_ - position_; }
  const std::uint8_t* rest() const { return data_ + position_; }

  const std::uint8_t* take(index n, const char* what) {
    if (n > left())
      throw CorruptData(std::string("data must hold ") + what + ", got data that ends before it");
    const std::uint8_t* p = data_ + position_;
    position_ += n;
    return p;
  }

  std::uint64_t fixed(int n_bytes, const char* what) {
    const std::uint8_t* p = take(n_bytes, what);
    std::uint64_t x = 0;
    for (int i = 0; i < n_bytes; ++i) x |= std::uint64_t(p[i]) << 8 * i;
    return x;
  }

  // Reads a number of at most 2^56 − 1; refuses one that takes more bytes than it needs.
  std::uint64_t varint(const char* what) {
    std::uint64_t x = 0;
    for (int shift = 0; shift < 56; shift += 7) {
      const std::uint8_t byte = *take(1, what);
      x |= std::uint64_t(byte & 127) << shift;
      if (byte < 128) {
        if (byte == 0 && shift > 0) break;
        return x;
      }
    }
    throw CorruptData(std::string("data must hold ") + what +
                      " in the fewest bytes, at most 8, got more");
  }

 private:
  const std::uint8_t* data_;
  index size_, position_ = 0;
};

}  // namespace ff

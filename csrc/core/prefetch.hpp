#pragma once
#include "core/buffer.hpp"

namespace ff {

// Begins to read the cache line that holds p. Nothing need be there. The empty statement counts as
// an effect: a function that only prefetches has none to GCC, which drops calls of it.
inline void prefetch(const void* p) {
  __builtin_prefetch(p);
  asm volatile("");
}

// The same for all lines of some bytes.
inline void prefetch(const void* p, index bytes) {
  const auto* from = static_cast<const char*>(p);
  for (index b = 0; b < bytes; b += index(kCacheLine)) prefetch(from + b);
  prefetch(from + bytes - 1);  // in one line more, where the bytes do not begin with a line
}

}  // namespace ff

#pragma once
#include "core/buffer.hpp"

namespace ff {

// Begins to read the cache line that holds p, which may be any address. The empty statement counts
// as a side effect: GCC sees none in a function that only prefetches, and drops calls of it.
inline void prefetch(const void* p) {
  __builtin_prefetch(p);
  asm volatile("");
}

// Begins to read all cache lines of the bytes from p on.
inline void prefetch(const void* p, index bytes) {
  const auto* from = static_cast<const char*>(p);
  for (index b = 0; b < bytes; b += index(kCacheLine)) prefetch(from + b);
  prefetch(from + bytes - 1);  // the last line, which the loop misses unless p begins a line
}

}  // namespace ff

#pragma once
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/parallel.hpp"

// Least-significant-digit radix sort of floats, by integer keys of the same order. It is stable, so
// the result does not depend on how the work is cut, and items may carry other data along.
//
// Measured on Zen 5 with standard normal float32, np.sort in brackets: 4096 values take 12 µs (7);
// 1M values 3.8 ms on one thread, 1.7 on two (2.9); 4M values 23 ms and 16 to 20 ms (17.5).
namespace ff {

// An unsigned key that rises with x and from which x can be recovered. −0 comes right before +0.
inline std::uint32_t sort_key(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (std::uint32_t(std::int32_t(bits) >> 31) | 0x80000000u);
}

inline std::uint64_t sort_key(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (std::uint64_t(std::int64_t(bits) >> 63) | (std::uint64_t(1) << 63));
}

inline float from_sort_key(std::uint32_t key) {
  key ^= std::uint32_t(std::int32_t(~key) >> 31) | 0x80000000u;
  float x;
  std::memcpy(&x, &key, sizeof x);
  return x;
}

inline double from_sort_key(std::uint64_t key) {
  key ^= std::uint64_t(std::int64_t(~key) >> 63) | (std::uint64_t(1) << 63);
  double x;
  std::memcpy(&x, &key, sizeof x);
  return x;
}

namespace detail {

// Calls body(i) for i in [begin, end), and asks now and then whether to stop.
template <class Body>
void for_items(index begin, index end, Stop& stop, Body&& body) {
  constexpr index kBlock = index(1) << 20;
  for (index first = begin; first < end; first += kBlock) {
    stop.throw_if_requested();
    const index last = std::min(end, first + kBlock);
    for (index i = first; i < last; ++i) body(i);
  }
}

// Turns the counts of digits into the place of each digit's first item. Returns false if all items
// have the same digit.
template <class Count>
bool start_of_digits(Count* counts, int n_digits, index n) {
  Count total = 0;
  for (int d = 0; d < n_digits; ++d) {
    const Count count = counts[d];
    if (index(count) == n) return false;
    counts[d] = total;
    total += count;
  }
  return true;
}

// Sorts on one thread; one pass over the items counts the digits of all passes.
template <int kDigitBits, int kKeyBits, class Item, class KeyOf>
Item* sort_at_once(Item* from, Item* to, index n, KeyOf key) {
  constexpr int kDigits = 1 << kDigitBits, kPasses = (kKeyBits + kDigitBits - 1) / kDigitBits;
  std::uint32_t counts[kPasses][kDigits] = {};
  for (index i = 0; i < n; ++i) {
    const auto k = key(from[i]);
#pragma GCC unroll 8
    for (int p = 0; p < kPasses; ++p) ++counts[p][(k >> (p * kDigitBits)) & (kDigits - 1)];
  }
  for (int p = 0; p < kPasses; ++p) {
    std::uint32_t* place = counts[p];
    if (!start_of_digits(place, kDigits, n)) continue;
    for (index i = 0; i < n; ++i)
      to[place[(key(from[i]) >> (p * kDigitBits)) & (kDigits - 1)]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

// Sorts chunks in parallel: the counts of all chunks say where the items of each chunk go.
template <int kDigitBits, int kKeyBits, class Item, class KeyOf>
Item* sort_in_chunks(Item* from, Item* to, index n, KeyOf key, int n_threads, Stop& stop) {
  constexpr int kDigits = 1 << kDigitBits, kPasses = (kKeyBits + kDigitBits - 1) / kDigitBits;
  const index n_chunks = std::min<index>(n_threads, 64), length = ceil_div(n, n_chunks);
  std::vector<index> places(std::size_t(n_chunks) * kDigits);
  for (int p = 0; p < kPasses; ++p) {
    const auto digit = [=](const Item& item) {
      return (key(item) >> (p * kDigitBits)) & (kDigits - 1);
    };
    std::fill(places.begin(), places.end(), 0);
    parallel_for(n_chunks, n_threads, stop, [&](index c, int) {
      index counts[kDigits] = {};
      const index end = std::min(n, (c + 1) * length);
      for_items(c * length, end, stop, [&](index i) { ++counts[digit(from[i])]; });
      std::copy_n(counts, kDigits, places.data() + c * kDigits);
    });
    index total = 0;
    bool one_digit = false;
    for (int d = 0; d < kDigits; ++d) {
      const index before = total;
      for (index c = 0; c < n_chunks; ++c) total += std::exchange(places[c * kDigits + d], total);
      one_digit |= total - before == n;
    }
    if (one_digit) continue;
    parallel_for(n_chunks, n_threads, stop, [&](index c, int) {
      index place[kDigits];
      std::copy_n(places.data() + c * kDigits, kDigits, place);
      const index end = std::min(n, (c + 1) * length);
      for_items(c * length, end, stop, [&](index i) { to[place[digit(from[i])]++] = from[i]; });
    });
    std::swap(from, to);
  }
  return from;
}

}  // namespace detail

// Sorts n items by the low kKeyBits of key(item), an unsigned number. Items move between the two
// arrays; returns the one that holds the sorted items.
template <int kKeyBits, class Item, class KeyOf>
Item* radix_sort(Item* items, Item* scratch, index n, KeyOf key, int n_threads, Stop& stop) {
  // Digits of 11 bits save a pass over digits of 8 bits. They cost more counts to clear and add up,
  // which matters for few items, and more cache and page-table misses for many: 1M items take
  // 4.7 ms with 8 bits and 3.8 with 11, but 4M take 23 ms with 8 bits and 33 with 11.
  constexpr index kFew = 1024, kMany = index(1) << 17, kFar = index(1) << 21;
  if (n <= kFew) return detail::sort_at_once<8, kKeyBits>(items, scratch, n, key);
  if (n < kMany) return detail::sort_at_once<11, kKeyBits>(items, scratch, n, key);
  if (n < kFar)
    return detail::sort_in_chunks<11, kKeyBits>(items, scratch, n, key, n_threads, stop);
  return detail::sort_in_chunks<8, kKeyBits>(items, scratch, n, key, n_threads, stop);
}

}  // namespace ff

#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/buffer.hpp"
#include "core/random.hpp"
#include "core/simd.hpp"
#include "core/view.hpp"

// Selection among contiguous magnitudes. A float's bits without the sign are an integer, its key,
// and keys have the order of the magnitudes; so nothing here rounds.
namespace ff {

// 16-bit keys are widened, so that there are two kinds of vectors instead of three.
template <class Stored>
using Key = std::conditional_t<sizeof(Stored) == 8, std::int64_t, std::int32_t>;

template <class Stored>
inline constexpr Key<Stored> kKeyMask = Key<Stored>(Stored(~Stored(0)) >> 1);

template <class Stored>
inline Key<Stored> key_at(const char* p, index i) {
  return Key<Stored>(detail::read<Stored>(p + i * index(sizeof(Stored)))) & kKeyMask<Stored>;
}

template <class Stored>
inline simd::Vec<Key<Stored>> keys_at(const char* p, index i) {
  using Vec = simd::Vec<Key<Stored>>;
  p += i * index(sizeof(Stored));
  Vec v;
  if constexpr (sizeof(Stored) == 2) {
    typedef Stored Narrow __attribute__((vector_size(simd::kBytes / 2)));
    Narrow narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    v = __builtin_convertvector(narrow, Vec);
  } else {
    std::memcpy(&v, p, sizeof v);
  }
  return v & simd::splat(kKeyMask<Stored>);
}

// Returns whether all keys are below `infinity`, as those of finite numbers are: infinity − 1 − key
// is negative for all others.
template <class Stored>
bool all_finite(const char* p, index n, Key<Stored> infinity) {
  constexpr int kLanes = simd::kLanes<Key<Stored>>;
  const auto last = simd::splat(Key<Stored>(infinity - 1));
  simd::Vec<Key<Stored>> signs{};
  index i = 0;
  for (; i + kLanes <= n; i += kLanes) signs = signs | (last - keys_at<Stored>(p, i));
  bool finite = simd::mask_bits(simd::Vec<Key<Stored>>(signs < 0)) == 0;
  for (; i < n; ++i) finite &= key_at<Stored>(p, i) < infinity;
  return finite;
}

template <class Stored>
index count_equal(const char* p, index n, Key<Stored> key) {
  constexpr int kLanes = simd::kLanes<Key<Stored>>;
  const auto wanted = simd::splat(key);
  simd::Vec<Key<Stored>> count{};
  index i = 0;
  for (; i + kLanes <= n; i += kLanes) count -= keys_at<Stored>(p, i) == wanted;
  index total = index(simd::reduce_add<Key<Stored>>(count));
  for (; i < n; ++i) total += key_at<Stored>(p, i) == key;
  return total;
}

template <class Stored>
index count_up_to(const char* p, index n, Key<Stored> key) {
  constexpr int kLanes = simd::kLanes<Key<Stored>>;
  const auto most = simd::splat(key);
  simd::Vec<Key<Stored>> above[4] = {};
  index i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) above[u] -= keys_at<Stored>(p, i + u * kLanes) > most;
  index total =
      i - index(simd::reduce_add<Key<Stored>>((above[0] + above[1]) + (above[2] + above[3])));
  for (; i < n; ++i) total += key_at<Stored>(p, i) <= key;
  return total;
}

// The k-th smallest key (from 0), the number of keys that are less, and the number that are not
// greater.
template <class K>
struct Ranked {
  K key = 0;
  index n_less = 0, n_up_to = 0;
};

// Two keys; the key that is sought very probably lies between them or equals one of them.
template <class K>
struct Bracket {
  K low, high;
};

struct Tally {
  index n = 0, less_than_low = 0, up_to_low = 0, inside = 0, up_to_high = 0;
  bool finite = true;

  void add(const Tally& other) {
    n += other.n;
    less_than_low += other.less_than_low;
    up_to_low += other.up_to_low;
    inside += other.inside;
    up_to_high += other.up_to_high;
    finite &= other.finite;
  }
};

// Counts n keys relative to the bracket. With `collect`, those strictly inside are written to
// `inside`, which needs room for n keys and a vector. Four comparisons a vector cost no time: on v4
// the loop waits for memory. n is at most 2³⁰, so that 32-bit lanes can count it.
template <bool collect, class Stored>
Tally count_about(const char* p, index n, Bracket<Key<Stored>> bracket, Key<Stored> infinity,
                  Key<Stored>* inside) {
  using K = Key<Stored>;
  constexpr int kLanes = simd::kLanes<K>;
  const auto low = simd::splat(bracket.low), high = simd::splat(bracket.high);
  const auto last = simd::splat(K(infinity - 1));
  simd::Vec<K> less{}, above_low{}, above_high{}, signs{};
  Tally tally;
  index i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto key = keys_at<Stored>(p, i);
    less -= key < low;
    above_low -= key > low;
    above_high -= key > high;
    signs = signs | (last - key);
    const unsigned bits = simd::less_bits(low, key) & simd::less_bits(key, high);
    if constexpr (collect) {
      tally.inside += simd::compress(inside + tally.inside, key, bits);
    } else {
      tally.inside += __builtin_popcount(bits);
    }
  }
  tally.n = n;
  tally.less_than_low = index(simd::reduce_add<K>(less));
  tally.up_to_low = i - index(simd::reduce_add<K>(above_low));
  tally.up_to_high = i - index(simd::reduce_add<K>(above_high));
  tally.finite = simd::mask_bits(simd::Vec<K>(signs < 0)) == 0;
  for (; i < n; ++i) {
    const K key = key_at<Stored>(p, i);
    tally.less_than_low += key < bracket.low;
    tally.up_to_low += key <= bracket.low;
    tally.up_to_high += key <= bracket.high;
    tally.finite &= key < infinity;
    if (bracket.low < key && key < bracket.high) {
      if constexpr (collect) inside[tally.inside] = key;
      ++tally.inside;
    }
  }
  return tally;
}

// A sample of n keys. The keys are cut into n_pieces stretches, and kPiece neighbours (one memory
// access) are taken at a random place of each; the places depend on n alone. The bracket from a
// sample holds at most 1.4 % of 100M keys.
struct SamplePlan {
  static constexpr index kPiece = 8, kMost = 1 << 17;

  explicit SamplePlan(index n)
      : size(n),
        n_pieces(std::min(kMost, index(std::pow(double(n), 2.0 / 3))) / kPiece),
        step(n / std::max<index>(n_pieces, 1)) {}

  index n_keys() const { return n_pieces * kPiece; }
  index place(index piece) const {
    return piece * step + index(Random(std::uint64_t(size), std::uint64_t(piece))
                                    .below(std::uint64_t(step - kPiece + 1)));
  }

  index size, n_pieces, step;
};

template <class K>
struct SelectScratch {
  Buffer<K> sample, inside;

  static K* with_room(Buffer<K>& buffer, index n) {
    if (buffer.size() < n + simd::kLanes<K>) buffer = Buffer<K>(n + simd::kLanes<K>);
    return buffer.data();
  }
};

// Returns the least key of [low, high] that more than k of n keys do not exceed, which must exist.
// Halves the range until one key is left, in at most 31 or 63 counts.
template <class Stored>
Key<Stored> bisect(const char* p, index n, index k, Key<Stored> low, Key<Stored> high) {
  while (low < high) {
    const Key<Stored> middle = low + (high - low) / 2;
    if (count_up_to<Stored>(p, n, middle) > k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Up to this many keys, bisection is faster than taking and judging a sample.
inline constexpr index kFewKeys = 1024;

template <class Stored>
Key<Stored> select_key(const char* p, index n, index k, SelectScratch<Key<Stored>>& scratch);

// Returns where the k-th of n keys will be found according to a sample of them: five standard
// deviations to either side (three if neighbours are alike), and no bound if the sample has no key
// there.
template <class K>
Bracket<K> bracket_from(const K* sample, index n_sample, index n, index k, K infinity) {
  using Stored = std::make_unsigned_t<K>;
  const double share = (double(k) + 0.5) / double(n), centre = share * double(n_sample);
  const double reach = 5 * std::sqrt(centre * (1 - share)) + 4;
  const auto low = index(std::floor(centre - reach)), high = index(std::ceil(centre + reach));
  const char* p = reinterpret_cast<const char*>(sample);
  const auto ranked = [&](index rank) {
    SelectScratch<K> scratch;
    return select_key<Stored>(p, n_sample, rank, scratch);
  };
  return {low < 0 ? K(-1) : ranked(low), high >= n_sample ? infinity : ranked(high)};
}

// What a tally says about the k-th key: found, among those inside, or elsewhere.
template <class K>
struct Verdict {
  enum { found, inside, elsewhere } where;
  Ranked<K> ranked;     // if found
  K low = 0, high = 0;  // otherwise the range that it is in …
  index n_less = 0;     // … and the number of keys less than this range
};

template <class K>
Verdict<K> judge(const Tally& tally, Bracket<K> bracket, index k, K infinity) {
  const index before_high = tally.up_to_low + tally.inside;
  if (k < tally.less_than_low) return {Verdict<K>::elsewhere, {}, 0, K(bracket.low - 1), 0};
  if (k < tally.up_to_low)
    return {Verdict<K>::found, {bracket.low, tally.less_than_low, tally.up_to_low}};
  if (k < before_high)
    return {Verdict<K>::inside, {}, K(bracket.low + 1), K(bracket.high - 1), tally.up_to_low};
  if (k < tally.up_to_high)
    return {Verdict<K>::found, {bracket.high, before_high, tally.up_to_high}};
  return {Verdict<K>::elsewhere, {}, K(bracket.high + 1), K(infinity - 1), tally.up_to_high};
}

// Returns the k-th smallest of n keys, all of finite numbers. Brackets by samples until few keys
// are left, and bisects these, or the range in which a bracket has not helped.
template <class Stored>
Key<Stored> select_key(const char* p, index n, index k, SelectScratch<Key<Stored>>& scratch) {
  using K = Key<Stored>;
  constexpr K most = kKeyMask<Stored>;
  if (n <= kFewKeys) return bisect<Stored>(p, n, k, 0, most);
  const SamplePlan plan(n);
  K* sample = scratch.with_room(scratch.sample, plan.n_keys());
  for (index piece = 0; piece < plan.n_pieces; ++piece)
    for (index i = 0, at = plan.place(piece); i < plan.kPiece; ++i)
      sample[piece * plan.kPiece + i] = key_at<Stored>(p, at + i);
  const auto bracket = bracket_from<K>(sample, plan.n_keys(), n, k, most);
  K* inside = scratch.with_room(scratch.inside, n);
  const Tally tally = count_about<true, Stored>(p, n, bracket, most, inside);
  const auto verdict = judge<K>(tally, bracket, k, most);
  if (verdict.where == Verdict<K>::found) return verdict.ranked.key;
  if (verdict.where == Verdict<K>::elsewhere || tally.inside > n / 2)
    return bisect<Stored>(p, n, k, verdict.low, verdict.high);
  const char* left = reinterpret_cast<const char*>(inside);
  const index rank = k - verdict.n_less;
  using Bits = std::make_unsigned_t<K>;
  if (tally.inside <= kFewKeys)
    return bisect<Bits>(left, tally.inside, rank, verdict.low, verdict.high);
  SelectScratch<K> own;
  return select_key<Bits>(left, tally.inside, rank, own);
}

}  // namespace ff

// Finds which of an array's magnitudes are the smallest, without sorting or copying the array.
//
// A long group is read once: a sample gives two keys that almost surely enclose the key that is
// sought, one pass counts the keys relative to these and sets the few between them aside, and the
// search continues among the few. The counts reveal whether the sample was wrong; then histograms
// of 11 bits a pass find the key for any data. Short groups are selected whole, one after the
// other, in the cache.
#include "kernels/select/select.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/select/flat.hpp"
#include "kernels/select/magnitudes.hpp"
#include "kernels/select/small_groups.hpp"

namespace ff {
namespace {

constexpr index kChunk = index(1) << 16;      // least number of entries in a task
constexpr index kLongGroup = index(1) << 18;  // from this length on, threads share a group
constexpr index kBins = index(1) << 11;

// The least magnitude that stays, and how many of those equal to it stay.
template <class K>
struct Cut {
  K key = 0;
  index n_ties = 0, n_kept_ties = 0;
};

template <class Stored>
struct Worker {
  Buffer<Stored> piece;
  SelectScratch<Key<Stored>> scratch;
};

// The keys that one worker has set aside.
template <class K>
struct Aside {
  Buffer<K> keys;
  index n = 0;
  Tally tally;

  // Returns room for `more` keys; `likely` is the total to expect.
  K* with_room(index more, index likely) {
    more += simd::kLanes<K>;
    if (keys.size() < n + more) {
      Buffer<K> larger(std::max(likely, 2 * n + more));
      std::copy_n(keys.data(), n, larger.data());
      keys = std::move(larger);
    }
    return keys.data() + n;
  }
};

template <class Stored>
class Selection {
 public:
  using K = Key<Stored>;
  using Bits = std::make_unsigned_t<K>;

  // `as_given` is what error messages refer to; w may hold the same entries in another order.
  Selection(const ArrayView& w, const ArrayView& as_given, Groups groups, K infinity, int n_threads,
            Stop& stop)
      : flat_(w),
        as_given_(as_given),
        groups_(groups),
        infinity_(infinity),
        n_threads_(n_threads),
        stop_(stop),
        chunk_(flat_.piece_size(kChunk)) {}

  template <class ValueOf>
  void thresholds(double* out, ValueOf value_of) {
    for_each_group([&](index g, const Cut<K>& cut) { out[g] = value_of(cut.key); },
                   [&](index g, const char*, const Cut<K>& cut) { out[g] = value_of(cut.key); });
  }

  void mask(bool* out) {
    if (mask_small_groups(out)) return;
    for_each_group([&](index g, const Cut<K>& cut) { mask_long(g, cut, out); },
                   [&](index g, const char* p, const Cut<K>& cut) {
                     write_mask(p, groups_.length, cut, out + g * groups_.length);
                   });
  }

 private:
  index n_groups() const { return flat_.size() / groups_.length; }
  index rank() const { return std::min(groups_.n_dropped, groups_.length - 1); }

  Cut<K> cut_at(const Ranked<K>& found) const {
    const index n_greater = groups_.length - found.n_up_to;
    const index n_kept = groups_.length - groups_.n_dropped;
    return {found.key, found.n_up_to - found.n_less, n_kept - n_greater};
  }

  // Calls long_group(g, cut), with all threads for one group, or short_group(g, entries, cut) on
  // one thread.
  template <class Long, class Short>
  void for_each_group(Long&& long_group, Short&& short_group) {
    if (groups_.length >= kLongGroup) {
      for (index g = 0; g < n_groups(); ++g) long_group(g, cut_at(select_long(g * groups_.length)));
      return;
    }
    for_each_piece([&](index first, index n, const char* p, Worker<Stored>& worker) {
      for (index g = first / groups_.length; g < (first + n) / groups_.length; ++g) {
        const char* entries = p + (g * groups_.length - first) * index(sizeof(Stored));
        short_group(g, entries, cut_at(select_short(entries, worker)));
      }
    });
  }

  // Calls body for pieces of whole short groups and checks that all entries are finite.
  template <class Body>
  void for_each_piece(Body&& body) {
    const index size = round_up(flat_.piece_size(kChunk), groups_.length);
    std::vector<Worker<Stored>> workers(n_threads_);
    parallel_ranges(ceil_div(flat_.size(), size), n_threads_, stop_, [&](index task, int w) {
      const index first = task * size, n = std::min(size, flat_.size() - first);
      const char* p = flat_.fetch(first, n, workers[w].piece);
      if (!all_finite<Stored>(p, n, infinity_)) throw_first_not_finite(as_given_);
      body(first, n, p, workers[w]);
    });
  }

  Ranked<K> select_short(const char* p, Worker<Stored>& worker) const {
    const K key = select_key<Stored>(p, groups_.length, rank(), worker.scratch);
    return {key, count_up_to<Stored>(p, groups_.length, key - 1),
            count_up_to<Stored>(p, groups_.length, key)};
  }

  // Calls body(begin, n, entries, worker) for chunks of a long group; begin counts from the group's
  // start.
  template <class Body>
  void for_each_chunk(index first, Body&& body) {
    std::vector<Buffer<Stored>> pieces(n_threads_);
    parallel_ranges(ceil_div(groups_.length, chunk_), n_threads_, stop_, [&](index chunk, int w) {
      const index begin = chunk * chunk_, n = std::min(chunk_, groups_.length - begin);
      body(begin, n, flat_.fetch(first + begin, n, pieces[w]), w);
    });
  }

  Ranked<K> select_long(index first) {
    const Bracket<K> bracket = sampled_bracket(first);
    // Sets aside at most about an eighth of the keys, so that memory stays small for any data.
    const index most = groups_.length / 8;
    const index likely = kChunk + groups_.length / 64 / n_threads_;
    std::atomic<index> n_aside{0};
    std::vector<Aside<K>> asides(n_threads_);
    for_each_chunk(first, [&](index, index n, const char* p, int w) {
      Aside<K>& aside = asides[w];
      if (n_aside.load(std::memory_order_relaxed) > most) {
        aside.tally.add(count_about<false, Stored>(p, n, bracket, infinity_, nullptr));
        return;
      }
      const Tally tally =
          count_about<true, Stored>(p, n, bracket, infinity_, aside.with_room(n, likely));
      aside.n += tally.inside;
      aside.tally.add(tally);
      n_aside.fetch_add(tally.inside, std::memory_order_relaxed);
    });
    Tally tally;
    for (const auto& aside : asides) tally.add(aside.tally);
    if (!tally.finite) throw_first_not_finite(as_given_);
    const auto verdict = judge<K>(tally, bracket, rank(), infinity_);
    if (verdict.where == Verdict<K>::found) return verdict.ranked;
    if (verdict.where == Verdict<K>::inside && tally.inside == n_aside.load())
      return select_aside(asides, tally.inside, verdict.n_less);
    return by_histograms(first, verdict.low, verdict.high, verdict.n_less);
  }

  Bracket<K> sampled_bracket(index first) const {
    const SamplePlan plan(groups_.length);
    Buffer<K> sample(plan.n_keys());
    Buffer<Stored> piece;
    constexpr index kAhead = 32;
    for (index i = 0; i < plan.n_pieces; ++i) {
      if (i + kAhead < plan.n_pieces) flat_.prefetch(first + plan.place(i + kAhead));
      const char* p = flat_.fetch(first + plan.place(i), plan.kPiece, piece);
      for (index j = 0; j < plan.kPiece; ++j) sample[i * plan.kPiece + j] = key_at<Stored>(p, j);
    }
    return bracket_from<K>(sample.data(), plan.n_keys(), groups_.length, rank(), infinity_);
  }

  Ranked<K> select_aside(std::vector<Aside<K>>& asides, index n, index n_less) const {
    Aside<K>& all = asides[0];
    for (auto other = asides.begin() + 1; other != asides.end(); ++other) {
      std::copy_n(other->keys.data(), other->n, all.with_room(other->n, n + kChunk));
      all.n += other->n;
    }
    const char* p = reinterpret_cast<const char*>(all.keys.data());
    SelectScratch<K> scratch;
    const K key = select_key<Bits>(p, n, rank() - n_less, scratch);
    return {key, n_less + count_up_to<Bits>(p, n, key - 1), n_less + count_up_to<Bits>(p, n, key)};
  }

  // Finds the key within [low, high], with n_less keys below low: 11 bits of the key per pass.
  Ranked<K> by_histograms(index first, K low, K high, index n_less) {
    for (;;) {
      int shift = 0;
      while (((high - low) >> shift) >= kBins) ++shift;
      std::vector<std::vector<index>> counts(n_threads_);
      for_each_chunk(first, [&](index, index n, const char* p, int w) {
        counts[w].resize(kBins);
        for (index i = 0; i < n; ++i) {
          const K key = key_at<Stored>(p, i);
          if (low <= key && key <= high) ++counts[w][(key - low) >> shift];
        }
      });
      index bin = 0, n_bin = 0;
      for (;; ++bin) {
        n_bin = 0;
        for (const auto& own : counts) n_bin += own.empty() ? 0 : own[bin];
        if (n_less + n_bin > rank()) break;
        n_less += n_bin;
      }
      low += K(bin) << shift;
      if (shift == 0) return {low, n_less, n_less + n_bin};
      high = std::min(high, K(low + ((K(1) << shift) - 1)));
    }
  }

  // If only some ties stay, the chunks count theirs first, so that those of lower index stay.
  void mask_long(index group, const Cut<K>& cut, bool* out) {
    const index first = group * groups_.length;
    std::vector<index> n_ties(ceil_div(groups_.length, chunk_), 0);
    const bool some_stay = 0 < cut.n_kept_ties && cut.n_kept_ties < cut.n_ties;
    if (some_stay)
      for_each_chunk(first, [&](index begin, index n, const char* p, int) {
        n_ties[begin / chunk_] = count_equal<Stored>(p, n, cut.key);
      });
    std::vector<Cut<K>> cuts(n_ties.size(), cut);
    if (some_stay) {
      index left = cut.n_kept_ties;
      for (std::size_t c = 0; c < cuts.size(); ++c) {
        cuts[c] = {cut.key, n_ties[c], std::min(left, n_ties[c])};
        left -= cuts[c].n_kept_ties;
      }
    }
    for_each_chunk(first, [&](index begin, index n, const char* p, int) {
      write_mask(p, n, cuts[begin / chunk_], out + first + begin);
    });
  }

  static void write_mask(const char* p, index n, const Cut<K>& cut, bool* out) {
    const K above = cut.n_kept_ties == cut.n_ties ? cut.key - 1 : cut.key;
    for (index i = 0; i < n; ++i) out[i] = key_at<Stored>(p, i) > above;
    if (above < cut.key) return;
    for (index i = 0, left = cut.n_kept_ties; left > 0; ++i)
      if (key_at<Stored>(p, i) == cut.key) out[i] = true, --left;
  }

  bool mask_small_groups(bool* out) {
    switch (groups_.length) {
      case 2:
        return mask_groups_of<2>(out);
      case 4:
        return mask_groups_of<4>(out);
      case 8:
        return mask_groups_of<8>(out);
      case 16:
        return mask_groups_of<16>(out);
      default:
        return false;
    }
  }

  template <int M>
  bool mask_groups_of([[maybe_unused]] bool* out) {
    if constexpr (M <= simd::kLanes<K>) {
      for_each_piece([&](index first, index n, const char* p, Worker<Stored>&) {
        keep_in_groups<M, Stored>(p, n, M - groups_.n_dropped, out + first);
      });
      return true;
    } else {
      return false;
    }
  }

  const Flat<Stored> flat_;
  const ArrayView& as_given_;
  const Groups groups_;
  const K infinity_;
  const int n_threads_;
  Stop& stop_;
  const index chunk_;
};

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Calls body(Stored(), key of infinity, function from key to value) for the dtype.
template <class Body>
auto with_format(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f16:
      return body(std::uint16_t(), 0x7c00,
                  [](std::int32_t key) { return double(detail::widen_f16(std::uint16_t(key))); });
    case DType::bf16:
      return body(std::uint16_t(), 0x7f80,
                  [](std::int32_t key) { return double(detail::widen_bf16(std::uint16_t(key))); });
    case DType::f32:
      return body(std::uint32_t(), 0x7f800000,
                  [](std::int32_t key) { return double(bits_as<float>(key)); });
    default:
      return body(std::uint64_t(), std::int64_t(0x7ff0000000000000),
                  [](std::int64_t key) { return bits_as<double>(key); });
  }
}

}  // namespace

void thresholds(const ArrayView& w, Groups groups, int n_threads, Stop& stop, double* out) {
  if (w.size() == 0) return;
  const ArrayView ordered = groups.length == w.size() ? in_memory_order(w) : w;
  with_format(w.dtype, [&](auto stored, auto infinity, auto value_of) {
    using Stored = decltype(stored);
    Selection<Stored>(ordered, w, groups, infinity, n_threads, stop).thresholds(out, value_of);
  });
  if (groups.n_dropped == groups.length)
    std::fill_n(out, w.size() / groups.length, std::numeric_limits<double>::infinity());
}

void prune_mask(const ArrayView& w, Groups groups, int n_threads, Stop& stop, bool* mask) {
  if (w.size() == 0) return;
  with_format(w.dtype, [&](auto stored, auto infinity, auto) {
    using Stored = decltype(stored);
    Selection<Stored>(w, w, groups, infinity, n_threads, stop).mask(mask);
  });
}

void throw_first_not_finite(const ArrayView& w) {
  with_format(w.dtype, [&](auto stored, auto infinity, auto value_of) {
    using Stored = decltype(stored);
    const Flat<Stored> flat(w);
    Buffer<Stored> one;
    for (index i = 0; i < flat.size(); ++i) {
      const char* p = flat.fetch(i, 1, one);
      if (key_at<Stored>(p, 0) < infinity) continue;
      const bool negative = detail::read<Stored>(p) >> (8 * sizeof(Stored) - 1);
      const double magnitude = value_of(key_at<Stored>(p, 0));
      std::string at;
      for (std::size_t d = w.shape.size(); d-- > 0; i /= w.shape[d])
        at = std::to_string(i % w.shape[d]) + (at.empty() ? "" : ", ") + at;
      throw std::invalid_argument("W must be finite, got " +
                                  std::string(std::isnan(magnitude) ? "nan"
                                              : negative            ? "-inf"
                                                                    : "inf") +
                                  " at [" + at + "]");
    }
  });
  throw std::invalid_argument(
      "W must not change during the call, got values that were finite and then were not");
}

}  // namespace ff

#pragma once
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/corrupt.hpp"
#include "kernels/trellis/trellis_codes.hpp"

// Asymmetric numerals: a state has 32 bits, and 16 bits at a time are written or read.
namespace ff::trellis {

inline constexpr int kTotalBits = 14;
inline constexpr std::uint32_t kTotal = 1u << kTotalBits, kPlaces = kTotal - 1;
inline constexpr std::uint32_t kLow = 1u << 16;  // a state is at least this

inline constexpr index kRowsUnstopped = 64;  // rows between two checks for a request to stop

// Returns where each symbol's places begin.
inline std::vector<std::uint16_t> starts_of(const TrellisTables& tables) {
  std::vector<std::uint16_t> starts(tables.contexts() * kSymbols);
  for (index context = 0; context < tables.contexts(); ++context) {
    std::uint32_t sum = 0;
    for (index s = context * kSymbols; s < (context + 1) * kSymbols; ++s) {
      starts[s] = std::uint16_t(sum);
      sum += tables.frequencies[s];
    }
    if (sum != kTotal)
      throw CorruptData("frequencies must be " + std::to_string(kTotal) + " in all, got " +
                        std::to_string(sum));
  }
  return starts;
}

// Computes state / frequency by a product: ⌊2^47 / frequency⌋ + 1 is exact for 32 by 14 bits.
struct Share {
  std::uint64_t reciprocal;
  std::uint16_t frequency, start;

  std::uint32_t divide(std::uint32_t state) const {
    return std::uint32_t((unsigned __int128)(state)*reciprocal >> kBits);
  }

  static constexpr int kBits = 47;
};

inline std::vector<Share> shares_of(const TrellisTables& tables) {
  const auto starts = starts_of(tables);
  std::vector<Share> shares(starts.size());
  for (std::size_t s = 0; s < shares.size(); ++s) {
    const std::uint16_t frequency = tables.frequencies[s];
    const std::uint64_t one = std::uint64_t(1) << Share::kBits;
    shares[s] = {frequency ? one / frequency + 1 : 0, frequency, starts[s]};
  }
  return shares;
}

// Writes one block from its last level to its first, so that it is read forwards.
class Writer {
 public:
  Writer(const TrellisTables& tables, const std::vector<Share>& shares)
      : tables_(tables), shares_(shares), contexts_(tables.classes.cols) {}

  // Returns the words of rows [0, n), at the end of a buffer that is valid until the next call.
  const std::uint16_t* write(const std::int32_t* levels, const std::int32_t* row_logs, index n,
                             index& size, Stop& stop) {
    const index cols = tables_.classes.cols, most = n * (cols + 1) * 2 + 3;
    if (words_.size() < most) words_ = Buffer<std::uint16_t>(most);
    const std::uint16_t* end = words_.data() + words_.size();
    Cursor to{kLow, words_.data() + words_.size()};
    for (index i = n - 1; i >= 0; --i) {
      if (i % kRowsUnstopped == 0 && stop.requested()) break;
      const std::int32_t* row = levels + i * cols;
      tables_.classes.twice(row_logs[i], contexts_.data());
      for (index j = 0, state = 0; j < cols; ++j) {
        contexts_[j] = std::uint8_t(contexts_[j] + (state & 1));
        state = next_state(int(state), row[j] & 1);
      }
      for (index j = cols - 1; j >= 0; --j) put_level(to, row[j], contexts_[j]);
      if (tables_.scaled()) put_level(to, row_logs[i], 2 * tables_.classes.count);
    }
    *--to.at = std::uint16_t(to.state);
    *--to.at = std::uint16_t(to.state >> 16);
    size = end - to.at;
    return to.at;
  }

 private:
  struct Cursor {
    std::uint32_t state;
    std::uint16_t* at;

    // Makes room for a symbol of this frequency. Has no branch, like reading.
    void make_room(std::uint32_t frequency) {
      const std::uint32_t full = state >> (32 - kTotalBits) >= frequency;
      at[-1] = std::uint16_t(state);
      at -= full;
      state >>= 16 * full;
    }
  };

  [[gnu::always_inline]] void put_level(Cursor& to, int level, index context) const {
    if (level < -kLargest || level > kLargest)
      throw std::invalid_argument("levels must be in [-65535, 65535], got " +
                                  std::to_string(level));
    const int magnitude = std::abs(level), bucket = bucket_of(magnitude);
    if (const int extra = plain_bits(bucket)) {
      const int shift = kTotalBits - extra;
      to.make_room(1u << shift);
      const std::uint32_t low = to.state & ((1u << shift) - 1);
      to.state = (to.state >> shift << kTotalBits) + low +
                 (std::uint32_t(magnitude - first_of(bucket)) << shift);
    }
    const int symbol = 2 * bucket - (level > 0);
    const Share& share = shares_[context * kSymbols + symbol];
    if (!share.frequency)
      throw std::invalid_argument("frequencies must be positive for every level, got 0 for " +
                                  std::to_string(level));
    to.make_room(share.frequency);
    const std::uint32_t quotient = share.divide(to.state);
    to.state += quotient * (kTotal - share.frequency) + share.start;
  }

  const TrellisTables& tables_;
  const std::vector<Share>& shares_;
  std::vector<std::uint8_t> contexts_;
  Buffer<std::uint16_t> words_;
};

}  // namespace ff::trellis

#pragma once
#include <utility>

#include "kernels/select/magnitudes.hpp"

namespace ff {
namespace detail {

// Lane i gets lane (i + Shift) mod M of its group of M lanes.
template <int M, int Shift, class K, int... I>
inline simd::Vec<K> rotate_groups(simd::Vec<K> v, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (I / M * M + (I + Shift) % M)...);
#else
  return __builtin_shuffle(v, simd::Vec<K>{(I / M * M + (I + Shift) % M)...});
#endif
}

// Adds 1 to the rank if the entry Shift places further in its group, cyclically, goes before this
// one: it is greater, or it is equal and has the lower index, which means that the shift wrapped
// around.
template <int M, int Shift, class K, int... I>
inline void add_to_rank(simd::Vec<K> key, simd::Vec<K>& rank,
                        std::integer_sequence<int, I...> lanes) {
  constexpr simd::Vec<K> passed = {K(I % M + Shift >= M)...};
  rank -= rotate_groups<M, Shift, K>(key, lanes) + passed > key;
}

template <int M, class K, int... Shift>
inline simd::Vec<K> ranks(simd::Vec<K> key, std::integer_sequence<int, Shift...>) {
  simd::Vec<K> rank{};
  (add_to_rank<M, Shift + 1, K>(key, rank, std::make_integer_sequence<int, simd::kLanes<K>>()),
   ...);
  return rank;
}

}  // namespace detail

// Sets mask[i] to whether i is among the n_kept greatest of its group of M; ties go to the lower
// index. n must be a multiple of M, and the number of lanes too: M − 1 rotations and comparisons
// give all ranks of a vector.
template <int M, class Stored>
void keep_in_groups(const char* p, index n, index n_kept, bool* mask) {
  using K = Key<Stored>;
  constexpr int kLanes = simd::kLanes<K>;
  static_assert(kLanes % M == 0 && sizeof(bool) == 1);
  typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
  const auto kept = simd::splat(K(n_kept));
  index i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto rank =
        detail::ranks<M, K>(keys_at<Stored>(p, i), std::make_integer_sequence<int, M - 1>());
    const Bytes keep = -__builtin_convertvector(rank < kept, Bytes);
    std::memcpy(mask + i, &keep, sizeof keep);
  }
  for (; i < n; ++i) {
    const index first = i / M * M;
    const K own = key_at<Stored>(p, i);
    index rank = 0;
    for (index j = first; j < first + M; ++j) rank += key_at<Stored>(p, j) + K(j < i) > own;
    mask[i] = rank < n_kept;
  }
}

}  // namespace ff

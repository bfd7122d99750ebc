#pragma once
#include <algorithm>
#include <vector>

#include "kernels/omp/atoms.hpp"
#include "kernels/omp/rotations.hpp"

// Hash tables of atoms. A table is a set of random directions, one per bucket. An atom lies in the
// bucket whose direction is nearest to it or to its negative, because a pursuit chooses atoms
// regardless of their sign. (With as many buckets as features this is cross-polytope hashing.)
// Every table holds all atoms once, those of a bucket side by side in panels, so that a look-up
// reads them from front to back.
namespace ff {

// Lays n rows across the lanes, one lane a row, as Rotations needs them; lanes past n and
// components past the depth are zero.
template <class T>
void lay_across(const T* const* rows, index n, index depth, index size, T* z) {
  constexpr int kLanes = simd::kLanes<T>;
  std::fill_n(z, size * kLanes, T(0));
  for (index i = 0; i < n; ++i)
    for (index k = 0; k < depth; ++k) z[k * kLanes + i] = rows[i][k];
}

template <class T>
class HashTables {
 public:
  // The atoms of a bucket: `vectors` vectors wide, in panels of kPanelVectors, of which the last
  // may be narrower. Column c is atom ids[c], in rising order; columns past the last atom are zero
  // and have id 0.
  struct Bucket {
    const T* data;
    const std::int32_t* ids;
    index vectors;
  };

  // rows: the atoms, ld apart.
  HashTables(const T* rows, index ld, index count, index depth, int n_tables, int n_bits,
             std::uint64_t seed, int n_threads, Stop& stop)
      : n_buckets_(index(1) << n_bits),
        depth_(depth),
        rotations_(depth, Rotations<T>::kMixing + n_tables * turns(depth, n_bits), seed),
        tables_(n_tables) {
    std::vector<std::int32_t> bucket_of(n_tables * count);
    parallel_for(ceil_div(count, kLanes), n_threads, stop, [&](index group, int) {
      const index first = group * kLanes, n = std::min<index>(kLanes, count - first);
      Buffer<T> z(rotations_.size() * kLanes);
      const T* members[kLanes];
      for (index i = 0; i < n; ++i) members[i] = rows + (first + i) * ld;
      start(members, n, z.data());
      for (int t = 0; t < n_tables; ++t) {
        simd::Vec<T> most = simd::splat(T(-1));
        simd::Vec<I> at{};
        each_direction(t, z.data(), [&](index bucket, simd::Vec<T> near) {
          const auto more = near > most;
          most = more ? near : most;
          at = more ? simd::splat(I(bucket)) : at;
        });
        for (index i = 0; i < n; ++i) bucket_of[t * count + first + i] = std::int32_t(at[i]);
      }
    });
    parallel_for(n_tables, n_threads, stop, [&](index t, int) {
      file(tables_[t], rows, ld, count, bucket_of.data() + t * count, stop);
    });
  }

  index n_tables() const { return index(tables_.size()); }
  index n_buckets() const { return n_buckets_; }
  index size() const { return rotations_.size(); }

  Bucket bucket(index table, index b) const {
    const Table& from = tables_[table];
    const index first = from.begin[b];
    return {from.data.data() + first * depth_ * kLanes, from.ids.data() + first * kLanes,
            from.begin[b + 1] - first};
  }

  // Writes the state of up to kLanes vectors before the first table.
  void start(const T* const* members, index n, T* z) const {
    lay_across(members, n, depth_, size(), z);
    for (int i = 0; i < Rotations<T>::kMixing; ++i) rotations_.turn(i, z);
  }

  // Calls look(bucket, |⟨vector, direction⟩|) for each bucket of a table. Tables must come in
  // order.
  template <class Look>
  void each_direction(index table, T* z, Look&& look) const {
    const index n_turns = turns(depth_, bits());
    for (index turn = 0; turn < n_turns; ++turn) {
      rotations_.turn(Rotations<T>::kMixing + table * n_turns + turn, z);
      const index first = turn * size(), n = std::min(size(), n_buckets_ - first);
      for (index c = 0; c < n; ++c) look(first + c, simd::abs(simd::load(z + c * kLanes)));
    }
  }

 private:
  using I = simd::Int<T>;
  static constexpr int kLanes = simd::kLanes<T>;
  struct Table {
    std::vector<index> begin;  // in vectors
    Buffer<std::int32_t> ids;
    Buffer<T> data;
  };

  // Returns how many rotations give a table its directions.
  static index turns(index depth, int n_bits) {
    return ceil_div(index(1) << n_bits, Rotations<T>::power_of_two(depth));
  }

  int bits() const { return __builtin_ctzll(std::uint64_t(n_buckets_)); }

  void file(Table& table, const T* rows, index ld, index count, const std::int32_t* bucket_of,
            Stop& stop) const {
    std::vector<index> sizes(n_buckets_, 0), begin(n_buckets_ + 1, 0);
    for (index s = 0; s < count; ++s) ++sizes[bucket_of[s]];
    for (index b = 0; b < n_buckets_; ++b) begin[b + 1] = begin[b] + ceil_div(sizes[b], kLanes);
    const index columns = begin.back() * kLanes;
    table.ids = Buffer<std::int32_t>(columns);
    table.data = Buffer<T>(columns * depth_);
    std::fill_n(table.ids.data(), columns, 0);
    std::fill_n(table.data.data(), columns * depth_, T(0));
    std::fill(sizes.begin(), sizes.end(), 0);
    for (index s = 0; s < count; ++s) {
      if (s % 4096 == 0 && stop.requested()) return;
      const index b = bucket_of[s], column = sizes[b]++;
      table.ids[begin[b] * kLanes + column] = std::int32_t(s);
      const index panel = column / kPanelCols<T> * kPanelVectors;
      const index width = std::min<index>(begin[b + 1] - begin[b] - panel, kPanelVectors) * kLanes;
      T* to = table.data.data() + (begin[b] + panel) * depth_ * kLanes + column % kPanelCols<T>;
      for (index k = 0; k < depth_; ++k) to[k * width] = rows[s * ld + k];
    }
    table.begin = std::move(begin);
  }

  index n_buckets_, depth_;
  Rotations<T> rotations_;
  std::vector<Table> tables_;
};

}  // namespace ff

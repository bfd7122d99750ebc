#pragma once
#include <cmath>

#include "core/buffer.hpp"
#include "core/random.hpp"
#include "core/simd.hpp"

// Pseudo-random rotations of R^n, n a power of two: a change of signs followed by a Hadamard
// transform. Two of them mix any vector well enough for hashing (Andoni, Indyk, Laarhoven,
// Razenshteyn, Schmidt, Practical and optimal LSH for angular distance, 2015, use three for each
// hash). Each further rotation starts from the result of the last one, so that a direction costs
// log n additions instead of n products.
//
// As many vectors as there are lanes are rotated at once, component by component: lane i of vector
// k is component k of vector i. Each number is multiplied once and then only added, so all
// instruction sets round alike.
namespace ff {

template <class T>
class Rotations {
 public:
  static constexpr int kMixing = 2;

  Rotations(index depth, index count, std::uint64_t seed)
      : size_(power_of_two(depth)), signs_(count * size_) {
    const T scale = T(1 / std::sqrt(double(size_)));
    for (index i = 0; i < count; ++i) {
      Random random(seed, std::uint64_t(i));
      std::uint64_t bits = 0;
      for (index k = 0; k < size_; ++k, bits >>= 1) {
        if (k % 64 == 0) bits = random.bits();
        signs_[i * size_ + k] = bits & 1 ? -scale : scale;
      }
    }
  }

  index size() const { return size_; }

  static index power_of_two(index depth) {
    index size = 1;
    while (size < depth) size *= 2;
    return size;
  }

  // Replaces the size() vectors at z by their images under rotation i.
  void turn(index i, T* z) const {
    const T* signs = signs_.data() + i * size_;
    if (size_ == 1) return pass<1, true>(z, 1, signs);
    if (size_ == 2) return pass<2, true>(z, 1, signs);
    index width = size_ == 4 ? 4 : 8;
    width == 4 ? pass<4, true>(z, 1, signs) : pass<8, true>(z, 1, signs);
    for (; size_ / width >= 8; width *= 8) pass<8, false>(z, width, nullptr);
    if (size_ / width == 4) pass<4, false>(z, width, nullptr);
    if (size_ / width == 2) pass<2, false>(z, width, nullptr);
  }

 private:
  static constexpr int kLanes = simd::kLanes<T>;

  // Transforms groups of N components that lie `apart`, in registers.
  template <int N, bool Signs>
  void pass(T* z, index apart, const T* signs) const {
    for (index block = 0; block < size_; block += N * apart) {
      for (index k = block; k < block + apart; ++k) {
        simd::Vec<T> v[N];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
          v[i] = simd::load(z + (k + i * apart) * kLanes);
          if constexpr (Signs) v[i] *= simd::splat(signs[k + i * apart]);
        }
#pragma GCC unroll 3
        for (int half = 1; half < N; half *= 2) {
#pragma GCC unroll 8
          for (int i = 0; i < N; ++i) {
            if (i & half) continue;
            const simd::Vec<T> a = v[i], b = v[i + half];
            v[i] = a + b;
            v[i + half] = a - b;
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) simd::store(z + (k + i * apart) * kLanes, v[i]);
      }
    }
  }

  index size_;
  Buffer<T> signs_;  // ± size^-½
};

}  // namespace ff

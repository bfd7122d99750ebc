#pragma once
#include "kernels/kmeans/samples.hpp"

namespace ff {

// Sets nearest[i] = min(nearest[i], ‖x_i − c‖²) over a block of centroids, for rows of the samples.
// It works in tiles like Nearest but squares the differences themselves, so that a row on a
// centroid has a distance of exactly zero.
template <class T>
class TileShrink {
 public:
  TileShrink(const Samples<T>& samples, const std::vector<T>& centroids)
      : samples_(samples), d_(samples.x.cols), panels_(index(centroids.size()) / d_, d_) {
    for (index j = 0; j < panels_.count(); ++j) panels_.set(j, centroids.data() + j * d_);
    // Padding columns of the last panel repeat the first centroid.
    for (index j = panels_.count(); j < panels_.padded(); ++j) panels_.set(j, centroids.data());
  }

  void shrink(index first, index n, T* nearest) const {
    Buffer<T> rows(kTileRows * d_), interleaved(kTileRows * d_);
    for (index t = 0; t < n; t += kTileRows) {
      for (index r = 0; r < kTileRows; ++r)
        samples_.frame.load(samples_.x, first + std::min(t + r, n - 1), rows.data() + r * d_);
      interleave<kTileRows>(rows.data(), d_, d_, interleaved.data());
      T least[kTileRows];
      least_distances(interleaved.data(), least);
      for (index r = 0; r < std::min<index>(kTileRows, n - t); ++r)
        nearest[t + r] = std::min(nearest[t + r], least[r]);
    }
  }

 private:
  void least_distances(const T* x, T* least) const {
    simd::Vec<T> running[kTileRows];
    for (auto& v : running) v = simd::splat(std::numeric_limits<T>::infinity());
    for (index p = 0; p < panels_.n_panels(); ++p) {
      const T* c = panels_.panel(p);
      simd::Vec<T> acc[kTileRows][kPanelVectors] = {};
      for (index k = 0; k < d_; ++k, c += kPanelCols<T>) {
        const simd::Vec<T> c0 = simd::load(c), c1 = simd::load(c + simd::kLanes<T>);
#pragma GCC unroll 12
        for (int r = 0; r < kTileRows; ++r) {
          const simd::Vec<T> xr = simd::splat(x[k * kTileRows + r]);
          const simd::Vec<T> off0 = xr - c0, off1 = xr - c1;
          acc[r][0] = simd::mul_add(off0, off0, acc[r][0]);
          acc[r][1] = simd::mul_add(off1, off1, acc[r][1]);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r)
        running[r] = simd::min(running[r], simd::min(acc[r][0], acc[r][1]));
    }
    for (int r = 0; r < kTileRows; ++r) least[r] = simd::reduce_min<T>(running[r]);
  }

  const Samples<T>& samples_;
  const index d_;
  Panels<T> panels_;
};

}  // namespace ff

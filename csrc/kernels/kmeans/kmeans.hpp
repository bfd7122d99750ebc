#pragma once
#include <cstdint>

#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/kmeans/init.hpp"

namespace ff {

struct KMeansOptions {
  index n_clusters;
  Init init;
  index n_init;
  index max_iter;
  // Stop at a squared shift of all centroids of tol times the mean variance of the columns.
  double tol;
  bool balanced;
  std::uint64_t seed;
  int n_threads;
};

// Every array has a leading axis of x.count groups.
template <class T>
struct KMeansResult {
  Buffer<T> centroids;
  Buffer<std::int32_t> labels;
  Buffer<double> inertia;
  Buffer<std::int64_t> n_iter;
};

// weights: null, or x.first.rows weights, used for every group. initial: null, or one set of
// centroids per group (a stride of zero gives all groups the same set).
template <class T>
KMeansResult<T> kmeans(const StackView& x, const double* weights, const StackView* initial,
                       const KMeansOptions& options, Stop& stop);

// Finds the nearest centroid of each row and the squared distance to it.
template <class T>
void assign(const StackView& x, const StackView& centroids, std::int32_t* labels, T* distances,
            int n_threads, Stop& stop);

}  // namespace ff

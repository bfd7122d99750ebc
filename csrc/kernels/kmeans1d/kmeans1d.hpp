#pragma once
#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// Where a centroid may lie. int8: at an integer in [−127, 127] times max |x| / 127 of its group.
enum class CentroidGrid { any, f16, bf16, int8 };

enum class Init1D { linear, density, given };

struct KMeans1DOptions {
  index n_clusters;
  bool exact;  // find the least possible inertia; otherwise run Lloyd's iterations from init
  Init1D init;
  const double* given;  // init == given: groups × (n_clusters − n_fixed)
  const double* fixed;  // groups × n_fixed centroids that do not move
  index n_fixed;
  CentroidGrid grid;
  bool one_vector;  // an error message names a position [i] instead of [group, i]
  int n_threads;
};

// Every array has one row per group of x.
template <class T>
struct KMeans1DResult {
  Buffer<T> centroids;  // ascending, including the fixed ones
  Buffer<std::int32_t> labels;
  Buffer<double> inertia;
  Buffer<std::int64_t> n_iter;  // penalised problems solved on all values, or Lloyd's iterations
};

// weights: null, or an array of the shape of x.
template <class T>
KMeans1DResult<T> kmeans1d(const MatrixView& x, const MatrixView* weights,
                           const KMeans1DOptions& options, Stop& stop);

}  // namespace ff

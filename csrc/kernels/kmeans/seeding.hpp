#pragma once
#include "kernels/kmeans/init.hpp"
#include "kernels/kmeans/samples.hpp"

namespace ff {

// Writes initial centroids (n_clusters, d) in the coordinates of x. The seed alone determines the
// draws. linear and density need d = 1.
template <class T>
void seed_centroids(const Samples<T>& samples, Init init, index n_clusters, std::uint64_t seed,
                    int n_threads, Stop& stop, T* centroids);

}  // namespace ff

#pragma once
#include "bindings/convert.hpp"
#include "kernels/omp/omp.hpp"

namespace ff::bindings {

// Hands data, indices and indptr to NumPy, without copies, and the number of rows that ended early.
template <class T>
py::tuple to_numpy(SparseRows<T>&& codes) {
  const index n = codes.data.size(), n_pointers = codes.indptr.size();
  return py::make_tuple(to_numpy(std::move(codes.data), {n}),
                        to_numpy(std::move(codes.indices), {n}),
                        to_numpy(std::move(codes.indptr), {n_pointers}), codes.n_early);
}

}  // namespace ff::bindings

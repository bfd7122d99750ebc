#pragma once
#include "bindings/convert.hpp"
#include "kernels/csr/csr.hpp"

namespace ff::bindings {

inline bool is_wide(const py::array& a, const char* name) {
  const py::dtype d = a.dtype();
  if (d.kind() != 'i' || (d.itemsize() != 4 && d.itemsize() != 8))
    throw py::type_error(std::string(name) + " must be int32 or int64");
  return d.itemsize() == 8;
}

// Contiguous arrays as a matrix. Checks that their lengths match, but not what they contain.
inline CsrView csr_view(const py::array& data, const py::array& indices, const py::array& indptr,
                        index rows, index cols) {
  for (const auto* a : {&data, &indices, &indptr})
    if (a->ndim() != 1 || (a->shape(0) > 1 && a->strides(0) != a->itemsize()))
      throw py::value_error("data, indices and indptr must be contiguous and of one dimension");
  if (rows < 0 || cols < 0 || indptr.shape(0) != rows + 1 || data.shape(0) != indices.shape(0))
    throw py::value_error("shapes of data, indices and indptr do not match");
  CsrView view;
  view.data = data.data();
  view.dtype = dtype_of(data);
  view.indices = indices.data();
  view.wide_indices = is_wide(indices, "indices");
  view.indptr = indptr.data();
  view.wide_indptr = is_wide(indptr, "indptr");
  view.rows = rows;
  view.cols = cols;
  view.nonzeros = data.shape(0);
  if (view.dtype != DType::f32 && view.dtype != DType::f64)
    throw py::type_error("data must be float32 or float64");
  return view;
}

}  // namespace ff::bindings

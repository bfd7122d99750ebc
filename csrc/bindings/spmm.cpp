#include "kernels/spmm/spmm.hpp"

#include "bindings/convert.hpp"
#include "bindings/csr.hpp"

namespace ff::bindings {
namespace {

DenseOut out_view(py::array& out, const CsrView& a, const MatrixView& b) {
  const bool as_double = a.dtype == DType::f64 || b.dtype == DType::f64;
  if (out.ndim() != 2 || out.shape(0) != a.rows || out.shape(1) != b.cols ||
      dtype_of(out) != (as_double ? DType::f64 : DType::f32))
    throw py::value_error("out has the wrong shape or dtype");
  const py::ssize_t size = out.itemsize();
  if (out.flags() & py::array::c_style) return {out.mutable_data(), out.shape(1), false};
  if (out.flags() & py::array::f_style) return {out.mutable_data(), out.shape(0), true};
  throw py::value_error("out must be contiguous, got strides of " +
                        std::to_string(out.strides(0) / size) + " and " +
                        std::to_string(out.strides(1) / size) + " elements");
}

void spmm(const py::array& data, const py::array& indices, const py::array& indptr, index rows,
          index cols, const py::array& dense, py::array out, bool trusted, int n_threads) {
  const CsrView a = csr_view(data, indices, indptr, rows, cols);
  const MatrixView b = matrix_view(dense);
  if (b.rows != a.cols) throw py::value_error("shapes of A and B do not match");
  const DenseOut to = out_view(out, a, b);
  without_gil([&](Stop& stop) {
    if (!trusted) check_csr(a, "A.", n_threads, stop);
    ff::spmm(a, b, to, n_threads, stop);
  });
}

}  // namespace

void bind_spmm(py::module_& m) {
  m.def("spmm", &spmm, py::arg("data"), py::arg("indices"), py::arg("indptr"), py::arg("rows"),
        py::arg("cols"), py::arg("dense"), py::arg("out"), py::arg("trusted"),
        py::arg("n_threads"));
}

}  // namespace ff::bindings

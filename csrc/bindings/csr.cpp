#include "bindings/csr.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

void check_csr(const py::array& data, const py::array& indices, const py::array& indptr, index rows,
               index cols, const std::string& name, int n_threads) {
  const CsrView a = csr_view(data, indices, indptr, rows, cols);
  without_gil([&](Stop& stop) { ff::check_csr(a, name, n_threads, stop); });
}

}  // namespace

void bind_csr(py::module_& m) {
  m.def("check_csr", &check_csr, py::arg("data"), py::arg("indices"), py::arg("indptr"),
        py::arg("rows"), py::arg("cols"), py::arg("name"), py::arg("n_threads"));
}

}  // namespace ff::bindings

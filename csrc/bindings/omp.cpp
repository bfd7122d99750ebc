#include "kernels/omp/omp.hpp"

#include "bindings/sparse_rows.hpp"

namespace ff::bindings {
namespace {

template <class T>
py::tuple omp_as(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                 const OmpOptions& options) {
  return to_numpy(
      without_gil([&](Stop& stop) { return ff::omp<T>(x, dictionary, gram, options, stop); }));
}

py::tuple omp(const py::array& x, const py::array& dictionary, const py::object& gram,
              index max_nonzeros, double tol, bool orthogonal_select, bool as_double,
              int n_threads) {
  const MatrixView samples = matrix_view(x), atoms = matrix_view(dictionary);
  MatrixView products;
  if (!gram.is_none()) products = matrix_view(py::cast<py::array>(gram));
  if (samples.cols != atoms.cols || atoms.rows < 1 || max_nonzeros < 0 ||
      (!gram.is_none() && (products.rows != atoms.rows || products.cols != atoms.rows)))
    throw py::value_error("shapes of X, dictionary and gram do not match");
  const OmpOptions options{max_nonzeros, tol, orthogonal_select, n_threads};
  const auto call = as_double ? omp_as<double> : omp_as<float>;
  return call(samples, atoms, gram.is_none() ? nullptr : &products, options);
}

}  // namespace

void bind_omp(py::module_& m) {
  m.def("omp", &omp, py::arg("x"), py::arg("dictionary"), py::arg("gram"), py::arg("max_nonzeros"),
        py::arg("tol"), py::arg("orthogonal_select"), py::arg("as_double"), py::arg("n_threads"));
}

}  // namespace ff::bindings

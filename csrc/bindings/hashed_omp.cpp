#include "kernels/omp/hashed_omp.hpp"

#include "bindings/sparse_rows.hpp"

namespace ff::bindings {
namespace {

template <class T>
py::tuple hashed_omp_as(const MatrixView& x, const MatrixView& dictionary,
                        const HashedOmpOptions& options) {
  return to_numpy(
      without_gil([&](Stop& stop) { return ff::hashed_omp<T>(x, dictionary, options, stop); }));
}

py::tuple hashed_omp(const py::array& x, const py::array& dictionary, index max_nonzeros,
                     double tol, int n_tables, int n_bits, double threshold, std::uint64_t seed,
                     bool as_double, int n_threads) {
  const MatrixView samples = matrix_view(x), atoms = matrix_view(dictionary);
  if (samples.cols != atoms.cols || atoms.rows < 1 || max_nonzeros < 0)
    throw py::value_error("shapes of X and dictionary do not match");
  if (n_tables < 1 || n_bits < 0 || n_bits > 24)
    throw py::value_error("n_tables or n_bits is out of range");
  const HashedOmpOptions options{max_nonzeros, tol, n_tables, n_bits, threshold, seed, n_threads};
  const auto call = as_double ? hashed_omp_as<double> : hashed_omp_as<float>;
  return call(samples, atoms, options);
}

}  // namespace

void bind_hashed_omp(py::module_& m) {
  m.def("hashed_omp", &hashed_omp, py::arg("x"), py::arg("dictionary"), py::arg("max_nonzeros"),
        py::arg("tol"), py::arg("n_tables"), py::arg("n_bits"), py::arg("threshold"),
        py::arg("seed"), py::arg("as_double"), py::arg("n_threads"));
}

}  // namespace ff::bindings

#include "kernels/omp/exchange.hpp"

#include <limits>

#include "bindings/csr.hpp"

namespace ff::bindings {
namespace {

template <class T>
py::tuple exchange_as(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                      const CsrView& codes, index max_exchanges, int n_threads) {
  Buffer<T> data(codes.nonzeros);
  Buffer<std::int32_t> indices(codes.nonzeros);
  const index n_unchanged = without_gil([&](Stop& stop) {
    check_csr(codes, "codes.", n_threads, stop);
    return ff::exchange_atoms<T>(x, dictionary, gram, codes, max_exchanges, data.data(),
                                 indices.data(), n_threads, stop);
  });
  return py::make_tuple(to_numpy(std::move(data), {codes.nonzeros}),
                        to_numpy(std::move(indices), {codes.nonzeros}), n_unchanged);
}

py::tuple exchange_atoms(const py::array& x, const py::array& dictionary, const py::object& gram,
                         const py::array& data, const py::array& indices, const py::array& indptr,
                         index max_exchanges, bool as_double, int n_threads) {
  const MatrixView samples = matrix_view(x), atoms = matrix_view(dictionary);
  MatrixView products;
  if (!gram.is_none()) products = matrix_view(py::cast<py::array>(gram));
  if (samples.cols != atoms.cols || atoms.rows < 1 ||
      atoms.rows > std::numeric_limits<std::int32_t>::max() ||
      (!gram.is_none() && (products.rows != atoms.rows || products.cols != atoms.rows)))
    throw py::value_error("shapes of X, dictionary and gram do not match");
  const CsrView codes = csr_view(data, indices, indptr, samples.rows, atoms.rows);
  const auto call = as_double ? exchange_as<double> : exchange_as<float>;
  return call(samples, atoms, gram.is_none() ? nullptr : &products, codes, max_exchanges,
              n_threads);
}

}  // namespace

void bind_exchange(py::module_& m) {
  m.def("exchange_atoms", &exchange_atoms, py::arg("x"), py::arg("dictionary"), py::arg("gram"),
        py::arg("data"), py::arg("indices"), py::arg("indptr"), py::arg("max_exchanges"),
        py::arg("as_double"), py::arg("n_threads"));
}

}  // namespace ff::bindings

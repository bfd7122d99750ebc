#include "kernels/kmeans1d/kmeans1d.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;

CentroidGrid grid_of(const std::string& name) {
  if (name == "any") return CentroidGrid::any;
  if (name == "float16") return CentroidGrid::f16;
  if (name == "bfloat16") return CentroidGrid::bf16;
  if (name == "int8") return CentroidGrid::int8;
  throw py::value_error("unknown centroid_dtype " + name);
}

// One float64 row for each group, or null for None. keep owns what the pointer refers to.
const double* rows_of(const py::object& given, index groups, index cols, Doubles& keep) {
  if (given.is_none()) return nullptr;
  keep = py::cast<Doubles>(given);
  if (keep.ndim() != 2 || keep.shape(0) != groups || keep.shape(1) != cols)
    throw py::value_error("expected one row for each group");
  return keep.data();
}

template <class T>
py::tuple kmeans1d_as(const MatrixView& x, const MatrixView* weights,
                      const KMeans1DOptions& options) {
  auto result = without_gil([&](Stop& stop) { return ff::kmeans1d<T>(x, weights, options, stop); });
  return py::make_tuple(to_numpy(std::move(result.centroids), {x.rows, options.n_clusters, 1}),
                        to_numpy(std::move(result.labels), {x.rows, x.cols}),
                        to_numpy(std::move(result.inertia), {x.rows}),
                        to_numpy(std::move(result.n_iter), {x.rows}));
}

py::tuple kmeans1d(const py::array& x, index n_clusters, bool exact, const py::object& init,
                   const py::object& sample_weight, const py::object& fixed,
                   const std::string& centroid_dtype, bool one_vector, bool as_double,
                   int n_threads) {
  const MatrixView values = matrix_view(x);
  Doubles given, stay;
  KMeans1DOptions options{n_clusters, exact, Init1D::linear,          nullptr,
                          nullptr,    0,     grid_of(centroid_dtype), one_vector,
                          n_threads};
  if (!fixed.is_none()) {
    options.n_fixed = py::cast<py::array>(fixed).shape(1);
    options.fixed = rows_of(fixed, values.rows, options.n_fixed, stay);
  }
  if (n_clusters < 1 || values.cols < 1 || options.n_fixed > n_clusters)
    throw py::value_error("x must have values, n_clusters must be positive and at least n_fixed");
  if (!py::isinstance<py::str>(init)) {
    options.init = Init1D::given;
    options.given = rows_of(init, values.rows, n_clusters - options.n_fixed, given);
  } else if (init.cast<std::string>() == "density") {
    options.init = Init1D::density;
  }
  MatrixView weights;
  if (!sample_weight.is_none()) {
    weights = matrix_view(py::cast<py::array>(sample_weight));
    if (weights.rows != values.rows || weights.cols != values.cols)
      throw py::value_error("sample_weight must have the shape of x");
  }
  const auto call = as_double ? kmeans1d_as<double> : kmeans1d_as<float>;
  return call(values, sample_weight.is_none() ? nullptr : &weights, options);
}

}  // namespace

void bind_kmeans1d(py::module_& m) {
  m.def("kmeans1d", &kmeans1d, py::arg("x"), py::arg("n_clusters"), py::arg("exact"),
        py::arg("init"), py::arg("sample_weight"), py::arg("fixed"), py::arg("centroid_dtype"),
        py::arg("one_vector"), py::arg("as_double"), py::arg("n_threads"));
}

}  // namespace ff::bindings

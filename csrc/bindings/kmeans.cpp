#include "kernels/kmeans/kmeans.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

Init init_of(const std::string& name) {
  if (name == "k-means++") return Init::plus_plus;
  if (name == "random") return Init::random;
  if (name == "linear") return Init::linear;
  if (name == "density") return Init::density;
  throw py::value_error("unknown init " + name);
}

// Centroids of shape (K, d) for all groups, or (groups, K, d).
StackView centroid_view(const py::array& a, const StackView& x) {
  StackView view = stack_view(a);
  if (view.first.cols != x.first.cols || (a.ndim() == 3 && view.count != x.count))
    throw py::value_error("shapes of X and centroids do not match");
  return view;
}

template <class T>
py::tuple kmeans_as(const StackView& x, const double* weights, const StackView* initial,
                    const KMeansOptions& options) {
  auto result =
      without_gil([&](Stop& stop) { return ff::kmeans<T>(x, weights, initial, options, stop); });
  const index g = x.count, n = x.first.rows, d = x.first.cols, k = options.n_clusters;
  return py::make_tuple(
      to_numpy(std::move(result.centroids), {g, k, d}), to_numpy(std::move(result.labels), {g, n}),
      to_numpy(std::move(result.inertia), {g}), to_numpy(std::move(result.n_iter), {g}));
}

py::tuple kmeans(const py::array& x, index n_clusters, const py::object& init,
                 const py::object& sample_weight, index n_init, index max_iter, double tol,
                 bool balanced, std::uint64_t seed, bool as_double, int n_threads) {
  const StackView samples = stack_view(x);
  KMeansOptions options{n_clusters, Init::random, n_init, max_iter, tol, balanced, seed, n_threads};
  StackView given;
  const bool named = py::isinstance<py::str>(init);
  if (named) {
    options.init = init_of(init.cast<std::string>());
  } else {
    given = centroid_view(py::cast<py::array>(init), samples);
    if (given.first.rows != n_clusters) throw py::value_error("init must have n_clusters rows");
  }
  py::array_t<double, py::array::c_style> weights;
  if (!sample_weight.is_none()) {
    weights = py::cast<py::array_t<double, py::array::c_style>>(sample_weight);
    if (weights.size() != samples.count * samples.first.rows)
      throw py::value_error("sample_weight must have one weight for each row");
  }
  if (n_clusters < 1 || samples.first.rows < 1 || samples.first.cols < 1 || n_init < 1)
    throw py::value_error("X must have rows and columns, n_clusters and n_init must be positive");
  const auto call = as_double ? kmeans_as<double> : kmeans_as<float>;
  return call(samples, sample_weight.is_none() ? nullptr : weights.data(), named ? nullptr : &given,
              options);
}

template <class T>
py::tuple assign_as(const StackView& x, const StackView& centroids, int n_threads) {
  Buffer<std::int32_t> labels(x.count * x.first.rows);
  Buffer<T> distances(x.count * x.first.rows);
  without_gil([&](Stop& stop) {
    ff::assign<T>(x, centroids, labels.data(), distances.data(), n_threads, stop);
  });
  return py::make_tuple(to_numpy(std::move(labels), {x.count, x.first.rows}),
                        to_numpy(std::move(distances), {x.count, x.first.rows}));
}

py::tuple assign(const py::array& x, const py::array& centroids, bool as_double, int n_threads) {
  const StackView samples = stack_view(x), given = centroid_view(centroids, samples);
  if (given.first.rows < 1) throw py::value_error("centroids must have at least one row");
  const auto call = as_double ? assign_as<double> : assign_as<float>;
  return call(samples, given, n_threads);
}

}  // namespace

void bind_kmeans(py::module_& m) {
  m.def("kmeans", &kmeans, py::arg("x"), py::arg("n_clusters"), py::arg("init"),
        py::arg("sample_weight"), py::arg("n_init"), py::arg("max_iter"), py::arg("tol"),
        py::arg("balanced"), py::arg("seed"), py::arg("as_double"), py::arg("n_threads"));
  m.def("assign", &assign, py::arg("x"), py::arg("centroids"), py::arg("as_double"),
        py::arg("n_threads"));
}

}  // namespace ff::bindings

#include "kernels/balance/balance.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;

py::tuple balanced_assign(const py::array& x, const py::array& centroids,
                          const std::optional<Doubles>& weights,
                          const std::optional<Doubles>& prices, int n_threads) {
  const MatrixView points = matrix_view(x), centres = matrix_view(centroids);
  if (points.cols != centres.cols || centres.rows < 1 ||
      (weights && weights->size() != points.rows))
    throw py::value_error("shapes of X, centroids and sample_weight do not match");
  if (std::max(points.rows, centres.rows) > std::numeric_limits<std::int32_t>::max())
    throw py::value_error("X and centroids must have fewer than 2**31 rows");
  BalanceState state;
  if (prices) state.prices.assign(prices->data(), prices->data() + prices->size());
  Buffer<std::int32_t> labels(points.rows);
  const double* w = weights ? weights->data() : nullptr;
  const BalanceOptions options{n_threads, true};
  const BalanceResult result = without_gil([&](Stop& stop) {
    return ff::balanced_assign(points, centres, w, state, options, labels.data(), stop);
  });
  Buffer<double> paid(centres.rows);
  std::copy(state.prices.begin(), state.prices.end(), paid.data());
  return py::make_tuple(to_numpy(std::move(labels), {points.rows}), result.cost,
                        to_numpy(std::move(paid), {centres.rows}), result.gap);
}

}  // namespace

void bind_balance(py::module_& m) {
  m.def("balanced_assign", &balanced_assign, py::arg("x"), py::arg("centroids"), py::arg("weights"),
        py::arg("prices"), py::arg("n_threads"));
}

}  // namespace ff::bindings

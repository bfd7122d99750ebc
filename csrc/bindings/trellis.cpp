#include "kernels/trellis/trellis.hpp"

#include <optional>

#include "bindings/trellis.hpp"

namespace ff::bindings {
namespace {

// Returns the levels (None unless wanted), the counts of buckets, and sums for centres and errors.
py::tuple trellis_quantize(const py::array& values, float step, const py::array& weights,
                           const Ints& columns, const RowLogs& row_logs, int shift, int classes,
                           const Floats& bits, const Floats& centers, float rate_weight,
                           bool with_levels, int n_threads) {
  const MatrixView matrix = matrix_view(values), each = matrix_view(weights);
  const TrellisCosts costs{classes_of(columns, shift, classes), bits.data(), centers.data(),
                           rate_weight};
  const index contexts = 2 * classes;
  if (matrix.cols != columns.size() || matrix.rows != row_logs.size() || each.rows != matrix.rows ||
      each.cols != matrix.cols || bits.size() != contexts * trellis::kBuckets ||
      centers.size() != contexts * trellis::kCenters || !(step > 0))
    throw py::value_error("shapes do not match, or step is not positive");
  Buffer<std::int32_t> levels(with_levels ? matrix.rows * matrix.cols : 0);
  Buffer<std::int64_t> counts(contexts * trellis::kBuckets);
  Buffer<double> sums(contexts * kTrellisPlaces * kTrellisSums);
  without_gil([&](Stop& stop) {
    ff::trellis_quantize(matrix, step, each, row_logs.data(), costs,
                         with_levels ? levels.data() : nullptr, counts.data(), sums.data(),
                         n_threads, stop);
  });
  py::object found = py::none();
  if (with_levels) found = to_numpy(std::move(levels), {matrix.rows, matrix.cols});
  return py::make_tuple(found, to_numpy(std::move(counts), {contexts, index(trellis::kBuckets)}),
                        to_numpy(std::move(sums), {contexts, kTrellisPlaces, kTrellisSums}));
}

}  // namespace

void bind_trellis(py::module_& m) {
  m.def("trellis_quantize", &trellis_quantize, py::arg("values"), py::arg("step"),
        py::arg("weights"), py::arg("columns"), py::arg("row_logs"), py::arg("shift"),
        py::arg("classes"), py::arg("bits"), py::arg("centers"), py::arg("rate_weight"),
        py::arg("with_levels"), py::arg("n_threads"));
}

}  // namespace ff::bindings

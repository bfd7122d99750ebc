#include "kernels/codebook/codebook.hpp"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

PackedView packed_view(const Bytes& data, int n_bits, index books, index rows, index cols) {
  const PackedView packed{data.data(), {n_bits, books, rows, cols}};
  if (n_bits < 1 || n_bits > 8 || books < 1 || !packed.shape.takes(data.size()))
    throw py::value_error("data has the wrong size for its codes");
  return packed;
}

// A codebook of shape (books, rows, groups, entries, dim); rows or groups is 1 if all share one.
CodebookView codebook_view(const py::array& codebook, index group_size, const PackedView& packed) {
  if (codebook.ndim() != 5 || !(codebook.flags() & py::array::c_style))
    throw py::value_error("codebook must be contiguous and have five dimensions");
  CodebookView view{static_cast<const char*>(codebook.data()),
                    dtype_of(codebook),
                    codebook.shape(0),
                    codebook.shape(1),
                    codebook.shape(2),
                    codebook.shape(3),
                    codebook.shape(4),
                    group_size};
  const auto& shape = packed.shape;
  if (view.dtype == DType::f64 || view.dim < 1 || view.books != shape.books ||
      view.entries != index(1) << shape.n_bits || (view.rows != 1 && view.rows != shape.rows) ||
      group_size < 1 || group_size % view.dim ||
      view.groups != std::max<index>(ceil_div(shape.cols * view.dim, group_size), 1))
    throw py::value_error("codebook has the wrong shape for the codes");
  return view;
}

void codebook_matmul(const py::array& x, const Bytes& data, int n_bits, index rows, index cols,
                     const py::array& codebook, index group_size, py::array out, int n_threads) {
  const PackedView packed = packed_view(data, n_bits, codebook.shape(0), rows, cols);
  const CodebookView view = codebook_view(codebook, group_size, packed);
  const MatrixView inputs = matrix_view(x);
  if (inputs.cols != cols * view.dim || out.ndim() != 2 || out.shape(0) != inputs.rows ||
      out.shape(1) != rows || dtype_of(out) != DType::f32 || !(out.flags() & py::array::c_style))
    throw py::value_error("x or out has the wrong shape for the codes");
  float* to = static_cast<float*>(out.mutable_data());
  without_gil([&](Stop& stop) { ff::codebook_matmul(inputs, packed, view, to, n_threads, stop); });
}

py::array_t<float> codebook_rows(
    const Bytes& data, int n_bits, index rows, index cols, const py::array& codebook,
    index group_size, const std::optional<py::array_t<std::int64_t, py::array::c_style>>& ids,
    int n_threads) {
  const PackedView packed = packed_view(data, n_bits, codebook.shape(0), rows, cols);
  const CodebookView view = codebook_view(codebook, group_size, packed);
  const index n = ids ? index(ids->size()) : rows;
  for (index i = 0; ids && i < n; ++i)
    if (ids->data()[i] < 0 || ids->data()[i] >= rows)
      throw py::index_error("ids must be in [0, " + std::to_string(rows) + "), got " +
                            std::to_string(ids->data()[i]) + " at " + std::to_string(i));
  Buffer<float> out(n * cols * view.dim);
  without_gil([&](Stop& stop) {
    ff::codebook_rows(packed, view, ids ? ids->data() : nullptr, n, out.data(), n_threads, stop);
  });
  return to_numpy(std::move(out), {n, cols * view.dim});
}

}  // namespace

void bind_codebook(py::module_& m) {
  m.def("codebook_matmul", &codebook_matmul, py::arg("x"), py::arg("data"), py::arg("n_bits"),
        py::arg("rows"), py::arg("cols"), py::arg("codebook"), py::arg("group_size"),
        py::arg("out"), py::arg("n_threads"));
  m.def("codebook_rows", &codebook_rows, py::arg("data"), py::arg("n_bits"), py::arg("rows"),
        py::arg("cols"), py::arg("codebook"), py::arg("group_size"), py::arg("ids"),
        py::arg("n_threads"));
}

}  // namespace ff::bindings

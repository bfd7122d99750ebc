#include "kernels/sparse_codebook/sparse_codebook.hpp"

#include <limits>
#include <memory>
#include <string>

#include "bindings/convert.hpp"
#include "kernels/gaps/gaps.hpp"

namespace ff::bindings {
namespace {

constexpr char kLayoutName[] = "fastfactor.SparseLayout";

// Returns a layout in a capsule, which Python can hold but not look into, and its size in bytes.
py::tuple sparse_layout(const py::array_t<std::int64_t, py::array::c_style>& positions,
                        const py::array_t<std::uint8_t, py::array::c_style>& codes, index rows,
                        index cols, bool wide, int n_threads) {
  const index n = positions.size();
  if (codes.size() != n)
    throw py::value_error("codes must be as many as positions, " + std::to_string(n) + ", got " +
                          std::to_string(codes.size()));
  if (rows < 0 || cols < 0 || (cols > 0 && rows > std::numeric_limits<index>::max() / 2 / cols))
    throw py::value_error("shape must not be negative or too large");
  auto layout = std::make_unique<SparseLayout>(without_gil([&](Stop& stop) {
    check_positions(positions.data(), n, rows * cols, n_threads, stop);
    return make_sparse_layout(positions.data(), codes.data(), n, rows, cols, wide, n_threads, stop);
  }));
  const index nbytes = layout->nbytes();
  py::capsule held(layout.get(), kLayoutName, [](PyObject* capsule) {
    delete static_cast<SparseLayout*>(PyCapsule_GetPointer(capsule, kLayoutName));
  });
  layout.release();
  return py::make_tuple(held, nbytes);
}

void sparse_codebook_matmul(const py::array& x, const py::capsule& layout,
                            const py::array_t<float, py::array::c_style>& codebook, py::array out,
                            int n_threads) {
  const auto* held =
      static_cast<const SparseLayout*>(PyCapsule_GetPointer(layout.ptr(), kLayoutName));
  if (!held) throw py::error_already_set();
  const MatrixView inputs = matrix_view(x);
  if (codebook.size() != (held->wide ? 256 : 16))
    throw py::value_error("codebook must have 256 entries for wide codes, else 16");
  if (inputs.cols != held->cols || out.ndim() != 2 || out.shape(0) != inputs.rows ||
      out.shape(1) != held->rows || dtype_of(out) != DType::f32 ||
      !(out.flags() & py::array::c_style))
    throw py::value_error("x or out has the wrong shape for the layout");
  float* to = static_cast<float*>(out.mutable_data());
  without_gil([&](Stop& stop) {
    ff::sparse_codebook_matmul(inputs, *held, codebook.data(), to, n_threads, stop);
  });
}

}  // namespace

void bind_sparse_codebook(py::module_& m) {
  m.def("sparse_layout", &sparse_layout, py::arg("positions"), py::arg("codes"), py::arg("rows"),
        py::arg("cols"), py::arg("wide"), py::arg("n_threads"));
  m.def("sparse_codebook_matmul", &sparse_codebook_matmul, py::arg("x"), py::arg("layout"),
        py::arg("codebook"), py::arg("out"), py::arg("n_threads"));
}

}  // namespace ff::bindings

#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/view.hpp"

// Helpers for the four steps of every binding: view, allocate, release the GIL, call. The Python
// layer has checked the arguments; bindings check again what memory safety depends on.
namespace ff::bindings {

namespace py = pybind11;

// The name of a dtype. It goes through a handle, because pybind11 2 finds py::str(py::dtype)
// ambiguous.
inline std::string name_of(const py::dtype& d) {
  return py::str(py::handle(d));
}

inline DType dtype_of(const py::array& a) {
  const py::dtype d = a.dtype();
  if (d.kind() == 'f' && d.itemsize() == 2) return DType::f16;
  if (d.kind() == 'f' && d.itemsize() == 4) return DType::f32;
  if (d.kind() == 'f' && d.itemsize() == 8) return DType::f64;
  if (d.itemsize() == 2 && py::str(d.attr("name")).cast<std::string>() == "bfloat16")
    return DType::bf16;
  throw py::type_error("unsupported dtype " + name_of(d));
}

// A view of an array of shape (rows, cols), as a stack of one matrix, or (groups, rows, cols).
inline StackView stack_view(const py::array& a) {
  if (a.ndim() != 2 && a.ndim() != 3) throw py::value_error("expected two or three dimensions");
  const int m = int(a.ndim()) - 2;
  StackView view;
  view.first = {static_cast<const char*>(a.data()),
                dtype_of(a),
                a.shape(m),
                a.shape(m + 1),
                a.strides(m),
                a.strides(m + 1)};
  if (m == 1) view.count = a.shape(0), view.stride = a.strides(0);
  return view;
}

inline MatrixView matrix_view(const py::array& a) {
  if (a.ndim() != 2) throw py::value_error("expected two dimensions");
  return stack_view(a).first;
}

// Hands a kernel's buffer to NumPy, without a copy.
template <class T>
py::array_t<T> to_numpy(Buffer<T>&& buffer, std::vector<py::ssize_t> shape) {
  auto owned = std::make_unique<Buffer<T>>(std::move(buffer));
  T* data = owned->data();
  py::capsule keep(owned.get(), [](void* p) { delete static_cast<Buffer<T>*>(p); });
  owned.release();
  return py::array_t<T>(std::move(shape), data, keep);
}

// Calls call(stop) without the GIL. Ctrl-C stops it within a second and raises KeyboardInterrupt.
template <class Call>
auto without_gil(Call&& call) {
  Stop stop([] {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  });
  try {
    const py::gil_scoped_release release;
    return call(stop);
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

}  // namespace ff::bindings

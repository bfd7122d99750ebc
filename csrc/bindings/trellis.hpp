#pragma once
#include "bindings/convert.hpp"
#include "kernels/trellis/format.hpp"

// Shared by the bindings of trellis-coded levels.
namespace ff::bindings {

using Ints = py::array_t<std::int8_t, py::array::c_style>;
using RowLogs = py::array_t<std::int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

inline trellis::Classes classes_of(const Ints& columns, int shift, int classes) {
  if (shift < 0 || shift > 8 || classes < 1 || classes > trellis::kMostClasses)
    throw py::value_error("shift or classes is out of range");
  return {columns.data(), columns.size(), shift, classes};
}

}  // namespace ff::bindings

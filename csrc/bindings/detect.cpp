// Tells Python which instruction-set levels this processor runs. It uses Python's C interface,
// because pybind11's headers would take twenty times as long to compile as this one function.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/levels.hpp"

namespace {

PyObject* supported_levels(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const char* level : ff::supported_levels()) {
    PyObject* name = names ? PyUnicode_FromString(level) : nullptr;
    if (!name || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyMethodDef functions[] = {
    {"supported_levels", supported_levels, METH_NOARGS, "supported_levels() -> list[str]"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_detect", nullptr, 0, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__detect() {
  return PyModule_Create(&definition);
}

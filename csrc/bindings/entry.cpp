#include <pybind11/pybind11.h>

namespace ff::bindings {
void bind_all(pybind11::module_& m, const char* level);
}

// The module of one level: the bindings, which are the same for all levels, over this level's
// kernels.
PYBIND11_MODULE(FASTFACTOR_MODULE, m) {
  ff::bindings::bind_all(m, FASTFACTOR_LEVEL);
}

#include "bindings/convert.hpp"
#include "core/corrupt.hpp"

namespace ff::bindings {

void bind_balance(py::module_& m);
void bind_bits(py::module_& m);
void bind_codebook(py::module_& m);
void bind_conv_chain(py::module_& m);
void bind_kmeans(py::module_& m);
void bind_kmeans1d(py::module_& m);
void bind_csr(py::module_& m);
void bind_gaps(py::module_& m);
void bind_exchange(py::module_& m);
void bind_hashed_omp(py::module_& m);
void bind_huffman(py::module_& m);
void bind_omp(py::module_& m);
void bind_select(py::module_& m);
void bind_sparse_codebook(py::module_& m);
void bind_spmm(py::module_& m);
void bind_trellis(py::module_& m);
void bind_trellis_codes(py::module_& m);

namespace {

py::dict build_info(const char* level) {
  py::dict info;
  info["level"] = level;
  info["threading"] = threading_runtime();
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "GCC " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["eigen"] = FASTFACTOR_EIGEN;
  return info;
}

void throw_corrupt_data(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const CorruptData& error) {
    py::set_error(py::module_::import("fastfactor.errors").attr("CorruptDataError"), error.what());
  }
}

}  // namespace

void bind_all(py::module_& m, const char* level) {
  py::register_local_exception_translator(&throw_corrupt_data);
  m.def("build_info", [level] { return build_info(level); });
  m.def("default_threads", &default_threads);
  bind_balance(m);
  bind_bits(m);
  bind_codebook(m);
  bind_conv_chain(m);
  bind_kmeans(m);
  bind_kmeans1d(m);
  bind_csr(m);
  bind_gaps(m);
  bind_exchange(m);
  bind_hashed_omp(m);
  bind_huffman(m);
  bind_omp(m);
  bind_select(m);
  bind_sparse_codebook(m);
  bind_spmm(m);
  bind_trellis(m);
  bind_trellis_codes(m);
}

}  // namespace ff::bindings

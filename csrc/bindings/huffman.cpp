#include "kernels/huffman.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

void require_bytes(const py::array& a, const char* name, py::ssize_t widest) {
  if (a.ndim() != 1 || !(a.flags() & py::array::c_style) || a.dtype().kind() != 'u' ||
      a.itemsize() > widest)
    throw py::type_error(std::string(name) + " must be contiguous and of few bytes an item");
}

py::array huffman_encode(const py::array& symbols, int max_length, index block_size,
                         int n_threads) {
  require_bytes(symbols, "symbols", 2);
  const SymbolsView view{symbols.data(), symbols.itemsize() == 2, symbols.size()};
  auto bytes = std::make_unique<Bytes>(without_gil([&](Stop& stop) {
    return ff::huffman_encode(view, {max_length, block_size}, n_threads, stop);
  }));
  const Bytes& made = *bytes;
  py::capsule keep(bytes.get(), [](void* p) { delete static_cast<Bytes*>(p); });
  bytes.release();
  return py::array_t<std::uint8_t>(py::ssize_t(made.size()), made.data(), keep);
}

template <class Symbol>
py::array huffman_symbols(const HuffmanDecoder& decoder, int n_threads) {
  Buffer<Symbol> symbols(decoder.n_symbols());
  without_gil([&](Stop& stop) { decoder.decode(symbols.data(), n_threads, stop); });
  return to_numpy(std::move(symbols), {decoder.n_symbols()});
}

py::array huffman_decode(const py::array& data, int n_threads) {
  require_bytes(data, "data", 1);
  const HuffmanDecoder decoder(static_cast<const std::uint8_t*>(data.data()), data.size());
  return decoder.wide() ? huffman_symbols<std::uint16_t>(decoder, n_threads)
                        : huffman_symbols<std::uint8_t>(decoder, n_threads);
}

}  // namespace

void bind_huffman(py::module_& m) {
  m.def("huffman_encode", &huffman_encode, py::arg("symbols"), py::arg("max_length"),
        py::arg("block_size"), py::arg("n_threads"));
  m.def("huffman_decode", &huffman_decode, py::arg("data"), py::arg("n_threads"));
}

}  // namespace ff::bindings

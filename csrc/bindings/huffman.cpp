#include "kernels/huffman/huffman.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

void require_bytes(const py::array& a, const char* name, py::ssize_t widest) {
  if (a.ndim() != 1 || !(a.flags() & py::array::c_style) || a.dtype().kind() != 'u' ||
      a.itemsize() > widest)
    throw py::type_error(std::string(name) + " must be contiguous unsigned integers of at most " +
                         std::to_string(8 * widest) + " bits");
}

py::array huffman_encode(const py::array& symbols, int max_length, index block_size,
                         int n_threads) {
  require_bytes(symbols, "symbols", 2);
  const SymbolsView view{symbols.data(), symbols.itemsize() == 2, symbols.size()};
  py::array_t<std::uint8_t> out;
  const auto allocate = [&](index size) {
    const py::gil_scoped_acquire gil;
    out = py::array_t<std::uint8_t>(size);
    return out.mutable_data();
  };
  without_gil([&](Stop& stop) {
    ff::huffman_encode(view, {max_length, block_size}, allocate, n_threads, stop);
  });
  return out;
}

// Decodes into memory that NumPy allocates, because large arrays then get huge pages: 16 MB of
// symbols take 3 ms to decode, and 6 ms more if pages of 4 KB must be mapped first.
template <class Symbol>
py::array huffman_symbols(const HuffmanDecoder& decoder, int n_threads) {
  py::array_t<Symbol> symbols(decoder.n_symbols());
  Symbol* to = symbols.mutable_data();
  without_gil([&](Stop& stop) { decoder.decode(to, n_threads, stop); });
  return symbols;
}

py::array huffman_decode(const py::array& data, index max_size, int n_threads) {
  require_bytes(data, "data", 1);
  const HuffmanDecoder decoder(static_cast<const std::uint8_t*>(data.data()), data.size(),
                               max_size);
  return decoder.wide() ? huffman_symbols<std::uint16_t>(decoder, n_threads)
                        : huffman_symbols<std::uint8_t>(decoder, n_threads);
}

}  // namespace

void bind_huffman(py::module_& m) {
  m.def("huffman_encode", &huffman_encode, py::arg("symbols"), py::arg("max_length"),
        py::arg("block_size"), py::arg("n_threads"));
  m.def("huffman_decode", &huffman_decode, py::arg("data"), py::arg("max_size"),
        py::arg("n_threads"));
}

}  // namespace ff::bindings

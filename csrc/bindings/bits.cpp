#include "kernels/bits/bits.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using PackedBytes = py::array_t<std::uint8_t, py::array::c_style>;

IntType int_type_of(const py::array& a) {
  const char kind = a.dtype().kind();
  const auto size = a.itemsize();
  if (kind == 'b') return IntType::u8;
  const bool is_signed = kind == 'i';
  if (is_signed || kind == 'u') {
    if (size == 1) return is_signed ? IntType::i8 : IntType::u8;
    if (size == 2) return is_signed ? IntType::i16 : IntType::u16;
    if (size == 4) return is_signed ? IntType::i32 : IntType::u32;
    if (size == 8) return is_signed ? IntType::i64 : IntType::u64;
  }
  throw py::type_error("unsupported dtype " + name_of(a.dtype()));
}

void check_width(int n_bits) {
  if (n_bits < 1 || n_bits > kMaxCodeBits) throw py::value_error("n_bits must be in [1, 32]");
}

py::array pack_codes(const py::array& codes, int n_bits, int n_threads) {
  if (codes.ndim() != 3) throw py::value_error("expected three dimensions");
  check_width(n_bits);
  CodesView view;
  view.data = static_cast<const char*>(codes.data());
  view.type = int_type_of(codes);
  view.books = codes.shape(0), view.rows = codes.shape(1), view.cols = codes.shape(2);
  view.book_stride = codes.strides(0), view.row_stride = codes.strides(1);
  view.col_stride = codes.strides(2);
  const PackedShape shape{n_bits, view.books, view.rows, view.cols};
  py::array_t<std::uint8_t> packed({shape.rows, shape.row_bytes()});
  std::uint8_t* to = packed.mutable_data();
  without_gil([&](Stop& stop) { ff::pack_codes(view, n_bits, to, n_threads, stop); });
  return packed;
}

template <class Code>
py::array unpacked(const PackedBytes& packed, const PackedShape& shape, int n_threads) {
  py::array_t<Code> codes({shape.books, shape.rows, shape.cols});
  Code* to = codes.mutable_data();
  without_gil([&](Stop& stop) {
    ff::unpack_codes(packed.data(), packed.size(), shape, to, n_threads, stop);
  });
  return codes;
}

py::array unpack_codes(const PackedBytes& packed, int n_bits, index books, index rows, index cols,
                       int n_threads) {
  constexpr index most = index(1) << 48;
  check_width(n_bits);
  const PackedShape shape{n_bits, books, rows, cols};
  if (books < 1 || books > 256 || rows < 0 || rows > most || cols < 0 || cols > most ||
      !shape.takes(packed.size()))
    throw py::value_error("packed has the wrong size for books, rows and cols");
  if (n_bits <= 8) return unpacked<std::uint8_t>(packed, shape, n_threads);
  if (n_bits <= 16) return unpacked<std::uint16_t>(packed, shape, n_threads);
  return unpacked<std::uint32_t>(packed, shape, n_threads);
}

}  // namespace

void bind_bits(py::module_& m) {
  m.def("pack_codes", &pack_codes, py::arg("codes"), py::arg("n_bits"), py::arg("n_threads"));
  m.def("unpack_codes", &unpack_codes, py::arg("packed"), py::arg("n_bits"), py::arg("books"),
        py::arg("rows"), py::arg("cols"), py::arg("n_threads"));
}

}  // namespace ff::bindings

#include "kernels/gaps/gaps.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using Positions = py::array_t<std::int64_t, py::array::c_style>;

template <class Field>
py::tuple gaps_from_positions(const Positions& positions, const FillerCounts& counts, int n_bits,
                              bool escape, int n_threads) {
  const index n = positions.size();
  Buffer<Field> fields(n + counts[n_bits]);
  Buffer<std::int64_t> fillers(counts[n_bits]);
  without_gil([&](Stop& stop) {
    write_gaps(positions.data(), n, n_bits, escape, fields.data(), fillers.data(), n_threads, stop);
  });
  const index n_fields = fields.size(), n_fillers = fillers.size();
  return py::make_tuple(to_numpy(std::move(fields), {n_fields}),
                        to_numpy(std::move(fillers), {n_fillers}), n_bits);
}

// If n_bits is 0, it is chosen so that gaps with values of value_bits take the fewest bits.
py::tuple gap_encode(const Positions& positions, std::int64_t size, int n_bits, int value_bits,
                     bool escape, int n_threads) {
  if (n_bits < 0 || n_bits > kMaxGapBits) throw py::value_error("n_bits must be in [0, 16]");
  const index n = positions.size();
  const FillerCounts counts = without_gil([&](Stop& stop) {
    check_positions(positions.data(), n, size, n_threads, stop);
    return count_fillers(positions.data(), n, escape, n_threads, stop);
  });
  if (n_bits == 0) n_bits = best_gap_bits(counts, n, value_bits);
  if (n_bits <= 8)
    return gaps_from_positions<std::uint8_t>(positions, counts, n_bits, escape, n_threads);
  return gaps_from_positions<std::uint16_t>(positions, counts, n_bits, escape, n_threads);
}

template <class Field>
py::array gaps_as_positions(const py::array& gaps, int n_bits, std::int64_t size, bool escape,
                            int n_threads) {
  const index n = gaps.size();
  auto positions = without_gil([&](Stop& stop) {
    return read_gaps(static_cast<const Field*>(gaps.data()), n, n_bits, escape, size, n_threads,
                     stop);
  });
  const index n_positions = positions.size();
  return to_numpy(std::move(positions), {n_positions});
}

py::array gap_decode(const py::array& gaps, int n_bits, std::int64_t size, bool escape,
                     int n_threads) {
  if (gaps.ndim() != 1 || !(gaps.flags() & py::array::c_style) || gaps.dtype().kind() != 'u' ||
      gaps.itemsize() > 2)
    throw py::type_error("gaps must be contiguous uint8 or uint16");
  if (n_bits < 1 || n_bits > 8 * gaps.itemsize())
    throw py::value_error("n_bits must be at most the bits of a gap");
  if (gaps.itemsize() == 1)
    return gaps_as_positions<std::uint8_t>(gaps, n_bits, size, escape, n_threads);
  return gaps_as_positions<std::uint16_t>(gaps, n_bits, size, escape, n_threads);
}

}  // namespace

void bind_gaps(py::module_& m) {
  m.def("gap_encode", &gap_encode, py::arg("positions"), py::arg("size"), py::arg("n_bits"),
        py::arg("value_bits"), py::arg("escape"), py::arg("n_threads"));
  m.def("gap_decode", &gap_decode, py::arg("gaps"), py::arg("n_bits"), py::arg("size"),
        py::arg("escape"), py::arg("n_threads"));
}

}  // namespace ff::bindings

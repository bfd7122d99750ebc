#include "kernels/trellis/trellis_codes.hpp"

#include <memory>

#include "bindings/trellis.hpp"

namespace ff::bindings {
namespace {

using Words = py::array_t<std::uint16_t, py::array::c_style>;
using Longs = py::array_t<std::int64_t, py::array::c_style>;

constexpr char kDecoderName[] = "fastfactor.TrellisDecoder";

TrellisTables trellis_tables(const Words& frequencies, const Ints& columns, int shift,
                             int classes) {
  const TrellisTables tables{frequencies.data(), classes_of(columns, shift, classes)};
  if (frequencies.size() != tables.contexts() * trellis::kSymbols)
    throw py::value_error("frequencies has the wrong size for the classes");
  return tables;
}

py::tuple trellis_encode(const RowLogs& levels, const RowLogs& row_logs, index block_rows,
                         const Words& frequencies, const Ints& columns, int shift, int classes,
                         int n_threads) {
  const TrellisTables tables = trellis_tables(frequencies, columns, shift, classes);
  const index rows = row_logs.size();
  if (levels.size() != rows * columns.size() || block_rows < 1)
    throw py::value_error("levels has the wrong size for rows and columns, or block_rows is zero");
  const TrellisStreams streams = without_gil([&](Stop& stop) {
    return ff::trellis_encode(levels.data(), row_logs.data(), rows, block_rows, tables, n_threads,
                              stop);
  });
  return py::make_tuple(Words(index(streams.words.size()), streams.words.data()),
                        Longs(index(streams.lengths.size()), streams.lengths.data()));
}

// Python holds a decoder in a capsule and cannot look into it. The words stay alive with it.
struct HeldDecoder {
  Words words;
  TrellisDecoder decoder;
};

py::capsule trellis_decoder(const Words& words, const Longs& lengths, index rows, index block_rows,
                            const Words& frequencies, const Ints& columns, int shift, int classes,
                            const Floats& centers) {
  const TrellisTables tables = trellis_tables(frequencies, columns, shift, classes);
  if (rows < 0 || block_rows < 1 || lengths.size() != ceil_div(rows, block_rows) ||
      centers.size() != 2 * classes * trellis::kCenters)
    throw py::value_error("lengths or centers has the wrong size for rows and classes");
  auto held = std::make_unique<HeldDecoder>(
      HeldDecoder{words, TrellisDecoder(words.data(), words.size(), lengths.data(), lengths.size(),
                                        rows, block_rows, tables, centers.data())});
  py::capsule capsule(held.get(), kDecoderName, [](PyObject* object) {
    delete static_cast<HeldDecoder*>(PyCapsule_GetPointer(object, kDecoderName));
  });
  held.release();
  return capsule;
}

py::array_t<float> trellis_rows(const py::capsule& capsule, const Longs& ids, int n_threads) {
  const auto* held =
      static_cast<const HeldDecoder*>(PyCapsule_GetPointer(capsule.ptr(), kDecoderName));
  if (!held) throw py::error_already_set();
  const TrellisDecoder& decoder = held->decoder;
  const index n = ids.size();
  for (index i = 0; i < n; ++i)
    if (ids.data()[i] < 0 || ids.data()[i] >= decoder.rows() ||
        (i > 0 && ids.data()[i] <= ids.data()[i - 1]))
      throw py::value_error("ids must be in [0, " + std::to_string(decoder.rows()) +
                            ") and strictly ascend, got " + std::to_string(ids.data()[i]) + " at " +
                            std::to_string(i));
  py::array_t<float> out({n, decoder.cols()});
  float* to = out.mutable_data();
  without_gil([&](Stop& stop) { decoder.decode(ids.data(), n, to, n_threads, stop); });
  return out;
}

}  // namespace

void bind_trellis_codes(py::module_& m) {
  m.def("trellis_encode", &trellis_encode, py::arg("levels"), py::arg("row_logs"),
        py::arg("block_rows"), py::arg("frequencies"), py::arg("columns"), py::arg("shift"),
        py::arg("classes"), py::arg("n_threads"));
  m.def("trellis_decoder", &trellis_decoder, py::arg("words"), py::arg("lengths"), py::arg("rows"),
        py::arg("block_rows"), py::arg("frequencies"), py::arg("columns"), py::arg("shift"),
        py::arg("classes"), py::arg("centers"));
  m.def("trellis_rows", &trellis_rows, py::arg("decoder"), py::arg("ids"), py::arg("n_threads"));
}

}  // namespace ff::bindings

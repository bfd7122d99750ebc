#include "kernels/select/select.hpp"

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

ArrayView array_view(const py::array& a) {
  ArrayView view{static_cast<const char*>(a.data()), dtype_of(a), {}, {}};
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    view.shape.push_back(a.shape(d));
    view.strides.push_back(a.strides(d));
  }
  return view;
}

Groups checked_groups(const ArrayView& w, index length, index n_dropped) {
  if (length < 1 || w.size() % length != 0 || n_dropped < 0 || n_dropped > length)
    throw py::value_error("length of groups, n_dropped and shape do not match");
  return {length, n_dropped};
}

BlockShape checked_block(index rows, index cols) {
  if (rows < 1 || cols < 1) throw py::value_error("a block must have at least one entry");
  return {rows, cols};
}

py::array_t<double> thresholds(const py::array& w, index length, index n_dropped, int n_threads) {
  const ArrayView view = array_view(w);
  const Groups groups = checked_groups(view, length, n_dropped);
  const index n_groups = view.size() / length;
  Buffer<double> out(n_groups);
  without_gil([&](Stop& stop) { ff::thresholds(view, groups, n_threads, stop, out.data()); });
  return to_numpy(std::move(out), {n_groups});
}

py::array_t<bool> prune_mask(const py::array& w, index length, index n_dropped, int n_threads) {
  const ArrayView view = array_view(w);
  const Groups groups = checked_groups(view, length, n_dropped);
  Buffer<bool> mask(view.size());
  without_gil([&](Stop& stop) { ff::prune_mask(view, groups, n_threads, stop, mask.data()); });
  return to_numpy(std::move(mask), {w.shape(), w.shape() + w.ndim()});
}

py::array_t<double> block_scores(const py::array& w, index block_rows, index block_cols, bool mean,
                                 int n_threads) {
  const MatrixView view = matrix_view(w);
  const BlockShape block = checked_block(block_rows, block_cols);
  const index rows = ceil_div(view.rows, block.rows), cols = ceil_div(view.cols, block.cols);
  Buffer<double> scores(rows * cols);
  without_gil([&](Stop& stop) {
    ff::block_scores(view, block, mean ? Pool::mean : Pool::max, n_threads, stop, scores.data());
  });
  return to_numpy(std::move(scores), {rows, cols});
}

py::array_t<bool> expand_blocks(const py::array_t<bool, py::array::c_style>& kept, index rows,
                                index cols, index block_rows, index block_cols, int n_threads) {
  const BlockShape block = checked_block(block_rows, block_cols);
  if (kept.ndim() != 2 || rows < 0 || cols < 0 || kept.shape(0) != ceil_div(rows, block.rows) ||
      kept.shape(1) != ceil_div(cols, block.cols))
    throw py::value_error("shapes of the mask of blocks and of the matrix do not match");
  const bool* of_block = kept.data();
  Buffer<bool> mask(rows * cols);
  without_gil([&](Stop& stop) {
    ff::expand_blocks(of_block, rows, cols, block, n_threads, stop, mask.data());
  });
  return to_numpy(std::move(mask), {rows, cols});
}

}  // namespace

void bind_select(py::module_& m) {
  m.def("thresholds", &thresholds, py::arg("w"), py::arg("length"), py::arg("n_dropped"),
        py::arg("n_threads"));
  m.def("prune_mask", &prune_mask, py::arg("w"), py::arg("length"), py::arg("n_dropped"),
        py::arg("n_threads"));
  m.def("block_scores", &block_scores, py::arg("w"), py::arg("block_rows"), py::arg("block_cols"),
        py::arg("mean"), py::arg("n_threads"));
  m.def("expand_blocks", &expand_blocks, py::arg("kept"), py::arg("rows"), py::arg("cols"),
        py::arg("block_rows"), py::arg("block_cols"), py::arg("n_threads"));
}

}  // namespace ff::bindings

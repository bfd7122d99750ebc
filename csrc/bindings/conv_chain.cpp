#include "kernels/conv_chain/conv_chain.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings/convert.hpp"

namespace ff::bindings {
namespace {

using Weight = py::array_t<float, py::array::c_style>;
using ChannelOrder = py::array_t<std::int32_t, py::array::c_style>;
using Pair = std::array<index, 2>;

constexpr char kChainName[] = "fastfactor.ConvChain";

std::vector<std::int32_t> channel_order(const ChannelOrder& order, index channels) {
  const std::vector<std::int32_t> values(order.data(), order.data() + order.size());
  std::vector<bool> met(channels, false);
  for (const std::int32_t c : values) {
    if (c < 0 || c >= channels || met[c])
      throw py::value_error("order must be a permutation of the channels");
    met[c] = true;
  }
  if (index(values.size()) != channels)
    throw py::value_error("order must be a permutation of the channels");
  return values;
}

// Returns a chain in a capsule, which Python can hold but not look into, and its size in bytes.
py::tuple conv_prepare(const std::vector<std::tuple<ChannelOrder, Weight, index>>& stages,
                       const ChannelOrder& order) {
  std::vector<ConvStage> given;
  index channels = -1;
  for (const auto& [before, weight, groups] : stages) {
    if (weight.ndim() != 4 || weight.size() == 0 || groups < 1 || weight.shape(0) % groups)
      throw py::value_error("weight must have 4 dimensions and fit its groups");
    const index group_channels = weight.shape(1);
    if (channels >= 0 && group_channels * groups != channels)
      throw py::value_error("channels of stages must fit each other");
    given.push_back({weight.data(),
                     weight.shape(0),
                     group_channels,
                     groups,
                     {weight.shape(2), weight.shape(3)},
                     channel_order(before, group_channels * groups)});
    channels = weight.shape(0);
  }
  for (int axis = 0; axis < 2; ++axis) {
    int windows = 0;
    for (const ConvStage& stage : given) windows += stage.kernel[axis] > 1;
    if (windows > 1) throw py::value_error("one stage at most may have a window along an axis");
  }
  if (given.empty()) throw py::value_error("stages must not be empty");
  auto chain = std::make_unique<ConvChain>(given, channel_order(order, channels));
  const index nbytes = chain->nbytes();
  py::capsule held(chain.get(), kChainName, [](PyObject* capsule) {
    delete static_cast<ConvChain*>(PyCapsule_GetPointer(capsule, kChainName));
  });
  chain.release();
  return py::make_tuple(held, nbytes);
}

void conv_chain(const py::array& x, const py::capsule& chain, const Pair& stride,
                const Pair& padding, const Pair& dilation, const std::optional<Weight>& bias,
                py::array out, int n_threads) {
  const auto* held = static_cast<const ConvChain*>(PyCapsule_GetPointer(chain.ptr(), kChainName));
  if (!held) throw py::error_already_set();
  if (x.ndim() != 4 || x.shape(1) != held->in_channels)
    throw py::value_error("x has the wrong shape for the chain");
  const ImagesView images{static_cast<const char*>(x.data()),
                          dtype_of(x),
                          {x.shape(0), x.shape(1), x.shape(2), x.shape(3)},
                          {x.strides(0), x.strides(1), x.strides(2), x.strides(3)}};
  std::vector<py::ssize_t> shape{x.shape(0), held->out_channels};
  for (int axis = 0; axis < 2; ++axis) {
    if (stride[axis] < 1 || padding[axis] < 0 || dilation[axis] < 1)
      throw py::value_error("stride, padding or dilation is out of range");
    shape.push_back(conv_outputs(x.shape(2 + axis), held->kernel[axis], stride[axis], padding[axis],
                                 dilation[axis]));
    if (shape.back() < 1) throw py::value_error("x is too small for the window");
  }
  if (out.ndim() != 4 || !std::equal(shape.begin(), shape.end(), out.shape()) ||
      dtype_of(out) != DType::f32 || !(out.flags() & py::array::c_style) ||
      (bias && bias->size() != held->out_channels))
    throw py::value_error("out or bias has the wrong shape for the chain");
  float* to = static_cast<float*>(out.mutable_data());
  without_gil([&](Stop& stop) {
    ff::conv_chain(images, *held, {stride, padding, dilation}, bias ? bias->data() : nullptr, to,
                   n_threads, stop);
  });
}

}  // namespace

void bind_conv_chain(py::module_& m) {
  m.def("conv_prepare", &conv_prepare, py::arg("stages"), py::arg("order"));
  m.def("conv_chain", &conv_chain, py::arg("x"), py::arg("chain"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("bias"), py::arg("out"),
        py::arg("n_threads"));
}

}  // namespace ff::bindings

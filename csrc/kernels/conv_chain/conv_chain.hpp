#pragma once
#include <array>

#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/conv_chain/packed.hpp"

namespace ff {

// A batch of images owned elsewhere, of any element type and any strides in bytes.
struct ImagesView {
  const char* data;
  DType dtype;
  std::array<index, 4> shape, strides;  // images, channels, rows, columns
};

// How the windows of a chain move over rows [0] and columns [1].
struct ConvSteps {
  std::array<index, 2> stride, padding, dilation;
};

// Rows or columns of the result; zero or less if no window fits.
inline index conv_outputs(index size, index kernel, index stride, index padding, index dilation) {
  const index room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// out (images, filters, rows, columns) = the chain's convolutions one after the other, + bias.
// The chain must fit x, and its windows too; bias may be null.
void conv_chain(const ImagesView& x, const ConvChain& chain, const ConvSteps& steps,
                const float* bias, float* out, int n_threads, Stop& stop);

}  // namespace ff

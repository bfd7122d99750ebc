#pragma once
#include <algorithm>
#include <vector>

#include "core/buffer.hpp"
#include "core/simd.hpp"
#include "kernels/codebook/codebook.hpp"

namespace ff {

// Code vectors that all rows share, entries side by side and padded with zeros to a pitch, in the
// layout in which they are multiplied with pieces of x.
class CodeVectors {
 public:
  CodeVectors(const CodebookView& codebook, index pitch)
      : codebook_(codebook),
        pitch_(pitch),
        across_(codebook.books * codebook.groups * codebook.dim * pitch) {
    const index d = codebook.dim;
    std::vector<float> table(codebook.table_size());
    std::fill_n(across_.data(), across_.size(), 0.0f);
    for (index book = 0; book < codebook.books; ++book)
      for (index group = 0; group < codebook.groups; ++group) {
        codebook.load(book, 0, group, table.data());
        float* to = across_.data() + (book * codebook.groups + group) * d * pitch;
        for (index e = 0; e < codebook.entries; ++e)
          for (index k = 0; k < d; ++k) to[k * pitch + e] = table[e * d + k];
      }
  }

  index pitch() const { return pitch_; }

  // Computes the products of the piece of x that belongs to code j with every vector that j may
  // name.
  void multiply(const float* x, index book, index j, float* products) const {
    constexpr int kLanes = simd::kLanes<float>;
    const index d = codebook_.dim, group = j * d / codebook_.group_size;
    const float* piece = x + j * d;
    const float* vectors = across_.data() + (book * codebook_.groups + group) * d * pitch_;
    for (index e = 0; e < pitch_; e += kLanes) {
      simd::Vec<float> sum = {};
      for (index k = 0; k < d; ++k)
        sum = simd::mul_add(simd::splat(piece[k]), simd::load(vectors + k * pitch_ + e), sum);
      simd::store(products + e, sum);
    }
  }

 private:
  const CodebookView& codebook_;
  const index pitch_;
  Buffer<float> across_;
};

}  // namespace ff

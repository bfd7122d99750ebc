#pragma once
#include "core/view.hpp"
#include "kernels/sparse_codebook/layout.hpp"

namespace ff {

// Computes out (x.rows, layout.rows) = x · Wᵀ, where each entry of W is the value of its code in
// `codebook`: 16 finite values, or 256 if codes are wide. Works in float, so that
// |y − Wx| ≤ 1e-5 · Σ|w x|.
void sparse_codebook_matmul(const MatrixView& x, const SparseLayout& layout, const float* codebook,
                            float* out, int n_threads, Stop& stop);

}  // namespace ff

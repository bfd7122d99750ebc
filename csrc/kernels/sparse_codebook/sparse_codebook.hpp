#pragma once
#include "core/view.hpp"
#include "kernels/sparse_codebook/layout.hpp"

namespace ff {

// out (x.rows, layout.rows) = x · Wᵀ, where an entry of W is what its code names among `codebook`:
// 16 finite values, or 256 where codes are wide. In float, so that |y − Wx| ≤ 1e-5 · Σ|w x|.
void sparse_codebook_matmul(const MatrixView& x, const SparseLayout& layout, const float* codebook,
                            float* out, int n_threads, Stop& stop);

}  // namespace ff

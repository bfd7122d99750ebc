#pragma once
#include "kernels/csr/csr.hpp"

namespace ff {

// A dense matrix to be written: rows or columns contiguous, `pitch` elements from one to the next.
struct DenseOut {
  void* data = nullptr;
  index pitch = 0;
  bool column_major = false;
};

// out (a.rows, b.cols) = a · b, in double where a or b is, else in float. The structure of a is
// trusted (check_csr), as is that out is of that type and overlaps neither operand.
void spmm(const CsrView& a, const MatrixView& b, const DenseOut& out, int n_threads, Stop& stop);

}  // namespace ff

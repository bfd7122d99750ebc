#pragma once
#include "kernels/csr/csr.hpp"

namespace ff {

// A dense matrix to be written: rows or columns are contiguous, and `pitch` elements apart.
struct DenseOut {
  void* data = nullptr;
  index pitch = 0;
  bool column_major = false;
};

// Computes out (a.rows, b.cols) = a · b, in double if a or b is double, otherwise in float. Does
// not check the structure of a (check_csr does), nor that out has that type and overlaps neither
// operand.
void spmm(const CsrView& a, const MatrixView& b, const DenseOut& out, int n_threads, Stop& stop);

}  // namespace ff

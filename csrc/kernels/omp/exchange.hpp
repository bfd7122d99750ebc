#pragma once
#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/csr/csr.hpp"

namespace ff {

// Improves sparse codes of the rows of x over the rows of the dictionary. In each row it exchanges
// one atom for another, always by the exchange that lowers the error most, until none lowers it or
// max_exchanges are made (negative: as many as the row has atoms). A row keeps its number of atoms
// and gets their least-squares coefficients. A row whose atoms are linearly dependent, as far as
// double can tell, is left unchanged; returns how many rows that are.
//
// codes must have passed check_csr and its indices must fit int32. gram may be null. data and
// indices have the length of those of codes and are written with columns ascending. Throws
// std::invalid_argument if an operand is not finite.
template <class T>
index exchange_atoms(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                     const CsrView& codes, index max_exchanges, T* data, std::int32_t* indices,
                     int n_threads, Stop& stop);

}  // namespace ff

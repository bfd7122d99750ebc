#pragma once
#include "core/parallel.hpp"
#include "core/view.hpp"
#include "kernels/csr/csr.hpp"

namespace ff {

// Improves sparse codes of the rows of x over the rows of the dictionary: up to max_exchanges times
// a row (negative: as often as it has atoms), the exchange of one of its atoms for another that
// lowers the error most, as long as one does. A row keeps its number of atoms, and gets their
// least-squares coefficients; one whose atoms depend on each other, as far as T can tell, stays as
// it is. codes must have passed check_csr and have indices that fit int32. gram may be null. Data
// and indices, as long as those of codes, are written: columns ascending. Throws
// std::invalid_argument where an operand is not finite.
template <class T>
void exchange_atoms(const MatrixView& x, const MatrixView& dictionary, const MatrixView* gram,
                    const CsrView& codes, index max_exchanges, T* data, std::int32_t* indices,
                    int n_threads, Stop& stop);

}  // namespace ff

#pragma once
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/view.hpp"

namespace ff {

// A view of a sparse matrix in compressed rows. Row i holds the nonzeros [start(i), start(i + 1));
// duplicates are summed, and columns may come in any order.
struct CsrView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  const void* indices = nullptr;
  bool wide_indices = false;  // int64, else int32
  const void* indptr = nullptr;
  bool wide_indptr = false;
  index rows = 0, cols = 0, nonzeros = 0;

  index start(index row) const {
    return wide_indptr ? index(static_cast<const std::int64_t*>(indptr)[row])
                       : index(static_cast<const std::int32_t*>(indptr)[row]);
  }
};

// Checks what reading the matrix without bounds checks requires: indptr begins at 0, never falls
// and ends at the number of nonzeros, and every column is in [0, cols). Throws
// std::invalid_argument for the first fault; the message begins with `name` (such as "A.") and the
// array.
void check_csr(const CsrView& a, const std::string& name, int n_threads, Stop& stop);

// The rows of a matrix in pieces of work of about equal size for any distribution of nonzeros. The
// cuts depend on the matrix alone.
struct RowPieces {
  static constexpr index kSize = index(1) << 15;  // approximate limit of nonzeros + rows in a piece

  struct Range {
    index first, last;
  };
  struct LongRow {
    index row, first_partial, n_partials;
  };
  struct Partial {
    index first, last;  // nonzeros
  };

  std::vector<Range> ranges;       // rows, none of them long
  std::vector<LongRow> long_rows;  // rows of more than kSize nonzeros, each in parts of kSize,
  std::vector<Partial> partials;   // whose sums are to be added in order

  index size() const { return index(ranges.size() + partials.size()); }
};

RowPieces cut_rows(const CsrView& a);

}  // namespace ff

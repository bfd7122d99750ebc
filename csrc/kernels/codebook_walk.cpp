#include "kernels/codebook_walk.hpp"

#include <cstring>

namespace ff {
namespace {

template <index Dim, bool kAdd>
void copy_vectors(const std::uint8_t* codes, index n, index dim, const float* table, float* out) {
  const index d = Dim > 0 ? Dim : dim;
  for (index j = 0; j < n; ++j, out += d) {
    const float* vector = table + index(codes[j]) * d;
    for (index k = 0; k < d; ++k) out[k] = kAdd ? out[k] + vector[k] : vector[k];
  }
}

template <bool kAdd>
void copy_vectors(const std::uint8_t* codes, index n, index dim, const float* table, float* out) {
  switch (dim) {
    case 1:
      return copy_vectors<1, kAdd>(codes, n, dim, table, out);
    case 2:
      return copy_vectors<2, kAdd>(codes, n, dim, table, out);
    case 4:
      return copy_vectors<4, kAdd>(codes, n, dim, table, out);
    case 8:
      return copy_vectors<8, kAdd>(codes, n, dim, table, out);
    case 16:
      return copy_vectors<16, kAdd>(codes, n, dim, table, out);
    default:
      return copy_vectors<0, kAdd>(codes, n, dim, table, out);
  }
}

index in_order(index position) {
  return position;
}

#if defined(__AVX2__)
[[maybe_unused]] Lookup gathered() {
  return lookup_by<tables::Gathered>();
}

#  if defined(__AVX512VBMI__)
template <int Entries>
Lookup byte_planes(DType dtype) {
  if (dtype == DType::bf16) return lookup_by<tables::BytePlanes<Entries, 2>>();
  if (dtype == DType::f16) return lookup_by<tables::BytePlanes<Entries, 3>>();
  return lookup_by<tables::BytePlanes<Entries, 4>>();
}
#  endif

Lookup scalar_lookup(int n_bits, [[maybe_unused]] DType dtype) {
  switch (n_bits) {
    case 1:
      return lookup_by<tables::Nibbles<1>>();
    case 2:
      return lookup_by<tables::Nibbles<2>>();
    case 4:
      return lookup_by<tables::Nibbles<4>>();
    default:
      break;
  }
#  if defined(__AVX512VBMI__)
  return n_bits <= 6 ? byte_planes<64>(dtype) : byte_planes<256>(dtype);
#  else
#    if defined(__AVX512F__)
  if (n_bits <= 5) return lookup_by<tables::Permuted<32>>();
  if (n_bits == 6) return lookup_by<tables::Permuted<64>>();
#    endif
  return gathered();
#  endif
}
#endif

}  // namespace

void decode_any(CodeRow& row, index first, index last, float* out) {
  const CodebookView& codebook = row.codebook();
  const index dim = codebook.dim;
  for (index book = 0; book < codebook.books; ++book) {
    const std::uint8_t* codes = row.codes(book, first / dim, (last - first) / dim);
    for (index c = first; c < last;) {
      const index group = c / codebook.group_size;
      const index end = std::min(last, (group + 1) * codebook.group_size);
      const float* table = row.table(book, group);
      const index at = c - first, n = (end - c) / dim;
      if (book == 0) copy_vectors<false>(codes + at / dim, n, dim, table, out + at);
      else copy_vectors<true>(codes + at / dim, n, dim, table, out + at);
      c = end;
    }
  }
}

Lookup choose_lookup(const PackedView& packed, const CodebookView& codebook) {
#if defined(__AVX2__)
  if (codebook.dim == 1 && codebook.books == 1) {
    const Lookup lookup = scalar_lookup(packed.shape.n_bits, codebook.dtype);
    if (codebook.groups == 1 || codebook.group_size % lookup.block == 0) return lookup;
  }
#else
  (void)packed;
  (void)codebook;
#endif
  return {1, in_order, nullptr, decode_any};
}

}  // namespace ff

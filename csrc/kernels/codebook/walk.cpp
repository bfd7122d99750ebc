#include "kernels/codebook/walk.hpp"

#include <cstring>

namespace ff {
namespace {

template <index Dim, bool kAdd>
void copy_vectors(const std::uint8_t* codes, index n, const float* table, float* out) {
  typedef float Entry __attribute__((vector_size(Dim * sizeof(float))));
  for (index j = 0; j < n; ++j, out += Dim) {
    Entry entry;
    std::memcpy(&entry, table + index(codes[j]) * Dim, sizeof entry);
    if constexpr (kAdd) {
      Entry sum;
      std::memcpy(&sum, out, sizeof sum);
      entry = sum + entry;
    }
    std::memcpy(out, &entry, sizeof entry);
  }
}

template <bool kAdd>
void copy_vectors(const std::uint8_t* codes, index n, index dim, const float* table, float* out) {
  switch (dim) {
    case 1:
      return copy_vectors<1, kAdd>(codes, n, table, out);
    case 2:
      return copy_vectors<2, kAdd>(codes, n, table, out);
    case 4:
      return copy_vectors<4, kAdd>(codes, n, table, out);
    case 8:
      return copy_vectors<8, kAdd>(codes, n, table, out);
    case 16:
      return copy_vectors<16, kAdd>(codes, n, table, out);
    default:
      for (index j = 0; j < n; ++j)
        for (index k = 0; k < dim; ++k)
          out[j * dim + k] = table[index(codes[j]) * dim + k] + (kAdd ? out[j * dim + k] : 0);
  }
}

index in_order(index position) {
  return position;
}

// Keeps columns in order and has no dot.
constexpr Lookup kAnyLookup = {1, in_order, nullptr, decode_any};

#if defined(__SSSE3__)
#  if defined(__AVX2__)
template <int Bits>
using Shifted = tables::Nibbles<Bits>;
#  else
template <int Bits>
using Shifted = tables::ByteShuffles<Bits>;
#  endif

#  if defined(__AVX512VBMI__)
template <int Bits>
Lookup byte_planes(DType dtype) {
  if (dtype == DType::bf16) return lookup_by<tables::BytePlanes<Bits, 2>>();
  if (dtype == DType::f16) return lookup_by<tables::BytePlanes<Bits, 3>>();
  return lookup_by<tables::BytePlanes<Bits, 4>>();
}
#  endif

Lookup scalar_lookup(int n_bits, [[maybe_unused]] DType dtype) {
  switch (n_bits) {
    case 1:
      return lookup_by<Shifted<1>>();
    case 2:
      return lookup_by<Shifted<2>>();
    case 4:
      return lookup_by<Shifted<4>>();
#  if defined(__AVX512VBMI__)
    case 3:
      return byte_planes<3>(dtype);
    case 5:
      return byte_planes<5>(dtype);
    case 6:
      return byte_planes<6>(dtype);
    case 7:
      return byte_planes<7>(dtype);
    default:
      return byte_planes<8>(dtype);
#  elif defined(__AVX512F__)
    case 3:
    case 5:
      return lookup_by<tables::Permuted<32>>();
    case 6:
      return lookup_by<tables::Permuted<64>>();
    default:
      return lookup_by<tables::Gathered>();
#  elif defined(__AVX2__)
    default:
      return lookup_by<tables::Gathered>();
#  else
    default:
      return kAnyLookup;
#  endif
  }
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
#if defined(__SSSE3__)
  if (codebook.dim == 1 && codebook.books == 1) {
    const Lookup lookup = scalar_lookup(packed.shape.n_bits, codebook.dtype);
    if (codebook.groups == 1 || codebook.group_size % lookup.block == 0) return lookup;
  }
#else
  (void)packed;
  (void)codebook;
#endif
  return kAnyLookup;
}

}  // namespace ff

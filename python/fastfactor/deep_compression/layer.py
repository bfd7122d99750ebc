"""A layer as Deep Compression keeps it: multiplied in this form, and stored as bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from ..files.container import code_of, dtype_of, raw
from ..kernels.huffman import huffman_decode, huffman_encode
from ..kernels.packing import WIDTHS, PackedCodes
from ..kernels.sparse_codes import SparseCodes, sparse_codebook_matmul
from .stored_bytes import Reader, leb128

CODEBOOK_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class LayerSizes:
    """What a layer takes, stage by stage: a row of the paper's tables.

    Attributes
    ----------
    n_weights : int
        Before pruning.
    n_kept, n_entries : int
        Weights that are not zero; these and the fillers between gaps that are too wide.
    code_bits, gap_bits : int
        Bits of a code and of a gap before Huffman coding.
    codes_nbytes, gaps_nbytes, codebook_nbytes : int
        In the file.
    nbytes : int
        In the file, all of it: those three and the layer's header.
    """

    n_weights: int
    n_kept: int
    n_entries: int
    code_bits: int
    gap_bits: int
    codes_nbytes: int
    gaps_nbytes: int
    codebook_nbytes: int
    nbytes: int

    @property
    def kept(self) -> float:
        """Share of the weights that are kept."""
        return self.n_kept / max(self.n_weights, 1)

    @property
    def coded_code_bits(self) -> float:
        """Mean bits of an entry's code in the file."""
        return 8 * self.codes_nbytes / max(self.n_entries, 1)

    @property
    def coded_gap_bits(self) -> float:
        """Mean bits of an entry's gap in the file."""
        return 8 * self.gaps_nbytes / max(self.n_entries, 1)

    @property
    def dense_nbytes(self) -> int:
        """Of the weights as float32, which the paper compares with."""
        return 4 * self.n_weights

    @property
    def shared_nbytes(self) -> int:
        """After pruning and sharing, before Huffman coding: codes, gaps and codebook."""
        return -(-self.n_entries * (self.code_bits + self.gap_bits) // 8) + self.codebook_nbytes

    def as_row(self) -> dict[str, Any]:
        """For a table: each of the above by its name, and compressed over dense bytes."""
        return {
            "weights": self.n_weights,
            "kept": self.kept,
            "fillers": self.n_entries - self.n_kept,
            "code_bits": self.code_bits,
            "code_bits_coded": self.coded_code_bits,
            "gap_bits": self.gap_bits,
            "gap_bits_coded": self.coded_gap_bits,
            "bytes_dense": self.dense_nbytes,
            "bytes_shared": self.shared_nbytes,
            "bytes": self.nbytes,
            "share_shared": self.shared_nbytes / max(self.dense_nbytes, 1),
            "share": self.nbytes / max(self.dense_nbytes, 1),
        }


@dataclass(frozen=True, eq=False)
class CodedLayer:
    """A pruned layer with shared weights. A convolution's acts as a matrix (shape[0], all else).

    Attributes
    ----------
    sparse : SparseCodes
        Its entries, ready for products.
    shape : tuple of int
        Of the weight.
    """

    sparse: SparseCodes
    shape: tuple[int, ...]

    def linear(self, x: Any, *, out: Any = None, n_threads: int | None = None) -> Array:
        """``x @ W.T`` in float32, straight from the codes: (in,) or (batch, in) → (…, out)."""
        return sparse_codebook_matmul(x, self.sparse, out=out, n_threads=n_threads)

    def to_dense(self) -> Array:
        """The weight with its zeros, in its shape, in float32."""
        return self.sparse.to_dense().reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Of `to_bytes`."""
        return len(self.to_bytes())

    @cached_property
    def sizes(self) -> LayerSizes:
        """What each part of it takes."""
        sparse = self.sparse
        (_, codes), (_, gaps) = self._streams
        values = sparse.codebook.astype(np.float32)[sparse.codes]
        return LayerSizes(
            n_weights=math.prod(self.shape),
            n_kept=int(np.count_nonzero(values)),
            n_entries=sparse.codes.size,
            code_bits=sparse.n_bits,
            gap_bits=sparse.gap_bits,
            codes_nbytes=codes.size,
            gaps_nbytes=gaps.size,
            codebook_nbytes=sparse.codebook.nbytes,
            nbytes=self.nbytes,
        )

    def to_bytes(self) -> bytes:
        """As it is stored. The same bytes for any number of threads.

        The bytes of a layer (all numbers little-endian, sizes as LEB128):

            1 byte    bits 0-1 dtype of the codebook, bit 2 codes are Huffman-coded, bit 3 gaps are
            1 byte    bits of a gap
            sizes     number of dimensions, each of them, values in the codebook, entries
            …         the codebook
            sizes, …  bytes of the codes, the codes; bytes of the gaps, the gaps

        What is not Huffman-coded is packed from the lowest bit of a byte up, in 1, 2, 3, 4, 5, 6,
        8 or 16 bits a symbol: the least that are enough.
        """
        sparse = self.sparse
        (codes_coded, codes), (gaps_coded, gaps) = self._streams
        code = code_of(sparse.codebook, "codebook")
        flags = CODEBOOK_DTYPES.index(code) | codes_coded << 2 | gaps_coded << 3
        numbers = (len(self.shape), *self.shape, sparse.codebook.size, sparse.codes.size)
        table = raw(sparse.codebook, code).tobytes()
        parts = [bytes([flags, sparse.gap_bits]), *map(leb128, numbers), table]
        for stream in (codes, gaps):
            parts += [leb128(stream.size), stream.tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: Any) -> CodedLayer:
        """The inverse of `to_bytes`: equal arrays.

        Raises
        ------
        CorruptDataError
            Where the bytes are no layer's.
        """
        reader = Reader(data)
        layer = cls.read(reader)
        reader.end()
        return layer

    @classmethod
    def read(cls, reader: Reader) -> CodedLayer:
        flags, gap_bits = reader.take(2).tolist()
        if flags >> 4 or flags & 3 >= len(CODEBOOK_DTYPES) or not 1 <= gap_bits <= 16:
            raise CorruptDataError(
                f"a layer must begin with its flags and the bits of a gap, got {flags} and "
                f"{gap_bits}"
            )
        shape = reader.shape()
        n_values, n_entries = reader.size(), reader.size()
        if not shape or not 1 <= n_values <= 256 or n_entries > math.prod(shape):
            raise CorruptDataError(
                f"a layer must have a shape, 1 to 256 values and no more entries than weights, "
                f"got {shape}, {n_values} and {n_entries}"
            )
        dtype = dtype_of(CODEBOOK_DTYPES[flags & 3])
        codebook = reader.take(n_values * dtype.itemsize).copy().view(dtype)
        code_bits = max((n_values - 1).bit_length(), 1)
        codes = _unpacked(reader.sized(), bool(flags & 4), n_entries, code_bits)
        gaps = _unpacked(reader.sized(), bool(flags & 8), n_entries, gap_bits)
        matrix = shape[0], math.prod(shape[1:])
        try:
            return cls(SparseCodes(codes, gaps, gap_bits, codebook, matrix), shape)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"a layer of shape {shape}: {error}") from error

    @cached_property
    def _streams(self) -> tuple[tuple[bool, Array], tuple[bool, Array]]:
        sparse = self.sparse
        return packed(sparse.codes, sparse.n_bits), packed(sparse.gaps, sparse.gap_bits)


# --- streams of symbols


def packed(symbols: Array, n_bits: int) -> tuple[bool, Array]:
    """Whether they are Huffman-coded, and the bytes: whichever takes less."""
    coded = huffman_encode(symbols)
    width = _width(n_bits)
    if coded.size < -(-symbols.size * width // 8):
        return True, coded
    if width > 8:
        return False, symbols.astype("<u2").view(np.uint8)
    return False, PackedCodes.pack(symbols[np.newaxis], width).data[0]


def _unpacked(data: Array, coded: bool, n: int, n_bits: int) -> Array:
    width = _width(n_bits)
    if coded:
        symbols = huffman_decode(data)
    elif data.size != -(-n * width // 8):
        raise CorruptDataError(
            f"{n} symbols of {width} bits must have their bytes, got {data.size}"
        )
    elif width > 8:
        symbols = data.copy().view("<u2").astype(np.uint16)
    else:
        symbols = PackedCodes(data[np.newaxis], width, (1, n)).unpack()[0]
    if symbols.size != n:
        raise CorruptDataError(f"a stream must have {n} symbols, got {symbols.size}")
    return symbols


def _width(n_bits: int) -> int:
    """The width that symbols are packed in."""
    return next((width for width in WIDTHS if width >= n_bits), 16)

"""Stored streams of small numbers: Huffman-coded if that takes fewer bytes, else packed."""

from __future__ import annotations

import numpy as np

from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.huffman import huffman_decode, huffman_encode
from ...kernels.packing import PackedCodes

# The widths of packed numbers in files. They must never change: a reader computes from them the
# number of bytes that marks a stream as packed.
STREAM_WIDTHS = (1, 2, 3, 4, 5, 6, 8, 16)


def encoded_stream(numbers: Array, n_bits: int, n_threads: int | None = None) -> Array:
    """Return the bytes of a stream: Huffman-coded if that takes fewer bytes than packing.

    Parameters
    ----------
    numbers : uint8 or uint16 array of shape (n,)
    n_bits : int
        A number of bits, 1 to 16, that is enough for every number.
    """
    coded = huffman_encode(numbers, n_threads=n_threads)
    if coded.size < packed_nbytes(numbers.size, n_bits):
        return coded
    width = stream_width(n_bits)
    if width > 8:
        return numbers.astype("<u2").view(np.uint8)
    packed: Array = PackedCodes.pack(numbers[np.newaxis], width, n_threads=n_threads).data[0]
    return packed


def decoded_stream(data: Array, n: int, n_bits: int) -> Array:
    """Return the n numbers of a stream, which is packed if it has the number of bytes of packing.

    Raises
    ------
    CorruptDataError
        If the bytes do not hold n numbers.
    """
    width = stream_width(n_bits)
    if data.size != packed_nbytes(n, n_bits):
        numbers = huffman_decode(data)
    elif width > 8:
        numbers = data.copy().view("<u2").astype(np.uint16)
    else:
        numbers = PackedCodes(data[np.newaxis], width, (1, n)).unpack()[0]
    if numbers.size != n:
        raise CorruptDataError(f"a stream must hold {n} numbers, got {numbers.size}")
    return numbers


def packed_nbytes(n: int, n_bits: int) -> int:
    """Return the number of bytes of n packed numbers."""
    return -(-n * stream_width(n_bits) // 8)


def stream_width(n_bits: int) -> int:
    """Return the width in bits at which numbers of n_bits bits are packed."""
    return next(width for width in STREAM_WIDTHS if width >= n_bits)

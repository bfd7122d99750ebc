"""Stored streams of small numbers: Huffman-coded if that takes fewer bytes, else packed."""

from __future__ import annotations

from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.huffman import huffman_decode, huffman_encode
from ...kernels.packing import pack_bits, packed_nbytes, unpack_bits

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
    if coded.size < stream_nbytes(numbers.size, n_bits):
        return coded
    return pack_bits(numbers, _width(n_bits), n_threads=n_threads)


def decoded_stream(data: Array, n: int, n_bits: int) -> Array:
    """Return the n numbers of a stream, which is packed if it has the number of bytes of packing.

    Raises
    ------
    CorruptDataError
        If the bytes do not hold n numbers.
    """
    most = stream_nbytes(n, n_bits)
    if data.size > most:  # not decoded: a byte may stand for thousands of numbers
        raise CorruptDataError(
            f"a stream of {n} numbers of {n_bits} bits must have at most {most} bytes, "
            f"got {data.size}"
        )
    if data.size == most:
        return unpack_bits(data, _width(n_bits), n)
    numbers = huffman_decode(data, max_size=n)
    if numbers.size != n:
        raise CorruptDataError(f"a stream must hold {n} numbers, got {numbers.size}")
    return numbers


def stream_nbytes(n: int, n_bits: int) -> int:
    """Return the most bytes that a stream takes: those of n packed numbers."""
    return packed_nbytes(n, _width(n_bits))


def _width(n_bits: int) -> int:
    """Return the width in bits at which numbers of n_bits bits are packed."""
    return next(width for width in STREAM_WIDTHS if width >= n_bits)

"""Coding without loss: Huffman codes, and positions as gaps. Bit packing is in packing.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._checks import Array
from ._core import kernels
from .packing import as_bytes

MAX_SIZE = 2**62


def huffman_encode(
    symbols: Any,
    *,
    max_length: int | None = None,
    block_size: int = 2**20,
    n_threads: int | None = None,
) -> Array:
    """Code symbols in as few bits as their frequencies allow, one by one or in groups.

    One canonical, length-limited Huffman code serves all symbols. Where a word for each symbol
    wastes more than 0.5 % over the entropy, the code is one of pairs (or fours) of neighbours, if
    these take less. Where no code takes less than the symbols as they are, these are stored.

    Parameters
    ----------
    symbols : array of shape (n,)
        uint8 or uint16, contiguous.
    max_length : int, optional
        The most bits that a word may have, up to 20 and enough for as many words as there are
        different symbols. Unless given, 12 for up to 1,024 words, which decode fastest, and 4 more
        than equal words would need (20 at most) for more.
    block_size : int
        Symbols in a block: a power of two from 4,096 to 4,194,304. Blocks are coded and decoded in
        parallel, each with a checksum.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    uint8 array
        What :func:`huffman_decode` reads. Beside the words it has about 12 bytes, the lengths of
        the words (2 to 4 bits each), and 24 bytes a block, 7 if the block is small.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and options out of range.

    Notes
    -----
    Linear in the number of symbols. The same bytes for any number of threads and instruction set.
    Lengths are optimal under their limit (package-merge: Larmore and Hirschberg, 1990).

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> symbols = np.array([3, 1, 3, 3, 0, 3, 3, 3] * 1000, np.uint8)
    >>> data = fastfactor.huffman_encode(symbols)
    >>> data.dtype, data.size < 1100
    (dtype('uint8'), True)
    >>> np.array_equal(fastfactor.huffman_decode(data), symbols)
    True
    """
    array = symbols if isinstance(symbols, np.ndarray) else np.asarray(symbols)
    if array.dtype not in (np.uint8, np.uint16) or not array.dtype.isnative:
        raise TypeError(
            f"symbols must have dtype uint8 or uint16 in native byte order, got {array.dtype}"
        )
    _check_flat(array, "symbols")
    limit = 0 if max_length is None else _checks.integer(max_length, "max_length", 1, 20)
    size = _checks.integer(block_size, "block_size", 2**12, 2**22)
    if size & (size - 1):
        raise ValueError(f"block_size must be a power of two, got {size}")
    return kernels.huffman_encode(array, limit, size, _checks.threads(n_threads))


def huffman_decode(data: Any, *, n_threads: int | None = None) -> Array:
    """The symbols that :func:`huffman_encode` coded.

    Any bytes may be given: those that it did not make, or that were cut, lengthened or changed
    since, are refused, whatever sizes they declare.

    Parameters
    ----------
    data : bytes, or uint8 array of shape (size,)
        What :func:`huffman_encode` returned.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    array of shape (n,)
        uint8 or uint16, as they were.

    Raises
    ------
    CorruptDataError
        Where the bytes contradict themselves or a checksum.
    TypeError, ValueError
        For anything else than contiguous bytes.

    Notes
    -----
    Linear in the number of symbols; parallel over blocks. A checksum has 32 bits, so one changed
    block in 2**32 goes unseen. No data makes more symbols than 16,384 times its bytes.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> data = fastfactor.huffman_encode(np.arange(100, dtype=np.uint16) // 30)
    >>> int(fastfactor.huffman_decode(data).sum())
    120
    >>> data[-1] ^= 1
    >>> try:
    ...     fastfactor.huffman_decode(data)
    ... except fastfactor.CorruptDataError as error:
    ...     print(error)
    data must hold blocks that their checksums fit, got another as block 0
    """
    array = as_bytes(data, "data")
    _check_flat(array, "data")
    return kernels.huffman_decode(array, _checks.threads(n_threads))


class GapCodes(NamedTuple):
    """Positions as gaps of a few bits.

    Attributes
    ----------
    gaps : array of shape (n_entries,)
        For each entry its position less that of the entry before it (−1 for the first) less one;
        uint8 up to 8 bits, else uint16. Ready for :func:`huffman_encode`.
    fillers : int64 array
        Which of the entries are fillers, rising. A filler stands for a position at which there is
        nothing: where values are stored beside the gaps, it needs the value zero.
    n_bits : int
        Bits of a gap. Every filler's has all of them set.
    size : int
        Length of the array that the positions are in.
    """

    gaps: Array
    fillers: Array
    n_bits: int
    size: int


def gap_encode(
    positions: Any,
    *,
    size: int | None = None,
    n_bits: int | None = None,
    value_bits: int = 4,
    n_threads: int | None = None,
) -> GapCodes:
    """Code the positions of what a sparse array holds as gaps of a few bits, with fillers.

    A gap of ``n_bits`` bridges 2**n_bits positions at most. Fillers, entries for positions at which
    there is nothing, cut a wider one.

    Parameters
    ----------
    positions : bool array of any shape, or integer array of shape (n,)
        A mask, whose True are the positions in C order, or the positions themselves, rising.
    size : int, optional
        Length of the array that the positions are in: to be given with positions, known from a
        mask.
    n_bits : int, optional
        Bits of a gap, 1 to 16. Unless given, the number for which entries and fillers take least:
        ``(n + fillers) * (n_bits + value_bits)`` bits; of equals the smallest.
    value_bits : int
        Bits of the value that is stored beside each gap, 0 to 64.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    GapCodes
        Gaps of all entries, and which are fillers.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and positions that do not rise or do not fit.

    Notes
    -----
    Linear in the number of entries, at most one in 2**n_bits positions a filler. The form of Han,
    Mao and Dally, "Deep Compression", 2016. The same result for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> coded = fastfactor.gap_encode(np.array([0, 3, 12]), size=20, n_bits=2)
    >>> coded.gaps, coded.fillers  # 7 is a filler, and 11 another
    (array([0, 2, 3, 3, 0], dtype=uint8), array([2, 3]))
    >>> fastfactor.gap_decode(coded.gaps, 2, 20)
    array([ 0,  3,  7, 11, 12])
    """
    array = positions if isinstance(positions, np.ndarray) else np.asarray(positions)
    if array.dtype == np.bool_:
        if size is not None and size != array.size:
            raise ValueError(f"size must be that of the mask, {array.size}, got {size}")
        length, array = array.size, np.flatnonzero(array)
    else:
        if array.dtype.kind not in "iu":
            raise TypeError(f"positions must be booleans or integers, got dtype {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"positions must have 1 dimension, got shape {array.shape}")
        if size is None:
            raise TypeError("size must be given with positions, got None")
        length = _checks.integer(size, "size", 0, MAX_SIZE)
    gaps, fillers, width = kernels.gap_encode(
        np.ascontiguousarray(array, np.int64),
        length,
        0 if n_bits is None else _checks.integer(n_bits, "n_bits", 1, 16),
        _checks.integer(value_bits, "value_bits", 0, 64),
        _checks.threads(n_threads),
    )
    return GapCodes(gaps, fillers, width, length)


def gap_decode(gaps: Any, n_bits: int, size: int, *, n_threads: int | None = None) -> Array:
    """The positions of all entries that :func:`gap_encode` coded, fillers included.

    Parameters
    ----------
    gaps : array of shape (n_entries,)
        uint8 or uint16, contiguous.
    n_bits : int
        Bits of a gap, as encoded: 1 to 8 for uint8, to 16 for uint16.
    size : int
        Length of the array that the positions are in.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    int64 array of shape (n_entries,)
        Rising, in [0, size).

    Raises
    ------
    CorruptDataError
        Where a gap needs more than n_bits, or leads out of the array.
    TypeError, ValueError
        For a wrong type or shape.

    Notes
    -----
    Linear in the number of entries, in parallel.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> fastfactor.gap_decode(np.array([2, 0, 1], np.uint8), 2, 6)
    array([2, 3, 5])
    """
    array = gaps if isinstance(gaps, np.ndarray) else np.asarray(gaps)
    if array.dtype not in (np.uint8, np.uint16) or not array.dtype.isnative:
        raise TypeError(
            f"gaps must have dtype uint8 or uint16 in native byte order, got {array.dtype}"
        )
    _check_flat(array, "gaps")
    return kernels.gap_decode(
        array,
        _checks.integer(n_bits, "n_bits", 1, 8 * array.itemsize),
        _checks.integer(size, "size", 0, MAX_SIZE),
        _checks.threads(n_threads),
    )


def _check_flat(array: Array, name: str) -> None:
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(
            f"{name} must be contiguous and aligned, "
            f"got strides {array.strides} at address {array.ctypes.data:#x}"
        )

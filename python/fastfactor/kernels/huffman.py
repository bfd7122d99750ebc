"""Huffman coding: symbols in as few bits as their frequencies allow."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .runtime import thread_count

MOST_SYMBOLS = 2**62  # more than any bytes can hold


def huffman_encode(
    symbols: Any,
    *,
    max_length: int | None = None,
    block_size: int = 2**20,
    n_threads: int | None = None,
) -> Array:
    """Code symbols in as few bits as their frequencies allow, one by one or in groups.

    All symbols share one canonical, length-limited Huffman code. If a code word for each symbol
    takes more than 0.5 % above the entropy, pairs or fours of neighbouring symbols share a word,
    provided that this takes less. If no code takes less than the symbols themselves, those are
    stored.

    Parameters
    ----------
    symbols : array of shape (n,)
        uint8 or uint16, contiguous.
    max_length : int, optional
        The most bits of a code word, up to 20; enough for all different symbols to have a word.
        The default is 12 for up to 1,024 words, which decodes fastest, and for more words 4 bits
        more than words of equal length would need (20 at most).
    block_size : int
        Symbols in a block: a power of two from 4,096 to 4,194,304. Blocks are coded and decoded in
        parallel, each with a checksum.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    uint8 array
        The input of :func:`huffman_decode`. Besides the words it takes about 12 bytes, the lengths
        of the words (2 to 4 bits each), and 24 bytes for each block, 7 if the block is small.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and for options out of range.

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
    array = as_array(symbols, "symbols")
    if array.dtype not in (np.uint8, np.uint16) or not array.dtype.isnative:
        raise TypeError(
            f"symbols must have dtype uint8 or uint16 in native byte order, got {array.dtype}"
        )
    _checks.flat(array, "symbols")
    limit = 0 if max_length is None else _checks.integer(max_length, "max_length", 1, 20)
    size = _checks.integer(block_size, "block_size", 2**12, 2**22)
    if size & (size - 1):
        raise ValueError(f"block_size must be a power of two, got {size}")
    return kernels.huffman_encode(array, limit, size, thread_count(n_threads))


def huffman_decode(
    data: Any, *, max_size: int | None = None, n_threads: int | None = None
) -> Array:
    """Return the symbols that :func:`huffman_encode` coded.

    Any bytes may be given: those that are not its output, or that were truncated, extended or
    changed since, are refused, whatever sizes they declare.

    Parameters
    ----------
    data : bytes, or uint8 array of shape (size,)
        The output of :func:`huffman_encode`.
    max_size : int, optional
        The most symbols that ``data`` may hold. More are refused before any is decoded, so that
        bytes of unknown origin cannot take more time and memory than the caller expects.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    array of shape (n,)
        uint8 or uint16, as encoded.

    Raises
    ------
    CorruptDataError
        If the bytes contradict themselves or a checksum, or hold more than ``max_size`` symbols.
    TypeError, ValueError
        For anything other than contiguous bytes.

    Notes
    -----
    Linear in the number of symbols; parallel over blocks. A checksum has 32 bits, so one changed
    block in 2**32 goes unnoticed. A byte of data decodes to 16,384 symbols at most.

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
    data must match its checksums, but block 0 does not
    """
    array = _checks.as_bytes(data, "data")
    _checks.flat(array, "data")
    most = MOST_SYMBOLS if max_size is None else _checks.integer(max_size, "max_size", 0)
    return kernels.huffman_decode(array, min(most, MOST_SYMBOLS), thread_count(n_threads))

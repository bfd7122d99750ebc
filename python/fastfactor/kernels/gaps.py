"""Positions of what a sparse array holds, as gaps of a few bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from .._records import short_repr
from .runtime import thread_count

MAX_SIZE = 2**62


class GapCodes(NamedTuple):
    """Positions as gaps of a few bits.

    Attributes
    ----------
    gaps : array of shape (n_entries,)
        For each entry its position less that of the entry before it (−1 for the first) less one;
        uint8 up to 8 bits, else uint16. Ready for :func:`huffman_encode`.
    fillers : int64 array
        Which of the entries are fillers, rising. A filler stands for a position at which there is
        nothing: where values are stored beside the gaps, it needs the value zero. With ``escape``,
        which of them are escapes, which stand for no position.
    gap_bits : int
        Bits of a gap. Every filler's, and every escape's, has all of them set.
    size : int
        Length of the array that the positions are in.
    """

    gaps: Array
    fillers: Array
    gap_bits: int
    size: int

    def __repr__(self) -> str:
        return short_repr(self, self._asdict())


def gap_encode(
    positions: Any,
    *,
    size: int | None = None,
    gap_bits: int | None = None,
    value_bits: int = 4,
    escape: bool = False,
    n_threads: int | None = None,
) -> GapCodes:
    """Code the positions of what a sparse array holds as gaps of a few bits, with fillers.

    A gap of ``gap_bits`` bridges 2**gap_bits positions at most. Fillers, entries for positions at
    which there is nothing, cut a wider one. Where no values are stored beside the gaps, ``escape``
    takes fewer entries: one whose bits are all set then stands for no position, but passes over
    2**gap_bits - 1 of them, and the gap goes on in the next entry.

    Parameters
    ----------
    positions : bool array of any shape, or integer array of shape (n,)
        A mask, whose True are the positions in C order, or the positions themselves, rising.
    size : int, optional
        Length of the array that the positions are in: to be given with positions, known from a
        mask.
    gap_bits : int, optional
        Bits of a gap, 1 to 16. Unless given, the number for which entries and fillers take least:
        ``(n + fillers) * (gap_bits + value_bits)`` bits; of equals the smallest.
    value_bits : int
        Bits of the value that is stored beside each gap, 0 to 64.
    escape : bool
        Whether the largest gap is an escape.
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
    Linear in the number of entries, at most one in 2**gap_bits positions a filler. The form of Han,
    Mao and Dally, "Deep Compression", 2016. The same result for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> coded = fastfactor.gap_encode(np.array([0, 3, 12]), size=20, gap_bits=2)
    >>> coded.gaps, coded.fillers  # 7 is a filler, and 11 another
    (array([0, 2, 3, 3, 0], dtype=uint8), array([2, 3]))
    >>> fastfactor.gap_decode(coded.gaps, 2, 20)
    array([ 0,  3,  7, 11, 12])
    >>> coded = fastfactor.gap_encode(np.array([0, 3, 12]), size=20, gap_bits=2, escape=True)
    >>> coded.gaps, fastfactor.gap_decode(coded.gaps, 2, 20, escape=True)
    (array([0, 2, 3, 3, 2], dtype=uint8), array([ 0,  3, 12]))
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
        0 if gap_bits is None else _checks.integer(gap_bits, "gap_bits", 1, 16),
        _checks.integer(value_bits, "value_bits", 0, 64),
        _checks.boolean(escape, "escape"),
        thread_count(n_threads),
    )
    return GapCodes(gaps, fillers, width, length)


def gap_decode(
    gaps: Any, gap_bits: int, size: int, *, escape: bool = False, n_threads: int | None = None
) -> Array:
    """Return the positions of all entries that :func:`gap_encode` coded, fillers included.

    Parameters
    ----------
    gaps : array of shape (n_entries,)
        uint8 or uint16, contiguous.
    gap_bits : int
        Bits of a gap, as encoded: 1 to 8 for uint8, to 16 for uint16.
    size : int
        Length of the array that the positions are in.
    escape : bool
        As encoded; escapes have no position.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    int64 array of shape (n_entries,)
        Rising, in [0, size). Without those entries that are escapes.

    Raises
    ------
    CorruptDataError
        Where a gap needs more than gap_bits, or leads out of the array.
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
    _checks.flat(array, "gaps")
    return kernels.gap_decode(
        array,
        _checks.integer(gap_bits, "gap_bits", 1, 8 * array.itemsize),
        _checks.integer(size, "size", 0, MAX_SIZE),
        _checks.boolean(escape, "escape"),
        thread_count(n_threads),
    )

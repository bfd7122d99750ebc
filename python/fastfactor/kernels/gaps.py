"""Positions of a sparse array's entries, coded as gaps of a few bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import short_repr
from .runtime import thread_count

MAX_SIZE = 2**62


class GapCodes(NamedTuple):
    """Positions coded as gaps of a few bits.

    Attributes
    ----------
    gaps : array of shape (n_entries,)
        For each entry the number of positions that it skips: its position − that of the entry
        before it (−1 for the first) − 1. uint8 up to 8 bits, else uint16; may be passed to
        :func:`huffman_encode`.
    fillers : int64 array
        Indices of the entries that are fillers, ascending. A filler has a position at which there
        is nothing, so a value stored beside it must be zero. With ``escape``, indices of the
        escapes, which have no position.
    gap_bits : int
        Bits of a gap. In the gaps of fillers and escapes all of them are set.
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
    """Code the positions of a sparse array's entries as gaps of a few bits, with fillers.

    A gap leads at most 2**gap_bits positions ahead. Wider gaps are split by fillers: entries for
    positions at which there is nothing. If no values are stored beside the gaps, ``escape`` needs
    fewer entries: one whose bits are all set then has no position, but skips 2**gap_bits - 1
    positions, and the gap continues in the next entry.

    Parameters
    ----------
    positions : bool array of any shape, or int array of shape (n,)
        A mask that is True at the positions, in C order, or the positions themselves, ascending.
    size : int, optional
        Length of the array that the positions are in. Required with positions; a mask implies it.
    gap_bits : int, optional
        Bits of a gap, 1 to 16. By default the number for which entries and fillers together take
        the fewest bits, ``(n + fillers) * (gap_bits + value_bits)``; ties go to the smallest.
    value_bits : int
        Bits of the value that is stored beside each gap, 0 to 64.
    escape : bool
        Whether an entry whose bits are all set is an escape instead of a filler.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    GapCodes
        The gaps of all entries, and which entries are fillers.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and for positions that do not ascend or are out of range.

    Notes
    -----
    Linear in the number of entries, with at most one filler for every 2**gap_bits positions. The
    form of Han, Mao and Dally, "Deep Compression", 2016. The same result for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> coded = fastfactor.gap_encode(np.array([0, 3, 12]), size=20, gap_bits=2)
    >>> coded.gaps, coded.fillers  # the fillers are at positions 7 and 11
    (array([0, 2, 3, 3, 0], dtype=uint8), array([2, 3]))
    >>> fastfactor.gap_decode(coded.gaps, 2, 20)
    array([ 0,  3,  7, 11, 12])
    >>> coded = fastfactor.gap_encode(np.array([0, 3, 12]), size=20, gap_bits=2, escape=True)
    >>> coded.gaps, fastfactor.gap_decode(coded.gaps, 2, 20, escape=True)
    (array([0, 2, 3, 3, 2], dtype=uint8), array([ 0,  3, 12]))
    """
    array = as_array(positions, "positions")
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
        _checks.as_int64(array, "positions", length),
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
        Whether the gaps were encoded with escapes.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    int64 array of shape (n_entries,)
        Ascending, in [0, size); escapes have no position.

    Raises
    ------
    CorruptDataError
        If a gap needs more than gap_bits, or leads out of the array.
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
    array = as_array(gaps, "gaps")
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

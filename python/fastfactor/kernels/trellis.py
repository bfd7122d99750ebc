"""Trellis-coded levels: chosen by the Viterbi algorithm, coded by asymmetric numeral systems.

A level is an integer on the grid of one of two quantizers; which one follows from the parities of
the levels before it in its row. Its context, twice its class plus the quantizer, selects the
frequencies that it is coded with. The class of weight (i, j) is
``clip((columns[j] + row_logs[i]) >> shift, 0, classes - 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import ArrayRecord, short_repr
from .runtime import thread_count

MAX_LEVEL = (1 << 16) - 1  # magnitude of a level
DIRECT = 16  # magnitudes with their own bucket; larger ones: eight buckets an octave and plain bits
N_BUCKETS = DIRECT + 8 * 12
N_SYMBOLS = 2 * N_BUCKETS - 1  # buckets with a sign: 0, +1, −1, +2, …
N_CENTERS = 3  # magnitudes 1, 2, and more
TOTAL_BITS = 14  # the frequencies of a context sum to 2**TOTAL_BITS
MAX_CLASSES = 128
MAX_WEIGHT = 1e20  # this and MAX_COST keep a row's costs in the range of float32
MAX_COST = 1e10


@dataclass(frozen=True, eq=False, repr=False)
class Classes(ArrayRecord):
    """The classes of weights, which follow from the scales of their columns and rows.

    Attributes
    ----------
    columns : int8 array of shape (n_columns,)
        4 log₂ of the scale of each column.
    shift : int
        By how many bits the sum of a column's and a row's entry is shifted right, 0 to 8.
    count : int
        Number of classes, 1 to 128. With one class the scales of rows are not stored.
    """

    columns: Array
    shift: int
    count: int

    def __post_init__(self) -> None:
        if self.columns.dtype != np.int8 or self.columns.ndim != 1:
            raise TypeError(
                f"columns must be int8 of 1 dimension, got {self.columns.dtype} of "
                f"shape {self.columns.shape}"
            )
        _checks.integer(self.shift, "shift", 0, 8)
        _checks.integer(self.count, "count", 1, MAX_CLASSES)

    @property
    def contexts(self) -> int:
        """The number of contexts: two per class, and one for the scales of rows if stored."""
        return 2 * self.count + (self.count > 1)


class TrellisLevels(NamedTuple):
    """Levels with their counts and sums.

    Attributes
    ----------
    levels : int32 array of shape (n_rows, n_columns), or None
    counts : int64 array of shape (2 · classes, N_BUCKETS)
        How often each bucket of magnitudes occurs in each context.
    sums : float64 array of shape (2 · classes, N_CENTERS + 1, 3)
        For each context and magnitude (0, 1, 2, more) the sums of weight, weight · away and
        weight · away², where away = |value| − |point of the grid|.
    """

    levels: Array | None
    counts: Array
    sums: Array

    def __repr__(self) -> str:
        return short_repr(self, self._asdict())


def trellis_quantize(
    values: Any,
    step: float,
    weights: Any,
    row_logs: Any,
    classes: Classes,
    bits: Any,
    centers: Any,
    rate_weight: float,
    *,
    with_levels: bool = True,
    n_threads: int | None = None,
) -> TrellisLevels:
    """Find the levels of least Σ weights · (value − reconstruction)² + rate_weight · bits.

    Parameters
    ----------
    values : array of shape (n_rows, n_columns)
        Floats, finite.
    step : float
        Step of the grid; errors are in units of it.
    weights : array of values' shape
        Floats in [0, 1e20].
    row_logs : int array of shape (n_rows,)
        4 log₂ of the scale of each row.
    classes : Classes
    bits : array of shape (2 · classes, N_BUCKETS)
        Cost of a level's bucket in each context, in [-1e10, 1e10].
    centers : array of shape (2 · classes, N_CENTERS)
        How far a reconstruction lies from its point of the grid, outwards.
    rate_weight : float
        Cost of a bit, in [0, 1e20].
    with_levels : bool
        Whether to return the levels; if not, only their counts and sums.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    TrellisLevels

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, for values that are not finite, and for arguments out of range.

    Notes
    -----
    Each row is a separate search, in float32. A value takes about 55 cycles with AVX-512, 20 of
    them for the 64 states. The same bits for any number of threads. Ties go to the even level, then
    to the smaller one. Marcellin and Fischer, 1990.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.trellis import Classes, trellis_quantize
    >>> values = np.array([[0.2, -3.9, 2.1]], np.float32)
    >>> one = Classes(np.zeros(3, np.int8), 0, 1)
    >>> free = np.zeros((2, 112), np.float32), np.zeros((2, 3), np.float32)
    >>> trellis_quantize(values, 1.0, np.ones((1, 3), np.float32), [0], one, *free, 0.0).levels
    array([[ 0, -2,  1]], dtype=int32)
    """
    values = _checks.float_array(values, "values", ndim=(2,))
    weights = _checks.float_array(weights, "weights", ndim=(2,))
    if weights.shape != values.shape:
        raise ValueError(f"weights must have shape {values.shape}, got {weights.shape}")
    seen = weights if weights.strides[0] else weights[:1]  # a broadcast row is checked once
    if seen.size and not 0 <= seen.min() <= seen.max() <= MAX_WEIGHT:
        raise ValueError(
            f"weights must be in [0, {MAX_WEIGHT:g}], got {seen.min()} to {seen.max()}"
        )
    _check_columns(classes, values.shape[1])
    step = _checks.nonnegative(step, "step")
    if not 1e-37 <= step <= 1e38:
        raise ValueError(f"step must be in [1e-37, 1e38], got {step!r}")
    rate_weight = _checks.nonnegative(rate_weight, "rate_weight")
    if rate_weight > MAX_WEIGHT:
        raise ValueError(f"rate_weight must be in [0, {MAX_WEIGHT:g}], got {rate_weight!r}")
    bits = _table(bits, "bits", (2 * classes.count, N_BUCKETS))
    if np.abs(bits).max() > MAX_COST:
        raise ValueError(f"bits must be within ±{MAX_COST:g}, got ±{np.abs(bits).max():g}")
    found = kernels.trellis_quantize(
        values,
        step,
        weights,
        classes.columns,
        _row_logs(row_logs, len(values)),
        classes.shift,
        classes.count,
        bits,
        _table(centers, "centers", (2 * classes.count, N_CENTERS)),
        rate_weight,
        with_levels,
        thread_count(n_threads),
    )
    return TrellisLevels(*found)


def trellis_encode(
    levels: Any,
    row_logs: Any,
    classes: Classes,
    frequencies: Any,
    *,
    block_rows: int,
    n_threads: int | None = None,
) -> tuple[Array, Array]:
    """Code levels as one stream per block of rows, each of which can be decoded alone.

    Parameters
    ----------
    levels : int32 array of shape (n_rows, n_columns)
        In [-65535, 65535].
    row_logs : int array of shape (n_rows,)
        The scale of each row, coded before its levels where there are several classes.
    classes : Classes
    frequencies : uint16 array of shape (contexts, N_SYMBOLS)
        Frequency of each symbol, at a total of 2**14 in each context: twice a class plus the
        quantizer, and one for the scales of rows.
    block_rows : int
        Number of rows in a block.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    words : uint16 array
        The words of all blocks, one block after the other.
    lengths : int64 array of shape (n_blocks,)
        Number of words of each block.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and for a level of frequency zero.

    Notes
    -----
    Linear in the number of levels, in parallel over blocks. The same words for any number of
    threads and any instruction-set level. Duda, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.trellis import Classes, TrellisDecoder, trellis_encode
    >>> one, frequencies = Classes(np.zeros(3, np.int8), 0, 1), np.zeros((2, 223), np.uint16)
    >>> frequencies[:, :4] = 2**12  # the levels 0, 1, −1 and 2 are equally frequent
    >>> levels = np.array([[0, 2, -1], [1, 0, 0]], np.int32)
    >>> words, lengths = trellis_encode(levels, [0, 0], one, frequencies, block_rows=32)
    >>> centers = np.zeros((2, 3), np.float32)
    >>> decoder = TrellisDecoder(words, lengths, 2, 32, one, frequencies, centers)
    >>> decoder.rows(np.array([0, 1]))
    array([[ 0.,  4., -2.],
           [ 2.,  0.,  0.]], dtype=float32)
    """
    levels = as_array(levels, "levels")
    if levels.dtype != np.int32 or levels.ndim != 2:
        raise TypeError(f"levels must be an int32 array of 2 dimensions, got {_described(levels)}")
    _check_columns(classes, levels.shape[1])
    words, lengths = kernels.trellis_encode(
        levels,
        _row_logs(row_logs, len(levels)),
        _checks.integer(block_rows, "block_rows", 1, 2**31),
        _frequencies(frequencies, classes),
        classes.columns,
        classes.shift,
        classes.count,
        thread_count(n_threads),
    )
    return words, lengths


class TrellisDecoder:
    """A decoder for blocks of rows that :func:`trellis_encode` coded.

    Any words may be given; words that are not the code of levels are refused when they are read.

    Parameters
    ----------
    words : uint16 array
        Kept without a copy if it is contiguous.
    lengths : int array of shape (n_blocks,)
    n_rows, block_rows : int
    classes : Classes
    frequencies : uint16 array of shape (contexts, N_SYMBOLS)
    centers : array of shape (2 · classes, N_CENTERS)

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape.
    CorruptDataError
        If lengths do not add up to the words, or frequencies to 2**14.

    Notes
    -----
    Its tables take 3 KB per context. Unpickling builds them again.
    """

    def __init__(
        self,
        words: Array,
        lengths: Array,
        n_rows: int,
        block_rows: int,
        classes: Classes,
        frequencies: Array,
        centers: Array,
    ) -> None:
        self._made_of = (words, lengths, n_rows, block_rows, classes, frequencies, centers)
        words = as_array(words, "words")
        if words.dtype.name != "uint16" or words.ndim != 1:
            raise TypeError(f"words must be uint16 of 1 dimension, got {_described(words)}")
        block_rows = _checks.integer(block_rows, "block_rows", 1, 2**31)
        n_blocks = -(-_checks.integer(n_rows, "n_rows", 0) // block_rows)
        lengths = _integers(lengths, "lengths")
        if lengths.shape != (n_blocks,):
            raise ValueError(f"lengths must have shape {(n_blocks,)}, got {lengths.shape}")
        self._decoder = kernels.trellis_decoder(
            np.ascontiguousarray(words, np.uint16),
            lengths,
            n_rows,
            block_rows,
            _frequencies(frequencies, classes),
            classes.columns,
            classes.shift,
            classes.count,
            _table(centers, "centers", (2 * classes.count, N_CENTERS)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TrellisDecoder, self._made_of

    def rows(self, ids: Array, *, n_threads: int | None = None) -> Array:
        """Return the reconstructed values of rows, in units of the grid.

        Parameters
        ----------
        ids : int array of shape (n,)
            Which rows, strictly ascending.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        float32 array of shape (n, n_columns)

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, and for ids that do not ascend or name no row.
        CorruptDataError
            If a block ends before its last level, or has words left after it when read to its end.

        Notes
        -----
        In each block, rows before the last one wanted are decoded too. A thread decodes four blocks
        side by side, at about 12 cycles a level; a single block takes about 20.
        """
        ids = _integers(ids, "ids")
        if ids.ndim != 1:
            raise ValueError(f"ids must have 1 dimension, got shape {ids.shape}")
        return kernels.trellis_rows(self._decoder, ids, thread_count(n_threads))


def _check_columns(classes: Classes, n_columns: int) -> None:
    if len(classes.columns) != n_columns:
        raise ValueError(f"columns must have length {n_columns}, got {len(classes.columns)}")


def _described(given: Array) -> str:
    return f"{given.dtype} of shape {given.shape}"


def _integers(given: Any, name: str) -> Array:
    return _checks.as_int64(_checks.integers(given, name), name)


def _row_logs(row_logs: Any, n_rows: int) -> Array:
    array = as_array(row_logs, "row_logs")
    if array.size == 0:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu" or array.shape != (n_rows,):
        raise ValueError(
            f"row_logs must be {n_rows} integers, got {array.dtype} of shape {array.shape}"
        )
    if array.size and not -MAX_LEVEL <= array.min() <= array.max() <= MAX_LEVEL:
        raise ValueError(
            f"row_logs must be in [-{MAX_LEVEL}, {MAX_LEVEL}], got {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(array, np.int32)


def _frequencies(frequencies: Any, classes: Classes) -> Array:
    shape = (classes.contexts, N_SYMBOLS)
    array = as_array(frequencies, "frequencies")
    if array.dtype != np.uint16:
        raise TypeError(f"frequencies must be a uint16 array, got {_described(array)}")
    if array.shape != shape:
        raise ValueError(f"frequencies must have shape {shape}, got {array.shape}")
    return array


def _table(values: Any, name: str, shape: tuple[int, int]) -> Array:
    array = _checks.float_array(values, name, ndim=(2,))
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    _checks.finite(array, name, np.float32)
    return np.ascontiguousarray(array, np.float32)

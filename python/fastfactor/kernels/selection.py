"""Thresholds and masks: which weights pruning by magnitude keeps."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from .runtime import thread_count

Scope = str | tuple[int, int]

POOLS = ("max", "mean")


def magnitude_threshold(
    W: Any,
    sparsity: float,
    *,
    scope: Scope = "global",
    pool: str = "max",
    n_threads: int | None = None,
) -> Any:
    """The least magnitude that is kept when a share ``sparsity`` of the weights is dropped.

    Parameters
    ----------
    W : array of any shape
        float16, bfloat16, float32 or float64, at least one dimension, any strides. Two dimensions
        for rows and blocks.
    sparsity : float
        The share to drop, in [0, 1]. Of n candidates ``round(sparsity * n)`` are dropped, rounded
        as Python does: to nearest, halves to even.
    scope : {"global", "row"} or (int, int), default "global"
        Who competes: all entries; the entries of each row; or blocks of so many rows and columns,
        which are dropped whole. Blocks at the lower and right edge hold what is left there.
    pool : {"max", "mean"}, default "max"
        What a block is judged by: its largest or its mean magnitude. Used for blocks only.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    scalar, or array of shape (rows,)
        With n candidates of which k are dropped, the k + 1-th smallest magnitude, exactly: a scalar
        of W's dtype, one a row for ``"row"``, and for blocks a float64, of their scores. Infinity
        where nothing is kept. ``abs(W) >= threshold`` keeps all that :func:`prune_mask` keeps, and
        what else is equal to the threshold.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a sparsity outside [0, 1], NaN and infinity in W.

    Notes
    -----
    O(n). Magnitudes are compared as integers, their bits without the sign, so nothing is rounded;
    −0 is equal to 0. From 2¹⁸ candidates on, a sample brackets the threshold, W is read once to
    count, and what lies in the bracket (some 1 % of 100 million; never is much more than an eighth
    set aside) is selected from; where the sample misleads, histograms of 11 bits of the magnitude
    take up to 3 more readings (float64: 6). The sums behind a mean are float64, in an order of
    their own. The same bits for any number of threads and any instruction-set level.

    The bracket is that of Floyd and Rivest, "Expected time bounds for selection", 1975.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> print(fastfactor.magnitude_threshold(W, 0.5))
    1.0
    >>> fastfactor.magnitude_threshold(W, 0.75, scope="row")
    array([3., 4.], dtype=float32)
    """
    W, groups, block, options = _checked(W, sparsity, scope, pool, n_threads)
    if block is not None:
        W = kernels.block_scores(W, *block, mean=pool == "mean", **options)
        groups = (W.size, n_dropped(sparsity, W.size))
    elif scope == "row" and 0 in W.shape:
        return np.full(W.shape[0], np.inf).astype(W.dtype)
    if W.size == 0:
        return W.dtype.type(np.inf)
    found = kernels.thresholds(W, *groups, **options).astype(W.dtype)
    return found if scope == "row" else found[0]


def prune_mask(
    W: Any,
    sparsity: float,
    *,
    scope: Scope = "global",
    pool: str = "max",
    n_threads: int | None = None,
) -> Array:
    """Which weights stay when those of least magnitude are dropped: an exact share of them.

    Parameters
    ----------
    W : array of any shape
        As for :func:`magnitude_threshold`.
    sparsity : float
        The share to drop, in [0, 1]: ``round(sparsity * n)`` of the n entries, of the n entries of
        each row, or of the n blocks.
    scope : {"global", "row"} or (int, int), default "global"
        Who competes: all entries, the entries of each row, or whole blocks of (rows, columns).
    pool : {"max", "mean"}, default "max"
        What a block is judged by: its largest or its mean magnitude.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        In C order, True for what is kept. Of equal magnitudes (or scores) those of lower index in C
        order stay, so that the count is exact.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a sparsity outside [0, 1], NaN and infinity in W.

    Notes
    -----
    The selection of :func:`magnitude_threshold` and one reading of W to write the mask; one more
    where some of those equal to the threshold stay and some do not. W is never copied whole. The
    same bits for any number of threads and any instruction-set level.

    Source: pruning by magnitude is that of Han, Pool, Tran and Dally, "Learning both weights and
    connections for efficient neural networks", 2015.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> np.where(fastfactor.prune_mask(W, 0.5), W, 0)
    array([[ 0., -3.,  0.,  2.],
           [ 4.,  0.,  0.,  1.]], dtype=float32)
    >>> fastfactor.prune_mask(W, 0.5, scope=(1, 2), pool="mean").astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0]])
    """
    W, groups, block, options = _checked(W, sparsity, scope, pool, n_threads)
    if W.size == 0:
        return np.zeros(W.shape, np.bool_)
    if block is None:
        return kernels.prune_mask(W, *groups, **options)
    scores = kernels.block_scores(W, *block, mean=pool == "mean", **options)
    dropped = n_dropped(sparsity, scores.size)
    kept = kernels.prune_mask(scores, scores.size, dropped, **options)
    return kernels.expand_blocks(kept, W.shape[0], W.shape[1], *block, **options)


def nm_sparsity_mask(W: Any, n: int, m: int, *, n_threads: int | None = None) -> Array:
    """Keep the ``n`` largest magnitudes of every ``m`` consecutive entries of a row.

    Parameters
    ----------
    W : array of any shape
        float16, bfloat16, float32 or float64, at least one dimension, any strides. Its last axis
        holds rows, whose length must be a multiple of ``m``.
    n : int
        How many of each group stay, in [0, m].
    m : int
        How many entries a group has, at least 1.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        In C order, True for what is kept: exactly ``n`` a group, of equal magnitudes the first.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, ``n`` or ``m`` out of range, NaN and infinity in W.

    Notes
    -----
    One reading of W. Groups of 2, 4, 8 and 16 that fit a vector are ranked a vector at a time,
    m − 1 comparisons an entry; others are selected from one by one. The same bits for any number of
    threads and any instruction-set level.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021, for 2:4.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> W = np.array([1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0])
    >>> fastfactor.nm_sparsity_mask(W, 2, 4).astype(int)
    array([0, 1, 1, 0, 1, 1, 0, 0])
    """
    W = _weights(W, None)
    m = _checks.integer(m, "m", 1)
    n = _checks.integer(n, "n", 0, m)
    if W.shape[-1] % m:
        raise ValueError(f"W must have rows whose length is a multiple of {m}, got shape {W.shape}")
    threads = thread_count(n_threads)
    if W.size == 0:
        return np.zeros(W.shape, np.bool_)
    return kernels.prune_mask(W, length=m, n_dropped=m - n, n_threads=threads)


def _checked(
    W: Any, sparsity: Any, scope: Any, pool: Any, n_threads: int | None
) -> tuple[Array, tuple[int, int], tuple[int, int] | None, dict[str, int]]:
    """W; length of its groups and count to drop of each; the block, if any; the other options."""
    block = _block(scope)
    _checks.choice(pool, "pool", POOLS)
    W = _weights(W, None if scope == "global" else 2)
    length = W.shape[1] if scope == "row" else W.size
    groups = (length, n_dropped(sparsity, length))
    return W, groups, block, {"n_threads": thread_count(n_threads)}


def _weights(value: Any, ndim: int | None) -> Array:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    array = _checks.float_array(array, "W", ndim=(array.ndim if ndim is None else ndim,))
    if array.ndim == 0:
        raise ValueError("W must have at least one dimension, got shape ()")
    return array


def n_dropped(sparsity: Any, n: int) -> int:
    """How many of n go for a share, rounded as `magnitude_threshold` says."""
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool | np.bool_):
        raise TypeError(f"sparsity must be a number in [0, 1], got {sparsity!r}")
    share = float(sparsity)
    if not 0 <= share <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity!r}")
    return round(share * n)


def _block(scope: Any) -> tuple[int, int] | None:
    if isinstance(scope, str):
        if scope in ("global", "row"):
            return None
        raise ValueError(f"scope must be 'global', 'row' or a pair of integers, got {scope!r}")
    if not isinstance(scope, tuple | list) or len(scope) != 2:
        raise TypeError(f"scope must be 'global', 'row' or a pair of integers, got {scope!r}")
    return _checks.integer(scope[0], "scope[0]", 1), _checks.integer(scope[1], "scope[1]", 1)

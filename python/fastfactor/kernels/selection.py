"""Pruning by magnitude: thresholds, and masks of the weights that it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from .runtime import thread_count

SCOPES = ("global", "row")
POOLS = ("square", "max", "mean")


def magnitude_threshold(
    W: Any,
    sparsity: float,
    *,
    scope: str = "global",
    block_shape: tuple[int, int] | None = None,
    pool: str = "square",
    n_threads: int | None = None,
) -> Any:
    """Return the least magnitude that is kept when a share ``sparsity`` of the weights is dropped.

    Parameters
    ----------
    W : array of any shape
        float16, bfloat16, float32 or float64, at least one dimension, any strides. Rows and blocks
        need two dimensions.
    sparsity : float
        The share to drop, in [0, 1]. Of n candidates ``round(sparsity * n)`` are dropped, rounded
        as Python does: to nearest, halves to even.
    scope : {"global", "row"}
        Which entries compete: all of them, or those of each row.
    block_shape : (int, int), optional
        Rows and columns of blocks that are kept or dropped whole and compete instead of entries;
        only with ``scope="global"``. Blocks at the lower and right edge may be smaller.
    pool : {"square", "max", "mean"}
        The score of a block: its mean square, which gives the least error, or its largest or its
        mean magnitude. Only used for blocks.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    scalar, or array of shape (rows,)
        If k of n candidates are dropped, the k + 1-th smallest magnitude, exactly: a scalar of W's
        dtype, or one for each row for ``"row"``. For blocks a float64: their largest or mean
        magnitude or, for ``"square"``, the root of their mean square. Infinity if nothing is kept.
        ``abs(W) >= threshold`` keeps all that :func:`prune_mask` keeps, and any other entries that
        are equal to the threshold.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a sparsity outside [0, 1], NaN and infinity in W.

    Notes
    -----
    O(n). Magnitudes are compared as integers, their bits without the sign, so nothing is rounded
    and −0 is equal to 0. From 2¹⁸ candidates on, a sample brackets the threshold, and one pass over
    W counts candidates and sets aside those in the bracket, from which the threshold is selected:
    about 1 % of 100 million, and never much more than an eighth. If the sample misleads, histograms
    of 11 bits of the magnitude take up to 3 more passes (float64: 6). The sums behind a mean are
    float64, in a fixed order. ``pool="square"`` squares a copy of W. The same bits for any number
    of threads and any instruction-set level.

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
    block = checked_block(scope, block_shape, pool)
    W, groups, options = _checked(W, sparsity, scope, block, n_threads)
    if block is not None:
        scores, exponent = _block_scores(W, block, pool, options)
        if scores.size == 0:
            return np.inf
        found = kernels.thresholds(
            scores, scores.size, n_dropped(sparsity, scores.size), **options
        )[0]
        return np.ldexp(np.sqrt(found), exponent) if pool == "square" else found
    if scope == "row" and 0 in W.shape:
        return np.full(W.shape[0], np.inf).astype(W.dtype)
    if W.size == 0:
        return W.dtype.type(np.inf)
    found = kernels.thresholds(W, *groups, **options).astype(W.dtype)
    return found if scope == "row" else found[0]


def prune_mask(
    W: Any,
    sparsity: float,
    *,
    scope: str = "global",
    block_shape: tuple[int, int] | None = None,
    pool: str = "square",
    n_threads: int | None = None,
) -> Array:
    """Return which weights stay when an exact share of them, of least magnitude, is dropped.

    Parameters
    ----------
    W : array of any shape
        As for :func:`magnitude_threshold`.
    sparsity : float
        The share to drop, in [0, 1]: ``round(sparsity * n)`` of the n entries, of the n entries of
        each row, or of the n blocks.
    scope, block_shape, pool : optional
        As for :func:`magnitude_threshold`.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        In C order, True for what is kept. Among equal magnitudes (or scores) those of lower index
        in C order stay, so that the count is exact.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, a sparsity outside [0, 1], NaN and infinity in W.

    Notes
    -----
    The selection of :func:`magnitude_threshold`, and one pass over W to write the mask; one more if
    only some of the entries equal to the threshold stay. W is copied only for ``pool="square"``,
    which squares it. The same bits for any number of threads and any instruction-set level.

    Source: pruning by magnitude is that of Han, Pool, Tran and Dally, "Learning both weights and
    connections for efficient neural networks", 2015.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> np.where(fastfactor.prune_mask(W, 0.5), W, 0)
    array([[ 0., -3.,  0.,  2.],
           [ 4.,  0.,  0.,  1.]], dtype=float32)
    >>> fastfactor.prune_mask(W, 0.5, block_shape=(1, 2)).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0]])
    """
    block = checked_block(scope, block_shape, pool)
    W, groups, options = _checked(W, sparsity, scope, block, n_threads)
    if W.size == 0:
        return np.zeros(W.shape, np.bool_)
    if block is None:
        return kernels.prune_mask(W, *groups, **options)
    scores, _ = _block_scores(W, block, pool, options)
    dropped = n_dropped(sparsity, scores.size)
    kept = kernels.prune_mask(scores, scores.size, dropped, **options)
    return kernels.expand_blocks(kept, W.shape[0], W.shape[1], *block, **options)


def nm_sparsity_mask(W: Any, n: int, m: int, *, n_threads: int | None = None) -> Array:
    """Keep the ``n`` largest magnitudes of every ``m`` consecutive entries of a row.

    Parameters
    ----------
    W : array of any shape
        float16, bfloat16, float32 or float64, at least one dimension, any strides. The length of
        its last axis must be a multiple of ``m``.
    n : int
        Number of entries of each group that stay, in [0, m].
    m : int
        Number of entries in a group, at least 1.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        In C order, True for what is kept: exactly ``n`` in each group, the first among equal
        magnitudes.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, ``n`` or ``m`` out of range, NaN and infinity in W.

    Notes
    -----
    One pass over W. Groups of 2, 4, 8 and 16 that fit into a vector are ranked a vector at a time,
    with m − 1 comparisons per entry; for others the selection runs group by group. The same bits
    for any number of threads and any instruction-set level.

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
    check_nm(W.shape, m)
    threads = thread_count(n_threads)
    if W.size == 0:
        return np.zeros(W.shape, np.bool_)
    return kernels.prune_mask(W, length=m, n_dropped=m - n, n_threads=threads)


def check_nm(shape: tuple[int, ...], m: int) -> None:
    """Check that the rows of an array of this shape can be cut into pieces of m."""
    if shape[-1] % m:
        raise ValueError(f"W must have rows whose length is a multiple of {m}, got shape {shape}")


def checked_block(scope: Any, block_shape: Any, pool: Any) -> tuple[int, int] | None:
    """Check the options of what competes, and return the shape of blocks, if any."""
    _checks.choice(scope, "scope", SCOPES)
    _checks.choice(pool, "pool", POOLS)
    if block_shape is None:
        return None
    block = integer_pair(block_shape, "block_shape")
    if scope != "global":
        raise ValueError(f"scope must be 'global' where block_shape is given, got {scope!r}")
    return block


def integer_pair(value: Any, name: str) -> tuple[int, int]:
    """Return a pair of integers of at least 1."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of integers, got {_checks.shown(value)}")
    return _checks.integer(value[0], f"{name}[0]", 1), _checks.integer(value[1], f"{name}[1]", 1)


def _checked(
    W: Any, sparsity: Any, scope: str, block: tuple[int, int] | None, n_threads: int | None
) -> tuple[Array, tuple[int, int], dict[str, int]]:
    """Return W, the length of its groups with how many to drop of each, and other options."""
    W = _weights(W, None if scope == "global" and block is None else 2)
    length = W.shape[1] if scope == "row" else W.size
    groups = (length, n_dropped(sparsity, length))
    return W, groups, {"n_threads": thread_count(n_threads)}


def _block_scores(
    W: Array, block: tuple[int, int], pool: str, options: dict[str, int]
) -> tuple[Array, int]:
    """Return the score of each block and the exponent of the power of two that W is divided by."""
    if pool != "square":
        return kernels.block_scores(W, *block, mean=pool == "mean", **options), 0
    _checks.finite(W, "W")
    wide = W.astype(_checks.result_dtype(W), copy=False)
    # Dividing by a power of two near the largest magnitude keeps squares in range, and equal
    # magnitudes equal.
    exponent = int(np.frexp(max(wide.max(initial=0), -wide.min(initial=0)))[1])
    squares = np.square(np.ldexp(wide, -exponent))
    return kernels.block_scores(squares, *block, mean=True, **options), exponent


def _weights(value: Any, ndim: int | None) -> Array:
    array = _checks.float_array(value, "W", ndim=None if ndim is None else (ndim,))
    if array.ndim == 0:
        raise ValueError("W must have at least one dimension, got shape ()")
    return array


def n_dropped(sparsity: Any, n: int) -> int:
    """Return how many of n are dropped for a share, rounded as `magnitude_threshold` says."""
    return round(_checks.fraction(sparsity, "sparsity", zero=True) * n)

"""Optimal clustering of scalars, for one vector or for every row of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .clustering import MAX_CLUSTERS, KMeansResult
from .runtime import thread_count

INITS = ("linear", "density")
CENTROID_DTYPES = ("float16", "bfloat16", "int8")


def kmeans1d(
    x: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    method: str = "exact",
    init: Any = "linear",
    fixed: Any = None,
    centroid_dtype: str | None = None,
    n_threads: int | None = None,
) -> KMeansResult:
    """Cluster scalars by k-means: find the optimum, or run Lloyd's iterations on sorted values.

    Parameters
    ----------
    x : array of shape (n,) or (groups, n)
        float16, bfloat16, float32 or float64, any strides. With two dimensions every row is a
        separate problem: a codebook for every channel of a layer in one call.
    n_clusters : int
        May exceed the number of distinct values: surplus centroids repeat the largest.
    sample_weight : array of shape (n,) or (groups, n), optional
        Zero or more, not all zero.
    method : {"exact", "lloyd"}
        ``"exact"``: no other centroids have less inertia. ``"lloyd"``: assign values and compute
        means in turn, until no value changes its cluster, at most 1000 times; a centroid that is
        nearest to no value stays where it is.
    init : {"linear", "density"} or array
        Where ``"lloyd"`` starts: evenly spaced from the least to the largest value, at evenly
        spaced quantiles, or at given values of shape (n_free,) or (groups, n_free), where n_free is
        n_clusters less the number of fixed centroids.
    fixed : array of shape (n_fixed,) or (groups, n_fixed), optional
        At most n_clusters centroids that stay where they are (zero, for pruned weights). The others
        are optimal, or found by Lloyd's iterations, given these.
    centroid_dtype : {"float16", "bfloat16", "int8"}, optional
        The values that centroids may have. They are chosen among these values, not rounded to them:
        ``"exact"`` is then the optimum over all centroids of that type. ``"int8"`` means ``scale``
        times the integers -127 to 127, where ``scale`` is the largest magnitude in x (for groups:
        in the row) over 127.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    KMeansResult
        ``centroids`` of shape (n_clusters, 1), ascending, including the fixed ones. Their dtype is
        ``centroid_dtype`` if that is float16 or bfloat16, else float64 if x is float64, else
        float32. ``labels`` of shape (n,): the nearest centroid; ties go to the lowest index.
        ``inertia`` for these centroids and labels. ``n_iter``: Lloyd's iterations, or the passes of
        the exact search over all values. All have a leading axis of groups if x has one.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, and for NaN or infinity in x or another array.

    Notes
    -----
    Values are sorted once; 16-bit floats, of which only 65,536 differ, are counted instead from
    32,768 values on. The exact search looks for a charge per cluster under which the cheapest
    partition has n_clusters clusters. One to four charges are usually tried; a trial takes at most
    O(n log n) operations, and memory is at most 64 bytes per value, whatever the number of
    clusters. An iteration of Lloyd's takes O(n_clusters · log n). Sums are in float64, relative to
    a nearby value, so an offset of the data costs no digits. The optimum is exact up to the
    rounding of these sums; unless x is float64, centroids are rounded to float32 at the end. The
    same bits for any number of threads.

    Sources: Aggarwal, Schieber, Tokuyama (1994); Grønlund et al. (2017), arXiv:1701.07204.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> x = np.array([0.0, 0.5, 4.0, 4.5, 9.0])
    >>> result = fastfactor.kmeans1d(x, 3)
    >>> result.centroids.ravel(), result.labels, result.inertia
    (array([0.25, 4.25, 9.  ]), array([0, 0, 1, 1, 2], dtype=int32), 0.25)
    >>> fastfactor.kmeans1d(x, 3, fixed=[0]).centroids.ravel()
    array([0.  , 4.25, 9.  ])
    """
    x = _checks.float_array(x, "x", ndim=(1, 2))
    if x.shape[-1] == 0:
        raise ValueError(f"x must have at least one value, got shape {x.shape}")
    n_clusters = _checks.integer(n_clusters, "n_clusters", 1, MAX_CLUSTERS)
    dtype = _checks.result_dtype(x)
    if centroid_dtype is not None:
        _checks.choice(centroid_dtype, "centroid_dtype", CENTROID_DTYPES)
    rows = x[None] if x.ndim == 1 else x
    stay = None if fixed is None else _fixed(fixed, n_clusters, rows, dtype, centroid_dtype)
    n_free = n_clusters - (0 if stay is None else stay.shape[1])
    centroids, labels, inertia, n_iter = kernels.kmeans1d(
        rows,
        n_clusters,
        exact=_checks.choice(method, "method", ("exact", "lloyd")) == "exact",
        init=_start(init, n_free, rows, dtype),
        sample_weight=None if sample_weight is None else _weights(sample_weight, rows),
        fixed=stay,
        centroid_dtype="any" if centroid_dtype is None else centroid_dtype,
        one_vector=x.ndim == 1,
        as_double=dtype is np.float64,
        n_threads=thread_count(n_threads),
    )
    if centroid_dtype in ("float16", "bfloat16"):
        centroids = centroids.astype(_checks.dtype_named(centroid_dtype))
    if x.ndim == 1:
        return KMeansResult(centroids[0], labels[0], float(inertia[0]), int(n_iter[0]))
    return KMeansResult(centroids, labels, inertia, n_iter)


def _scalars(value: Any, name: str, rows: Array, dtype: type[np.floating[Any]]) -> Array:
    """Return finite numbers, rounded to the result's dtype, as float64, one row for each group."""
    numbers = as_array(value, name)
    if numbers.dtype.kind not in "iu" and not _checks.is_float(numbers.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {numbers.dtype}")
    if numbers.ndim not in (1, 2) or (numbers.ndim == 2 and len(numbers) != len(rows)):
        raise ValueError(
            f"{name} must have shape (m,) or ({len(rows)}, m), one row for each group, "
            f"got {numbers.shape}"
        )
    _checks.finite(numbers, name, dtype)
    wide = numbers.astype(dtype).astype(np.float64)
    return np.ascontiguousarray(np.broadcast_to(wide, (len(rows), numbers.shape[-1])))


def _fixed(
    value: Any,
    n_clusters: int,
    rows: Array,
    dtype: type[np.floating[Any]],
    centroid_dtype: str | None,
) -> Array:
    fixed = _scalars(value, "fixed", rows, dtype)
    if fixed.shape[1] > n_clusters:
        raise ValueError(
            f"fixed must hold at most n_clusters = {n_clusters} values, got {fixed.shape[1]}"
        )
    if centroid_dtype == "int8":
        scale = np.abs(rows).max(axis=1, keepdims=True).astype(dtype) / dtype(127)
        steps = np.rint(fixed / np.where(scale > 0, scale, 1)).clip(-127, 127)
        kept = steps.astype(dtype) * scale
    elif centroid_dtype is not None:
        with np.errstate(over="ignore"):
            kept = fixed.astype(_checks.dtype_named(centroid_dtype))
    else:
        return fixed
    lost = kept.astype(np.float64) != fixed
    if lost.any():
        raise ValueError(f"fixed must hold {centroid_dtype} values, got {fixed[lost][0]}")
    return fixed


def _start(init: Any, n_free: int, rows: Array, dtype: type[np.floating[Any]]) -> Any:
    if isinstance(init, str):
        return _checks.choice(init, "init", INITS)
    given = _scalars(init, "init", rows, dtype)
    if given.shape[1] != n_free:
        raise ValueError(
            f"init must hold {n_free} values, one for every free centroid, got {given.shape[1]}"
        )
    return given


def _weights(value: Any, rows: Array) -> Array:
    """Return weights in the shape that the kernel takes; the kernel checks their values."""
    weights = as_array(value, "sample_weight")
    if weights.dtype.kind in "iu":
        weights = weights.astype(np.float64)
    if not _checks.is_float(weights.dtype):
        raise TypeError(f"sample_weight must hold real numbers, got dtype {weights.dtype}")
    if weights.shape not in (rows.shape, rows.shape[1:]):
        raise ValueError(
            f"sample_weight must have shape {rows.shape} or {rows.shape[1:]}, got {weights.shape}"
        )
    return np.broadcast_to(weights, rows.shape)

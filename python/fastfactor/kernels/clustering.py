"""Clustering: k-means, one problem or many at once, free or with clusters of equal size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import short_repr
from .runtime import thread_count

MAX_CLUSTERS = 2**31 - 1
MAX_COUNT = 2**62  # of runs and iterations, which kernels count in 64 bits
RANDOM_INITS = ("k-means++", "random")
INITS = (*RANDOM_INITS, "linear", "density")


class KMeansResult(NamedTuple):
    """The result of k-means; every field has a leading axis of groups if X has one.

    Attributes
    ----------
    centroids : array of shape (n_clusters, n_features)
    labels : int32 array of shape (n_samples,)
    inertia : float
        Sum of (weighted) squared distances of the samples to their centroids.
    n_iter : int
    """

    centroids: Array
    labels: Array
    inertia: Any
    n_iter: Any

    def __repr__(self) -> str:
        return short_repr(self, self._asdict())


def kmeans(
    X: Any,
    n_clusters: int,
    *,
    init: Any = "k-means++",
    sample_weight: Any = None,
    n_init: int = 1,
    max_iter: int = 100,
    tol: float = 1e-4,
    balanced: bool = False,
    random_state: Any = 0,
    n_threads: int | None = None,
) -> KMeansResult:
    """Cluster samples by Lloyd's k-means: exact assignments, means summed in float64.

    Parameters
    ----------
    X : array of shape (n_samples, n_features) or (groups, n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides. With three dimensions every group is a
        separate problem, and groups run in parallel.
    n_clusters : int
        May exceed the number of distinct samples: centroids then coincide or stay unused.
    init : {"k-means++", "random", "linear", "density"} or array
        ``"k-means++"`` (one candidate per draw) or ``"random"`` (distinct samples). For one feature
        also ``"linear"`` (evenly spaced from the least to the largest value) or ``"density"`` (at
        evenly spaced quantiles). Or centroids of shape (n_clusters, n_features), with or without a
        leading axis of groups.
    sample_weight : array of shape (n_samples,) or (groups, n_samples), optional
        Zero or more, not all zero.
    n_init : int
        Number of runs from random starts, of which the one with the least inertia is kept. With
        any other ``init`` there is one run.
    max_iter : int
        The most iterations of a run.
    tol : float
        A run stops when the squared shift of all centroids together is at most ``tol`` times the
        mean variance of the features, as in scikit-learn, or when no label changes.
    balanced : bool
        Whether every cluster gets ⌊n/k⌋ or ⌈n/k⌉ samples. Each assignment is then the cheapest with
        these sizes, to a relative duality gap of 1e-9. Weights count in the cost, not in the size.
        The costs take n_samples · n_clusters float64 of memory.
    random_state : int, Generator, RandomState or None
        Seed of the random starts; None draws a fresh one at each call.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    KMeansResult
        Centroids are float64 if X is, else float32; labels belong to the centroids returned.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, and for NaN or infinity in X, init or sample_weight.

    Notes
    -----
    An iteration takes 2 · n_samples · n_clusters · n_features operations; distances are never
    stored. The squared distance of a sample to its centroid exceeds the least one by at most a
    64th of it, and by at most 8 ε (‖x‖ + ‖c‖)², for the ε of the computing type and centred
    coordinates: centroids too close together for these are compared by differences in float64.
    Ties go to the lowest index. k-means++ costs as much as two to three iterations. The same bits
    for any number of threads.

    Empty clusters are refilled in the order of their index. Each takes the sample farthest from its
    centroid (ties go to the lowest index) whose own cluster keeps another sample. If all such
    samples lie on their centroids, the empty cluster's centroid stays where it was.

    Sources: Lloyd (1982); Arthur, Vassilvitskii (2007) for k-means++.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> result = fastfactor.kmeans(X, 2, init="linear")
    >>> result.centroids.ravel(), result.labels, result.inertia
    (array([ 0.5, 10.5]), array([0, 0, 1, 1], dtype=int32), 1.0)
    """
    X = _checks.float_array(X, "X", ndim=(2, 3))
    if X.shape[-2] == 0 or X.shape[-1] == 0:
        raise ValueError(f"X must have at least one row and one column, got shape {X.shape}")
    n_clusters = _checks.integer(n_clusters, "n_clusters", 1, MAX_CLUSTERS)
    dtype = _checks.result_dtype(X)
    init = _initial(init, X, n_clusters, dtype)
    weights = None if sample_weight is None else _weights(sample_weight, X)
    runs = min(_checks.integer(n_init, "n_init", 1), MAX_COUNT)
    if not isinstance(balanced, bool | np.bool_):
        raise TypeError(f"balanced must be True or False, got {_checks.shown(balanced)}")
    centroids, labels, inertia, n_iter = kernels.kmeans(
        X,
        n_clusters,
        init=init,
        sample_weight=weights,
        n_init=runs if isinstance(init, str) and init in RANDOM_INITS else 1,
        max_iter=min(_checks.integer(max_iter, "max_iter", 1), MAX_COUNT),
        tol=_checks.nonnegative(tol, "tol"),
        balanced=bool(balanced),
        seed=_checks.seed(random_state),
        as_double=dtype is np.float64,
        n_threads=thread_count(n_threads),
    )
    if X.ndim == 2:
        return KMeansResult(centroids[0], labels[0], float(inertia[0]), int(n_iter[0]))
    return KMeansResult(centroids, labels, inertia, n_iter)


def assign(X: Any, centroids: Any, *, n_threads: int | None = None) -> tuple[Array, Array]:
    """Return the nearest centroid of every sample and the squared distance to it.

    Parameters
    ----------
    X : array of shape (n_samples, n_features) or (groups, n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides.
    centroids : array of shape (n_clusters, n_features) or (groups, n_clusters, n_features)
        One set for all groups, or one for each.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    labels : int32 array of shape (n_samples,) or (groups, n_samples)
        As exact as in :func:`kmeans`; ties go to the lowest index.
    distances : array of the same shape
        Squared; float64 if X or the centroids are, else float32.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and for NaN or infinity in an operand.

    Notes
    -----
    2 · n_samples · n_clusters · n_features operations, in one column a binary search among many
    centroids; the same bits for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> labels, distances = fastfactor.assign(np.array([[0.0], [4.0]]), np.array([[1.0], [5.0]]))
    >>> labels, distances
    (array([0, 1], dtype=int32), array([1., 1.]))
    """
    X = _checks.float_array(X, "X", ndim=(2, 3))
    if X.shape[-1] == 0:
        raise ValueError(f"X must have at least one column, got shape {X.shape}")
    centroids = _centroids(centroids, "centroids", X)
    dtype = _checks.result_dtype(X, centroids)
    _checks.finite(centroids, "centroids", dtype)
    if centroids.shape[-2] == 0:
        raise ValueError(f"centroids must have at least one row, got shape {centroids.shape}")
    labels, distances = kernels.assign(
        X,
        centroids,
        as_double=dtype is np.float64,
        n_threads=thread_count(n_threads),
    )
    return (labels[0], distances[0]) if X.ndim == 2 else (labels, distances)


def _initial(init: Any, X: Array, n_clusters: int, dtype: type[np.floating[Any]]) -> Any:
    if isinstance(init, str):
        _checks.choice(init, "init", INITS)
        if init in ("linear", "density") and X.shape[-1] != 1:
            raise ValueError(f"X must have one column for init={init!r}, got shape {X.shape}")
        return init
    centroids = _centroids(init, "init", X)
    if centroids.shape[-2] != n_clusters:
        raise ValueError(f"init must have n_clusters = {n_clusters} rows, got {centroids.shape}")
    _checks.finite(centroids, "init", dtype)
    return centroids


def _centroids(value: Any, name: str, X: Array) -> Array:
    """Return centroids after checking that they have X's features and, if any, X's groups."""
    centroids = _checks.float_array(value, name, ndim=(2, X.ndim) if X.ndim == 3 else (2,))
    groups_fit = centroids.ndim == 2 or centroids.shape[0] == X.shape[0]
    if centroids.shape[-1] != X.shape[-1] or not groups_fit:
        raise ValueError(
            f"{name} must have the columns and groups of X, {X.shape}, got shape {centroids.shape}"
        )
    return centroids


def _weights(value: Any, X: Array) -> Array:
    weights = as_array(value, "sample_weight")
    if weights.dtype.kind not in "fiu":
        raise TypeError(f"sample_weight must hold real numbers, got dtype {weights.dtype}")
    if weights.shape not in (X.shape[:-1], X.shape[-2:-1]):
        raise ValueError(f"sample_weight must have shape {X.shape[:-1]}, got {weights.shape}")
    weights = np.broadcast_to(np.asarray(weights, np.float64), X.shape[:-1])
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            f"sample_weight must be finite and zero or more, got values in "
            f"[{weights.min()}, {weights.max()}]"
        )
    with np.errstate(over="ignore"):
        total = weights.sum(axis=-1)
    if not ((total > 0) & np.isfinite(total)).all():
        raise ValueError(
            f"sample_weight must have a finite sum greater than zero, got {total.min()}"
        )
    return np.ascontiguousarray(weights)

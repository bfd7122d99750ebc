"""Balanced assignment: the cheapest one that gives every cluster the same number of points."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import short_repr
from .runtime import thread_count


class BalancedAssignment(NamedTuple):
    """The result of :func:`_balanced_assign`."""

    labels: Array
    cost: float
    prices: Array
    gap: float

    def __repr__(self) -> str:
        return short_repr(self, self._asdict())


def _balanced_assign(
    X: Any,
    centroids: Any,
    *,
    sample_weight: Any = None,
    prices: Any = None,
    n_threads: int | None = None,
) -> BalancedAssignment:
    """Assign rows of ``X`` to centroids, floor(n/K) or ceil(n/K) to each, at the least cost.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides.
    centroids : array of shape (n_clusters, n_features)
        Any of these dtypes. There may be more centroids than samples; then each gets one at most.
    sample_weight : array of shape (n_samples,), optional
        Finite and not negative. A weight counts in the cost, not in the size of a cluster.
    prices : array of shape (n_clusters,), optional
        Prices that an assignment to similar centroids returned. They save time; the cost is the
        same without them.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    BalancedAssignment
        ``labels`` (int32); ``cost``, the weighted sum of squared distances, computed in float64;
        ``prices``, one for each cluster, the lowest zero: each sample is in the cluster for which
        its cost plus the price is least; ``gap``, how far ``cost`` may exceed the optimum, relative
        to it: at most 1e-9, from rounding.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, NaN or infinity, and negative weights.
    MemoryError
        If the costs, 8 · n_samples · n_clusters bytes, cannot be allocated.

    Notes
    -----
    O(n_samples · n_clusters · n_features) for the costs, a few passes over them for the prices, and
    O(n_clusters²) for each sample that the prices leave in an overfull cluster: about n_clusters of
    them if the samples are drawn from a density, at most n_samples. The same bits for any number of
    threads. If several assignments are cheapest, the choice among them may depend on ``prices``.

    Sources: Newton's method on the dual as for semi-discrete transport (Kitagawa, Mérigot, Thibert
    2019), then successive shortest paths (Edmonds, Karp 1972).

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.balancing import _balanced_assign
    >>> X = np.array([[0.0], [1.0], [2.0], [9.0]])
    >>> _balanced_assign(X, np.array([[1.0], [9.0]])).labels
    array([0, 0, 1, 1], dtype=int32)
    """
    X = _checks.float_array(X, "X", ndim=(2,))
    centroids = _checks.float_array(centroids, "centroids", ndim=(2,))
    if centroids.shape[0] < 1 or centroids.shape[1] != X.shape[1]:
        raise ValueError(
            f"centroids must have at least one row and {X.shape[1]} columns, as many as X, "
            f"got shape {centroids.shape}"
        )
    labels, cost, paid, gap = kernels.balanced_assign(
        X,
        centroids,
        weights=_vector(sample_weight, "sample_weight", X.shape[0]),
        prices=_vector(prices, "prices", centroids.shape[0]),
        n_threads=thread_count(n_threads),
    )
    return BalancedAssignment(labels, cost, paid, gap)


def _vector(value: Any, name: str, length: int) -> Array | None:
    if value is None:
        return None
    given = as_array(value, name)
    if given.dtype.kind not in "iu" and not _checks.is_float(given.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    vector = np.ascontiguousarray(given, dtype=np.float64)
    if vector.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {vector.shape}")
    return vector

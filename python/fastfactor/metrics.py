"""Squared norms: the error of an approximation is ‖W − Ŵ‖² / ‖W‖² in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import _checks
from ._checks import Array
from ._records import ArrayRecord

ROWS_AT_ONCE = 256
FAR_EXPONENT = 256
# How far below zero rounding may move an eigenvalue, relative to the largest.
MOST_NEGATIVE = 1e-4
MOST_NEGATIVE_16_BITS = 1e-2  # where entries were rounded to float16 or bfloat16


class Metric(Protocol):
    """A squared norm of matrices, given a few of their rows at a time."""

    def squares(self, rows: Array, first: int) -> float:
        """Return what float64 rows add to ‖·‖²; they are rows ``first``, ``first + 1``, …."""


@dataclass(frozen=True)
class Frobenius:
    """The sum of squares."""

    def squares(self, rows: Array, first: int) -> float:
        return float(np.einsum("ij,ij->", rows, rows))


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(ArrayRecord):
    """The sum of ``importance[i, j] · E[i, j]²``.

    Importances are squared gradients, for example, or the diagonal of the Fisher information. The
    square root of this sum is the Mahalanobis distance of Denton, Zaremba, Bruna, LeCun and Fergus,
    2014.
    """

    importance: Array

    def squares(self, rows: Array, first: int) -> float:
        weights = self.importance[first : first + len(rows)]
        return float(np.einsum("ij,ij,ij->", weights, rows, rows, dtype=np.float64))


@dataclass(frozen=True, eq=False, repr=False)
class Covariance(ArrayRecord):
    """trace(E Σ Eᵀ), the mean squared change of outputs; Σ is the mean of x xᵀ over inputs."""

    input_covariance: Array

    def squares(self, rows: Array, first: int) -> float:
        covariance = self.input_covariance.astype(np.float64, copy=False)
        return float(np.einsum("ij,ij->", rows @ covariance, rows))


def relative_error(W: Array, rows_of: Callable[[int, int], Array], metric: Metric) -> float:
    """Return ‖W − Ŵ‖² / ‖W‖², where ``rows_of(first, last)`` returns rows of Ŵ.

    The result is 0 if W and the difference are both zero, and infinity if only W is zero. It is
    computed in float64, a few rows at a time.
    """
    # Squares of narrower dtypes fit into float64's range without scaling.
    _check_shape(metric, W.shape)
    exponent = exponent_of(W) if W.dtype == np.float64 else 0
    lost = total = 0.0
    for first in range(0, len(W), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(W))
        exact, found = W[first:last].astype(np.float64), rows_of(first, last)
        if exponent:
            exact, found = np.ldexp(exact, -exponent), np.ldexp(found, -exponent)
        total += metric.squares(exact, first)
        lost += metric.squares(exact - found, first)
    # A covariance that is singular to rounding may give a sum just below zero.
    if total <= 0:
        return 0.0 if lost <= 0 else float("inf")
    return max(lost, 0.0) / total


def exponent_of(W: Array) -> int:
    """Return the exponent for which ``W · 2**−exponent`` is within ±1; this scaling is exact."""
    return int(np.frexp(max(float(W.max(initial=0)), -float(W.min(initial=0))))[1])


def scaled(weights: Array) -> Array:
    """Return weights in float64, divided by the largest: squared gradients are often tiny."""
    wide = weights.astype(np.float64)
    top = float(wide.max(initial=0))
    return wide / top if top > 0 else np.ones_like(wide)


def metric_for(
    shape: tuple[int, ...], importance: Any = None, input_covariance: Any = None
) -> Metric:
    """Return the metric for the arguments of `compress`, of which at most one may be given.

    Weights that are all zero, as those of a layer that no input has reached, say nothing about
    errors: then the metric is the sum of squares.
    """
    if importance is not None and input_covariance is not None:
        raise ValueError("importance and input_covariance must not both be given, got both")
    if importance is not None:
        return _diagonal(importance, shape)
    if input_covariance is not None:
        return _covariance(input_covariance, shape)
    return Frobenius()


def _check_shape(metric: Metric, shape: tuple[int, ...]) -> None:
    """Check that the arrays of a metric fit a matrix of this shape."""
    if isinstance(metric, Diagonal) and metric.importance.shape != shape:
        raise ValueError(
            f"importance must have the shape of W, {shape}, got {metric.importance.shape}"
        )
    n = shape[1]
    if isinstance(metric, Covariance) and metric.input_covariance.shape != (n, n):
        raise ValueError(
            f"input_covariance must have shape {(n, n)}, got {metric.input_covariance.shape}"
        )


def _diagonal(importance: Any, shape: tuple[int, ...]) -> Diagonal | Frobenius:
    array = _checks.float_array(importance, "importance", ndim=(2,))
    _check_shape(Diagonal(array), shape)
    _checks.finite(array, "importance")
    if array.size and float(array.min()) < 0:
        raise ValueError(f"importance must not be negative, got {array.min()}")
    if not array.any():
        return Frobenius()
    exponent = exponent_of(array)
    # Only float64 has numbers whose sums or products may leave its range.
    if array.dtype == np.float64 and abs(exponent) > FAR_EXPONENT:
        array = np.ldexp(array, -exponent)
    return Diagonal(array)


def _covariance(input_covariance: Any, shape: tuple[int, ...]) -> Covariance | Frobenius:
    """Return the metric of a covariance, times a power of two: float64, entries within ±1."""
    array = _checks.float_array(input_covariance, "input_covariance", ndim=(2,))
    _check_shape(Covariance(array), shape)
    _checks.finite(array, "input_covariance")
    if not array.any():
        return Frobenius()
    exponent = exponent_of(array)
    wide = np.ldexp(array.astype(np.float64), -exponent)
    if not np.allclose(wide, wide.T, rtol=1e-4, atol=1e-6 * float(np.abs(wide).max())):
        raise ValueError("input_covariance must be symmetric, got a matrix that is not")
    if _is_definite(wide):
        return Covariance(wide)
    tolerance = MOST_NEGATIVE_16_BITS if array.dtype.itemsize == 2 else MOST_NEGATIVE
    values, vectors = np.linalg.eigh((wide + wide.T) / 2)
    if values[0] < -tolerance * values[-1]:
        with np.errstate(over="ignore"):
            least = np.ldexp(values[0], exponent)
        raise ValueError(f"input_covariance must have no negative eigenvalue, got {least:.4g}")
    return Covariance((vectors * np.maximum(values, 0)) @ vectors.T)


def _is_definite(covariance: Array) -> bool:
    """Return whether a Cholesky decomposition shows that no eigenvalue is negative.

    A shift allows for its own rounding. This takes a thirtieth of the time of eigenvalues.
    """
    n = len(covariance)
    shift = n * float(np.finfo(np.float64).eps) * float(np.abs(covariance.diagonal()).max())
    try:
        np.linalg.cholesky(covariance + shift * np.eye(n))
    except np.linalg.LinAlgError:
        return False
    return True

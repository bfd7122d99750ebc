"""The data of figures: spectrum, values, and error at other sizes, of a compressed matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import Array
from ..files.checkpoint import open_checkpoint
from ..files.store import open_store
from ..methods import LowRank
from ..methods.factors import Factors
from ..models.recipe import method_names
from ..models.report import Report, TensorRow

MAX_SIDE = 1024  # matrices whose shorter side is longer are sampled for singular values
ROWS_AT_ONCE = 4096
MAX_VALUES = 1 << 20  # of a histogram
# The part of a matrix that is compressed at other sizes, which takes the slow methods seconds.
MAX_CURVE_SHAPE = (128, 512)
SIZES = (0.25, 0.5, 2, 4)  # as multiples of the chosen size
N_RANKS = 12


@dataclass(frozen=True)
class Matrix:
    """The spectrum and the values of a compressed matrix.

    Attributes
    ----------
    row : TensorRow
    spectrum : array
        Singular values in descending order.
    spectrum_of : str
        Description of the part of the matrix they were computed from.
    before, after : array
        Weights before and after compression.
    values_of : str
        Description of the part of the matrix they are from.
    """

    row: TensorRow
    spectrum: Array
    spectrum_of: str
    before: Array
    after: Array
    values_of: str


@dataclass(frozen=True)
class Curve:
    """Errors against bits per weight of one matrix, or of a part of it.

    Attributes
    ----------
    row : TensorRow
    cut : str
        Description of the part of the matrix that was compressed.
    chosen : (float, float) or None
        Bits and error under the settings of the run; None if they do not fit the part.
    method, svd : array of shape (points, 2)
        Bits and error of the same method at several sizes including the chosen one, and of a
        truncated singular value decomposition.
    """

    row: TensorRow
    cut: str
    chosen: tuple[float, float] | None
    method: Array
    svd: Array


def matrix_of(report: Report, row: TensorRow, n_threads: int | None) -> Matrix:
    """Return the spectrum of a matrix, and its values before and after the run."""
    W = _source(report.source, row)
    part, sampled = W, ""
    if min(W.shape) > MAX_SIDE:
        rows, columns = (_evenly_spaced(n, MAX_SIDE) for n in W.shape)
        part = W[rows][:, columns]
        sampled = f"{len(rows):,} × {len(columns):,} of "
    ids = _evenly_spaced(W.shape[0], max(MAX_VALUES // max(W.shape[1], 1), 1))
    with open_store(report.target, max_dense_nbytes=W.nbytes) as store:
        factors = store[row.name]
        assert isinstance(factors, Factors)
        rebuilt = factors.rows(ids, n_threads=n_threads)
    return Matrix(
        row=row,
        spectrum=_spectrum(part),
        spectrum_of=f"{sampled}{W.shape[0]:,} × {W.shape[1]:,}",
        before=W[ids].astype(np.float32).ravel(),
        after=rebuilt.astype(np.float32).ravel(),
        values_of=f"{len(ids):,} of {W.shape[0]:,} rows" if len(ids) < W.shape[0] else "all rows",
    )


def curve_of(report: Report, row: TensorRow, n_threads: int | None) -> Curve:
    """Compute the errors of a matrix's method, and of truncated SVDs, at several sizes.

    Errors are under the metric of the run. Of a matrix larger than `MAX_CURVE_SHAPE`, evenly spaced
    rows and the first columns are used. This part is compressed anew also under the settings of
    the run, so that all points are of the same matrix.
    """
    W = _source(report.source, row)
    rows, columns = _evenly_spaced(W.shape[0], MAX_CURVE_SHAPE[0]), slice(0, MAX_CURVE_SHAPE[1])
    part = np.ascontiguousarray(W[rows, columns])
    weights: dict[str, Any] = {}
    if report.importance is not None and row.metric == "importance":
        weights["importance"] = _source(report.importance, row)[rows, columns]
    if report.input_covariance is not None and row.metric == "input_covariance":
        of_inputs = open_checkpoint(report.input_covariance)[row.name]
        weights["input_covariance"] = of_inputs[columns, columns]
    cut = f"{W.shape[0]:,} × {W.shape[1]:,}"
    if part.shape != W.shape:
        cut = f"{part.shape[0]:,} × {part.shape[1]:,} of {cut}"
    chosen, points = _at_sizes(row, part, weights, n_threads)
    return Curve(row, cut, chosen, points, _svd_points(part, weights))


def _at_sizes(
    row: TensorRow,
    part: Array,
    weights: dict[str, Any],
    n_threads: int | None,
) -> tuple[tuple[float, float] | None, Array]:
    """Return the chosen point and all points of a method on part of a matrix."""
    method = method_names()[row.method](**row.settings)
    try:
        factors = method.compress(part, n_threads=n_threads, **weights)
    except ValueError:  # the settings do not fit this part
        return None, np.zeros((0, 2))
    chosen = _point(factors, part, weights)
    points = {chosen}
    for size in SIZES:
        nbytes = min(int(size * factors.nbytes), part.nbytes)
        other = method.within(part.shape, part.dtype, nbytes)
        if other is not None:
            try:
                found = other.compress(part, n_threads=n_threads, **weights)
            except ValueError:  # the method cannot become this small
                continue
            points.add(_point(found, part, weights))
    return chosen, np.array(sorted(points))


def _svd_points(part: Array, weights: dict[str, Any]) -> Array:
    """Return the points of truncated SVDs, optimal for the squares or the input covariance."""
    most = max(part.size // max(sum(part.shape), 1), 1)
    ranks = np.unique(np.geomspace(1, most, N_RANKS).round().astype(int))
    of_inputs = weights.get("input_covariance")
    found = [LowRank(rank=int(rank)).compress(part, input_covariance=of_inputs) for rank in ranks]
    return np.array([_point(factors, part, weights) for factors in found])


def _point(factors: Factors, part: Array, weights: dict[str, Any]) -> tuple[float, float]:
    return factors.bits_per_weight, factors.error(part, **weights)


def _source(path: str, row: TensorRow) -> Array:
    tensor = open_checkpoint(path)[row.name]
    assert row.layout is not None  # as it was compressed
    return row.layout.to_matrix(tensor.reshape(row.layout.shape))


def _spectrum(W: Array) -> Array:
    """Compute singular values from the Gram matrix of the shorter side, precise enough to draw."""
    tall = W if W.shape[0] >= W.shape[1] else W.T
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for first in range(0, len(tall), ROWS_AT_ONCE):
        block = tall[first : first + ROWS_AT_ONCE].astype(np.float64)
        gram += block.T @ block
    values: Array = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    return values


def _evenly_spaced(n: int, at_most: int) -> Array:
    """Return at most ``at_most`` evenly spaced integers below n."""
    step = -(-n // at_most) if n else 1
    return np.arange(0, n, step)

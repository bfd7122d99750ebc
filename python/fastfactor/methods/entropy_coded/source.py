"""W in the coordinates in which it is coded: rotated, with weights of errors and row scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.trellis import MAX_LEVEL, MAX_WEIGHT
from ...metrics import Covariance, Diagonal, Metric, exponent_of
from ..factors import ROWS_AT_ONCE
from ..search import Goal
from .rotation import LARGEST_ROTATION, Budget, Rotation, along, best_rotation

MOST_LOGS = 64  # classes cover this many quarters of an octave
LEAST_EXPONENT = -100  # of the largest value
SAMPLE = 1 << 19  # number of weights in a sample


class StepRange(NamedTuple):
    """Bounds for log₂ of the grid's step in a search, and the value to begin with."""

    finest: float
    coarsest: float
    first: float


@dataclass(eq=False, kw_only=True)
class Source:
    """W in the coordinates in which it is coded, and the weights of its errors there.

    Attributes
    ----------
    values : float32 array of shape (rows, columns)
        W · 2**-exponent, rotated, with each column divided by its width.
    weights : float32 array of shape (rows, columns)
        The weight of each value's squared error.
    energy : float
        Σ weights · values².
    exponent : int
    rotation : Rotation or None
    column_steps : uint8 array of shape (columns,) or None
        4 log₂ of each column's width; None if all widths are 1.
    steps : StepRange
    block_rows : int
    full_rows, full_size : int
        Number of rows and weights of the whole W, even if ``values`` is a sample of its rows.
    n_threads : int or None
    """

    values: Array
    weights: Array
    energy: float
    exponent: int
    rotation: Rotation | None
    column_steps: Array | None
    steps: StepRange
    block_rows: int
    full_rows: int
    full_size: int
    n_threads: int | None

    @classmethod
    def of(cls, goal: Goal, block_rows: int, *, plain: bool = False) -> Source:
        """Return W in the coordinates in which theory predicts the best result for a goal.

        ``plain`` leaves W as it is, on one grid, which has the least overhead.
        """
        problem = goal.problem
        if problem.W.dtype == np.float64:
            _checks.finite(problem.W, "W", np.float32)
        # W is scaled to lie within ±1, so that all that follows is in float32's range.
        exponent = exponent_of(problem.W)
        if exponent < LEAST_EXPONENT:
            # The finest step would be too coarse.
            raise ValueError(
                f"W must have values of at least {2.0**LEAST_EXPONENT / 2:.2g} for a step in "
                f"float32, got none above {2.0**exponent:.2g}"
            )
        W = np.ldexp(problem.W.astype(np.float64), -exponent)
        full_rows, full_size = len(W), max(W.size, 1)

        columns = _Columns.of(W, problem.metric)
        rotation, noise = _choose_rotation(W, columns, _budget(goal, columns, full_size), plain)
        column_weights = columns.weights
        if rotation is not None:
            W = W @ rotation.basis
            if columns.covariance is not None:
                column_weights = along(rotation.basis, columns.covariance)

        largest = float(column_weights.max(initial=0)) or 1.0
        column_steps = _column_steps(column_weights / largest, exponent)
        if plain:
            column_steps[:] = 0
        widths = 2.0 ** (column_steps / 4)
        values = (W / widths).astype(np.float32)
        each = column_weights if columns.importance is None else columns.importance
        weights = np.minimum(each * widths**2 / largest, MAX_WEIGHT).astype(np.float32)
        # Levels are only chosen from those near a value, so values without weight become zero.
        values *= weights > 0
        weights = np.broadcast_to(weights, values.shape)
        energy = _energy(values, weights)
        return cls(
            values=values,
            weights=weights,
            energy=energy,
            exponent=exponent,
            rotation=rotation,
            column_steps=column_steps.astype(np.uint8) if column_steps.any() else None,
            steps=_step_range(values, energy, noise / largest, exponent),
            block_rows=max(min(block_rows, full_rows), 1),
            full_rows=full_rows,
            full_size=full_size,
            n_threads=problem.n_threads,
        )

    def sample(self) -> Source:
        """Return some evenly spread rows in the same coordinates, or all rows if W is small."""
        n_rows = SAMPLE // max(self.values.shape[1], 1)
        if len(self.values) <= 4 * n_rows or n_rows < self.block_rows:
            return self
        ids = np.linspace(0, len(self.values) - 1, n_rows).astype(np.int64)
        values, weights = self.values[ids], self.weights[ids]
        return replace(self, values=values, weights=weights, energy=_energy(values, weights))

    @cached_property
    def column_scales(self) -> Array:
        """The root mean square of each column."""
        squares = np.einsum("ij,ij->j", self.values, self.values, dtype=np.float64)
        scales: Array = np.sqrt(squares / max(len(self.values), 1))
        return scales

    @property
    def scale(self) -> float:
        """The root mean square of all values."""
        return float(np.sqrt(np.mean(self.column_scales**2))) if self.values.size else 0.0

    @cached_property
    def row_logs(self) -> Array:
        """4 log₂ of each row's scale relative to the median one, int64."""
        scales = np.maximum(self.column_scales, 1e-30)
        spread = np.mean((self.values / scales.astype(np.float32)) ** 2, axis=1, dtype=np.float64)
        logs = 2 * np.log2(np.maximum(spread, 1e-12))
        centred: Array = np.clip(np.rint(logs - np.median(logs)), -MOST_LOGS, MOST_LOGS)
        return centred.astype(np.int64)


class _Columns(NamedTuple):
    """Properties of W's columns before they are rotated."""

    variances: Array  # mean squares
    weights: Array  # the weight of each column's squared errors
    power: float  # ‖W‖² under the metric, divided by the number of rows
    covariance: Array | None
    importance: Array | None

    @classmethod
    def of(cls, W: Array, metric: Metric) -> _Columns:
        n_rows, n_columns = max(len(W), 1), W.shape[1]
        variances = np.einsum("ij,ij->j", W, W) / n_rows
        if isinstance(metric, Covariance):
            covariance = metric.input_covariance.astype(np.float64)
            power = float(np.einsum("ij,ij->", W @ covariance, W)) / n_rows
            weights = np.maximum(covariance.diagonal(), 0)
            return cls(variances, weights, power, covariance, None)
        weights, importance = np.ones(n_columns), None
        if isinstance(metric, Diagonal):
            importance = metric.importance
            weights = importance.mean(axis=0, dtype=np.float64)
        return cls(variances, weights, float(variances @ weights), None, importance)

    @property
    def may_rotate(self) -> bool:
        """True if errors have weights in rotated coordinates, too, and columns are few enough."""
        return self.importance is None and 2 <= len(self.weights) <= LARGEST_ROTATION


def _budget(goal: Goal, columns: _Columns, full_size: int) -> Budget:
    if goal.is_size:
        return Budget(full_size, 8 * goal.limit / full_size, 0.0)
    noise = goal.limit * max(columns.power, 0.0) / max(len(columns.weights), 1)
    return Budget(full_size, None, noise)


def _choose_rotation(
    W: Array, columns: _Columns, budget: Budget, plain: bool
) -> tuple[Rotation | None, float]:
    """Return the rotation that is worth its bits, if any, and the squared error to expect."""
    rotation, cost = None, budget.cost(columns.variances * columns.weights)
    if columns.may_rotate and not plain:
        gram = W.T @ W / max(len(W), 1)
        rotation, cost = best_rotation(gram, columns.covariance, budget, cost)
    return rotation, budget.noise if budget.bits is None else cost


def _column_steps(weights: Array, exponent: int) -> Array:
    """Return 4 log₂ of each column's width, rounded: columns that weigh less have a wider grid.

    ``weights`` are relative to the largest.
    """
    steps = np.rint(-2 * np.log2(np.maximum(weights, 1e-18)))
    # Widths are limited so that the coarsest step of the widest grid fits into float32's range.
    widest = 4 * (123 - exponent - 0.5 * np.log2(max(len(weights), 1)))
    clipped: Array = np.clip(steps, 0, np.clip(np.floor(widest), 0, 239))
    return clipped


def _step_range(values: Array, energy: float, noise: float, exponent: int) -> StepRange:
    if energy <= 0:
        step = min(0.0, 100.0 - exponent)
        return StepRange(step, step, step)
    top = max(float(values.max()), -float(values.min()))
    # The step has to be within float32's range.
    low, high = -122.0 - exponent, 126.0 - exponent
    finest = max(float(np.log2(top / (2 * MAX_LEVEL - 8))), low)
    coarsest = float(np.clip(np.log2(top) + 3, finest, max(high, finest)))
    # At high rates the squared error of the trellis is about 0.27 squared steps.
    first = 0.5 * np.log2(max(noise, 1e-300) / 0.27)
    return StepRange(finest, coarsest, float(np.clip(first, finest, coarsest)))


def _energy(values: Array, weights: Array) -> float:
    """Return Σ weights · values², computed in float64 from some rows at a time."""
    total = 0.0
    for first in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        wide = values[rows].astype(np.float64)
        total += float(np.einsum("ij,ij,ij->", weights[rows], wide, wide))
    return total

"""W in the coordinates that are coded: a rotation, what errors weigh there, scales of rows."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.packing import PackedCodes
from ...kernels.trellis import MAX_LEVEL, MAX_WEIGHT
from ...metrics import Covariance, Diagonal, exponent_of
from ..base import ROWS_AT_ONCE, Problem

MOST_LOGS = 64  # classes cover this many quarters of an octave
LARGEST_ROTATION = 1024
# By bits of an entry, the range in standard deviations that loses least of a normal one.
RANGES = {2: 1.6, 3: 2.3, 4: 2.8, 5: 3.3, 6: 3.8, 8: 4.6}
SAMPLE = 1 << 19


class Source:
    """W in the coordinates that are coded, and what its errors weigh there.

    Parameters
    ----------
    problem : Problem
    block_rows : int
    nbytes, max_error : float, optional
        The goal, for which the rotation is chosen.
    plain : bool
        Without a rotation, on one grid: what takes least where there is little room.
    """

    def __init__(
        self,
        problem: Problem,
        block_rows: int,
        nbytes: float | None = None,
        max_error: float | None = None,
        *,
        plain: bool = False,
    ) -> None:
        if problem.W.dtype == np.float64:
            _checks.finite(problem.W, "W", np.float32)
        self.n_threads = problem.n_threads
        # Within ±1, so that nothing leaves float32 on the way.
        self.exponent = max(exponent_of(problem.W), -100)
        W = np.ldexp(problem.W.astype(np.float64), -self.exponent)
        n_rows, n_columns = W.shape
        self.block_rows = max(min(block_rows, n_rows), 1)
        self.full_rows, self.full_size = n_rows, max(W.size, 1)
        self.rotation: Array | None = None
        self.rotation_bits = 0
        metric = problem.metric
        squares = np.einsum("ij,ij->j", W, W) / max(n_rows, 1)
        weights = np.ones(n_columns)
        weighing: Array | None = None
        if isinstance(metric, Covariance):
            weighing = metric.input_covariance.astype(np.float64)
            weights = np.maximum(weighing.diagonal(), 0)
        elif isinstance(metric, Diagonal):
            weights = metric.importance.mean(axis=0, dtype=np.float64)
        bits = None if nbytes is None else 8 * nbytes / self.full_size
        power = float(squares @ weights)
        if weighing is not None:
            power = float(np.einsum("ij,ij->", W @ weighing, W)) / max(n_rows, 1)
        self.noise = (max_error or 0.0) * max(power, 0.0) / max(n_columns, 1)
        least = self._cost(squares * weights, bits, 0)
        basis = None
        if not (plain or isinstance(metric, Diagonal)) and 2 <= n_columns <= LARGEST_ROTATION:
            basis, least = self._rotate(W.T @ W / max(n_rows, 1), weighing, bits, least)
        if bits is not None:
            self.noise = least
        if basis is not None:
            W = W @ basis
            if weighing is not None:
                weights = _along(basis, weighing)
        largest = float(weights.max(initial=0)) or 1.0
        steps = np.rint(-2 * np.log2(np.maximum(weights / largest, 1e-18)))
        # No wider than that the coarsest step of the widest grid is still a float32.
        widest = 4 * (123 - self.exponent - 0.5 * np.log2(max(n_columns, 1)))
        steps = np.clip(steps, 0, np.clip(np.floor(widest), 0, 239)) * (not plain)
        self.column_steps: Array | None = steps.astype(np.uint8) if steps.any() else None
        widths = 2.0 ** (steps / 4)
        self.values = (W / widths).astype(np.float32)
        each = metric.importance if isinstance(metric, Diagonal) else weights
        weighed = np.minimum(each * widths**2 / largest, MAX_WEIGHT).astype(np.float32)
        # Near candidates alone are weighed: of a large value that does not count, zero is none.
        self.values *= weighed > 0
        self.weights = np.broadcast_to(weighed, self.values.shape)
        self.noise /= largest
        self.energy = self._energy()
        self.finest = self.coarsest = self.first_step = min(0.0, 100.0 - self.exponent)
        if self.energy > 0:
            top = max(float(self.values.max()), -float(self.values.min()))
            # Within what float32 holds of a step.
            low, high = -122.0 - self.exponent, 126.0 - self.exponent
            self.finest = max(float(np.log2(top / (2 * MAX_LEVEL - 8))), low)
            self.coarsest = float(np.clip(np.log2(top) + 3, self.finest, max(high, self.finest)))
            # High-rate noise of the trellis is about 0.27 of a squared step.
            first = 0.5 * np.log2(max(self.noise, 1e-300) / 0.27)
            self.first_step = float(np.clip(first, self.finest, self.coarsest))

    def _cost(self, products: Array, bits: float | None, n_bits: int) -> float:
        """The error at this rate, or the rate at `noise`, with a rotation of so many bits."""
        own = n_bits * len(products) ** 2 / self.full_size
        if bits is None:
            return _rate(products, self.noise) + own
        return _noise_at(products, bits - own)

    def _rotate(
        self, gram: Array, weighing: Array | None, bits: float | None, least: float
    ) -> tuple[Array | None, float]:
        """The rotation of least cost, its own bits counted, and that cost; none if none is less.

        To the eigenvectors of `weighing`, or of `gram` where every direction weighs alike.
        """
        best = None
        if least > 0:
            n = len(gram)
            exact = np.linalg.eigh(gram if weighing is None else weighing)[1]
            for n_bits, range_of_normal in RANGES.items():
                if self._cost(_products(exact, gram, weighing), bits, n_bits) >= least:
                    break
                top = (1 << n_bits) - 1
                scaled = exact * np.sqrt(n) / range_of_normal
                codes = np.clip(np.rint((scaled + 1) * top / 2), 0, top).astype(np.uint8)
                basis = nearest_rotation(codes, n_bits)
                found = self._cost(_products(basis, gram, weighing), bits, n_bits)
                if found < least:
                    best, least = basis, found
                    packed = PackedCodes.pack(codes, n_bits)
                    self.rotation, self.rotation_bits = packed.data, n_bits
        return best, least

    def _energy(self) -> float:
        """Σ weights · values², some rows at a time."""
        return sum(
            float(np.einsum("ij,ij,ij->", self.weights[rows], values, values))
            for rows in _slices(len(self.values))
            for values in [self.values[rows].astype(np.float64)]
        )

    @cached_property
    def column_scales(self) -> Array:
        squares = np.einsum("ij,ij->j", self.values, self.values, dtype=np.float64)
        scales: Array = np.sqrt(squares / max(len(self.values), 1))
        return scales

    @property
    def scale(self) -> float:
        """Of all values."""
        return float(np.sqrt(np.mean(self.column_scales**2))) if self.values.size else 0.0

    @cached_property
    def row_logs(self) -> Array:
        """4 log₂ of each row's scale over the typical one, int64."""
        scales = np.maximum(self.column_scales, 1e-30)
        spread = np.mean((self.values / scales.astype(np.float32)) ** 2, axis=1, dtype=np.float64)
        logs = 2 * np.log2(np.maximum(spread, 1e-12))
        centred: Array = np.clip(np.rint(logs - np.median(logs)), -MOST_LOGS, MOST_LOGS)
        return centred.astype(np.int64)

    def sample(self) -> Source:
        """Some rows, evenly spread, in the same coordinates; all where W is small."""
        n_rows = SAMPLE // max(self.values.shape[1], 1)
        if len(self.values) <= 4 * n_rows or n_rows < self.block_rows:
            return self
        ids = np.linspace(0, len(self.values) - 1, n_rows).astype(np.int64)
        part = object.__new__(Source)
        part.__dict__.update(self.__dict__)
        part.__dict__.pop("column_scales", None)
        part.__dict__.pop("row_logs", None)
        part.values, part.weights = self.values[ids], self.weights[ids]
        part.energy = part._energy()
        return part


def _slices(n_rows: int) -> list[slice]:
    return [slice(first, first + ROWS_AT_ONCE) for first in range(0, n_rows, ROWS_AT_ONCE)]


def nearest_rotation(codes: Array, n_bits: int) -> Array:
    """The orthogonal matrix nearest to centred codes, in float64."""
    left, _, right = np.linalg.svd(codes.astype(np.float64) - ((1 << n_bits) - 1) / 2)
    result: Array = left @ right
    return result


def _along(basis: Array, matrix: Array) -> Array:
    """bᵀ · matrix · b of each column of a basis, at least 0."""
    found: Array = np.maximum(np.einsum("ij,ij->j", basis, matrix @ basis), 0)
    return found


def _products(basis: Array, gram: Array, weighing: Array | None) -> Array:
    """Of each column of a basis, the square of what is coded times what it weighs."""
    squares = _along(basis, gram)
    return squares if weighing is None else squares * _along(basis, weighing)


def _rate(variances: Array, noise: float) -> float:
    """Bits a weight of Gaussian columns at this squared error: reverse water-filling."""
    share = np.maximum(variances / max(noise, 1e-300), 1)
    return float(0.5 * np.log2(share).mean()) if variances.size else 0.0


def _noise_at(variances: Array, bits: float) -> float:
    """The squared error a weight at which `_rate` is this; infinite where bits are negative."""
    largest = float(variances.max(initial=0))
    if bits < 0 or largest == 0:
        return np.inf if bits < 0 else 0.0
    low, high = -120.0, 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = _rate(variances, largest * 2.0**middle) > bits
        low, high = (middle, high) if above else (low, middle)
    noise = largest * 2.0**high
    return float(np.minimum(variances, noise).mean())

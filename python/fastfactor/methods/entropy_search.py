"""What entropy coding chooses: a rotation, classes of weights, and the step that meets a goal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from .._checks import Array
from ..metrics import Covariance, Diagonal, Metric
from ..packing import PackedCodes
from .base import Problem
from .entropy_coder import BUCKET_OF, FIRSTS, LANE_BYTES, LARGEST, N_BUCKETS, Tables, encode_lanes
from .entropy_trellis import CENTER_STEP, N_CENTERS, fit_centers, reconstruct, trellis_quantize

# On an embedding of 32000 × 256 at 1, 2 and 3 bits: 0.2 and 0.28 within 1.3 % of each other, 0.1
# worse than 0.2 by 1 to 2 %.
RATE_WEIGHT = 0.22
CLASS_ZERO = 16  # 4 log₂ of step over the scale of what is in class 0
MOST_LOGS = 64  # classes cover this many quarters of an octave
LARGEST_ROTATION = 1024
# By bits of an entry, the range in standard deviations that loses least of a normal one.
RANGES = {2: 1.6, 3: 2.3, 4: 2.8, 5: 3.3, 6: 3.8, 8: 4.6}
SAMPLE = 1 << 19
PASSES = 3
EVALUATIONS = 12
TOLERANCE = 1e-3  # of the goal


def search(
    problem: Problem,
    block_rows: int,
    *,
    nbytes: float | None = None,
    max_error: float | None = None,
) -> tuple[Encoding, bool]:
    """The encoding of least error within a size, or of least size within an error.

    Returns
    -------
    encoding : Encoding
        Where the goal is out of reach, what comes nearest to it.
    reached : bool
    """
    source = _Source(problem, block_rows, nbytes, max_error)

    def measure(encoding: Encoding) -> float:
        return encoding.nbytes if nbytes is not None else encoding.error

    goal = nbytes if nbytes is not None else max_error
    assert goal is not None
    if source.energy == 0:
        encoding = Encoding(source, 0.0, None, None)
        return encoding, measure(encoding) <= goal
    sampled = source.sample()
    shifts = [Encoding(sampled, source.first_step, shift, None) for shift in (None, 3, 2, 1, 0)]
    start = min(shifts, key=lambda encoding: encoding.cost)
    if sampled is not source:
        start, _ = _solve(sampled, start, measure, goal, nbytes is not None)
    return _solve(source, start, measure, goal, nbytes is not None)


def _solve(
    source: _Source, start: Encoding, measure: Callable[[Encoding], float], goal: float, size: bool
) -> tuple[Encoding, bool]:
    """Steps by Newton's method; the measure falls with the step where it is a size.

    Each encoding starts from the tables of the one before, so that a step does not fix its size:
    a bracket would go stale. What is kept is the best that met the goal.
    """
    best: Encoding | None = None
    best_gap = -np.inf
    step, near = start.log_step, start
    before: tuple[float, float] | None = None
    slope = 1.0
    for _ in range(EVALUATIONS):
        near = Encoding(source, step, near.shift, near)
        value = measure(near)
        if size:
            gap = (value - goal) * 8 / source.full_size  # octaves of the step, about
        else:
            gap = 0.5 * np.log2(max(value, 1e-300) / goal)
        if gap <= 0 and gap > best_gap:
            best, best_gap = near, gap
        if goal * (1 - TOLERANCE) <= value <= goal:
            break
        if before is not None and abs(step - before[0]) > 0.02:
            slope = float(np.clip(abs((gap - before[1]) / (step - before[0])), 0.25, 1.25))
        before = step, gap
        inside = TOLERANCE / 2 * (8 * goal / source.full_size if size else 0.72)
        move = float(np.clip((gap + inside) / slope, -6, 6)) * (1 if size else -1)
        step = float(np.clip(step + move, source.finest, source.coarsest))
        if step == near.log_step:
            break
    return (best, True) if best is not None else (near, False)


def nearest_rotation(codes: Array, n_bits: int) -> Array:
    """The orthogonal matrix nearest to centred codes, in float64."""
    left, _, right = np.linalg.svd(codes.astype(np.float64) - ((1 << n_bits) - 1) / 2)
    result: Array = left @ right
    return result


class _Source:
    """W in the coordinates that are coded, and what its errors weigh there."""

    def __init__(
        self, problem: Problem, block_rows: int, nbytes: float | None, max_error: float | None
    ) -> None:
        W = problem.W.astype(np.float64)
        n_rows, n_columns = W.shape
        self.block_rows = max(min(block_rows, n_rows), 1)
        self.full_rows, self.full_size = n_rows, max(W.size, 1)
        self.rotation: Array | None = None
        self.rotation_bits = 0
        metric = problem.metric
        gram = W.T @ W / max(n_rows, 1)
        weighing = np.eye(n_columns)
        if isinstance(metric, Covariance):
            weighing = metric.input_covariance.astype(np.float64)
        elif isinstance(metric, Diagonal):
            weighing = np.diag(metric.importance.mean(axis=0, dtype=np.float64))
        bits = None if nbytes is None else 8 * nbytes / self.full_size
        power = float(np.sum(gram * weighing)) / max(n_columns, 1)
        self.noise = (max_error or 0.0) * max(power, 0.0)
        basis = self._rotate(gram, weighing, bits, metric)
        weights = np.maximum(np.einsum("ij,ij->j", basis, weighing @ basis), 0)
        largest = float(weights.max(initial=0)) or 1.0
        steps = np.clip(np.rint(-2 * np.log2(np.maximum(weights / largest, 1e-18))), 0, 239)
        self.column_steps: Array | None = steps.astype(np.uint8) if steps.any() else None
        widths = 2.0 ** (steps / 4)
        self.values = (W @ basis / widths).astype(np.float32)
        self.weights: Array = (weights * widths**2 / largest).astype(np.float32)
        if isinstance(metric, Diagonal):
            self.weights = (metric.importance * widths**2 / largest).astype(np.float32)
        self.weights = np.broadcast_to(self.weights, self.values.shape)
        self.noise /= largest
        self.energy = float(np.sum(self.weights * self.values.astype(np.float64) ** 2))
        if self.energy > 0:
            top = float(np.abs(self.values).max())
            self.finest = float(np.log2(top / (2 * LARGEST - 8)))
            self.coarsest = float(np.log2(top)) + 3
            # High-rate noise of the trellis is about 0.27 of a squared step.
            first = 0.5 * np.log2(max(self.noise, 1e-300) / 0.27)
            self.first_step = float(np.clip(first, self.finest, self.coarsest))

    def _rotate(self, gram: Array, weighing: Array, bits: float | None, metric: Metric) -> Array:
        """The rotation that leaves the least error at this rate, or the least rate at `noise`.

        Its own bits count; none is one of them. Sets `noise` where a rate is given.
        """
        n = len(gram)

        def products(basis: Array) -> Array:
            scales = np.einsum("ij,ij->j", basis, gram @ basis)
            found: Array = np.einsum("ij,ij->j", basis, weighing @ basis) * scales
            return np.maximum(found, 0)

        def cost(basis: Array, n_bits: int) -> float:
            own = n_bits * n * n / self.full_size
            if bits is None:
                return _rate(products(basis), self.noise) + own
            return _noise_at(products(basis), bits - own)

        best = np.eye(n)
        least = cost(best, 0)
        if not isinstance(metric, Diagonal) and 2 <= n <= LARGEST_ROTATION and least > 0:
            exact = np.linalg.eigh(weighing if isinstance(metric, Covariance) else gram)[1]
            for n_bits, range_of_normal in RANGES.items():
                if cost(exact, n_bits) >= least:
                    break
                top = (1 << n_bits) - 1
                scaled = exact * np.sqrt(n) / range_of_normal
                codes = np.clip(np.rint((scaled + 1) * top / 2), 0, top).astype(np.uint8)
                basis = nearest_rotation(codes, n_bits)
                found = cost(basis, n_bits)
                if found < least:
                    best, least = basis, found
                    packed = PackedCodes.pack(codes, n_bits)
                    self.rotation, self.rotation_bits = packed.data, n_bits
        if bits is not None:
            self.noise = least
        return best

    @cached_property
    def column_scales(self) -> Array:
        squares = np.einsum("ij,ij->j", self.values, self.values, dtype=np.float64)
        scales: Array = np.sqrt(squares / max(len(self.values), 1))
        return scales

    @cached_property
    def row_logs(self) -> Array:
        """4 log₂ of each row's scale over the typical one, int64."""
        scales = np.maximum(self.column_scales, 1e-30)
        spread = np.mean((self.values / scales.astype(np.float32)) ** 2, axis=1, dtype=np.float64)
        logs = 2 * np.log2(np.maximum(spread, 1e-12))
        centred: Array = np.clip(np.rint(logs - np.median(logs)), -MOST_LOGS, MOST_LOGS)
        return centred.astype(np.int64)

    def sample(self) -> _Source:
        """Some rows, evenly spread, in the same coordinates; all where W is small."""
        n_rows = SAMPLE // max(self.values.shape[1], 1)
        if len(self.values) <= 4 * n_rows or n_rows < self.block_rows:
            return self
        ids = np.linspace(0, len(self.values) - 1, n_rows).astype(np.int64)
        part = object.__new__(_Source)
        part.__dict__.update(self.__dict__)
        part.__dict__.pop("column_scales", None)
        part.__dict__.pop("row_logs", None)
        part.values, part.weights = self.values[ids], self.weights[ids]
        part.energy = float(np.sum(part.weights * part.values.astype(np.float64) ** 2))
        return part


class Encoding:
    """Levels, tables and centres of a source at one step, each fitted to the others in turn.

    Parameters
    ----------
    source : _Source
    log_step : float
        log₂ of the grid.
    shift : int, optional
        A class is 2**shift quarters of an octave; None: one class.
    start : Encoding, optional
        One at another step, whose tables and centres are those to begin with.
    """

    def __init__(
        self, source: _Source, log_step: float, shift: int | None, start: Encoding | None
    ) -> None:
        self.source, self.log_step, self.shift = source, log_step, shift
        self.step = np.float32(2.0**log_step)
        values = source.values / self.step
        self.columns: Array | None = None
        self.classes = 1
        each = np.zeros(values.shape, np.uint8)
        if shift is not None:
            scales = np.maximum(source.column_scales / float(self.step), 1e-12)
            logs = np.clip(np.rint(4 * np.log2(scales)) + CLASS_ZERO, -127, 127)
            self.columns = logs.astype(np.int8)
            wide = np.clip((logs.astype(np.int64) + source.row_logs[:, None]) >> shift, 0, None)
            each = np.minimum(wide, (MOST_LOGS >> shift) - 1).astype(np.uint8)
            self.classes = int(each.max(initial=0)) + 1
        n = 2 * self.classes
        bits, centers = self._beginning(start, values)
        for _ in range(_passes(source, start)):
            self.levels, self.contexts = trellis_quantize(
                values, each, bits, centers, source.weights, RATE_WEIGHT
            )
            self.centers = fit_centers(values, self.levels, self.contexts, source.weights, n)
            centers = self.centers.astype(np.float32) * np.float32(CENTER_STEP)
            self.tables = Tables.of_counts(self._counts(n))
            bits = self.tables.bits[:n]
        away = values - reconstruct(self.levels, self.contexts, centers)
        lost = float(np.sum(source.weights * away.astype(np.float64) ** 2)) * float(self.step) ** 2
        self.error = lost / source.energy if source.energy else 0.0

    def _beginning(self, start: Encoding | None, values: Array) -> tuple[Array, Array]:
        """Tables and centres of the encoding to start from, or of Laplace's distributions."""
        if start is not None:
            kept = np.minimum(np.arange(2 * self.classes), start.centers.shape[0] - 2)
            kept += (np.arange(2 * self.classes) - kept) & 1
            centers = start.centers[kept].astype(np.float32) * np.float32(CENTER_STEP)
            # A level that was not met before may be now.
            highest = 24 + 2 * np.arange(N_BUCKETS)
            return np.minimum(start.tables.bits[kept], highest).astype(np.float32), centers
        if self.shift is None:
            scales = np.array([max(float(np.sqrt(np.mean(values**2))) if values.size else 0, 0.1)])
        else:
            middle = (np.arange(self.classes) + 0.5) * 2**self.shift
            scales = 2.0 ** ((middle - CLASS_ZERO) / 4)
        # Density e^(-√2 |v| / scale), a level 2 apart from the next.
        fall = 2 * np.sqrt(2) / scales[:, None] / np.log(2)
        cost = fall * FIRSTS - np.log2(1 - 2.0 ** -np.minimum(fall, 50)) + (FIRSTS > 0)
        wide = np.repeat(np.minimum(cost, 200), 2, axis=0).astype(np.float32)
        return wide, np.zeros((len(wide), N_CENTERS), np.float32)

    def _counts(self, n: int) -> Array:
        buckets = BUCKET_OF[np.abs(self.levels)]
        keys = self.contexts.astype(np.int64) * N_BUCKETS + buckets
        counts = np.bincount(keys.ravel(), minlength=n * N_BUCKETS)
        if self.shift is not None:
            rows = np.bincount(BUCKET_OF[np.abs(self.source.row_logs)], minlength=N_BUCKETS)
            counts = np.concatenate([counts, rows])
        self.counts: Array = counts.reshape(-1, N_BUCKETS)
        return self.counts

    @property
    def nbytes(self) -> float:
        """What the factors will take, as the tables say, of all rows where these are a sample."""
        source = self.source
        coded = float(np.sum(self.counts * self.tables.bits, dtype=np.float64)) / 8
        coded *= source.full_rows / max(len(self.levels), 1)
        n_blocks = -(-source.full_rows // source.block_rows)
        fixed: float = 4 + self.tables.nbytes + self.centers.nbytes
        for part in (self.columns, source.column_steps, source.rotation):
            fixed += 0 if part is None else part.nbytes
        return float(coded + fixed + n_blocks * LANE_BYTES)

    @property
    def cost(self) -> float:
        """Bytes, and those that an error this much larger is worth: half a bit for its double."""
        doublings = float(np.log2(max(self.error, 1e-300)))
        return self.nbytes + doublings * self.source.full_size / 16

    def tensors(self) -> dict[str, Any]:
        """Fields of the factors."""
        source = self.source
        n_rows = len(self.levels)
        height = source.block_rows
        whole = n_rows // height * height
        words, lengths = [], []
        for first, last in ((0, whole), (whole, n_rows)):
            if first < last:
                n_blocks = max((last - first) // height, 1)
                levels, contexts = (
                    np.moveaxis(part.reshape(n_blocks, -1, part.shape[1]), 0, 2)
                    for part in self._coded(slice(first, last))
                )
                coded, each = encode_lanes(
                    levels.reshape(-1, n_blocks), contexts.reshape(-1, n_blocks), self.tables
                )
                words.append(coded)
                lengths.append(each)
        sizes = np.concatenate([np.zeros(0, np.int64), *lengths])
        wide = np.uint32 if sizes.max(initial=0) > 0xFFFF else np.uint16
        return {
            "words": np.concatenate([np.zeros(0, np.uint16), *words]),
            "lengths": sizes.astype(wide),
            "step": np.array([self.step], np.float32),
            "table_lengths": self.tables.lengths,
            "table_logs": self.tables.logs,
            "centers": self.centers,
            "columns": self.columns,
            "column_steps": source.column_steps,
            "rotation": source.rotation,
            "block_rows": height,
            "classes": self.classes,
            "class_shift": self.shift or 0,
            "rotation_bits": source.rotation_bits,
        }

    def _coded(self, rows: slice) -> tuple[Array, Array]:
        """Levels and contexts in the order of coding: a row's scale, if any, before its weights."""
        levels, contexts = self.levels[rows], self.contexts[rows]
        if self.shift is None:
            return levels, contexts
        scales = self.source.row_logs[rows, None].astype(levels.dtype)
        return (
            np.concatenate([scales, levels], axis=1),
            np.concatenate([np.full_like(scales, 2 * self.classes), contexts], axis=1),
        )


def _passes(source: _Source, start: Encoding | None) -> int:
    """One where tables are fitted already and a pass takes seconds."""
    if start is None:
        return PASSES
    return 1 if source.values.size > 4 * SAMPLE else 2


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

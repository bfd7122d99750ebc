"""What entropy coding chooses: a rotation, classes of weights, and the step that meets a goal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from .._checks import Array
from ..metrics import Covariance, Diagonal
from ..packing import PackedCodes
from .base import Problem
from .entropy_coder import BUCKET_OF, FIRSTS, LANE_BYTES, LARGEST, N_BUCKETS, Tables, encode_lanes
from .entropy_trellis import CENTER_STEP, N_CENTERS, fit_centers, reconstruct, trellis_quantize

# Best of 0.1, 0.2, 0.28, 0.35 at 2 bits on an embedding of 32000 × 256, within 1 % at 1 and at 3.
RATE_WEIGHT = 0.22
CLASS_ZERO = 16  # 4 log₂ of step over the scale of what is in class 0
MOST_LOGS = 64  # classes cover this many quarters of an octave
LARGEST_ROTATION = 1024
SAMPLE = 1 << 19
PASSES = 3
EVALUATIONS = 12
TOLERANCE = 1e-3  # of the goal


def search(
    problem: Problem, block_rows: int, *, nbytes: float | None = None, max_error: float | None = None
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
    start = min(shifts, key=lambda encoding: encoding.nbytes)
    if sampled is not source:
        start, _ = _solve(sampled, start, measure, goal, nbytes is not None)
    return _solve(source, start, measure, goal, nbytes is not None)


def _solve(
    source: _Source, start: Encoding, measure: Callable[[Encoding], float], goal: float, size: bool
) -> tuple[Encoding, bool]:
    """Steps by secants within a bracket; the measure falls with the step where it is a size."""
    best: Encoding | None = None
    good: tuple[float, float] | None = None
    bad: tuple[float, float] | None = None
    step, near = start.log_step, start
    for _ in range(EVALUATIONS):
        near = Encoding(source, step, near.shift, near)
        value = measure(near)
        if size:
            gap = (value - goal) * 8 / source.full_size  # octaves of the step, about
        else:
            gap = 0.5 * np.log2(max(value, 1e-300) / goal)
        if gap <= 0:
            if best is None or (step < best.log_step) == size:
                best, good = near, (step, gap)
        elif bad is None or (step > bad[0]) == size:
            bad = (step, gap)
        close = value >= goal * (1 - TOLERANCE)
        if gap <= 0 and (close or step <= source.finest == best.log_step and size):
            break
        if good is not None and bad is not None:
            if abs(good[0] - bad[0]) < 1e-5:
                break
            share = np.clip(good[1] / (good[1] - bad[1]), 0.05, 0.95)
            # Aims a little to the good side, so that a good step is found soon.
            step = good[0] + 0.98 * share * (bad[0] - good[0])
        else:
            move = np.clip(gap if size else -gap, -6, 6)
            step += move + (0.002 if (move > 0) == (gap > 0) else -0.002) * np.sign(move)
        step = float(np.clip(step, source.finest, source.coarsest))
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
        if nbytes is not None:
            bits = 8 * nbytes / self.full_size
        else:
            # The limit for one Gaussian, at this error.
            bits = max(-0.5 * np.log2(max(max_error or 1.0, 1e-12)), 0.1)
        basis, self.noise = np.eye(n_columns), _noise_at(gram, weighing, bits)
        if not isinstance(metric, Diagonal) and n_columns <= LARGEST_ROTATION and self.noise > 0:
            target = weighing if isinstance(metric, Covariance) else gram
            basis = self._rotate(target, gram, weighing)
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

    def _rotate(self, target: Array, gram: Array, weighing: Array) -> Array:
        """The rotation whose gain is largest, its own bytes counted; none is one of them."""
        n = len(gram)
        rows = self.full_rows

        def cost(basis: Array) -> float:
            scales = np.einsum("ij,ij->j", basis, gram @ basis)
            counts = np.einsum("ij,ij->j", basis, weighing @ basis)
            share = np.maximum(np.maximum(scales * counts, 0) / self.noise, 1)
            return float(rows * 0.5 * np.log2(share).sum())

        best = np.eye(n)
        least = cost(best)
        exact = np.linalg.eigh(target)[1]
        gain = least - cost(exact)
        for n_bits in (3, 4, 5, 6, 8):
            if n_bits * n * n >= gain:
                break
            # Entries are about normal: the range in standard deviations that loses least.
            top = (1 << n_bits) - 1
            reach = {3: 2.3, 4: 2.8, 5: 3.3, 6: 3.8, 8: 4.6}[n_bits] / np.sqrt(n)
            codes = np.clip(np.rint((exact / reach + 1) * top / 2), 0, top).astype(np.uint8)
            basis = nearest_rotation(codes, n_bits)
            total = cost(basis) + n_bits * n * n
            if total < least:
                best, least = basis, total
                packed = PackedCodes.pack(codes, n_bits)
                self.rotation, self.rotation_bits = packed.data, n_bits
        return best

    @cached_property
    def column_scales(self) -> Array:
        squares = np.einsum("ij,ij->j", self.values, self.values, dtype=np.float64)
        return np.sqrt(squares / max(len(self.values), 1))

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
        for _ in range(PASSES if start is None else PASSES - 1):
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
        fixed = 4 + self.tables.nbytes + self.centers.nbytes
        for part in (self.columns, source.column_steps, source.rotation):
            fixed += 0 if part is None else part.nbytes
        return coded + fixed + n_blocks * (LANE_BYTES + 2.5)

    def tensors(self) -> dict[str, Any]:
        """Fields of the factors."""
        source = self.source
        n_rows, n_columns = self.levels.shape
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


def _noise_at(gram: Array, weighing: Array, bits: float) -> float:
    """The squared error a weight that this many bits leave, of columns as they are."""
    scales = np.diag(gram) * np.diag(weighing)
    low, high = -120.0, float(np.log2(max(scales.max(initial=0), 1e-300)))
    if scales.max(initial=0) <= 0:
        return 0.0
    low += high
    for _ in range(60):
        middle = 0.5 * (low + high)
        rate = 0.5 * np.log2(np.maximum(scales / 2.0**middle, 1)).mean()
        low, high = (middle, high) if rate > bits else (low, middle)
    return float(2.0**high)

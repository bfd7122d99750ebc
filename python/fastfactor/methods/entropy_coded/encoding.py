"""An encoding: levels at one step of the grid, and the tables and centres fitted to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._checks import Array
from ...kernels.trellis import (
    N_BUCKETS,
    N_CENTERS,
    Classes,
    TrellisLevels,
    trellis_encode,
    trellis_quantize,
)
from .source import MOST_LOGS, Source
from .tables import FIRSTS, Tables

# The cost of a bit, in squared steps. On an embedding of 32000 × 256 at 1, 2 and 3 bits, 0.3 and
# 0.36 differ by at most 0.4 %; 0.22 loses 0.1, 0.4 and 1 %, and 0.42 loses 1.2, 0.4 and 0.1 %.
RATE_WEIGHT = 0.32
CENTER_STEP = 1 / 128  # the unit of stored centres, in steps of the grid
CLASS_ZERO = 16  # 4 log₂(step / scale) at the lower end of class 0
LANE_BYTES = 5  # a block's average bytes beside its symbols: its length and a half-used state


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs that levels are chosen by, for each context: bits of buckets, and centres."""

    bits: Array
    centers: Array

    @classmethod
    def of_laplace(cls, scales: Array) -> Costs:
        """Return the costs of classes with Laplace's distribution at these scales, in steps."""
        # The density is e^(-√2 |v| / scale), and neighbouring levels are 2 steps apart.
        fall = 2 * np.sqrt(2) / scales[:, None] / np.log(2)
        none = -np.expm1(-np.log(2) * np.minimum(fall, 50))  # 1 − 2^-fall, precise if tiny
        cost = fall * FIRSTS - np.log2(none) + (FIRSTS > 0)
        wide = np.repeat(np.minimum(cost, 200), 2, axis=0).astype(np.float32)
        return cls(wide, np.zeros((len(wide), N_CENTERS), np.float32))

    def of_classes(self, count: int) -> Costs:
        """Return these costs for another number of classes; added ones are like the last one."""
        kept = np.minimum(np.arange(2 * count), len(self.bits) - 2)
        kept += (np.arange(2 * count) - kept) & 1
        # A limit, so that levels that have not been used so far can be chosen.
        highest = 24 + 2 * np.arange(N_BUCKETS, dtype=np.float32)
        return Costs(np.minimum(self.bits[kept], highest), self.centers[kept])


class Encoding:
    """Levels of a source at one step, and the tables and centres that fit them.

    Parameters
    ----------
    source : Source
    log_step : float
        log₂ of the grid's step.
    shift : int, optional
        A class spans 2**shift quarters of an octave. None for a single class.
    costs : Costs, optional
        The costs that levels are chosen by. Defaults to those of Laplace's distributions.
    """

    def __init__(
        self, source: Source, log_step: float, shift: int | None, costs: Costs | None = None
    ) -> None:
        self.source, self.log_step, self.shift = source, log_step, shift
        self.step = float(np.float32(2.0**log_step))
        self.row_logs = np.zeros(len(source.values), np.int32)
        logs, count = np.zeros(source.values.shape[1], np.int8), 1
        if shift is not None:
            scales = np.maximum(source.column_scales / self.step, 1e-12)
            logs = np.clip(np.rint(4 * np.log2(scales)) + CLASS_ZERO, -127, 127).astype(np.int8)
            self.row_logs = source.row_logs
            highest = int(logs.max(initial=-127)) + int(self.row_logs.max(initial=-MOST_LOGS))
            count = min(max(highest >> shift, 0) + 1, MOST_LOGS >> shift)
        self.classes = Classes(logs, shift or 0, count)
        self.columns = logs if count > 1 else None
        self.costs = self._laplace() if costs is None else costs.of_classes(count)
        found = self._quantize(with_levels=False)
        self.counts = self._with_rows(found.counts)
        self.tables = Tables.of_counts(self.counts)
        self.centers = _fit_centers(found.sums)
        lost = _squared_error(found.sums, _wide(self.centers)) * self.step**2
        self.error = lost / source.energy if source.energy else 0.0

    @property
    def fitted(self) -> Costs:
        """The costs fitted to these levels; levels chosen by them take less for their error."""
        return Costs(self.tables.bits[: 2 * self.classes.count], _wide(self.centers))

    def _laplace(self) -> Costs:
        if self.shift is None:
            return Costs.of_laplace(np.array([max(self.source.scale / self.step, 0.1)]))
        middle = (np.arange(self.classes.count) + 0.5) * 2**self.shift
        return Costs.of_laplace(2.0 ** ((middle - CLASS_ZERO) / 4))

    def _quantize(self, *, with_levels: bool) -> TrellisLevels:
        source = self.source
        return trellis_quantize(
            source.values,
            self.step,
            source.weights,
            self.row_logs,
            self.classes,
            self.costs.bits,
            self.costs.centers,
            RATE_WEIGHT,
            with_levels=with_levels,
            n_threads=source.n_threads,
        )

    def _with_rows(self, counts: Array) -> Array:
        """Return the counts of levels' buckets, followed by those of rows' scales if stored."""
        if self.classes.count == 1:
            return counts
        buckets = np.searchsorted(FIRSTS, np.abs(self.row_logs), side="right") - 1
        return np.concatenate([counts, np.bincount(buckets, minlength=N_BUCKETS)[None]])

    @property
    def nbytes(self) -> float:
        """The bytes of the factors as the tables predict, for all rows even from a sample."""
        coded = float(np.sum(self.counts * self.tables.bits, dtype=np.float64)) / 8
        coded *= self.source.full_rows / max(len(self.source.values), 1)
        return float(coded + self.overhead)

    @property
    def overhead(self) -> float:
        """The bytes of everything but the levels."""
        source = self.source
        n_blocks = -(-source.full_rows // source.block_rows)
        fixed: float = 4 + self.tables.nbytes + self.centers.nbytes
        rotation = source.rotation.packed if source.rotation else None
        for part in (self.columns, source.column_steps, rotation):
            fixed += 0 if part is None else part.nbytes
        return float(fixed + n_blocks * LANE_BYTES)

    @property
    def cost(self) -> float:
        """The bytes, plus half a bit for each weight and doubling of the squared error."""
        doublings = float(np.log2(max(self.error, 1e-300)))
        return self.nbytes + doublings * self.source.full_size / 16

    def tensors(self) -> dict[str, Any]:
        """Return the fields of the factors."""
        source = self.source
        words, lengths = trellis_encode(
            self._quantize(with_levels=True).levels,
            self.row_logs,
            self.classes,
            self.tables.frequencies,
            block_rows=source.block_rows,
            n_threads=source.n_threads,
        )
        wide = np.uint32 if lengths.max(initial=0) > 0xFFFF else np.uint16
        return {
            "words": words,
            "lengths": lengths.astype(wide),
            "step": np.array([np.ldexp(self.step, source.exponent)], np.float32),
            "table_lengths": self.tables.lengths,
            "table_logs": self.tables.logs,
            "centers": self.centers,
            "columns": self.columns,
            "column_steps": source.column_steps,
            "rotation": source.rotation.packed if source.rotation else None,
            "block_rows": source.block_rows,
            "classes": self.classes.count,
            "class_shift": self.classes.shift,
            "rotation_bits": source.rotation.n_bits if source.rotation else 0,
        }


def _wide(centers: Array) -> Array:
    return centers.astype(np.float32) * np.float32(CENTER_STEP)


def _fit_centers(sums: Array) -> Array:
    """Return the centres with the least weighted error for these levels, int8 in CENTER_STEP."""
    mass, first = sums[:, 1:, 0], sums[:, 1:, 1]
    means = first / np.maximum(mass, 1e-30)
    return np.clip(np.rint(means / CENTER_STEP), -127, 127).astype(np.int8)


def _squared_error(sums: Array, centers: Array) -> float:
    """Return Σ weight · (away − centre)² in squared steps, with ``away`` as in `TrellisLevels`."""
    wide = np.concatenate([np.zeros((len(centers), 1)), centers.astype(np.float64)], axis=1)
    mass, first, second = np.moveaxis(sums, 2, 0)
    return float(np.maximum(second - 2 * wide * first + wide**2 * mass, 0).sum())

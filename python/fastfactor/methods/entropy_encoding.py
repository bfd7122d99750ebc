"""An encoding: levels at one step, and the tables and centres that are fitted to them in turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import Array
from ..trellis import (
    LARGEST,
    N_BUCKETS,
    N_CENTERS,
    Classes,
    TrellisLevels,
    trellis_encode,
    trellis_quantize,
)
from .entropy_source import MOST_LOGS, Source
from .entropy_tables import FIRSTS, Tables

# On an embedding of 32000 × 256 at 1, 2 and 3 bits: 0.2 and 0.28 within 1.3 % of each other, 0.1
# worse than 0.2 by 1 to 2 %.
RATE_WEIGHT = 0.22
CENTER_STEP = 1 / 128
CLASS_ZERO = 16  # 4 log₂ of step over the scale of what is in class 0
LANE_BYTES = 5  # of a block beyond what the tables say, on average: a state half used, its length
PASSES = 3
PASSES_AGAIN = 2  # from an encoding at another step


class Encoding:
    """Levels, tables and centres of a source at one step, each fitted to the others in turn.

    Parameters
    ----------
    source : Source
    log_step : float
        log₂ of the grid.
    shift : int, optional
        A class is 2**shift quarters of an octave; None: one class.
    start : Encoding, optional
        One at another step, whose tables and centres are those to begin with.
    """

    def __init__(
        self, source: Source, log_step: float, shift: int | None, start: Encoding | None
    ) -> None:
        self.source, self.log_step, self.shift = source, log_step, shift
        self.step = float(np.float32(2.0**log_step))
        self.row_logs = np.zeros(len(source.values), np.int32)
        logs, classes = np.zeros(source.values.shape[1], np.int8), 1
        if shift is not None:
            scales = np.maximum(source.column_scales / self.step, 1e-12)
            logs = np.clip(np.rint(4 * np.log2(scales)) + CLASS_ZERO, -127, 127).astype(np.int8)
            self.row_logs = source.row_logs
            highest = int(logs.max(initial=-127)) + int(self.row_logs.max(initial=-MOST_LOGS))
            classes = min(max(highest >> shift, 0) + 1, MOST_LOGS >> shift)
        self.classes = Classes(logs, shift or 0, classes)
        self.columns = logs if classes > 1 else None
        bits, centers = self._beginning(start)
        for _ in range(PASSES if start is None else PASSES_AGAIN):
            self._chosen_by = bits, centers
            found = self._quantize(with_levels=False)
            self.centers = _fit_centers(found.sums)
            self.counts = self._with_rows(found.counts)
            self.tables = Tables.of_counts(self.counts)
            bits, centers = self.tables.bits[: 2 * classes], _wide(self.centers)
        lost = _squared_error(found.sums, centers) * self.step**2
        self.error = lost / source.energy if source.energy else 0.0

    def _quantize(self, *, with_levels: bool) -> TrellisLevels:
        source = self.source
        return trellis_quantize(
            source.values,
            self.step,
            source.weights,
            self.row_logs,
            self.classes,
            *self._chosen_by,
            RATE_WEIGHT,
            with_levels=with_levels,
            n_threads=source.n_threads,
        )

    def _beginning(self, start: Encoding | None) -> tuple[Array, Array]:
        """Tables and centres of the encoding to start from, or of Laplace's distributions."""
        count = self.classes.count
        if start is not None:
            kept = np.minimum(np.arange(2 * count), 2 * start.classes.count - 2)
            kept += (np.arange(2 * count) - kept) & 1
            # A level that was not met before may be now.
            highest = 24 + 2 * np.arange(N_BUCKETS, dtype=np.float32)
            return np.minimum(start.tables.bits[kept], highest), _wide(start.centers[kept])
        if self.shift is None:
            scales = np.array([max(self.source.scale / self.step, 0.1)])
        else:
            middle = (np.arange(count) + 0.5) * 2**self.shift
            scales = 2.0 ** ((middle - CLASS_ZERO) / 4)
        # Density e^(-√2 |v| / scale), a level 2 apart from the next.
        fall = 2 * np.sqrt(2) / scales[:, None] / np.log(2)
        cost = fall * FIRSTS - np.log2(1 - 2.0 ** -np.minimum(fall, 50)) + (FIRSTS > 0)
        wide = np.repeat(np.minimum(cost, 200), 2, axis=0).astype(np.float32)
        return wide, np.zeros((len(wide), N_CENTERS), np.float32)

    def _with_rows(self, counts: Array) -> Array:
        """Counts of the buckets of levels, and where they are stored of the scales of rows."""
        if self.classes.count == 1:
            return counts
        buckets = np.searchsorted(FIRSTS, np.abs(self.row_logs), side="right") - 1
        return np.concatenate([counts, np.bincount(buckets, minlength=N_BUCKETS)[None]])

    @property
    def nbytes(self) -> float:
        """What the factors will take, as the tables say, of all rows where these are a sample."""
        source = self.source
        coded = float(np.sum(self.counts * self.tables.bits, dtype=np.float64)) / 8
        coded *= source.full_rows / max(len(source.values), 1)
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
            "step": np.array([self.step], np.float32),
            "table_lengths": self.tables.lengths,
            "table_logs": self.tables.logs,
            "centers": self.centers,
            "columns": self.columns,
            "column_steps": source.column_steps,
            "rotation": source.rotation,
            "block_rows": source.block_rows,
            "classes": self.classes.count,
            "class_shift": self.classes.shift,
            "rotation_bits": source.rotation_bits,
        }


def _wide(centers: Array) -> Array:
    return centers.astype(np.float32) * np.float32(CENTER_STEP)


def _fit_centers(sums: Array) -> Array:
    """The centres that minimise the weighted error of these levels, as int8 of CENTER_STEP."""
    mass, first = sums[:, 1:, 0], sums[:, 1:, 1]
    means = first / np.maximum(mass, 1e-30)
    return np.clip(np.rint(means / CENTER_STEP), -127, 127).astype(np.int8)


def _squared_error(sums: Array, centers: Array) -> float:
    """Σ weight · (away − centre)², in squared steps."""
    wide = np.concatenate([np.zeros((len(centers), 1)), centers.astype(np.float64)], axis=1)
    mass, first, second = np.moveaxis(sums, 2, 0)
    return float(np.maximum(second - 2 * wide * first + wide**2 * mass, 0).sum())

"""The tables of a coded matrix: probabilities of levels, one byte each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.trellis import DIRECT, N_BUCKETS, N_SYMBOLS, TOTAL_BITS

STEPS_AN_OCTAVE = 16  # a table's byte rises by this where a probability halves

# 2**(-i / 16) as integers of 24 bits.
_POWERS = np.array([round(2.0 ** (24 - i / STEPS_AN_OCTAVE)) for i in range(STEPS_AN_OCTAVE)])


def _buckets() -> tuple[Array, Array]:
    """Return the first magnitude of each bucket and the number of plain bits after its symbol."""
    octaves = np.arange(N_BUCKETS - DIRECT)
    shift = octaves // 8 + 1
    firsts = np.concatenate([np.arange(DIRECT), (8 + octaves % 8) << shift])
    return firsts.astype(np.int64), np.concatenate([np.zeros(DIRECT, np.int64), shift])


FIRSTS, EXTRA = _buckets()


@dataclass(frozen=True, eq=False)
class Tables:
    """Probabilities of magnitudes, one table for each context; both signs are equally likely.

    Attributes
    ----------
    lengths : uint8 array of shape (n_contexts,)
        Number of buckets in each table.
    logs : uint8 array of shape (sum of lengths,)
        −16 log₂ of each bucket's probability.
    """

    lengths: Array
    logs: Array

    def __post_init__(self) -> None:
        if self.lengths.size and not 1 <= self.lengths.min() <= self.lengths.max() <= N_BUCKETS:
            raise CorruptDataError(
                f"lengths must be in [1, {N_BUCKETS}], got {self.lengths.min()} to "
                f"{self.lengths.max()}"
            )
        if int(self.lengths.sum()) != len(self.logs):
            raise CorruptDataError(
                f"logs must have {int(self.lengths.sum())} bytes, got {len(self.logs)}"
            )

    @classmethod
    def of_counts(cls, counts: Array) -> Tables:
        """Return tables for counts (n_contexts, N_BUCKETS), without unused buckets at the end."""
        used = counts > 0
        lengths = np.where(used.any(axis=1), N_BUCKETS - np.argmax(used[:, ::-1], axis=1), 1)
        totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        share = np.maximum(counts / totals, 2.0**-15)
        logs = np.minimum(np.rint(-STEPS_AN_OCTAVE * np.log2(share)), 255).astype(np.uint8)
        kept = np.arange(N_BUCKETS) < lengths[:, None]
        return cls(lengths.astype(np.uint8), logs[kept])

    @property
    def nbytes(self) -> int:
        return len(self.lengths) + len(self.logs)

    @cached_property
    def frequencies(self) -> Array:
        """The frequencies of 0, +1, −1, +2, … out of 2**14: uint16 (n_contexts, N_SYMBOLS)."""
        used = np.arange(N_BUCKETS) < self.lengths[:, None]
        logs = np.zeros(used.shape, np.int64)
        logs[used] = self.logs
        weights = np.where(used, _POWERS[logs % STEPS_AN_OCTAVE] >> (logs // STEPS_AN_OCTAVE), 0)
        totals = weights.sum(axis=1, keepdims=True)
        either = np.maximum((weights << (TOTAL_BITS - 1)) // totals, 1) * used
        result = np.empty((len(used), N_SYMBOLS), np.int64)
        result[:, :1] = np.maximum((weights[:, :1] << TOTAL_BITS) // totals, 1)
        result[:, 1::2] = result[:, 2::2] = either[:, 1:]
        largest = np.argmax(result, axis=1)
        result[np.arange(len(result)), largest] += (1 << TOTAL_BITS) - result.sum(axis=1)
        return result.astype(np.uint16)

    @cached_property
    def bits(self) -> Array:
        """The bits of a level with its sign and plain bits: float32 (n_contexts, N_BUCKETS)."""
        frequencies = self.frequencies[:, np.r_[0, 1:N_SYMBOLS:2]].astype(np.float64)
        cost = np.where(frequencies > 0, TOTAL_BITS - np.log2(np.maximum(frequencies, 1)), 32.0)
        return (cost + EXTRA).astype(np.float32)

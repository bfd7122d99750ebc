"""Signed integers as asymmetric numeral systems (Duda, 2013): lanes side by side, tables of bytes.

A lane is a row of levels with a stream of its own, so that one can be read without the others.
Everything here is integers: the same bytes and the same levels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError

LARGEST = (1 << 16) - 1  # magnitude of a level
DIRECT = 16  # magnitudes with a symbol of their own; above, eight symbols an octave and plain bits
TOTAL_BITS = 14
STATE_LOW = 1 << 16
STEPS_AN_OCTAVE = 16  # of a probability, in a table's bytes
N_BUCKETS = DIRECT + 8 * 12
LANE_BYTES = 5  # beyond what the tables say, on average: a state half used, and its length

# 2**(-i / 16) as integers of 24 bits.
_POWERS = np.array([round(2.0 ** (24 - i / STEPS_AN_OCTAVE)) for i in range(STEPS_AN_OCTAVE)])


def _buckets() -> tuple[Array, Array]:
    """First magnitude of each bucket, and how many plain bits follow its symbol."""
    octaves = np.arange(N_BUCKETS - DIRECT)
    shift = octaves // 8 + 1
    firsts = np.concatenate([np.arange(DIRECT), (8 + octaves % 8) << shift])
    return firsts.astype(np.int64), np.concatenate([np.zeros(DIRECT, np.int64), shift])


FIRSTS, EXTRA = _buckets()
BUCKET_OF = (np.searchsorted(FIRSTS, np.arange(LARGEST + 1), side="right") - 1).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Tables:
    """Probabilities of magnitudes, one table a context; both signs are alike.

    Attributes
    ----------
    lengths : uint8 array of shape (n_contexts,)
        Buckets of each table.
    logs : uint8 array of shape (sum of lengths,)
        Of each bucket, −16 log₂ of its probability.
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
        """From (n_contexts, N_BUCKETS) counts; what was never counted at the end is left out."""
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
        """(n_contexts, 2 · N_BUCKETS − 1): of 0, +1, −1, +2, … in 2**14; 0 for what is not used."""
        result = np.zeros((len(self.lengths), 2 * N_BUCKETS - 1), np.int64)
        first = 0
        for context, length in enumerate(self.lengths.astype(int)):
            logs = self.logs[first : first + length].astype(np.int64)
            first += length
            weights = _POWERS[logs % STEPS_AN_OCTAVE] >> (logs // STEPS_AN_OCTAVE)
            total = int(weights.sum())
            single = np.maximum((weights << TOTAL_BITS) // total, 1)
            double = np.maximum((weights << (TOTAL_BITS - 1)) // total, 1)
            row = result[context]
            row[0] = single[0]
            row[1 : 2 * length - 1 : 2] = double[1:]
            row[2 : 2 * length - 1 : 2] = double[1:]
            row[np.argmax(row)] += (1 << TOTAL_BITS) - int(row.sum())
        return result

    @cached_property
    def starts(self) -> Array:
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def symbols(self) -> Array:
        """(n_contexts, 2**14): the symbol of each place."""
        every = np.arange(2 * N_BUCKETS - 1, dtype=np.uint8)
        return np.stack([np.repeat(every, row) for row in self.frequencies])

    @cached_property
    def rows(self) -> tuple[list[list[int]], list[list[int]], list[bytes]]:
        """Frequencies, starts and symbols of each context, as Python reads them fastest."""
        symbols = [row.tobytes() for row in self.symbols]
        return self.frequencies.tolist(), self.starts.tolist(), symbols

    @cached_property
    def bits(self) -> Array:
        """(n_contexts, N_BUCKETS) float32: cost of a level, its sign and plain bits included."""
        frequencies = self.frequencies[:, np.r_[0, 1 : 2 * N_BUCKETS - 1 : 2]]
        cost = np.where(frequencies > 0, TOTAL_BITS - np.log2(np.maximum(frequencies, 1)), 32.0)
        return (cost + EXTRA).astype(np.float32)


def encode_lanes(levels: Array, contexts: Array, tables: Tables) -> tuple[Array, Array]:
    """Code (n_steps, n_lanes) levels, each with the table of its context.

    Returns
    -------
    words : uint16 array
        Of all lanes, one after the other, in the order in which they are read.
    lengths : int64 array of shape (n_lanes,)
        Words of each lane.
    """
    n_steps, n_lanes = levels.shape
    magnitudes = np.abs(levels)
    buckets = BUCKET_OF[magnitudes].astype(np.int64)
    symbols = np.where(buckets > 0, 2 * buckets - (levels > 0), 0)
    # Backwards, so that reading goes forwards: words fill each lane from its end.
    width = 2 * n_steps + 2
    words = np.zeros((n_lanes, width), np.uint16)
    at = np.full(n_lanes, width)
    state = np.full(n_lanes, STATE_LOW, np.int64)
    lanes = np.arange(n_lanes)

    def put(frequency: Array, start: Array, among: Array) -> None:
        full = state[among] >= frequency << (32 - TOTAL_BITS)
        moved = among[full]
        at[moved] -= 1
        words[moved, at[moved]] = state[moved] & 0xFFFF
        state[moved] >>= 16
        quotient, rest = np.divmod(state[among], frequency)
        state[among] = (quotient << TOTAL_BITS) + rest + start

    frequencies, starts = tables.frequencies, tables.starts
    for step in range(n_steps - 1, -1, -1):
        extra = EXTRA[buckets[step]]
        if extra.any():
            among = lanes[extra > 0]
            wide = extra[among]
            rest = magnitudes[step, among] - FIRSTS[buckets[step, among]]
            each = np.int64(1) << (TOTAL_BITS - wide)
            put(each, rest * each, among)
        context, symbol = contexts[step], symbols[step]
        put(frequencies[context, symbol], starts[context, symbol], lanes)
    for part in (state & 0xFFFF, state >> 16):
        at -= 1
        words[lanes, at] = part
    kept = np.arange(width) >= at[:, None]
    return words[kept], width - at


class Lanes:
    """Reads lanes side by side, a level of each at a time."""

    def __init__(self, words: Array, starts: Array, lengths: Array, tables: Tables) -> None:
        if lengths.size and int(lengths.min()) < 2:
            raise CorruptDataError(f"lengths must be at least 2, got {lengths.min()}")
        self.words = words.astype(np.int64)
        self.at = starts + 2
        self.ends = starts + lengths
        self.state = self.words[starts] << 16 | self.words[starts + 1]
        if self.state.size and int(self.state.min()) < STATE_LOW:
            raise CorruptDataError(f"states must be at least {STATE_LOW}, got {self.state.min()}")
        self.tables = tables

    def next(self, contexts: Array) -> Array:
        """One level of each lane, int64."""
        tables = self.tables
        place = self.state & ((1 << TOTAL_BITS) - 1)
        symbol = tables.symbols[contexts, place]
        self.state >>= TOTAL_BITS
        self.state *= tables.frequencies[contexts, symbol]
        self.state += place - tables.starts[contexts, symbol]
        self._refill()
        bucket = (symbol + 1) >> 1
        magnitude = FIRSTS[bucket]
        if bucket.max(initial=0) >= DIRECT:
            extra = EXTRA[bucket]
            wide = extra > 0
            shift = TOTAL_BITS - extra
            place = self.state & ((1 << TOTAL_BITS) - 1)
            value = place >> shift
            rest = ((self.state >> TOTAL_BITS) << shift) + place - (value << shift)
            self.state = np.where(wide, rest, self.state)
            magnitude = magnitude + np.where(wide, value, 0)
            self._refill()
        level: Array = np.where(symbol & 1, magnitude, -magnitude)
        return level

    def _refill(self) -> None:
        low = np.flatnonzero(self.state < STATE_LOW)
        if low.size:
            at = self.at[low]
            if (at >= self.ends[low]).any():
                raise CorruptDataError("data must hold every level, got a lane that ends before")
            self.state[low] = self.state[low] << 16 | self.words[at]
            self.at[low] = at + 1

    def check_end(self) -> None:
        """After the last level: each lane is used up, and its state is back where it began."""
        if (self.at != self.ends).any() or (self.state != STATE_LOW).any():
            raise CorruptDataError("data must end with its last level, got a lane that does not")


class Lane:
    """Reads one lane in Python's own integers, which for few lanes are faster than arrays."""

    def __init__(self, words: Array, tables: Tables) -> None:
        # `Lanes` checks where a lane begins.
        first = Lanes(words, np.zeros(1, np.int64), np.array([len(words)]), tables)
        self.state = int(first.state[0])
        self.words = iter(words[2:].tolist())
        self.frequencies, self.starts, self.symbols = tables.rows

    def next(self, context: int) -> int:
        """One level."""
        state = self.state
        place = state & ((1 << TOTAL_BITS) - 1)
        symbol = self.symbols[context][place]
        state = (state >> TOTAL_BITS) * self.frequencies[context][symbol]
        state += place - self.starts[context][symbol]
        if state < STATE_LOW:
            state = state << 16 | self._word()
        bucket = (symbol + 1) >> 1
        magnitude = bucket
        if bucket >= DIRECT:
            shift = TOTAL_BITS - int(EXTRA[bucket])
            place = state & ((1 << TOTAL_BITS) - 1)
            value = place >> shift
            state = ((state >> TOTAL_BITS) << shift) + place - (value << shift)
            magnitude = int(FIRSTS[bucket]) + value
            if state < STATE_LOW:
                state = state << 16 | self._word()
        self.state = state
        return magnitude if symbol & 1 else -magnitude

    def check_end(self) -> None:
        """As that of `Lanes`."""
        if self.state != STATE_LOW or next(self.words, None) is not None:
            raise CorruptDataError("data must end with its last level, got a lane that does not")

    def _word(self) -> int:
        word: int | None = next(self.words, None)
        if word is None:
            raise CorruptDataError("data must hold every level, got a lane that ends before")
        return word

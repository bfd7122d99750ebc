"""Trellis-coded levels and their asymmetric numerals, in plain Python: what the kernels must give.

Arithmetic that decides is float32 in the kernels' order: (size − point)² · weight + rate.
"""

from __future__ import annotations

import numpy as np
from fastfactor import CorruptDataError

STATES, MAX_LEVEL, DIRECT, BUCKETS = 64, 65535, 16, 112
TOTAL_BITS, LOW = 14, 1 << 16
TILE = 64  # columns after which the least cost is taken from all

EXTRA = np.array([0] * DIRECT + [k // 8 + 1 for k in range(BUCKETS - DIRECT)])
FIRSTS = np.array([*range(DIRECT), *((8 + k % 8) << (k // 8 + 1) for k in range(96))])


def bucket_of(magnitude):
    return np.searchsorted(FIRSTS, magnitude, side="right") - 1


def next_state(state, parity):
    """Ungerboeck's code (1982) with the parity checks 103 and 024, octal."""
    return (state >> 1) ^ (0o103 >> 1) * (state & 1) ^ (0o024 >> 1) * parity


BEFORE = np.zeros((STATES, 2), int)  # the state that leads to each, by an even and an odd level
for _state in range(STATES):
    for _parity in (0, 1):
        BEFORE[next_state(_state, _parity), _parity] = _state


def twice_classes(columns, row_logs, shift, classes):
    logs = columns.astype(int) + np.asarray(row_logs, int)[:, None]
    return 2 * np.clip(logs >> shift, 0, classes - 1)


def contexts_of(levels, twice):
    result = np.empty(levels.shape, int)
    for row in range(len(levels)):
        state = 0
        for column, level in enumerate(levels[row].tolist()):
            result[row, column] = twice[row, column] + (state & 1)
            state = next_state(state, level & 1)
    return result


def points(magnitudes, contexts, centers):
    wide = np.concatenate([np.zeros((len(centers), 1), np.float32), centers], axis=1)
    grid = (2 * magnitudes - (contexts & 1) * (magnitudes > 0)).astype(np.float32)
    return grid + wide[contexts, np.minimum(magnitudes, 3)]


def reconstruct(levels, contexts, centers):
    found = points(np.abs(levels), contexts, centers)
    return np.where(levels < 0, -found, found)


def quantize(values, step, weights, twice, bits, centers, rate_weight):
    """Levels of least Σ weights · (value − point)² + rate_weight · bits, all rows side by side."""
    sizes = np.minimum(np.abs(values.astype(np.float32) / np.float32(step)), np.float32(2**18))
    weights = np.broadcast_to(weights, sizes.shape).astype(np.float32)
    n_rows, n_columns = sizes.shape
    every = np.arange(n_rows)
    total = np.full((STATES, n_rows), np.float32(np.inf))
    total[0] = 0
    choices = np.empty((n_columns, 2, 2, n_rows), int)
    odd = np.empty((n_columns, STATES, n_rows), bool)
    for j in range(n_columns):
        costs = np.empty((2, 2, n_rows), np.float32)
        for q in (0, 1):
            contexts = twice[:, j] + q
            half = (sizes[:, j] + np.float32(q)) * np.float32(0.5)
            nearest = np.minimum(half, np.float32(MAX_LEVEL - 2)).astype(int)
            for parity in (0, 1):
                below = np.maximum(nearest - 1, 0)
                below += (below ^ parity) & 1
                pair = []
                for level in (below, below + 2):
                    away = sizes[:, j] - points(level, contexts, centers)
                    rate = np.float32(rate_weight) * bits[contexts, bucket_of(level)]
                    pair.append(weights[:, j] * (away * away) + rate)
                choices[j, q, parity] = np.where(pair[1] < pair[0], below + 2, below)
                costs[q, parity] = np.minimum(*pair)
        quantizers = np.arange(STATES) >> 5
        ways = [total[BEFORE[:, parity]] + costs[quantizers, parity] for parity in (0, 1)]
        odd[j] = ways[1] < ways[0]
        total = np.minimum(*ways)
        if (j + 1) % TILE == 0:
            total = total - total.min(axis=0)
    state = np.argmin(total, axis=0)
    levels = np.empty(sizes.shape, np.int32)
    for j in range(n_columns - 1, -1, -1):
        parity = odd[j, state, every].astype(int)
        levels[:, j] = choices[j, state >> 5, parity, every]
        state = BEFORE[state, parity]
    return np.where(values < 0, -levels, levels).astype(np.int32)


def sums(values, step, weights, levels, contexts, classes):
    """Counts of buckets by context, and the sums that centres and errors come from."""
    counts = np.zeros((2 * classes, BUCKETS), np.int64)
    np.add.at(counts, (contexts, bucket_of(np.abs(levels))), 1)
    grid = points(np.abs(levels), contexts, np.zeros((2 * classes, 3), np.float32))
    away = (np.abs(values.astype(np.float32) / np.float32(step)) - grid).astype(np.float64)
    found = np.zeros((2 * classes, 4, 3))
    for power in range(3):
        each = np.broadcast_to(weights, levels.shape) * away**power
        np.add.at(found[..., power], (contexts, np.minimum(np.abs(levels), 3)), each)
    return counts, found


def encode_block(pairs, frequencies):
    """One stream from (level, context) in the order of reading."""
    starts = np.cumsum(frequencies, axis=1) - frequencies
    words, state = [], LOW

    def put(frequency, start):
        nonlocal state
        if state >= frequency << (32 - TOTAL_BITS):
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // frequency << TOTAL_BITS) + state % frequency + start

    for level, context in reversed(pairs):
        bucket = int(bucket_of(abs(level)))
        if EXTRA[bucket]:
            each = 1 << (TOTAL_BITS - int(EXTRA[bucket]))
            put(each, (abs(level) - int(FIRSTS[bucket])) * each)
        symbol = 2 * bucket - (level > 0) if bucket else 0
        put(int(frequencies[context, symbol]), int(starts[context, symbol]))
    return np.array([state >> 16, state & 0xFFFF, *reversed(words)], np.uint16)


class Stream:
    """Reads one stream, a level at a time."""

    def __init__(self, words, frequencies):
        self.words = iter(words.tolist())
        self.frequencies = frequencies
        self.starts = np.cumsum(frequencies, axis=1) - frequencies
        self.state = self.word() << 16 | self.word()
        if self.state < LOW:
            raise CorruptDataError("states must be at least 65536")

    def word(self):
        found = next(self.words, None)
        if found is None:
            raise CorruptDataError("data must hold every level, got a lane that ends too early")
        return found

    def next(self, context):
        place = self.state & ((1 << TOTAL_BITS) - 1)
        symbol = int(np.searchsorted(self.starts[context], place, side="right")) - 1
        frequency, start = int(self.frequencies[context, symbol]), int(self.starts[context, symbol])
        self.take((self.state >> TOTAL_BITS) * frequency + place - start)
        bucket = (symbol + 1) >> 1
        magnitude = int(FIRSTS[bucket])
        if EXTRA[bucket]:
            shift = TOTAL_BITS - int(EXTRA[bucket])
            place = self.state & ((1 << TOTAL_BITS) - 1)
            magnitude += place >> shift
            rest = place & ((1 << shift) - 1)
            self.take((self.state >> TOTAL_BITS << shift) + rest)
        return magnitude if symbol & 1 else -magnitude

    def take(self, state):
        self.state = state << 16 | self.word() if state < LOW else state

    def check_end(self):
        if self.state != LOW or next(self.words, None) is not None:
            raise CorruptDataError("data must end with its last level, got a lane that goes on")


def read_block(words, frequencies, n_rows, columns, shift, classes, *, to_the_end=True):
    """Levels and contexts of the first rows of a block."""
    stream = Stream(words, frequencies)
    levels = np.empty((n_rows, len(columns)), int)
    contexts = np.empty(levels.shape, int)
    for row in range(n_rows):
        log = stream.next(2 * classes) if classes > 1 else 0
        twice = twice_classes(columns, [log], shift, classes)[0].tolist()
        state = 0
        for j, first in enumerate(twice):
            contexts[row, j] = first + (state & 1)
            levels[row, j] = stream.next(contexts[row, j])
            state = next_state(state, levels[row, j] & 1)
    if to_the_end:
        stream.check_end()
    return levels, contexts

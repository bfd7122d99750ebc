"""Trellis-coded quantization: levels whose quantizer follows from the parities of those before.

Two quantizers with step 2, shifted by 1, share a grid of step 1 (Marcellin and Fischer, 1990;
entropy-coded: Fischer and Wang, 1992; zero in both: Joshi, Fischer and Marcellin, 1995). A row
starts in state 0; the Viterbi algorithm finds the levels of least distortion + λ · bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._checks import Array
from .entropy_coder import BUCKET_OF, LARGEST, Lane, Lanes

ClassesOf = Callable[[Array], Array]

# Ungerboeck's codes (1982) by parity checks; more states look further and cost encoding time only.
MEMORY, CHECK_0, CHECK_1 = 6, 0o103, 0o024
N_STATES = 1 << MEMORY
N_CENTERS = 3  # magnitudes 1, 2, and more, whose centres are stored
CENTER_STEP = 1 / 128
ROWS_AT_ONCE = 1024


def _next_states() -> Array:
    """(N_STATES, 2): where a level of even or odd value leads. The lowest bit is the quantizer."""
    result = np.zeros((N_STATES, 2), np.int64)
    for state in range(N_STATES):
        for parity in (0, 1):
            bits = (state >> 1) ^ (CHECK_0 >> 1) * (state & 1) ^ (CHECK_1 >> 1) * parity
            result[state, parity] = bits
    return result


NEXT_STATE = _next_states()


def _arrivals() -> tuple[Array, Array]:
    """(2, N_STATES): the two states that lead to each, and the parities by which they do."""
    before = [
        [divmod(int(at), 2) for at in np.flatnonzero(s == NEXT_STATE)] for s in range(N_STATES)
    ]
    pairs = np.array(before)
    return pairs[:, :, 0].T.copy(), pairs[:, :, 1].T.copy()


FROM, PARITY = _arrivals()
SUBSET = 2 * (FROM & 1) + PARITY  # quantizer and parity of each arrival


def trellis_quantize(
    values: Array, classes: Array, bits: Array, centers: Array, weights: Array, rate_weight: float
) -> tuple[Array, Array]:
    """Levels of least Σ weights · (value − reconstruction)² + rate_weight · bits, row by row.

    Parameters
    ----------
    values : float32 array of shape (n_rows, n_columns)
        In units of the grid.
    classes : int array of values' shape
    bits : float32 array of shape (2 · n_classes, n_buckets)
        Cost of a level's bucket in context 2 · class + quantizer.
    centers : float32 array of shape (2 · n_classes, N_CENTERS)
        How far a reconstruction lies from its point of the grid, outwards.
    weights : float32 array, broadcast to values' shape

    Returns
    -------
    levels : int32 array of values' shape
    contexts : uint8 array of values' shape
        2 · class + quantizer of each.
    """
    levels = np.empty(values.shape, np.int32)
    quantizers = np.empty(values.shape, np.uint8)
    weights = np.broadcast_to(weights, values.shape)
    for first in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        costs, choices = _costs(
            values[rows], classes[rows], bits, centers, weights[rows], rate_weight
        )
        _viterbi(costs, choices, levels[rows], quantizers[rows])
    levels[values < 0] *= -1
    return levels, (2 * classes + quantizers).astype(np.uint8)


def read_lanes(
    lanes: Lanes, classes_of: ClassesOf, scale: int | None, levels: Array, contexts: Array
) -> None:
    """Fill (n_rows, n_columns, n_lanes) levels and contexts, all lanes side by side.

    A row's scale comes first, in the context `scale`, where there is one; `classes_of` tells its
    columns' classes, (n_columns, n_lanes).
    """
    n_rows, n_columns, n_lanes = levels.shape
    scales = np.zeros(n_lanes, np.int64)
    for row in range(n_rows):
        if scale is not None:
            scales = lanes.next(np.full(n_lanes, scale))
        state = np.zeros(n_lanes, np.int64)
        twice = 2 * classes_of(scales)
        for column in range(n_columns):
            context = twice[column] + (state & 1)
            level = lanes.next(context)
            state = NEXT_STATE[state, level & 1]
            levels[row, column] = level
            contexts[row, column] = context


def read_lane(
    lane: Lane, classes_of: ClassesOf, scale: int | None, levels: Array, contexts: Array
) -> None:
    """The same for one lane: (n_rows, n_columns)."""
    next_state = NEXT_STATE.tolist()
    for row in range(len(levels)):
        first = 0 if scale is None else lane.next(scale)
        state = 0
        found: list[int] = []
        used: list[int] = []
        for twice in (2 * classes_of(np.array([first]))[:, 0]).tolist():
            used.append(twice + (state & 1))
            found.append(lane.next(used[-1]))
            state = next_state[state][found[-1] & 1]
        levels[row], contexts[row] = found, used


def reconstruct(levels: Array, contexts: Array, centers: Array) -> Array:
    """Values of levels in units of the grid, float32."""
    magnitude = np.abs(levels)
    place = np.minimum(magnitude, N_CENTERS)
    wide = np.concatenate([np.zeros((len(centers), 1), np.float32), centers], axis=1)
    value = (2 * magnitude - (contexts & 1) * (magnitude > 0)).astype(np.float32)
    value += wide[contexts, place]
    result: Array = np.where(levels < 0, -value, value)
    return result


def fit_centers(values: Array, levels: Array, contexts: Array, weights: Array, n: int) -> Array:
    """The centres that minimise the weighted error of these levels, as int8 of CENTER_STEP."""
    place = np.minimum(np.abs(levels), N_CENTERS)
    grid = reconstruct(levels, contexts, np.zeros((n, N_CENTERS), np.float32))
    away = (np.abs(values) - np.abs(grid)).astype(np.float64)
    keys = (contexts.astype(np.int64) * (N_CENTERS + 1) + place).ravel()
    weights = np.broadcast_to(weights, values.shape)
    size = n * (N_CENTERS + 1)
    mass = np.bincount(keys, weights.ravel(), size)
    total = np.bincount(keys, (weights * away).ravel(), size)
    means = (total / np.maximum(mass, 1e-30)).reshape(n, N_CENTERS + 1)[:, 1:]
    return np.clip(np.rint(means / CENTER_STEP), -127, 127).astype(np.int8)


def _costs(
    values: Array, classes: Array, bits: Array, centers: Array, weights: Array, rate_weight: float
) -> tuple[Array, Array]:
    """Of each subset (quantizer, parity) the least cost, and its magnitude: (columns, 4, rows)."""
    sizes = np.abs(values.T)
    classes, weights = classes.T.astype(np.int64), weights.T
    costs = np.empty((len(sizes), 4, sizes.shape[1]), np.float32)
    choices = np.empty(costs.shape, np.int32)
    wide = np.concatenate([np.zeros((len(centers), 1), np.float32), centers], axis=1)
    for quantizer in (0, 1):
        contexts = 2 * classes + quantizer
        nearest = np.minimum((sizes + quantizer) * 0.5, LARGEST - 2).astype(np.int32)
        for parity in (0, 1):
            below = np.maximum(nearest - ((nearest & 1) ^ parity), parity)
            best = None
            for level in (below, below + 2):
                point = (2 * level - quantizer * (level > 0)).astype(np.float32)
                point += wide[contexts, np.minimum(level, N_CENTERS)]
                cost = weights * (sizes - point) ** 2
                cost += np.float32(rate_weight) * bits[contexts, BUCKET_OF[level]]
                if best is None:
                    best, choice = cost, level
                else:
                    choice = np.where(cost < best, level, choice)
                    best = np.minimum(cost, best)
            costs[:, 2 * quantizer + parity] = best
            choices[:, 2 * quantizer + parity] = choice
    return costs, choices


def _viterbi(costs: Array, choices: Array, levels: Array, quantizers: Array) -> None:
    n_columns, _, n_rows = costs.shape
    second = np.empty((n_columns, N_STATES, n_rows), bool)
    total = np.full((N_STATES, n_rows), np.float32(1e30))
    total[0] = 0
    for column in range(n_columns):
        one = total[FROM[0]] + costs[column, SUBSET[0]]
        other = total[FROM[1]] + costs[column, SUBSET[1]]
        np.less(other, one, out=second[column])
        total = np.minimum(one, other)
        total -= total.min(axis=0)  # float32 keeps differences exact enough on long rows
    every = np.arange(n_rows)
    state = np.argmin(total, axis=0)
    for column in range(n_columns - 1, -1, -1):
        which = second[column, state, every].astype(np.int64)
        subset = SUBSET[which, state]
        levels[:, column] = choices[column, subset, every]
        quantizers[:, column] = subset >> 1
        state = FROM[which, state]

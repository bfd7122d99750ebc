"""Matrices of normal numbers drawn from a seed, the same on every machine that reads a file."""

from __future__ import annotations

import numpy as np

from ..._checks import Array

# Columns that share a stream. A row of a tile is 64 draws, 16 steps of Philox's counter.
TILE = 128
STEPS = TILE // 8
ROWS_AT_ONCE = 1 << 13  # of a tile, which is drawn whole even where few of its columns are needed


def gaussian_tile(seed: int, stream: int, first: int, last: int, tile: int) -> Array:
    """Return rows ``first:last`` of the columns ``[tile * TILE, (tile + 1) * TILE)``, in float32.

    The numbers are independent and standard normal. Each depends on the seed, the stream, its row
    and its column only, so a narrower matrix is the beginning of a wider one. They are raw draws of
    Philox, transformed in float64 as G. Box and M. Muller describe: NumPy promises to keep its raw
    draws, but may change its normal numbers.
    """
    bits = np.random.Philox(key=seed, counter=(stream << 192) + (tile << 128))
    draws = bits.advance(first * STEPS).random_raw((last - first) * TILE // 2)
    high, low = draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)
    lengths = np.sqrt(-2 * np.log((high + 0.5) * 2.0**-32))
    angles = low * (2 * np.pi * 2.0**-32)
    result = np.empty((last - first, 2, TILE // 2), np.float32)
    result[:, 0] = (lengths * np.cos(angles)).reshape(-1, TILE // 2)
    result[:, 1] = (lengths * np.sin(angles)).reshape(-1, TILE // 2)
    return result.reshape(-1, TILE)


def gaussian(seed: int, stream: int, rows: int, columns: int) -> Array:
    """Return a matrix of the numbers of :func:`gaussian_tile`."""
    result = np.empty((rows, columns), np.float32)
    for first in range(0, rows if columns else 0, ROWS_AT_ONCE):
        part = result[first : first + ROWS_AT_ONCE]
        for at in range(0, columns, TILE):
            tile = gaussian_tile(seed, stream, first, first + len(part), at // TILE)
            part[:, at : at + TILE] = tile[:, : columns - at]
    return result

"""Matrices of normal numbers that a seed gives, the same wherever a file is read."""

from __future__ import annotations

import numpy as np

from ..._checks import Array

# Columns that share a stream. A row of a tile is 64 draws, 16 steps of Philox's counter.
TILE = 128
STEPS = TILE // 8


def gaussian_tile(seed: int, stream: int, first: int, last: int, tile: int) -> Array:
    """Rows ``first:last`` of the columns ``[tile * TILE, (tile + 1) * TILE)``, in float32.

    Independent standard normal numbers. Each is a function of the seed, the stream, its row and its
    column: a narrower matrix is the beginning of a wider one. Philox's raw draws, which NumPy
    promises to keep (its normal numbers it may change), through G. Box and M. Muller's transform,
    in float64.
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
    """A whole matrix of them."""
    tiles = range(-(-columns // TILE))
    parts = [gaussian_tile(seed, stream, 0, rows, tile) for tile in tiles]
    return np.concatenate(parts, axis=1)[:, :columns] if parts else np.empty((rows, 0), np.float32)

"""Matrices near the end of their dtype's range, whose approximations may leave it."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from .factors import Factors
from .narrow import largest

MARGIN = 4  # products of factors of W may be larger than W by this many powers of two


def is_near_the_end(W: Array) -> bool:
    """Return whether a product of factors of W may leave the range of the dtype it is made in."""
    if W.dtype == np.float16 or not W.size:
        return False  # products are made in float32
    if W.dtype.itemsize == 2:  # NumPy's maximum of bfloat16 takes long
        return bool(np.any((W.view(np.uint16) & 0x7FFF) >= 0x7F00 - (MARGIN << 7)))
    limit = float(np.finfo(W.dtype).max) * 2.0**-MARGIN
    return largest(W) > limit


def stays_finite(factors: Factors) -> bool:
    """Return whether all values of the matrix that factors give are finite."""
    try:
        with np.errstate(over="raise", invalid="raise"):
            return all(np.isfinite(rows).all() for _, rows in factors._row_blocks(None))
    except FloatingPointError:
        return False


def too_large(W: Array, method: str) -> ValueError:
    """Return the exception for a W whose approximation by a method leaves the dtype's range."""
    most = max(float(W.max()), -float(W.min()))
    return ValueError(
        f"W must be farther from the end of {W.dtype}'s range for {method}, got ±{most:.4g}"
    )

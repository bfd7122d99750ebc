"""Numbers in a narrower dtype: what is too large is limited, what would vanish is refused."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array

MAX_LOSS = 1e-3  # the largest part of a sum of squares that rounding to a dtype may lose
# The spacing of the numbers around zero. Rounding moves every number by at most half of it, or by
# 1/512 of the number (bfloat16's precision, the lowest).
SPACINGS = {
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
    "float32": 2.0**-149,
    "float64": 2.0**-1074,
}


def narrowed(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array in a narrower dtype; values beyond its range become ± its largest value."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if dtype.itemsize < array.itemsize and not np.isfinite(result).all():
        most = np.nextafter(dtype.type(np.inf), dtype.type(0))
        result = np.clip(result, -most, most).astype(dtype, copy=False)
    return result


def as_factors(array: Array, dtype: np.dtype[Any], exponent: int = 0) -> Array:
    """Return ``array · 2**exponent``, factors of a W of this dtype, in that dtype.

    Raises
    ------
    ValueError
        If W is so small that its factors would vanish.
    """
    with np.errstate(over="ignore"):
        wide = np.ldexp(array, exponent) if exponent else array
    if not np.isfinite(wide).all():
        most = np.finfo(wide.dtype).max
        wide = np.clip(wide, -most, most)
    held = np.ascontiguousarray(narrowed(wide, dtype))
    if _may_vanish(wide, dtype) and _loses(array, np.ldexp(held.astype(np.float64), -exponent)):
        raise _vanishing("W", "its factors", dtype, wide)
    return held


def check_kept(array: Array, dtype: np.dtype[Any], name: str, what: str) -> None:
    """Check that rounding to a dtype loses at most ``MAX_LOSS`` of an array's sum of squares.

    More is lost only where most numbers are near the smallest of the dtype, or below it.
    """
    if array.dtype == dtype or not _may_vanish(array, dtype):
        return
    wide = array.astype(np.float64)
    if _loses(wide, wide.astype(dtype).astype(np.float64)):
        raise _vanishing(name, what, dtype, array)


def _may_vanish(array: Array, dtype: np.dtype[Any]) -> bool:
    """Return whether numbers may be so small that rounding could lose more than ``MAX_LOSS``."""
    # n numbers lose at most n · spacing² of at least largest².
    return 0 < largest(array) < SPACINGS[_checks.name_of(dtype)] * sqrt(array.size / MAX_LOSS)


def _loses(wide: Array, rounded: Array) -> bool:
    """Return whether float64 numbers lost more than ``MAX_LOSS`` when they were rounded."""
    unit = largest(wide)
    lost, total = float(np.sum(((wide - rounded) / unit) ** 2)), float(np.sum((wide / unit) ** 2))
    return lost > MAX_LOSS * total


def _vanishing(name: str, what: str, dtype: np.dtype[Any], array: Array) -> ValueError:
    return ValueError(
        f"{name} must be large enough for {what} to be stored in {dtype}, "
        f"got values up to {largest(array):.3g}, of which it would lose more than {MAX_LOSS:.1%}"
    )


def largest(array: Array) -> float:
    """Return the largest magnitude in an array, 0 if it is empty."""
    return max(float(array.max(initial=0)), -float(array.min(initial=0)))

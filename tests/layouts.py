"""The same matrix, laid out in memory in every way that a caller may hand it over."""

from __future__ import annotations

import numpy as np


def fortran(array):
    return np.asfortranarray(array)


def strided(array):
    """Every second row and third column of a larger array."""
    shape = (*array.shape[:-2], 2 * array.shape[-2], 3 * array.shape[-1])
    larger = np.full(shape, np.nan, array.dtype)
    larger[..., ::2, ::3] = array
    return larger[..., ::2, ::3]


def reversed_twice(array):
    """Negative strides in both directions."""
    return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]


def unaligned(array):
    """Elements at odd addresses."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    shifted = raw[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def read_only(array):
    frozen = array.copy()
    frozen.setflags(write=False)
    return frozen


def byte_rows(array):
    """Rows that lie an odd number of bytes apart, as fields of a packed record do."""
    record = np.dtype([("tag", "u1"), ("values", array.dtype, array.shape[-1:])])
    records = np.zeros(array.shape[:-1], record)
    records["values"] = array
    return records["values"]


LAYOUTS = [fortran, strided, reversed_twice, unaligned, read_only, byte_rows]

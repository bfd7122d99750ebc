"""Entries of every sort for stored files, what changes a file, and what reads all of it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from fastfactor import store
from fastfactor.methods import Factors, LowRank

B, C = np.ones((2, 1), np.float32), np.ones((1, 3), np.float32)


def a_low_rank(rng):
    return LowRank(rank=2).compress(rng.standard_normal((6, 15)).astype(np.float32))


def mixed_entries(rng, low_rank):
    """Tensors whose bytes are odd in number first, so that what follows lies as it comes."""
    return {
        "codes": np.arange(7, dtype=np.uint8),
        "fc.weight": low_rank,
        "half": rng.standard_normal(3).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 4), np.int16),
    }


def same(value, expected):
    if isinstance(expected, Factors):
        assert type(value) is type(expected)
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        for name, tensor in expected.tensors().items():
            np.testing.assert_array_equal(value.tensors()[name], tensor)
    else:
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(value, expected)


def damage(path, at, flip=1):
    content = bytearray(path.read_bytes())
    content[at] ^= flip
    path.write_bytes(content)


def read_all(path):
    with store.open_store(path) as opened:
        opened.verify()

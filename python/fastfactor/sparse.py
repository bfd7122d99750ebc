"""Sparse matrices in compressed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import Array


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparse matrix in compressed rows."""

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]

    @classmethod
    def _trusted(cls, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> CSR:
        """Arrays that a kernel has just made: right by construction, so neither checked nor copied."""
        matrix = cls.__new__(cls)
        for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
            array.setflags(write=False)
            object.__setattr__(matrix, name, array)
        object.__setattr__(matrix, "shape", shape)
        return matrix

    def to_dense(self, out: Any = None) -> Array:
        dense = np.zeros(self.shape, self.data.dtype)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        np.add.at(dense, (rows, self.indices), self.data)
        return dense

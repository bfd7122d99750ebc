"""What is known of a tensor in a file before it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _checks

# By default what is stored may become this large, and this many times its bytes larger: enough for
# every matrix that was not nearly empty and for every archive that NumPy writes, and too little for
# a made-up file of a few bytes to fill a disk.
DENSE_NBYTES, DENSE_RATIO = 1 << 30, 4096


def dense_limit(nbytes: int, asked: int | None = None) -> int:
    """Return the most bytes to make of so many stored ones, if not asked for another limit."""
    return DENSE_NBYTES + DENSE_RATIO * nbytes if asked is None else asked


@dataclass(frozen=True)
class Stored:
    """The shape and dtype of a tensor in a file.

    Attributes
    ----------
    opaque_nbytes : int or None
        Its bytes, if it has a dtype that NumPy lacks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    opaque_nbytes: int | None = None

    @property
    def nbytes(self) -> int:
        if self.opaque_nbytes is not None:
            return self.opaque_nbytes
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        return _checks.name_of(self.dtype)

    @property
    def is_float(self) -> bool:
        return _checks.is_float(self.dtype)

"""What is known of a tensor in a file before it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _checks


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

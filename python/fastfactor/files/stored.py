"""What is known of a tensor in a file before it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _checks


@dataclass(frozen=True)
class Stored:
    """The shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        return _checks.is_float(self.dtype)

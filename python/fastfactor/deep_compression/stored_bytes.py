"""Numbers and parts of data that may be hostile: read one after the other, each checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError

MAX_DIMENSIONS = 32  # of an array in any NumPy that is supported
MAX_SIZE = 2**59  # of which NumPy can still say how many bytes they are


def leb128(number: int) -> bytes:
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


class Reader:
    """Bytes, taken one part after the other, never beyond their end."""

    def __init__(self, data: Any) -> None:
        self._data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        self._at = 0

    def take(self, n: int) -> Array:
        """The next n bytes."""
        if n > self._data.size - self._at:
            raise CorruptDataError(
                f"data must have {n} bytes from {self._at} on, got {self._data.size - self._at}"
            )
        self._at += n
        taken: Array = self._data[self._at - n : self._at]
        return taken

    def size(self) -> int:
        """A number below 2**59, written as short as it can be."""
        number = 0
        for shift in range(0, 63, 7):
            byte = int(self.take(1)[0])
            number |= (byte & 127) << shift
            if byte < 128:
                if number >= MAX_SIZE or (shift and not byte):
                    break
                return number
        raise CorruptDataError(f"a size must be below 2**59 and written short, got {number}")

    def sized(self) -> Array:
        """Bytes that stand after their number."""
        return self.take(self.size())

    def shape(self) -> tuple[int, ...]:
        """A number of dimensions and each of them; the product is below 2**59 too."""
        n = self.size()
        if n > MAX_DIMENSIONS:
            raise CorruptDataError(f"a shape must have {MAX_DIMENSIONS} sizes at most, got {n}")
        shape = tuple(self.size() for _ in range(n))
        if math.prod(max(size, 1) for size in shape) >= MAX_SIZE:
            raise CorruptDataError(f"a shape must have less than 2**59 places, got {shape}")
        return shape

    @property
    def left(self) -> int:
        return int(self._data.size - self._at)

    def end(self) -> None:
        if self.left:
            raise CorruptDataError(f"data must end at {self._at}, got {self.left} bytes more")

"""Numbers of Keras's variables, and those that were saved of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from .._arrays import Array, as_array
from ..errors import CorruptDataError


def as_numpy(variable: Any) -> Array:
    """Return the numbers of a variable."""
    value = variable.value
    if hasattr(value, "detach"):  # PyTorch's, which NumPy reads with a warning
        return as_array(value.detach().cpu(), variable.path)
    return np.asarray(ops.convert_to_numpy(value))


def saved_array(store: Any, name: str, shape: tuple[int, ...]) -> Array:
    """Return an array that was saved; refuse one that is not there or has another shape."""
    found = np.asarray(store[name]) if name in set(store.keys()) else None
    if found is None or found.shape != tuple(shape):
        got = "none" if found is None else str(found.shape)
        raise CorruptDataError(f"array {name!r} must be saved with shape {tuple(shape)}, got {got}")
    return found

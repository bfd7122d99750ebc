"""What a weight has beside its variable while it is pruned step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from .._arrays import Array
from .._checks import finite, result_dtype
from ..errors import CorruptDataError
from .variables import as_numpy, saved_array


class GradualMask:
    """Which entries of a weight are pruned so far, and the numbers that these had.

    The variable itself has zeros in their place, so that layers need not know of the mask.

    Attributes
    ----------
    kept : bool array or None
        Of the weight's shape, False for pruned entries; None before the first mask.
    values : array or None
        The numbers that these had when they were pruned, in their places, and zeros elsewhere.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Free all arrays."""
        self.kept: Array | None = None
        self.values: Array | None = None
        self._zeros_and_ones: Any = None

    def full(self, variable: Any) -> Array:
        """Return the numbers of a variable with those of pruned entries."""
        array = as_numpy(variable)
        if self.kept is None or self.values is None:
            return array
        return np.where(self.kept, array.astype(self.values.dtype, copy=False), self.values)

    def follow(self, variable: Any, mask: Array | None, *, chosen: bool) -> None:
        """Put zeros where a mask has them; momentum may have moved pruned entries.

        Parameters
        ----------
        variable : Variable
            The weight.
        mask : bool array or None
            Of the weight's shape; None before the first.
        chosen : bool
            Whether it is another one than before. Entries that return get back the numbers that
            they had.
        """
        if chosen and mask is not None:
            full = self.full(variable)
            full = full.astype(result_dtype(full), copy=False)
            self.kept, self.values = mask, np.where(mask, full.dtype.type(0), full)
            self._zeros_and_ones = None
            variable.assign(np.where(mask, full, full.dtype.type(0)))
        elif self.kept is not None:
            if self._zeros_and_ones is None:
                self._zeros_and_ones = ops.convert_to_tensor(self.kept, dtype=variable.dtype)
            variable.assign(ops.multiply(variable.value, self._zeros_and_ones))

    def save(self, store: Any, name: str) -> None:
        """Write the numbers of pruned entries to a store."""
        if self.kept is not None and self.values is not None:
            store[f"{name}.pruned"] = self.values[~self.kept]

    def restore(self, pruned: Array, mask: Array) -> None:
        """Go on with a mask of the weight's shape, and the numbers that were saved with it."""
        self.forget()
        self.kept = mask
        self.values = np.zeros(mask.shape, result_dtype(pruned))
        self.values[~mask] = pruned


def saved_pruned(store: Any, name: str, mask: Array) -> Array:
    """Return the numbers of pruned entries from a store; refuse what does not fit the mask."""
    pruned = saved_array(store, f"{name}.pruned", (int(mask.size - mask.sum()),))
    try:
        finite(pruned, f"{name}.pruned")
    except (TypeError, ValueError) as error:
        raise CorruptDataError(str(error)) from error
    return pruned

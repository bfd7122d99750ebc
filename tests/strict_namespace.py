"""An array library that shares nothing with NumPy, held to what `Factors.forward` may use.

`array_api_strict` on its second device, with the functions of `ArrayNamespace` and no others; NumPy
arrays are refused everywhere but in `asarray`.
"""

from __future__ import annotations

import array_api_strict
import numpy as np
from fastfactor.methods.forward import ArrayNamespace

DEVICE = array_api_strict.Device("device1")
NAMES = {name for name in vars(ArrayNamespace) if not name.startswith("_")}


class StrictNamespace:
    def __init__(self):
        self.constants = []  # the NumPy arrays given to asarray

    def __getattr__(self, name):
        if name not in NAMES:
            raise AttributeError(f"ArrayNamespace has no {name}")
        function = getattr(array_api_strict, name)

        def call(*arguments, **options):
            if name == "asarray":
                self.constants.append(arguments[0])
            else:
                refuse_numpy((*arguments, *options.values()))
            return function(*arguments, **options)

        return call


def refuse_numpy(value):
    if isinstance(value, np.ndarray | np.generic):
        raise TypeError("an array of NumPy's was given to another library")
    if isinstance(value, tuple | list):
        for each in value:
            refuse_numpy(each)


def strict_array(array, dtype):
    return array_api_strict.asarray(array, dtype=getattr(array_api_strict, dtype), device=DEVICE)


def forward(factors, tensors, x, dtype):
    """The product in that library, given and returned as NumPy arrays."""
    return call(factors, factors.forward, tensors, strict_array(x, dtype), dtype)


def forward_rows(factors, tensors, ids, dtype):
    """The rows in that library, given and returned as NumPy arrays."""
    return call(factors, factors.forward_rows, tensors, strict_array(ids, "int64"), dtype)


def call(factors, function, tensors, argument, dtype):
    xp = StrictNamespace()
    trained = {name: strict_array(tensors[name].astype(dtype), dtype) for name in factors.trainable}
    result = function(xp, trained, argument)
    assert isinstance(result, type(trained[factors.trainable[0]]))
    assert result.device == DEVICE
    assert result.dtype == getattr(array_api_strict, dtype)
    once, xp.constants = xp.constants, []
    function(xp, trained, argument)
    assert [id(array) for array in once] == [id(array) for array in xp.constants]
    return result._array  # to_device needs NumPy 2

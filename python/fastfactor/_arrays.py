"""Which values are taken as arrays, and how they become plain NumPy arrays.

Every argument that is an array goes through `as_array`, so that one rule holds for all functions.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What the conversions of other libraries raise.
CONVERSION_ERRORS = (TypeError, ValueError, RuntimeError, BufferError, OverflowError)


def as_array(value: Any, name: str) -> Array:
    """Return a value as an ndarray that is no instance of a subclass; never copy an ndarray.

    Memory maps, matrices and masked arrays without masked values become views. A torch tensor on
    the CPU becomes a view of its values, without its gradient; bfloat16 is kept. Everything else
    is converted as by ``np.asarray``. Dtype and shape are left to the caller to check.

    Raises
    ------
    TypeError
        If values are masked, if the value is sparse, on another device, or no array of numbers.
    ValueError
        For nested sequences of different lengths.
    """
    if type(value) is np.ndarray:
        return value
    if _has_masked(value):
        raise TypeError(f"{name} must not have masked values, got some; use {name}.filled(0)")
    if hasattr(value, "tocsr") and hasattr(value, "toarray"):
        raise TypeError(
            f"{name} must be a dense array, got sparse {type(value).__name__}; use {name}.toarray()"
        )
    if _is_torch_tensor(value):
        return _from_torch(value, name)
    array = _converted(value, name)
    if array.dtype == object and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an array of numbers, got {_described(value, array)}")
    return array


def _has_masked(value: Any) -> bool:
    """Return whether a masked array, or one in nested lists, has masked values."""
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        # Reading every item of a long list of numbers would take longer than converting it.
        nested = any(issubclass(kind, list | tuple | np.ndarray) for kind in kinds)
        return nested and any(map(_has_masked, value))
    if type(value) is np.ndarray or not isinstance(value, np.ndarray):
        return False
    # A structured array has a mask for each field; its dtype will be refused.
    return value.dtype.names is None and bool(np.ma.is_masked(value))


def _converted(value: Any, name: str) -> Array:
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except CONVERSION_ERRORS as error:
        kind = type(value).__name__
        if isinstance(value, list | tuple) and "inhomogeneous" in str(error):
            raise ValueError(
                f"{name} must have rows of equal length, got a {kind} of different lengths"
            ) from error
        raise _unconverted(name, kind, error) from error


def _unconverted(name: str, kind: str, error: Exception) -> TypeError:
    """Return the exception for a value of another library that NumPy cannot convert."""
    why = str(error).partition("\n")[0]
    return TypeError(
        f"{name} must be an array of numbers, got {kind}, which cannot be converted: {why}"
    )


def _described(value: Any, array: Array) -> str:
    """Return what a message says of a value that NumPy can only hold as Python objects."""
    if array.ndim == 0:
        return "None" if value is None else type(value).__name__
    odd = next((item for item in array.flat if not _fits(item)), array.flat[0])
    return f"{type(value).__name__} with {type(odd).__name__} {repr(odd).splitlines()[0]:.40}"


def _fits(item: Any) -> bool:
    """Return whether NumPy has a dtype for a number."""
    return isinstance(item, float) or (isinstance(item, int) and -(2**63) <= item < 2**64)


def _is_torch_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return any(
        kind.__name__ == "Tensor" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(value).__mro__
    )


def _from_torch(tensor: Any, name: str) -> Array:
    """Return a view of a tensor's values.

    Results are NumPy arrays, which have no gradients, so nothing is lost with the tensor's own.
    """
    if tensor.device.type != "cpu":
        raise TypeError(
            f"{name} must be on the CPU, got a tensor on {tensor.device}; use {name}.cpu()"
        )
    if str(tensor.layout) != "torch.strided":
        raise TypeError(
            f"{name} must be a dense tensor, got layout {tensor.layout}; use {name}.to_dense()"
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach()
    if dtype == "bfloat16" or dtype.startswith("float8"):
        return _of_narrow_floats(values, dtype)
    try:
        array: Array = values.numpy()
    except CONVERSION_ERRORS as error:
        raise _unconverted(name, f"{dtype} tensor", error) from error
    return array


def _of_narrow_floats(tensor: Any, dtype: str) -> Array:
    """Return a view of floats that torch does not give to NumPy, by way of their bits."""
    import ml_dtypes

    torch = sys.modules["torch"]
    bits = tensor.view(torch.int16 if dtype == "bfloat16" else torch.uint8).numpy()
    values: Array = bits.view(getattr(ml_dtypes, dtype))
    return values

"""Checks of arguments, made before any work.

Every message names the argument, what it must be, and what came.
"""

from __future__ import annotations

import math
import numbers
import operator
from functools import lru_cache
from typing import Any

import numpy as np

from ._arrays import Array as Array
from ._arrays import as_array

FLOATS = "float16, bfloat16, float32 or float64"
MOST_SHOWN = 200  # characters of a value in a message


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether the kernels read this dtype: IEEE floats of 2, 4 or 8 bytes, or bfloat16."""
    if dtype.kind == "f":
        return dtype.itemsize in (2, 4, 8) and dtype.isnative
    return name_of(dtype) == "bfloat16"


@lru_cache(maxsize=256)
def name_of(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, which NumPy puts together at each call."""
    return dtype.name


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype of this name from NumPy or, for bfloat16 and 8-bit floats, ml_dtypes.

    Raises
    ------
    ImportError
        If ml_dtypes is needed and missing, or too old.
    """
    if name != "bfloat16" and not name.startswith("float8"):
        return np.dtype(name)
    try:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"dtype {name} needs ml_dtypes, which is not installed or too old: "
            "pip install --upgrade ml_dtypes"
        ) from error
    return found


def float_array(value: Any, name: str, *, ndim: tuple[int, ...] | None = None) -> Array:
    """Return ``value`` as an array of floats of one of the given ranks; never copy an ndarray."""
    array = as_array(value, name)
    if not is_float(array.dtype):
        raise TypeError(
            f"{name} must have dtype {FLOATS} in native byte order, got {array.dtype}"
            f"{_cure(value, name, array.dtype)}"
        )
    if ndim is not None and array.ndim not in ndim:
        ranks = " or ".join(str(n) for n in ndim)
        raise ValueError(f"{name} must have {ranks} dimensions, got shape {array.shape}")
    return array


def _cure(value: Any, name: str, dtype: np.dtype[Any]) -> str:
    """Return how to make floats of real numbers; nothing for other values."""
    if dtype.kind not in "iubf":
        return ""
    if hasattr(value, "astype"):
        return f"; use {name}.astype(np.float32)"
    if hasattr(value, "float"):  # a torch tensor
        return f"; use {name}.float()"
    return f"; use np.asarray({name}, np.float32)"


def integers(value: Any, name: str) -> Array:
    """Return ``value`` as an array of integers of any width; an empty one may have any dtype."""
    array = as_array(value, name)
    if array.size == 0 and array.dtype.kind not in "iu":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array


def as_int64(array: Array, name: str, n: int = 2**63, error: type[Exception] = ValueError) -> Array:
    """Return integers as int64, in C order; refuse uint64 of ``n`` or more.

    Cast to int64, those of 2**63 and more would turn negative.
    """
    if array.dtype == np.uint64 and array.size and int(array.max()) >= n:
        raise error(f"{name} must be in [0, {n}), got {array.max()}")
    return np.ascontiguousarray(array, np.int64)


def inputs(x: Any, n_features: int) -> Array:
    """Return the inputs of a linear layer as floats of shape (..., n_features)."""
    array = float_array(x, "x")
    if array.shape[-1:] != (n_features,):
        raise ValueError(f"x must have shape (..., {n_features}), got {array.shape}")
    return array


def columns(x: Any, n_features: int) -> Array:
    """Return the right side of ``W @ x`` as floats of shape (n_features,) or (n_features, n)."""
    array = float_array(x, "x", ndim=(1, 2))
    if len(array) != n_features:
        raise ValueError(f"x must have {n_features} rows, got shape {array.shape}")
    return array


def result_dtype(*arrays: Array | None) -> type[np.float32] | type[np.float64]:
    """Return float64 if any operand is float64, else float32: narrower floats are widened."""
    wide = any(array is not None and array.dtype == np.float64 for array in arrays)
    return np.float64 if wide else np.float32


def writeable(out: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that an array given for output has the right shape and dtype and can be written."""
    if type(out) not in (np.ndarray, np.memmap):
        raise TypeError(f"{name} must be a plain NumPy array, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not (out.flags.writeable and out.flags.aligned):
        fault = "a read-only" if out.flags.aligned else "an unaligned"
        raise ValueError(f"{name} must be writeable and aligned, got {fault} array")


def shown(value: Any) -> str:
    """Return a value as messages show it: in one line, however long it is."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    if isinstance(value, int) and value.bit_length() > MOST_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def integer(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return an integer in [low, high]; refuse floats and booleans, but accept NumPy's integers."""
    wanted = f"at least {low}" if high is None else f"in [{low}, {high}]"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer {wanted}, got {shown(value)}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {wanted}, got {shown(number)}")
    return number


def nonnegative(value: Any, name: str, *, finite: bool = False) -> float:
    """Return a real number that is zero or more; infinity is accepted unless ``finite``."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number that is zero or more, got {shown(value)}")
    number = as_float(value)
    if not number >= 0:
        raise ValueError(f"{name} must be zero or more, got {shown(value)}")
    if finite and number == math.inf:
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return number


def positive(value: Any, name: str) -> float:
    """Return a real number above zero; infinity is refused."""
    number = nonnegative(value, name, finite=True)
    if number == 0:
        raise ValueError(f"{name} must be positive, got {shown(value)}")
    return number


def fraction(value: Any, name: str, *, zero: bool = False) -> float:
    """Return a real number in (0, 1], or with `zero` in [0, 1]."""
    wanted = "[0, 1]" if zero else "(0, 1]"
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number in {wanted}, got {shown(value)}")
    number = as_float(value)
    if not 0 <= number <= 1 or (number == 0 and not zero):
        raise ValueError(f"{name} must be in {wanted}, got {shown(value)}")
    return number


def as_float(number: Any) -> float:
    """Return a real number as a float; beyond the range of floats, infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def choice(value: Any, name: str, options: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the options."""
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be one of {', '.join(map(repr, options))}, got {shown(value)}"
        )
    if value not in options:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, options))}, got {shown(value)}"
        )
    return value


def boolean(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False; refuse 0, 1 and other stand-ins."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def random_state(value: Any) -> None:
    """Check that `seed` accepts a value, without drawing from it."""
    if not isinstance(value, np.random.Generator | np.random.RandomState):
        seed(value)


def seed(random_state: Any) -> int:
    """Return a 64-bit seed from ``None`` (fresh), an integer, a NumPy Generator or RandomState."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**64, dtype=np.uint64))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**63, dtype=np.int64))
    try:
        number = operator.index(random_state)
    except TypeError:
        raise TypeError(
            "random_state must be None, an integer, a numpy Generator or a RandomState, "
            f"got {shown(random_state)}"
        ) from None
    if not 0 <= number < 2**64:
        raise ValueError(f"random_state must be in [0, 2**64), got {shown(number)}")
    return number


def finite(array: Array, name: str, dtype: type[np.floating[Any]] | None = None) -> None:
    """Refuse NaN, infinity and what is infinite once cast to ``dtype``; name the first."""
    if dtype is None and array.dtype.kind == "f" and np.isfinite(array).all():
        return
    with np.errstate(over="ignore", invalid="ignore"):  # isfinite of a bfloat16 NaN warns
        ok = np.isfinite(array if dtype is None else array.astype(dtype))
        if ok.all():
            return
        at = tuple(int(i) for i in np.argwhere(~ok)[0])
        where = f" in {np.dtype(dtype)}" if np.isfinite(array[at]) else ""
    raise ValueError(f"{name} must be finite{where}, got {array[at]} at {list(at)}")


def sparse_shape(shape: Any, name: str) -> tuple[int, int]:
    """Return the two sizes of a shape as Python integers."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name} must be a pair of integers, got {shown(shape)}") from None
    if len(sizes) != 2:
        raise ValueError(f"{name} must be a pair of integers, got {shown(shape)}")
    rows, columns = (integer(size, f"{name}[{i}]", 0, 2**63 - 2) for i, size in enumerate(sizes))
    return rows, columns


def as_bytes(data: Any, name: str) -> Array:
    """Return bytes or a uint8 array as an array, without copying."""
    if isinstance(data, memoryview) and not data.c_contiguous:
        raise ValueError(f"{name} must be contiguous, got strides {data.strides}")
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.frombuffer(data, np.uint8)
    if type(data).__module__ == "builtins":  # lists, numbers, None
        raise TypeError(f"{name} must be bytes or a uint8 array, got {type(data).__name__}")
    array = as_array(data, name)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must have dtype uint8, got {array.dtype}")
    return array


def flat(array: Array, name: str) -> None:
    """Check that an array has one dimension and is contiguous and aligned."""
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(
            f"{name} must be contiguous and aligned, "
            f"got strides {array.strides} at address {array.ctypes.data:#x}"
        )

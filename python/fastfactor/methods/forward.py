"""The functions that `Factors.forward` may use of an array library, and constants for it."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from .._checks import Array


class ArrayNamespace(Protocol):
    """The functions of an array library that `Factors.forward` may call.

    Their names and signatures are those of the Python array API standard
    (data-apis.org/array-api), so NumPy from 2.0 on, ``array_api_strict``, ``jax.numpy`` and
    ``array_api_compat.torch`` can be passed as they are. For any other library, pass an object with
    these seven functions. For Keras, whose arrays may have no ``device``::

        class KerasNamespace:
            concat = staticmethod(keras.ops.concatenate)
            matmul = staticmethod(keras.ops.matmul)
            permute_dims = staticmethod(keras.ops.transpose)
            reshape = staticmethod(keras.ops.reshape)
            take = staticmethod(keras.ops.take)
            zeros_like = staticmethod(keras.ops.zeros_like)

            @staticmethod
            def asarray(array, *, dtype, device):
                return keras.ops.convert_to_tensor(array, dtype=dtype)

    On arrays, `forward` also uses ``+`` and ``*`` (with each other and with Python's floats),
    slices for every axis, ``shape``, ``dtype`` and ``device``. It only uses the library's own
    arrays: `constant` first converts what is not trained (codes, signs, positions).
    """

    def asarray(self, obj: Any, /, *, dtype: Any, device: Any) -> Any: ...
    def concat(self, arrays: Any, /, *, axis: int) -> Any: ...
    def matmul(self, x1: Any, x2: Any, /) -> Any: ...
    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any: ...
    def reshape(self, x: Any, /, shape: tuple[int, ...]) -> Any: ...
    def take(self, x: Any, indices: Any, /, *, axis: int) -> Any: ...
    def zeros_like(self, x: Any, /) -> Any: ...


class NumPyNamespace:
    """NumPy's functions under these names, some of which NumPy has only from 2.0 on."""

    concat = staticmethod(np.concatenate)
    matmul = staticmethod(np.matmul)
    permute_dims = staticmethod(np.transpose)
    reshape = staticmethod(np.reshape)
    take = staticmethod(np.take)
    zeros_like = staticmethod(np.zeros_like)

    @staticmethod
    def asarray(obj: Any, /, *, dtype: Any, device: Any) -> Array:
        return np.asarray(obj, dtype)


NUMPY = cast(ArrayNamespace, NumPyNamespace())


def constant(xp: ArrayNamespace, array: Array, like: Any) -> Any:
    """Return a NumPy array that is not trained as the library's array, on the device of ``like``.

    Floats get the dtype of ``like``, integers keep theirs.
    """
    dtype = like.dtype if array.dtype.kind not in "iu" else None
    return xp.asarray(array, dtype=dtype, device=getattr(like, "device", None))


def transpose(xp: ArrayNamespace, matrix: Any) -> Any:
    """Return the transpose of a matrix."""
    return xp.permute_dims(matrix, (1, 0))


def with_zero(xp: ArrayNamespace, values: Any) -> Any:
    """Return a vector with a zero appended, for the indices of entries that are not stored."""
    return xp.concat([values, constant(xp, np.zeros(1), values)], axis=0)

"""What `Factors.forward` may ask of an array library, and how constants get into one."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from .._checks import Array


class ArrayNamespace(Protocol):
    """The functions of an array library that `Factors.forward` may call.

    They are those of the Python array API standard (data-apis.org/array-api) by these names, so
    that NumPy from 2.0 on, ``array_api_strict``, ``jax.numpy`` and ``array_api_compat.torch`` serve
    as they are. For any other library an object with these seven functions will do; for Keras,
    whose arrays may have no ``device``::

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

    Beside them `forward` uses of arrays ``+`` and ``*``, with each other and with Python's floats,
    slices for every axis, ``shape``, ``dtype`` and ``device``. All of its arrays are the library's:
    what is not trained (codes, signs, positions) goes through `constant` first.
    """

    def asarray(self, obj: Any, /, *, dtype: Any, device: Any) -> Any: ...
    def concat(self, arrays: Any, /, *, axis: int) -> Any: ...
    def matmul(self, x1: Any, x2: Any, /) -> Any: ...
    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any: ...
    def reshape(self, x: Any, /, shape: tuple[int, ...]) -> Any: ...
    def take(self, x: Any, indices: Any, /, *, axis: int) -> Any: ...
    def zeros_like(self, x: Any, /) -> Any: ...


class NumPyNamespace:
    """NumPy by these names; before 2.0 it had not all of them."""

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
    """Return an array that is not trained as one of the library's, on the device of ``like``.

    Floats get the dtype of ``like``, integers keep theirs.
    """
    dtype = like.dtype if array.dtype.kind not in "iu" else None
    return xp.asarray(array, dtype=dtype, device=getattr(like, "device", None))


def transpose(xp: ArrayNamespace, matrix: Any) -> Any:
    """Return the transpose of a matrix."""
    return xp.permute_dims(matrix, (1, 0))


def with_zero(xp: ArrayNamespace, values: Any) -> Any:
    """Return the values of a vector and a zero after them, which what is not stored can name."""
    return xp.concat([values, constant(xp, np.zeros(1), values)], axis=0)

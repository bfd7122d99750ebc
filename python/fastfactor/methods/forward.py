"""The functions that `Factors.forward` and `forward_rows` may use of an array library."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol, cast

import numpy as np

from .._checks import Array


class ArrayNamespace(Protocol):
    """The functions of an array library that `forward` and `forward_rows` of `Factors` may call.

    Their names and signatures are those of the Python array API standard
    (data-apis.org/array-api), so NumPy from 2.0 on, ``array_api_strict``, ``jax.numpy`` and
    ``array_api_compat.torch`` can be passed as they are. :mod:`fastfactor.adapters` has a namespace
    for PyTorch and one for Keras. For any other library, pass an object with these seven functions.

    On arrays, products also use ``+`` and ``*`` (with each other and with Python's floats), slices
    for every axis, ``...`` before a slice of the last axis, ``shape``, ``dtype`` and ``device``. A
    length in ``shape`` may be None where it is not known yet, and one of those given to ``reshape``
    may be -1. Products only use the library's own arrays: `constant` first converts what is not
    trained (codes, signs, positions). It passes the same NumPy arrays to ``asarray`` in each call
    with the same factors, so a namespace may remember what it made of them.
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
ZERO = np.zeros(1)


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
    return xp.concat([values, constant(xp, ZERO, values)], axis=0)


def length(*lengths: int | None) -> int:
    """Return the product of lengths, or -1 if one of them is not known."""
    return -1 if None in lengths else prod(cast(tuple[int, ...], lengths))


def n_inputs(x: Any) -> int | None:
    """Return the number of inputs in x (..., in), or None if it is not known while tracing."""
    n = length(*x.shape[:-1])
    return n if isinstance(n, int) and n >= 0 else None


def as_batch(xp: ArrayNamespace, x: Any) -> Any:
    """Return x of shape (..., n) in the shape (batch, n)."""
    return xp.reshape(x, (length(*x.shape[:-1]), x.shape[-1]))


def with_lead(xp: ArrayNamespace, result: Any, lead: Sequence[int | None]) -> Any:
    """Return a result of shape (batch, n) with the axes ``lead`` in place of the first."""
    return xp.reshape(result, (*(-1 if n is None else n for n in lead), result.shape[-1]))


def zero_product(xp: ArrayNamespace, nothing: Any, x: Any, shape: tuple[int, int]) -> Any:
    """Return the product of x (..., in) with a matrix of zeros, of a tensor without values."""
    return xp.matmul(x[..., :0], xp.reshape(nothing, (0, shape[0])))


def zero_rows(xp: ArrayNamespace, nothing: Any, ids: Any, shape: tuple[int, int]) -> Any:
    """Return rows (n,) of a matrix of zeros, of a tensor without values."""
    rows = xp.take(xp.reshape(nothing, (shape[0], 0)), ids, axis=0)
    return xp.matmul(rows, xp.reshape(nothing, (0, shape[1])))


def gathered_product(xp: ArrayNamespace, values: Any, columns: Any, x: Any) -> Any:
    """Return the product of x (..., in) with a sparse matrix of few entries in each row.

    ``values`` (out, m) are the entries and ``columns`` (out, m) says where they are. The product
    reads ``batch · out · m`` numbers of x.
    """
    lead, (out, m) = x.shape[:-1], columns.shape
    x = as_batch(xp, x)
    parts = xp.take(transpose(xp, x), xp.reshape(columns, (out * m,)), axis=0)
    parts = xp.reshape(parts, (out, m, x.shape[0]))
    y = xp.matmul(xp.reshape(values, (out, 1, m)), parts)
    return with_lead(xp, transpose(xp, xp.reshape(y, (out, x.shape[0]))), lead)

"""The base class of what every method returns: a matrix in compressed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np

from .. import _checks
from .._checks import Array
from .._records import ArrayRecord
from ..metrics import Metric, metric_for, relative_error
from .forward import ArrayNamespace, constant, length, transpose, with_lead

Tensors = dict[str, Array]
Config = dict[str, Any]  # what JSON can hold

ROWS_AT_ONCE = 256
WEIGHTS_AT_ONCE = 1 << 16  # of narrow matrices, whose rows would take long one block at a time
FLOAT_NAMES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Factors(ArrayRecord, ABC):
    """A matrix W (out_features, in_features) in compressed form, W ≈ B ∘ C.

    A subclass is a frozen dataclass. Its array fields are the tensors that a file stores; its other
    fields are the configuration: numbers and strings. A subclass with other kinds of fields
    overrides `tensors` and `config`. `from_tensors` must check its arguments, because a file may
    contain anything.

    Attributes
    ----------
    shape : (int, int)
        Shape of W.
    dtype : dtype
        Dtype of W and of the results of `to_dense` and `rows`.

    Notes
    -----
    ``factors @ x`` is ``W @ x`` and ``x @ factors`` is ``x @ W``. ``np.asarray(factors)`` calls
    `to_dense`. ``==`` and ``hash`` go by identity; to compare values, compare ``to_dense()``.
    Copies and pickles contain only what is stored. To keep factors, write them to a
    :mod:`fastfactor.store`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> W = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> factors = LowRank(rank=1).compress(W)
    >>> x = np.ones(4, np.float32)
    >>> np.allclose(factors.linear(x), W @ x), np.allclose(factors.rows([2]), W[[2]])
    (True, True)
    >>> factors.linear(np.ones((5, 2, 4), np.float32)).shape
    (5, 2, 3)
    >>> factors
    LowRankFactors(shape=(3, 4), dtype=float32, bits_per_weight=18.67, nbytes=28)
    """

    kind: ClassVar[str]  # the name of this class in files
    trainable: ClassVar[tuple[str, ...]]  # names of the tensors that may be trained further
    kinds: ClassVar[dict[str, type[Factors]]] = {}  # all subclasses by kind
    __array_ufunc__ = None  # so that NumPy leaves ``x @ factors`` to this class

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):  # a base of several kinds has none
            Factors.kinds[cls.kind] = cls

    # --- what a subclass must define

    @abstractmethod
    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        """Return ``W[ids]``, as an embedding layer's look-up does.

        Parameters
        ----------
        ids : array of int
            Which rows to return, in any shape, each in [0, out_features).
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape ids.shape + (in_features,)
            In the dtype of W.

        Raises
        ------
        TypeError, IndexError
            If ids are not integers, or one is outside that range.
        """

    @abstractmethod
    def _linear(self, x: Array, n_threads: int | None) -> Array:
        """Return the result of `linear` for x of shape (batch, in_features), already checked."""

    @abstractmethod
    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        """Return ``x @ W.T``, computed by an array library so that it can find gradients.

        Parameters
        ----------
        xp : ArrayNamespace
            The library: the few functions of the array API standard that products need.
        tensors : mapping of str to array
            The tensors named in `trainable`, as arrays of that library.
        x : array of shape (..., in_features)
            Like the tensors an array of that library, of the same floating dtype and device.

        Returns
        -------
        array of shape (..., out_features)
            An array of that library.
        """

    # --- what every subclass inherits

    def _prepared_linear(self) -> Callable[[Array, int], Array]:
        """Return `_linear` for many calls: of x in float32, and a number of threads.

        A subclass overrides it to prepare what does not depend on x. Numbers of its trained tensors
        may change between calls if products read them where they are.
        """
        return self._linear

    def _prepared_rows(self) -> Callable[[Array, int], Array]:
        """Return `rows` for many calls: of ids in int64, and a number of threads."""
        return lambda ids, n_threads: self.rows(ids, n_threads=n_threads)

    def forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        """Return ``W[ids]``, computed by an array library so that it can find gradients.

        Parameters
        ----------
        xp : ArrayNamespace
            The library, as for `forward`.
        tensors : mapping of str to array
            The tensors named in `trainable`, as arrays of that library.
        ids : array of int
            Which rows to return, in any shape: an array of that library. Each must be in
            [0, out_features), which is not checked, as they may not be known yet.

        Returns
        -------
        array of shape ids.shape + (in_features,)
            An array of that library, in the dtype of the tensors.

        Raises
        ------
        TypeError
            For a kind of your own that trains nothing and does not define `_forward_rows`.
        """
        found = self._forward_rows(xp, tensors, xp.reshape(ids, (length(*ids.shape),)))
        return with_lead(xp, found, ids.shape)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        """Return the result of `forward_rows` for ids of shape (n,).

        This builds W by the product with the identity. A subclass overrides it to build only the
        rows.
        """
        if not self.trainable:
            raise TypeError(
                f"{type(self).__name__} must define _forward_rows, because none of its tensors is "
                "trained"
            )
        identity = constant(xp, self._identity, tensors[self.trainable[0]])
        columns = self.forward(xp, tensors, identity)
        return transpose(xp, xp.take(columns, ids, axis=1))

    @cached_property
    def _identity(self) -> Array:
        return np.eye(self.shape[1], dtype=np.float32)

    def linear(self, x: Any, *, out: Any = None, n_threads: int | None = None) -> Array:
        """Return ``x @ W.T`` without rebuilding W, as a linear layer does.

        Parameters
        ----------
        x : array of shape (..., in_features)
            float16, bfloat16, float32 or float64, any strides.
        out : array of shape (..., out_features), optional
            A writeable array of the result's dtype to write the result to, any strides.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape (..., out_features)
            ``out`` if it was given. The dtype is float64 if that of x or a factor is, else float32.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape.
        """
        x = _checks.inputs(x, self.shape[1])
        n = prod(x.shape[:-1])
        if n * self.shape[0] * self.shape[1]:
            result = self._linear(x.reshape(n, self.shape[1]), n_threads)
        else:
            # A file may say that an empty matrix has 2**50 rows, so nothing loops over them.
            result = np.zeros((n, self.shape[0]), _checks.result_dtype(x, *self.tensors().values()))
        return into(out, result.reshape(*x.shape[:-1], self.shape[0]))

    def to_dense(self, *, out: Any = None, n_threads: int | None = None) -> Array:
        """Return W, rebuilt from the factors.

        Parameters
        ----------
        out : array of W's shape and dtype, optional
            Where to write the result.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of W's shape and dtype
            ``out`` if it was given.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        else:
            _checks.writeable(out, "out", self.shape, self.dtype)
        result: Array = out
        for first, rows in self._row_blocks(n_threads):
            result[first : first + len(rows)] = rows
        return result

    def matmul(self, x: Any, *, n_threads: int | None = None) -> Array:
        """Return ``W @ x``.

        Parameters
        ----------
        x : array of shape (in_features,) or (in_features, n)
            One of the dtypes that `linear` takes.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape (out_features,) or (out_features, n)
            In float64 if x or a factor is, else in float32.
        """
        x = _checks.columns(x, self.shape[1])
        return self.linear(x.T, n_threads=n_threads).T

    def __matmul__(self, x: Any) -> Array:
        return self.matmul(x)

    def __rmatmul__(self, x: Any) -> Array:
        """Return ``x @ W``, which gradients of inputs need: (..., out) → (..., in).

        W is rebuilt a few rows at a time. The dtype is float64 if that of x or W is, else float32.
        """
        x = _checks.inputs(x, self.shape[0])
        dtype = _checks.result_dtype(x, np.empty(0, self.dtype))
        batch = x.reshape(prod(x.shape[:-1]), self.shape[0]).astype(dtype, copy=False)
        result = np.zeros((len(batch), self.shape[1]), dtype)
        for first, rows in self._row_blocks(None):
            result += batch[:, first : first + len(rows)] @ rows.astype(dtype, copy=False)
        return result.reshape(*x.shape[:-1], self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the result of `to_dense`, for ``np.asarray``."""
        if copy is False:
            raise ValueError("copy must be True or None, as factors rebuild W, got False")
        return self.to_dense().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"bits_per_weight={self.bits_per_weight:.4g}, nbytes={self.nbytes})"
        )

    @property
    def nbytes(self) -> int:
        """The bytes of the stored tensors: codes, tables and indices with their padding."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """8 · nbytes divided by the number of weights; 0 for an empty matrix."""
        size = self.shape[0] * self.shape[1]
        return 8 * self.nbytes / size if size else 0.0

    def error(
        self,
        W: Any,
        *,
        importance: Any = None,
        input_covariance: Any = None,
        n_threads: int | None = None,
    ) -> float:
        """Return ‖W − Ŵ‖² / ‖W‖², in float64.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            The matrix that the factors stand for.
        importance, input_covariance : array, optional
            The weights of errors, as in :meth:`Method.compress`. Default: the sum of squares.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        float
            0 if W and the difference are both zero, infinity if only W is.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, and for an importance or covariance that `compress` refuses.
        """
        W = check_matrix(W, self.shape)
        metric = metric_for(W.shape, importance, input_covariance)
        return self._error(W, metric, n_threads) if W.size else 0.0

    def _error(self, W: Array, metric: Metric, n_threads: int | None = None) -> float:
        """Return `error` for a checked W, under a metric."""

        def rows_of(first: int, last: int) -> Array:
            return self.rows(np.arange(first, last), n_threads=n_threads).astype(np.float64)

        return relative_error(W, rows_of, metric)

    def verify(self, *, n_threads: int | None = None) -> None:
        """Check what `from_tensors` leaves encoded, by decoding it a part at a time.

        Parameters
        ----------
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Raises
        ------
        CorruptDataError
            If a product would refuse it.
        """
        return  # for most kinds `from_tensors` has checked everything

    def tensors(self) -> Tensors:
        """Return the stored arrays by name.

        Returns
        -------
        dict of str to array
            Not copies: they must not be changed.
        """
        return {name: value for name, value in self._own() if isinstance(value, np.ndarray)}

    def config(self) -> Config:
        """Return what is stored beside tensors, shape and dtype.

        Returns
        -------
        dict of str to values that JSON can hold
            The arguments of `from_tensors` that are not arrays.
        """
        return {name: value for name, value in self._own() if not isinstance(value, np.ndarray)}

    @classmethod
    @abstractmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> Factors:
        """Return the factors that have these `tensors` and this `config`.

        Parameters
        ----------
        tensors : mapping of str to array
            As `tensors` returns them. Other names are ignored here; the store refuses them.
        config : mapping of str to value
            As `config` returns it.
        shape : (int, int)
            The shape of W.
        dtype : dtype
            The dtype of W.

        Returns
        -------
        Factors
            Of this class.

        Raises
        ------
        CorruptDataError
            If they contradict each other or are not those of this kind.
        """

    def _row_blocks(self, n_threads: int | None) -> Iterator[tuple[int, Array]]:
        """Yield all rows of W in order, a few at a time, each time with the number of the first.

        An empty matrix has none to yield, whatever its number of rows.
        """
        if self.shape[1] == 0:
            return
        step = max(ROWS_AT_ONCE, WEIGHTS_AT_ONCE // self.shape[1])
        for first in range(0, self.shape[0], step):
            last = min(first + step, self.shape[0])
            yield first, self.rows(np.arange(first, last), n_threads=n_threads)

    def _own(self) -> list[tuple[str, Any]]:
        names = [f.name for f in fields(self) if f.name not in ("shape", "dtype")]
        return [(name, getattr(self, name)) for name in names]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return a tensor's shape as a matrix: its first axis by the product of the others."""
    return shape[0], prod(shape[1:])


def check_matrix(W: Any, shape: tuple[int, int] | None = None) -> Array:
    """Return W as an array of floats; refuse what is not a matrix or has another shape."""
    array = _checks.float_array(W, "W", ndim=(2,))
    if shape is not None and array.shape != shape:
        raise ValueError(f"W must have shape {shape}, got {array.shape}")
    return array


def check_ids(ids: Any, n: int) -> Array:
    """Return row numbers of any shape as int64; refuse those outside [0, n)."""
    array = _checks.integers(ids, "ids")
    outside = (array < 0) | (array >= n)
    if outside.any():
        raise IndexError(f"ids must be in [0, {n}), got {array[outside].flat[0]}")
    return array.astype(np.int64)


def into(out: Any, result: Array) -> Array:
    """Return the result, copied into `out` if one is given."""
    if out is None:
        return result
    _checks.writeable(out, "out", result.shape, result.dtype)
    given: Array = out
    given[...] = result
    return given

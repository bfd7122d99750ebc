"""What every method is: settings that compress a matrix, and the factors that they give back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array
from .._records import ArrayRecord
from ..metrics import Covariance, Diagonal, Frobenius, Metric, metric_for, relative_error

Tensors = dict[str, Array]
Config = dict[str, Any]  # what JSON can hold

ROWS_AT_ONCE = 256
FLOAT_NAMES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Factors(ArrayRecord, ABC):
    """A matrix W (out_features, in_features) in compressed form, W ≈ B ∘ C.

    A subclass is a frozen dataclass. Its fields that are arrays are its tensors, what is stored;
    its other fields are its configuration, numbers and words. Where a field is neither, it
    overrides `tensors` and `config`. `from_tensors` checks what it is given: a file may hold
    anything.

    Attributes
    ----------
    shape : (int, int)
        Of W.
    dtype : dtype
        Of W, and of what `to_dense` and `rows` give.

    Notes
    -----
    ``factors @ x`` is ``W @ x`` and ``x @ factors`` is ``x @ W``. ``np.asarray(factors)`` is
    `to_dense`. ``==`` and ``hash`` go by identity; compare ``to_dense()``. Copies and pickles hold
    what is stored and no more; to keep factors, write them to a :mod:`fastfactor.store`.

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

    kind: ClassVar[str]  # what files call it
    trainable: ClassVar[tuple[str, ...]]  # names of the tensors that may be trained further
    kinds: ClassVar[dict[str, type[Factors]]] = {}
    __array_ufunc__ = None  # so that NumPy leaves ``x @ factors`` to this class

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def __init_subclass__(cls) -> None:
        Factors.kinds[cls.kind] = cls

    # --- what a subclass must say

    @abstractmethod
    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        """``W[ids]`` for an array of integers: an embedding's look-up."""

    @abstractmethod
    def _linear(self, x: Array, n_threads: int | None) -> Array:
        """What `linear` returns, for x of shape (batch, in_features), already checked."""

    @abstractmethod
    def forward(self, xp: Any, tensors: Mapping[str, Any], x: Any) -> Any:
        """The same product of (batch, in) in an array library's own operations.

        ``xp`` has matmul, take(array, ids, axis), reshape, transpose and what NumPy calls by these
        names; ``tensors`` are those of `trainable`, as arrays of that library.
        """

    # --- what follows

    def linear(self, x: Any, *, out: Any = None, n_threads: int | None = None) -> Array:
        """Return ``x @ W.T`` without rebuilding W, as a linear layer does.

        Parameters
        ----------
        x : array of shape (..., in_features)
            float16, bfloat16, float32 or float64, any strides.
        out : array of shape (..., out_features), optional
            Where to write the result: of its dtype, any strides, writeable.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape (..., out_features)
            ``out`` where it was given. float64 where x or a factor is, else float32.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape.
        """
        x = _checks.inputs(x, self.shape[1])
        result = self._linear(x.reshape(prod(x.shape[:-1]), self.shape[1]), n_threads)
        return into(out, result.reshape(*x.shape[:-1], self.shape[0]))

    def to_dense(self, *, out: Any = None, n_threads: int | None = None) -> Array:
        """W, rebuilt."""
        if out is None:
            out = np.empty(self.shape, self.dtype)
        else:
            _checks.writeable(out, "out", self.shape, self.dtype)
        result: Array = out
        for first, rows in self._row_blocks(n_threads):
            result[first : first + len(rows)] = rows
        return result

    def matmul(self, x: Any, *, n_threads: int | None = None) -> Array:
        """``W @ x``: (in,) → (out,) or (in, n) → (out, n)."""
        x = _checks.columns(x, self.shape[1])
        return self.linear(x.T, n_threads=n_threads).T

    def __matmul__(self, x: Any) -> Array:
        return self.matmul(x)

    def __rmatmul__(self, x: Any) -> Array:
        """Return ``x @ W``, as gradients of inputs need it: (..., out) → (..., in).

        W is rebuilt a few rows at a time. float64 where x or W is, else float32.
        """
        x = _checks.inputs(x, self.shape[0])
        dtype = _checks.result_dtype(x, np.empty(0, self.dtype))
        batch = x.reshape(prod(x.shape[:-1]), self.shape[0]).astype(dtype, copy=False)
        result = np.zeros((len(batch), self.shape[1]), dtype)
        for first, rows in self._row_blocks(None):
            result += batch[:, first : first + len(rows)] @ rows.astype(dtype, copy=False)
        return result.reshape(*x.shape[:-1], self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return `to_dense`, for ``np.asarray``."""
        if copy is False:
            raise ValueError("copy must not be False for factors, whose array is made anew")
        return self.to_dense().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"bits_per_weight={self.bits_per_weight:.4g}, nbytes={self.nbytes})"
        )

    @property
    def nbytes(self) -> int:
        """What a file holds of it: codes, tables and indices with their padding."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """8 · nbytes over the number of weights; 0 where there are none."""
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
            As in :meth:`Method.compress`: what errors count. With neither, the sum of squares.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        float
            0 where both are zero, infinity where W alone is.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, and for what `compress` refuses of the two.
        """
        W = check_matrix(W, self.shape)
        return self._error(W, metric_for(W.shape, importance, input_covariance), n_threads)

    def _error(self, W: Array, metric: Metric, n_threads: int | None = None) -> float:
        """Return the error under a metric that is at hand."""

        def rows_of(first: int, last: int) -> Array:
            return self.rows(np.arange(first, last), n_threads=n_threads).astype(np.float64)

        return relative_error(W, rows_of, metric)

    def verify(self, *, n_threads: int | None = None) -> None:
        """Decode what `from_tensors` left encoded, a part at a time, and keep nothing of it.

        Raises
        ------
        CorruptDataError
            Where a product would refuse it.
        """
        return  # from_tensors of most kinds has seen all

    def tensors(self) -> Tensors:
        """What is stored, by name."""
        return {name: value for name, value in self._own() if isinstance(value, np.ndarray)}

    def config(self) -> Config:
        """What is stored beside the tensors, shape and dtype: values that JSON can hold."""
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
        """The inverse of `tensors` and `config`. Tensors more than it has are refused by the store.

        Raises
        ------
        CorruptDataError
            Where they contradict each other or are not what this kind has.
        """

    def _row_blocks(self, n_threads: int | None) -> Iterator[tuple[int, Array]]:
        """All rows of W in order, a few at a time, each time with the number of the first."""
        for first in range(0, self.shape[0], ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, self.shape[0])
            yield first, self.rows(np.arange(first, last), n_threads=n_threads)

    def _own(self) -> list[tuple[str, Any]]:
        names = [f.name for f in fields(self) if f.name not in ("shape", "dtype")]
        return [(name, getattr(self, name)) for name in names]


@dataclass(frozen=True, eq=False)
class Problem:
    """A matrix to compress, what its errors weigh, and how many threads may work on it."""

    W: Array
    metric: Metric
    n_threads: int | None

    @property
    def importance(self) -> Array | None:
        return self.metric.importance if isinstance(self.metric, Diagonal) else None

    @property
    def input_covariance(self) -> Array | None:
        return self.metric.input_covariance if isinstance(self.metric, Covariance) else None


class Size(NamedTuple):
    """What factors take: just so many bytes, or at most so many where their values decide."""

    nbytes: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings that compress a matrix.

    A subclass is a frozen dataclass. Its `parameter` says how much is kept; instead of it a size
    or an error may be asked for.

    Parameters
    ----------
    ratio : float, optional
        How many times smaller the factors must be than W: the least error that is so.
    max_error : float, optional
        The most that ‖W − Ŵ‖² / ‖W‖² may be, under the metric asked for: the least size that is so.

    Raises
    ------
    TypeError, ValueError
        For values out of range, and unless exactly one of these and the parameter is given.

    Notes
    -----
    A ratio takes one compression where sizes follow from shape and dtype. Else a ratio and an error
    are bisected, over as many values as the parameter may have.

    Methods that draw random numbers take ``random_state``: an integer, 0 by default, for the same
    factors at every call; None for fresh ones; or a NumPy Generator or RandomState, of which each
    call of `compress` draws one seed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> W = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    >>> LowRank(ratio=4).compress(W).nbytes * 4 <= W.nbytes
    True
    >>> LowRank(max_error=0.25).compress(W).error(W) <= 0.25
    True
    """

    parameter: ClassVar[str]
    alternatives: ClassVar[tuple[str, ...]] = ()  # other settings that say how much is kept
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius})  # which it can minimise
    otherwise: ClassVar[str] = ""  # what to do where it cannot, for the message

    ratio: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        names = (self.parameter, *self.alternatives, "ratio", "max_error")
        goals = {name: getattr(self, name) for name in names}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(goals)} must be given to {type(self).__name__}, "
                f"got {' and '.join(given) or 'none'}"
            )
        for name in ("ratio", "max_error"):
            if goals[name] is not None and _checks.nonnegative(goals[name], name) == 0:
                raise ValueError(f"{name} must be positive, got {goals[name]!r}")
        if hasattr(self, "random_state"):
            _checks.random_state(self.random_state)

    def compress(
        self,
        W: Any,
        *,
        importance: Any = None,
        input_covariance: Any = None,
        n_threads: int | None = None,
    ) -> Factors:
        """Factor a matrix.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            float16, bfloat16, float32 or float64, finite; left as it is.
        importance : array of W's shape, optional
            What the squared error of each weight counts: squared gradients, Fisher information.
        input_covariance : array of shape (in_features, in_features), optional
            Mean of x xᵀ over the layer's inputs: the error of outputs is minimised.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        Factors

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, a metric that this method cannot minimise, and a ratio or
            error that it cannot reach.
        """
        W = check_matrix(W)
        _checks.finite(W, "W")
        metric = metric_for(W.shape, importance, input_covariance)
        self.check_metric(type(metric))
        problem = Problem(W, metric, n_threads)
        settings = self._seeded()
        if self.ratio is None and self.max_error is None:
            return settings._compress(problem)
        return settings._search(problem)

    def _seeded(self) -> Method:
        """Return these settings with one seed, drawn now, for all that a search tries."""
        if not hasattr(self, "random_state"):
            return self
        drawn: dict[str, Any] = {"random_state": _checks.seed(self.random_state)}
        return replace(self, **drawn)

    def planned_size(self, shape: tuple[int, ...], dtype: Any) -> Size | None:
        """What factors of a matrix will take, as far as shape and dtype say.

        Parameters
        ----------
        shape : (int, int)
        dtype : dtype
            Of the matrix: float16, bfloat16, float32 or float64.

        Returns
        -------
        Size or None
            What `compress` gives for every such matrix, or a bound that none exceeds; None where
            values alone decide, as under ``max_error``.

        Raises
        ------
        TypeError, ValueError
            For settings that `compress` refuses for this shape.

        Examples
        --------
        >>> from fastfactor.methods import Codebook, Prune
        >>> Codebook(n_bits=4).planned_size((64, 128), "float32")
        Size(nbytes=4160, exact=True)
        >>> Prune(sparsity=0.9).planned_size((64, 128), "float32")
        Size(nbytes=3932, exact=False)
        """
        problem = _unseen(shape, dtype)
        if self.max_error is not None:
            self.within(shape, dtype, problem.W.nbytes)  # refuses shapes that do not fit
            return None
        if self.ratio is None:
            return self._size(problem)
        levels = self._some_levels(problem)
        smallest = self._at(levels[0])._size(problem)
        if smallest is None or not smallest.exact:
            return Size(int(problem.W.nbytes * (1 + 1e-12) / self.ratio), False)
        fitting = self._n_fitting(levels, problem)
        if fitting == 0:
            raise ValueError(self._out_of_reach(smallest, problem))
        found: Size = self._at(levels[fitting - 1])._size(problem)
        return found

    def within(self: Any, shape: tuple[int, ...], dtype: Any, nbytes: int) -> Any:
        """These settings with the largest `parameter` that is planned to take no more than nbytes.

        A quick way to sizes, where ``ratio`` would find what they really are.

        Parameters
        ----------
        shape, dtype
            As for `planned_size`.
        nbytes : int

        Returns
        -------
        Method or None
            None where nothing is so small.

        Raises
        ------
        TypeError, ValueError
            For settings that `compress` refuses for this shape, and for an empty one.
        """
        problem = _unseen(shape, dtype)
        goals = dict.fromkeys((self.parameter, *self.alternatives, "max_error"))
        asked = replace(self, **goals, ratio=problem.W.nbytes / max(nbytes, 1))
        levels = asked._some_levels(problem)
        fitting = asked._n_fitting(levels, problem)
        return asked._at(levels[fitting - 1]) if fitting else None

    def check_metric(self, kind: type[Metric]) -> None:
        """That this method can minimise the errors of such a metric.

        Raises
        ------
        ValueError
        """
        if kind not in self.metrics:
            name = "importance" if kind is Diagonal else "input_covariance"
            raise ValueError(
                f"{name} must not be given to {type(self).__name__}, which cannot minimise "
                f"that error{self.otherwise and '; ' + self.otherwise}"
            )

    @abstractmethod
    def _compress(self, problem: Problem) -> Factors:
        """The factors for a given `parameter`, or one of the `alternatives`."""

    @abstractmethod
    def _levels(self, problem: Problem) -> Sequence[Any]:
        """Values of `parameter` from the smallest factors to the largest."""

    def _search(self, problem: Problem) -> Factors:
        """Bisects `_levels`: size rises along them and error falls."""
        levels = self._some_levels(problem)
        if self.ratio is not None:
            smallest: Size | None = self._at(levels[0])._size(problem)
            if smallest is not None and smallest.exact:
                return self._largest(levels, problem)
        best: Factors | None = None
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            factors = self._at(levels[middle])._compress(problem)
            if self.ratio is not None:
                fits = self._fits(factors.nbytes, problem)
                low, high = (middle + 1, high) if fits else (low, middle)
            else:
                error = factors._error(problem.W, problem.metric, problem.n_threads)
                fits = error <= self._wanted_error()
                low, high = (low, middle) if fits else (middle + 1, high)
            if fits:
                best = factors
        if best is None:
            raise ValueError(self._out_of_reach(factors, problem))
        return best

    def _size(self, problem: Problem) -> Size | None:
        """As `planned_size`, for a given `parameter` or alternative: W's values are not looked at.

        Never falls along `_levels`.
        """
        return None

    def _some_levels(self, problem: Problem) -> Sequence[Any]:
        levels = self._levels(problem)
        if len(levels) == 0:
            raise ValueError(
                f"W must not be empty where ratio or max_error is given, got {problem.W.shape}"
            )
        return levels

    def _n_fitting(self, levels: Sequence[Any], problem: Problem) -> int:
        """How many levels, from the smallest on, take no more than `ratio` allows, as planned."""

        def too_large(level: Any) -> bool:
            return not self._fits(self._at(level)._size(problem).nbytes, problem)

        return bisect_right(levels, False, key=too_large)

    def _largest(self, levels: Sequence[Any], problem: Problem) -> Factors:
        """Factors of the largest level that fits as planned: no other needs to be found."""
        fitting = self._n_fitting(levels, problem)
        if fitting == 0:
            raise ValueError(self._out_of_reach(self._at(levels[0])._size(problem), problem))
        factors: Factors = self._at(levels[fitting - 1])._compress(problem)
        return factors

    def _at(self: Any, level: Any) -> Any:
        return replace(self, **{self.parameter: level, "ratio": None, "max_error": None})

    def _fits(self, nbytes: int, problem: Problem) -> bool:
        """Whether a size is what `ratio` asks for; a ratio of two sizes may be rounded up."""
        assert self.ratio is not None
        return nbytes * self.ratio <= problem.W.nbytes * (1 + 1e-12)

    def _wanted_error(self) -> float:
        assert self.max_error is not None
        return self.max_error

    def _out_of_reach(self, last: Factors | Size, problem: Problem) -> str:
        if self.ratio is not None:
            most = problem.W.nbytes / max(last.nbytes, 1)
            return f"ratio must be at most {most:.4g} for this matrix, got {self.ratio!r}"
        assert isinstance(last, Factors)
        least = last._error(problem.W, problem.metric, problem.n_threads)
        return f"max_error must be at least {least:.4g} for this matrix, got {self.max_error!r}"


def _unseen(shape: tuple[int, ...], dtype: Any) -> Problem:
    """A matrix of which only shape and dtype are known: one zero, which takes no more memory."""
    return Problem(check_matrix(np.broadcast_to(np.zeros((), dtype), shape)), Frobenius(), None)


def check_matrix(W: Any, shape: tuple[int, int] | None = None) -> Array:
    """A matrix of floats, of a given shape where one is given."""
    array = _checks.float_array(W, "W", ndim=(2,))
    if shape is not None and array.shape != shape:
        raise ValueError(f"W must have shape {shape}, got {array.shape}")
    return array


def check_ids(ids: Any, n: int) -> Array:
    """Row numbers as int64, any shape, each in [0, n)."""
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {array.dtype}")
    outside = (array < 0) | (array >= n)
    if outside.any():
        raise IndexError(f"ids must be in [0, {n}), got {array[outside].flat[0]}")
    return array.astype(np.int64)


def narrowed(array: Array, dtype: np.dtype[Any]) -> Array:
    """In a dtype that may hold less: what is beyond its range becomes its largest value."""
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if dtype.itemsize < array.itemsize and not np.isfinite(result).all():
        most = np.nextafter(dtype.type(np.inf), dtype.type(0))
        result = np.clip(result, -most, most).astype(dtype, copy=False)
    return result


def into(out: Any, result: Array) -> Array:
    """The result, copied to `out` where one was given."""
    if out is None:
        return result
    _checks.writeable(out, "out", result.shape, result.dtype)
    given: Array = out
    given[...] = result
    return given

"""The base class of every method: settings that compress a matrix."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from .. import _checks
from ..metrics import Covariance, Diagonal, Frobenius, Metric, metric_for
from .factors import Factors, check_matrix
from .range_end import is_near_the_end, stays_finite, too_large
from .search import Goal, Problem, Size, bisect_levels, n_fitting


def recipe_name(class_name: str) -> str:
    """Return the name of a class of settings in recipes.

    ``LowRank`` is ``low_rank`` and ``ConvSVD`` is ``conv_svd``.
    """
    words = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    return re.sub(words, "_", class_name).lower()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings that compress a matrix.

    A subclass is a frozen dataclass. Its `parameter` sets how much is kept; `ratio` or `max_error`
    may be given instead. It defines `_compress`, `_levels` and `_size`, whose docstrings say what
    they must return.

    Parameters
    ----------
    ratio : float, optional
        How many times smaller than W the factors must be. The error is the least found at that
        size.
    max_error : float, optional
        The largest ‖W − Ŵ‖² / ‖W‖² allowed, under the metric given to `compress`. The size is the
        least found within that error.

    Raises
    ------
    TypeError, ValueError
        For a value out of range, or unless exactly one of the parameter, `ratio` and `max_error` is
        given.

    Notes
    -----
    A ratio takes one compression if shape and dtype determine the sizes. Otherwise a ratio or an
    error is met by bisection over the values that the parameter may have.

    Methods that draw random numbers take ``random_state``. An integer (0 by default) gives the same
    factors at every call, and None gives different ones. From a NumPy Generator or RandomState,
    each call of `compress` draws one seed.

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

    parameter: ClassVar[str]  # the name of the setting that says how much is kept
    alternatives: ClassVar[tuple[str, ...]] = ()  # names of settings that may replace it
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius})  # those that it can minimise
    otherwise: ClassVar[str] = ""  # advice for the message that refuses another metric
    names: ClassVar[dict[str, type[Method]]] = {}  # every subclass, by its name in recipes

    ratio: float | None = None
    max_error: float | None = None

    def __init_subclass__(cls) -> None:
        name = recipe_name(cls.__name__)
        known = Method.names.get(name)
        if (
            known
            and known.__module__.startswith("fastfactor.")
            and known.__module__ != cls.__module__
        ):
            raise TypeError(
                f"the name of a method must not be one of fastfactor's, got {cls.__name__}"
            )
        Method.names[name] = cls

    def __post_init__(self) -> None:
        names = (self.parameter, *self.alternatives, "ratio", "max_error")
        goals = {name: getattr(self, name) for name in names}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(goals)} must be given to {type(self).__name__}, "
                f"got {' and '.join(given) or 'none'}"
            )
        for name in ("ratio", "max_error"):
            if goals[name] is not None:
                _checks.positive(goals[name], name)
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
        """Compress a matrix and return its factors.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            float16, bfloat16, float32 or float64, finite. It is not changed.
        importance : array of W's shape, optional
            The weight of each entry's squared error: squared gradients, Fisher information.
        input_covariance : array of shape (in_features, in_features), optional
            Mean of x xᵀ over the layer's inputs x, to minimise the error of the layer's outputs.
            Eigenvalues that rounding made negative count as zero.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        Factors
            Of the kind that belongs to these settings, with `shape` and `dtype` of W.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, for a metric that this method cannot minimise, for an
            input_covariance with negative eigenvalues, and for a ratio or an error that this
            method cannot reach.

        Notes
        -----
        Importances or a covariance that are all zero, as of a layer that no input has reached, give
        the same result as none. Where a method only looks for a minimum under an importance or a
        covariance, it also compresses without, and returns whichever has less error under it: this
        takes up to twice the time.
        """
        W = check_matrix(W)
        _checks.finite(W, "W")
        metric = metric_for(W.shape, importance, input_covariance)
        if importance is not None or input_covariance is not None:
            self.check_metric(Diagonal if importance is not None else Covariance)
        problem = Problem(W, metric, n_threads)
        settings = self._seeded()
        if is_near_the_end(W):
            return settings._finite(problem)
        return settings._solved(problem)

    def for_tensor(self, shape: tuple[int, ...]) -> Self:
        """Return these settings, with what they need to know of a tensor's shape.

        Parameters
        ----------
        shape : tuple of int
            Shape of the tensor whose matrix will be compressed.

        Returns
        -------
        Method
            These settings themselves, unless they are for convolutions.
        """
        return self

    def _seeded(self) -> Method:
        """Return these settings with a seed drawn now, so that all steps of a search share it."""
        if not hasattr(self, "random_state"):
            return self
        seed = _checks.seed(self.random_state)
        if seed is self.random_state:
            return self
        drawn: dict[str, Any] = {"random_state": seed}
        return replace(self, **drawn)

    def planned_size(self, shape: tuple[int, ...], dtype: Any) -> Size | None:
        """Return the size of the factors, as far as the matrix's shape and dtype determine it.

        Parameters
        ----------
        shape : (int, int)
            The matrix's shape, (out_features, in_features).
        dtype : dtype
            The matrix's dtype: float16, bfloat16, float32 or float64.

        Returns
        -------
        Size or None
            The exact size for every such matrix, or an upper bound. None if only the values decide
            the size, as under ``max_error``.

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
        levels = self._checked_levels(problem)
        self._check_ratio(problem)
        if not self._planned(levels[0], problem).exact:
            return Size(int(self._goal(problem).limit), exact=False)
        return self._largest_planned(problem)._size(problem)

    def within(self, shape: tuple[int, ...], dtype: Any, nbytes: int) -> Self | None:
        """Return the settings with the largest `parameter` whose planned size is at most `nbytes`.

        This is quick because nothing is compressed; ``ratio`` goes by the real sizes.

        Parameters
        ----------
        shape, dtype : (int, int), dtype
            As for `planned_size`.
        nbytes : int
            The most bytes that the factors may take.

        Returns
        -------
        Method or None
            None if even the smallest factors take more.

        Raises
        ------
        TypeError, ValueError
            For settings that `compress` refuses for this shape, and for an empty shape.
        """
        problem = _unseen(shape, dtype)
        goals = dict.fromkeys((self.parameter, *self.alternatives, "max_error"))
        asked = replace(self, **goals, ratio=max(problem.W.nbytes, 1) / max(nbytes, 1))
        levels = asked._checked_levels(problem)
        n_planned = asked._n_planned(levels, problem)
        return asked._at(levels[n_planned - 1]) if n_planned else None

    def check_metric(self, kind: type[Metric]) -> None:
        """Check that this method can minimise errors under this kind of metric.

        Parameters
        ----------
        kind : type of Metric
            ``Frobenius``, ``Diagonal`` or ``Covariance``.

        Raises
        ------
        ValueError
            If it cannot.
        """
        if kind not in self.metrics:
            name = "importance" if kind is Diagonal else "input_covariance"
            raise ValueError(
                f"{name} must not be given to {type(self).__name__}, which cannot minimise "
                f"that error{self.otherwise and '; ' + self.otherwise}"
            )

    def _solved(self, problem: Problem) -> Factors:
        """Return the factors for the parameter or the goal that is set."""
        if self.ratio is None and self.max_error is None:
            return self._best(problem)
        if self.ratio is not None:
            self._check_ratio(problem)
        return self._search(problem)

    def _finite(self, problem: Problem) -> Factors:
        """Return the factors of a W near the end of its dtype's range, if they give no infinity."""
        with np.errstate(over="ignore", invalid="ignore"):
            factors = self._solved(problem)
        if not stays_finite(factors):
            raise too_large(problem.W, type(self).__name__)
        return factors

    def _best(self, problem: Problem) -> Factors:
        """Return what `_compress` finds with the metric or without, whichever is better under it.

        Without may be better because most methods find a local minimum only.
        """
        found = self._compress(problem)
        if isinstance(problem.metric, Frobenius) or not self._tries_plain(problem):
            return found
        planned = self._size(problem)
        most = found.nbytes if planned is None else planned.nbytes
        plain = self._compress(problem.plain)
        better = plain.nbytes <= most and problem.error_of(plain) < problem.error_of(found)
        return plain if better else found

    def _tries_plain(self, problem: Problem) -> bool:
        """Return whether `_compress` may find less error without the metric of the problem."""
        return True

    # --- what a subclass must define

    @abstractmethod
    def _compress(self, problem: Problem) -> Factors:
        """Return the factors for the `parameter` that is set, or for one of the `alternatives`.

        `ratio` and `max_error` are None here: the search below sets the parameter. ``problem.W`` is
        finite and may have any shape, even an empty one; ``problem.metric`` is one of `metrics`.
        ``LowRank(rank=3)`` returns ``LowRankFactors`` with B (out, 3) and C (3, in).
        """

    @abstractmethod
    def _levels(self, problem: Problem) -> Sequence[Any]:
        """Return the candidate values of `parameter`, from the smallest factors to the largest.

        Along them sizes must not fall and errors should not rise. Only the shape and dtype of W may
        be used. Return an empty sequence for an empty W. ``LowRank`` returns
        ``range(1, min(W.shape) + 1)``.
        """

    @abstractmethod
    def _size(self, problem: Problem) -> Size | None:
        """Return the size in bytes of what `_compress` returns, or a bound that it never exceeds.

        Only the shape and dtype of W may be used. ``LowRank(rank=3)`` returns
        ``Size(3 * sum(W.shape) * W.itemsize, exact=False)``: a matrix of lower rank takes less.
        None means that only the values decide the size, which is allowed for `alternatives` only.
        """

    def _least_nbytes(self, problem: Problem) -> int:
        """Return a size in bytes that no result is below, as far as the shape of W decides.

        A ratio beyond it is refused before any work. The `parameter` is the smallest level.
        """
        return 0

    # --- how a ratio or an error is met

    def _search(self, problem: Problem) -> Factors:
        """Return the best factors that meet `ratio` or `max_error`.

        Override this if a method has a faster or better way than bisection.
        """
        levels = self._checked_levels(problem)
        if self.ratio is not None and self._planned(levels[0], problem).exact:
            return self._largest_planned(problem)._best(problem)
        return self._bisect(levels, problem)

    def _bisect(self, levels: Sequence[Any], problem: Problem) -> Factors:
        """Return the best factors among these levels that meet the goal, or refuse it."""

        def compress(level: Any) -> Factors:
            return self._at(level)._best(problem)

        factors, nearest = bisect_levels(levels, compress, self._goal(problem))
        if factors is None:
            raise self._unreachable(nearest, problem)
        return factors

    def _largest_planned(self, problem: Problem) -> Self:
        """Return these settings at the largest level whose `_size` fits, or refuse the ratio."""
        levels = self._checked_levels(problem)
        n_planned = self._n_planned(levels, problem)
        if n_planned == 0:
            raise self._unreachable(self._planned(levels[0], problem).nbytes, problem)
        return self._at(levels[n_planned - 1])

    def _n_planned(self, levels: Sequence[Any], problem: Problem) -> int:
        """Return how many levels, counted from the smallest, have a `_size` that fits the ratio."""
        return n_fitting(
            levels, lambda level: self._planned(level, problem).nbytes, self._goal(problem)
        )

    def _planned(self, level: Any, problem: Problem) -> Size:
        size = self._at(level)._size(problem)
        assert size is not None  # `_size` may return None for `alternatives` only
        return size

    def _at(self, level: Any) -> Self:
        """Return these settings with a value of `parameter` in place of the goal."""
        return replace(self, **{self.parameter: level, "ratio": None, "max_error": None})

    def _checked_levels(self, problem: Problem) -> Sequence[Any]:
        levels = self._levels(problem)
        if len(levels) == 0:
            raise ValueError(
                f"W must not be empty if ratio or max_error is given, got shape {problem.W.shape}"
            )
        return levels

    def _check_ratio(self, problem: Problem) -> None:
        """Check that the shape of W does not forbid the ratio."""
        smallest = self._at(self._checked_levels(problem)[0])
        least = smallest._least_nbytes(problem)
        if not self._goal(problem).allows(least):
            raise self._unreachable(least, problem)

    def _goal(self, problem: Problem) -> Goal:
        if self.ratio is not None:
            return Goal.of_ratio(problem, self.ratio)
        assert self.max_error is not None
        return Goal(problem, self.max_error, is_size=False)

    def _unreachable(self, nearest: float, problem: Problem) -> ValueError:
        """Return the exception for an unreachable goal; `nearest` is the least size or error."""
        if not np.isfinite(nearest):
            return too_large(problem.W, type(self).__name__)
        if self.ratio is not None:
            most = problem.W.nbytes / max(nearest, 1)
            return ValueError(
                f"ratio must be at most {most:.4g} for this matrix, got {self.ratio!r}"
            )
        return ValueError(
            f"max_error must be at least {nearest:.4g} for this matrix, got {self.max_error!r}"
        )


def _unseen(shape: tuple[int, ...], dtype: Any) -> Problem:
    """Return a problem whose W has this shape and dtype: a single zero, broadcast."""
    known = _checks.dtype_named(dtype) if isinstance(dtype, str) else dtype
    return Problem(check_matrix(np.broadcast_to(np.zeros((), known), shape)), Frobenius(), None)

"""What every method is: settings that compress a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from .. import _checks
from ..metrics import Diagonal, Frobenius, Metric, metric_for
from .factors import Factors, check_matrix
from .search import Goal, Problem, Size, bisect_levels, n_fitting


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings that compress a matrix.

    A subclass is a frozen dataclass. Its `parameter` says how much is kept; instead of it a size
    or an error may be asked for. It defines `_compress`, `_levels` and `_size`, which say below
    what they must return.

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

    parameter: ClassVar[str]  # the setting that says how much is kept
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
        levels = self._checked_levels(problem)
        if not self._planned(levels[0], problem).exact:
            return Size(int(self._goal(problem).limit), exact=False)
        return self._largest_planned(problem)._size(problem)

    def within(self, shape: tuple[int, ...], dtype: Any, nbytes: int) -> Self | None:
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
        asked = replace(self, **goals, ratio=max(problem.W.nbytes, 1) / max(nbytes, 1))
        levels = asked._checked_levels(problem)
        n_planned = asked._n_planned(levels, problem)
        return asked._at(levels[n_planned - 1]) if n_planned else None

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

    # --- what a method must say

    @abstractmethod
    def _compress(self, problem: Problem) -> Factors:
        """Return the factors for the `parameter` that is set, or for one of the `alternatives`.

        `ratio` and `max_error` are None here: the search below sets the parameter. ``problem.W`` is
        finite and of any shape, also an empty one; ``problem.metric`` is one of `metrics`.
        ``LowRank(rank=3)`` returns ``LowRankFactors`` with B (out, 3) and C (3, in).
        """

    @abstractmethod
    def _levels(self, problem: Problem) -> Sequence[Any]:
        """Return values of `parameter` to choose from, from the smallest factors to the largest.

        Sizes must not fall along them, and errors should not rise. Only shape and dtype of W may be
        used. Return an empty sequence for an empty W. ``LowRank`` returns
        ``range(1, min(W.shape) + 1)``.
        """

    @abstractmethod
    def _size(self, problem: Problem) -> Size | None:
        """Return what `_compress` takes in bytes, or a bound that it never exceeds.

        Only shape and dtype of W may be used. ``LowRank(rank=3)`` returns
        ``Size(3 * sum(W.shape) * W.itemsize, exact=False)``: a matrix of less rank takes less. None
        means that values alone decide, which is allowed for `alternatives` only.
        """

    # --- how a ratio or an error is met

    def _search(self, problem: Problem) -> Factors:
        """Return the best factors that meet `ratio` or `max_error`.

        Override this where a method knows a faster or a better way than bisection.
        """
        levels = self._checked_levels(problem)
        if self.ratio is not None and self._planned(levels[0], problem).exact:
            return self._largest_planned(problem)._compress(problem)
        return self._bisect(levels, problem)

    def _bisect(self, levels: Sequence[Any], problem: Problem) -> Factors:
        """Return the best factors among these levels that meet the goal, or refuse it."""

        def compress(level: Any) -> Factors:
            return self._at(level)._compress(problem)

        factors, nearest = bisect_levels(levels, compress, self._goal(problem))
        if factors is None:
            raise self._unreachable(nearest, problem)
        return factors

    def _largest_planned(self, problem: Problem) -> Self:
        """Return these settings at the largest level that fits by `_size`, or refuse the ratio."""
        levels = self._checked_levels(problem)
        n_planned = self._n_planned(levels, problem)
        if n_planned == 0:
            raise self._unreachable(self._planned(levels[0], problem).nbytes, problem)
        return self._at(levels[n_planned - 1])

    def _n_planned(self, levels: Sequence[Any], problem: Problem) -> int:
        """Return how many levels, from the smallest on, fit the ratio as `_size` says."""
        return n_fitting(
            levels, lambda level: self._planned(level, problem).nbytes, self._goal(problem)
        )

    def _planned(self, level: Any, problem: Problem) -> Size:
        size = self._at(level)._size(problem)
        assert size is not None  # only an alternative may leave it open
        return size

    def _at(self, level: Any) -> Self:
        """Return these settings with a value of `parameter` in place of the goal."""
        return replace(self, **{self.parameter: level, "ratio": None, "max_error": None})

    def _checked_levels(self, problem: Problem) -> Sequence[Any]:
        levels = self._levels(problem)
        if len(levels) == 0:
            raise ValueError(
                f"W must not be empty where ratio or max_error is given, got {problem.W.shape}"
            )
        return levels

    def _goal(self, problem: Problem) -> Goal:
        if self.ratio is not None:
            return Goal.of_ratio(problem, self.ratio)
        assert self.max_error is not None
        return Goal(problem, self.max_error, is_size=False)

    def _unreachable(self, nearest: float, problem: Problem) -> ValueError:
        """Return the error for a goal out of reach: ``nearest`` is the least size or error."""
        if self.ratio is not None:
            most = problem.W.nbytes / max(nearest, 1)
            return ValueError(
                f"ratio must be at most {most:.4g} for this matrix, got {self.ratio!r}"
            )
        return ValueError(
            f"max_error must be at least {nearest:.4g} for this matrix, got {self.max_error!r}"
        )


def _unseen(shape: tuple[int, ...], dtype: Any) -> Problem:
    """A matrix of which only shape and dtype are known: one zero, which takes no more memory."""
    return Problem(check_matrix(np.broadcast_to(np.zeros((), dtype), shape)), Frobenius(), None)

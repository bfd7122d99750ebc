"""The search for `ratio` and `max_error`: a goal, and bisection over the levels of a parameter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .._checks import Array
from ..metrics import Covariance, Diagonal, Frobenius, Metric
from .factors import Factors

MOST_NBYTES = 2.0**62  # so that every limit is an integer


@dataclass(frozen=True, eq=False)
class Problem:
    """A matrix to compress, the metric of its errors, and how many threads may work on it.

    Attributes
    ----------
    W : array of shape (out_features, in_features)
    metric : Metric
        What the errors count; `importance` and `input_covariance` give its array, or None.
    n_threads : int or None
    measured : Metric or None
        What the errors of results are measured in, if not `metric`.
    """

    W: Array
    metric: Metric
    n_threads: int | None
    measured: Metric | None = None

    @property
    def plain(self) -> Problem:
        """The problem whose result minimises the sum of squares, but is measured as this one's."""
        return replace(self, metric=Frobenius(), measured=self.measured or self.metric)

    @property
    def importance(self) -> Array | None:
        """The weight of each entry's squared error, or None."""
        return self.metric.importance if isinstance(self.metric, Diagonal) else None

    @property
    def input_covariance(self) -> Array | None:
        """The covariance of the layer's inputs, or None."""
        return self.metric.input_covariance if isinstance(self.metric, Covariance) else None

    def error_of(self, factors: Factors) -> float:
        """Return the error of factors of this matrix, under the metric that it is measured in.

        Parameters
        ----------
        factors : Factors
            The factors that stand for W.

        Returns
        -------
        float
            The lost part of the weighted squares of W.
        """
        return factors._error(self.W, self.measured or self.metric, self.n_threads)


class Size(NamedTuple):
    """The size of factors, as far as shape and dtype determine it.

    Attributes
    ----------
    nbytes : int
        Bytes that the factors take in a file.
    exact : bool
        Whether it is exactly that; otherwise at most that, because it depends on W's values.
    """

    nbytes: int
    exact: bool


@dataclass(frozen=True, eq=False)
class Goal:
    """The limit that the factors of a problem must not exceed: a size or an error."""

    problem: Problem
    limit: float  # the most bytes, or the largest error
    is_size: bool

    @classmethod
    def of_ratio(cls, problem: Problem, ratio: float) -> Goal:
        """Return the size that a ratio allows, with a margin in case the ratio was rounded up."""
        limit = min(problem.W.nbytes * (1 + 1e-12) / ratio, MOST_NBYTES)
        return cls(problem, limit, is_size=True)

    def measure(self, factors: Factors) -> float:
        """Return the quantity that is limited: the size of the factors or their error."""
        return factors.nbytes if self.is_size else self.problem.error_of(factors)

    def allows(self, measured: float) -> bool:
        return measured <= self.limit


class Found(NamedTuple):
    """The result of a search."""

    factors: Factors | None  # the best that meet the goal; None if no level does
    nearest: float  # the size or error tried last: the least of all if no level meets the goal


def bisect_levels(levels: Sequence[Any], compress: Callable[[Any], Factors], goal: Goal) -> Found:
    """Return the best factors that meet the goal, after about log₂(len(levels)) compressions.

    Along the levels sizes rise and errors fall. The best factors are the largest that meet a size,
    or the smallest that meet an error.
    """
    best: Factors | None = None
    low, high = 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        factors = compress(levels[middle])
        measured = goal.measure(factors)
        fits = goal.allows(measured)
        if fits:
            best = factors
        if fits == goal.is_size:
            low = middle + 1
        else:
            high = middle
    return Found(best, measured)


def n_fitting(levels: Sequence[Any], nbytes_of: Callable[[Any], int], goal: Goal) -> int:
    """Return how many levels, counted from the smallest, take at most the bytes allowed."""
    return bisect_right(levels, False, key=lambda level: not goal.allows(nbytes_of(level)))

"""How `ratio` and `max_error` are met: a goal, and bisection over the levels of a parameter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._checks import Array
from ..metrics import Covariance, Diagonal, Metric
from .factors import Factors


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

    def error_of(self, factors: Factors) -> float:
        """Return the error of factors of this matrix, under this metric."""
        return factors._error(self.W, self.metric, self.n_threads)


class Size(NamedTuple):
    """What factors take: just so many bytes, or at most so many where their values decide."""

    nbytes: int
    exact: bool


@dataclass(frozen=True, eq=False)
class Goal:
    """What the factors of a problem must not exceed: a size or an error."""

    problem: Problem
    limit: float  # the most bytes, or the largest error
    is_size: bool

    @classmethod
    def of_ratio(cls, problem: Problem, ratio: float) -> Goal:
        """Return the size that a ratio allows; a ratio of two sizes may have been rounded up."""
        return cls(problem, problem.W.nbytes * (1 + 1e-12) / ratio, is_size=True)

    def measure(self, factors: Factors) -> float:
        """Return what is limited: the size of the factors or their error."""
        return factors.nbytes if self.is_size else self.problem.error_of(factors)

    def allows(self, measured: float) -> bool:
        return measured <= self.limit


class Found(NamedTuple):
    """What a search ended with."""

    factors: Factors | None  # the best that meet the goal, None where no level does
    nearest: float  # the size or error that was tried last: the least, where no level fits


def bisect_levels(levels: Sequence[Any], compress: Callable[[Any], Factors], goal: Goal) -> Found:
    """Return the best factors that meet the goal, from log₂(levels) compressions.

    Sizes rise along the levels and errors fall. So the best that fit are the largest where a size
    is the goal, and the smallest where an error is.
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
    """Return how many levels, from the smallest on, take no more bytes than the goal allows."""
    return bisect_right(levels, False, key=lambda level: not goal.allows(nbytes_of(level)))

"""What entropy coding chooses: classes of weights, and the step that meets a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..base import Problem
from .encoding import Encoding
from .source import Source

SHIFTS = (None, 3, 2, 1, 0)
TRIAL_PASSES = 3  # of each shift
# Of a sample. On an embedding of 32000 × 256 12 lose 0.3 % of the error, 120 gain 0.1 %.
PASSES = 40
FULL_PASSES = 4  # of all values, after those of a sample
EVALUATIONS = 12
ROUNDS = 8
MUCH = 0.1  # of a size, for tables and what else is beside the levels
TOLERANCE = 5e-4  # of the goal
SLOPE = 0.7  # octaves of the step that a move of one changes the goal's, about

Judge = Callable[[Encoding], tuple[Any, float]]


def search(
    problem: Problem,
    block_rows: int,
    judge: Judge,
    *,
    nbytes: float | None = None,
    max_error: float | None = None,
) -> tuple[Any, bool]:
    """What is made of the encoding of least error within a size, or of least size within an error.

    Parameters
    ----------
    problem : Problem
    block_rows : int
    judge : callable
        Gives what is made of an encoding, and its size or error as it turns out.
    nbytes, max_error : float, optional
        The goal, one of them.

    Returns
    -------
    made
        Where the goal is out of reach, what comes nearest to it: the smallest that there is, or
        that of the finest step.
    reached : bool
    """
    goal = _Goal(nbytes, max_error)
    reached: list[tuple[float, Any]] = []  # by error
    for start in _starts(problem, block_rows, goal):
        reached += _meet(start, goal, judge)
        if reached and (start.overhead < MUCH * goal.value or not goal.is_size):
            break
    if reached:
        return min(reached, key=lambda each: each[0])[1], True
    made, value = judge(_at(start, _end(start.source, goal)))
    return made, value <= goal.value


class _Goal:
    """A size or an error that must not be exceeded, and how far an encoding is from it."""

    def __init__(self, nbytes: float | None, max_error: float | None) -> None:
        self.is_size = nbytes is not None
        value = nbytes if nbytes is not None else max_error
        assert value is not None
        self.value, self.nbytes, self.max_error = value, nbytes, max_error

    def off(self, encoding: Encoding, wanted: float) -> float:
        """By how many octaves the step is off, about; positive where the goal is missed."""
        if self.is_size:
            return (encoding.nbytes - wanted) * 8 / encoding.source.full_size
        return float(0.5 * np.log2(max(encoding.error, 1e-300) / wanted))

    def is_better(self, one: Encoding, other: Encoding) -> bool:
        """Of two that meet the goal. By leaps, the nearer one need not be the better."""
        if self.is_size:
            return one.error < other.error
        return one.nbytes < other.nbytes

    def tolerance(self, source: Source, wanted: float) -> float:
        """In octaves."""
        return TOLERANCE * (8 * wanted / source.full_size if self.is_size else 0.72)


def _starts(problem: Problem, block_rows: int, goal: _Goal) -> Iterator[Encoding]:
    """Where to begin: the best that there is, then, for sizes, ever less beside the levels."""
    source = Source(problem, block_rows, goal.nbytes, goal.max_error)
    if source.energy == 0:
        yield Encoding(source, source.first_step, None)
        return
    sampled = source.sample()
    trials = []
    for shift in SHIFTS:
        trials.append(Encoding(sampled, source.first_step, shift))
        for _ in range(TRIAL_PASSES - 1):
            trials[-1] = Encoding(sampled, source.first_step, shift, trials[-1].fitted)
    best = _fit(min(trials, key=lambda trial: trial.cost), goal, PASSES)
    yield _on(source, best, goal)
    if goal.is_size:
        yield _on(source, _fit(trials[0], goal, PASSES), goal)
        plain = Source(problem, block_rows, goal.nbytes, plain=True)
        yield _fit(Encoding(plain, plain.first_step, None), goal, FULL_PASSES)


def _on(source: Source, fitted: Encoding, goal: _Goal) -> Encoding:
    """All of a source as a sample of it was fitted."""
    if fitted.source is source:
        return fitted
    return _fit(
        Encoding(source, fitted.log_step, fitted.shift, fitted.fitted), goal, FULL_PASSES - 1
    )


def _fit(encoding: Encoding, goal: _Goal, passes: int) -> Encoding:
    """Costs and levels fitted to each other in turn, at a step that follows the goal."""
    for _ in range(passes):
        off = goal.off(encoding, goal.value) / SLOPE
        step = _moved(encoding, off, goal)
        encoding = Encoding(encoding.source, step, encoding.shift, encoding.fitted)
    return encoding


def _moved(encoding: Encoding, octaves: float, goal: _Goal) -> float:
    """The step so much nearer to the goal."""
    source = encoding.source
    move = float(np.clip(octaves, -6, 6)) * (1 if goal.is_size else -1)
    return float(np.clip(encoding.log_step + move, source.finest, source.coarsest))


def _at(encoding: Encoding, step: float) -> Encoding:
    """The same choice of levels at another step."""
    return Encoding(encoding.source, step, encoding.shift, encoding.costs)


def _end(source: Source, goal: _Goal) -> float:
    """The step furthest inside."""
    return source.coarsest if goal.is_size else source.finest


def _meet(start: Encoding, goal: _Goal, judge: Judge) -> list[tuple[float, Any]]:
    """Error and what is made of the encoding that meets the goal as it turns out, if one does."""
    wanted = goal.value
    for attempt in range(ROUNDS):
        encoding = _solve(start, goal, wanted)
        if encoding is None:
            break
        made, value = judge(encoding)
        if value <= goal.value:
            return [(encoding.error, made)]
        # Coding takes a little more than tables say; rounding to W's dtype adds to the error.
        if goal.is_size:
            wanted -= (1 + 2**attempt / 2) * max(value - goal.value, 1)
        else:
            wanted *= 0.999 * goal.value / value
        start = encoding
    return []


def _solve(start: Encoding, goal: _Goal, wanted: float) -> Encoding | None:
    """The best encoding that meets what is wanted, or nothing where the last does not.

    Levels are chosen by the same costs at every step, so that a step fixes size and error, which
    rise and fall with it: false position, between a step that meets the goal and one that misses;
    and bisection, where both go by leaps, as those of few weights do.
    """
    tolerance = goal.tolerance(start.source, wanted)
    best: Encoding | None = None
    ends: dict[bool, tuple[float, float]] = {}  # of missing: step and how far off
    encoding, slope = start, SLOPE
    for evaluation in range(EVALUATIONS):
        off = goal.off(encoding, wanted)
        if off <= 0 and (best is None or goal.is_better(encoding, best)):
            best = encoding
        if -tolerance <= off <= 0:
            break
        ends[off > 0] = encoding.log_step, off
        aim = off + tolerance / 2
        if len(ends) == 2:
            (good, below), (bad, above) = ends[False], ends[True]
            share = (-tolerance / 2 - below) / (above - below) if evaluation % 3 < 2 else 0.5
            step = good + float(np.clip(share, 0.02, 0.98)) * (bad - good)
        else:
            step = _moved(encoding, aim / slope, goal)
            slope *= 0.7  # where the goal is still out of reach, further
        if step == encoding.log_step:
            break
        encoding = _at(start, step)
    if best is None:
        encoding = _at(start, _end(start.source, goal))
        best = encoding if goal.off(encoding, wanted) <= 0 else None
    return best

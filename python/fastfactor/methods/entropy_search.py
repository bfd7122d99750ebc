"""What entropy coding chooses: classes of weights, and the step that meets a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .base import Problem
from .entropy_encoding import Encoding
from .entropy_source import Source

SHIFTS = (None, 3, 2, 1, 0)
EVALUATIONS = 12
ROUNDS = 6
TOLERANCE = 5e-4  # of the goal

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
    last = None
    for source, start in _starts(problem, block_rows, goal):
        made = _meet(source, start, goal, judge)
        if made is not None:
            return made, True
        last = source, start
    assert last is not None
    source, start = last
    step = source.coarsest if goal.is_size else source.finest
    if source.energy > 0:
        start = Encoding(source, step, start.shift, start)
    made, value = judge(start)
    return made, value <= goal.value


class _Goal:
    """A size or an error that must not be exceeded, and how far an encoding is from it."""

    def __init__(self, nbytes: float | None, max_error: float | None) -> None:
        self.is_size = nbytes is not None
        value = nbytes if nbytes is not None else max_error
        assert value is not None
        self.value, self.nbytes, self.max_error = value, nbytes, max_error

    def octaves(self, encoding: Encoding, wanted: float) -> float:
        """By how many octaves the step is off, about; positive where the goal is missed."""
        if self.is_size:
            return (encoding.nbytes - wanted) * 8 / encoding.source.full_size
        return float(0.5 * np.log2(max(encoding.error, 1e-300) / wanted))

    def tolerance(self, source: Source, wanted: float) -> float:
        """In octaves."""
        return TOLERANCE * (8 * wanted / source.full_size if self.is_size else 0.72)


def _starts(
    problem: Problem, block_rows: int, goal: _Goal
) -> Iterator[tuple[Source, Encoding]]:
    """Where to begin: the best that there is, then, for sizes, ever less beside the levels."""
    source = Source(problem, block_rows, goal.nbytes, goal.max_error)
    if source.energy == 0:
        yield source, Encoding(source, 0.0, None, None)
        return
    sampled = source.sample()
    encodings = [Encoding(sampled, source.first_step, shift, None) for shift in SHIFTS]
    start = min(encodings, key=lambda encoding: encoding.cost)
    if sampled is not source:
        start = _solve(sampled, start, goal, goal.value) or start
    yield source, start
    if goal.is_size:
        yield source, encodings[0]
        plain = Source(problem, block_rows, goal.nbytes, plain=True)
        yield plain, Encoding(plain, plain.first_step, None, None)


def _meet(source: Source, start: Encoding, goal: _Goal, judge: Judge) -> Any:
    """What is made of an encoding that meets the goal as it turns out, or nothing."""
    wanted = goal.value
    for _ in range(ROUNDS):
        encoding = _solve(source, start, goal, wanted)
        if encoding is None:
            return None
        made, value = judge(encoding)
        if value <= goal.value:
            return made
        # Coding takes a little more than tables say; rounding to W's dtype adds to the error.
        if goal.is_size:
            wanted -= 1.5 * (value - goal.value)
        else:
            wanted *= 0.999 * goal.value / value
        start = encoding
    return None


def _solve(source: Source, start: Encoding, goal: _Goal, wanted: float) -> Encoding | None:
    """The encoding nearest to what is wanted of those that meet it, if any, by secants.

    Each encoding starts from the tables of the one before, so that a step does not fix its size:
    a bracket would go stale. So each miss asks for more room.
    """
    best: Encoding | None = None
    best_gap = -np.inf
    step, near, slope = start.log_step, start, 1.0
    before: tuple[float, float] | None = None
    tolerance = goal.tolerance(source, wanted)
    inside = tolerance / 2
    for _ in range(EVALUATIONS):
        near = Encoding(source, step, near.shift, near)
        gap = goal.octaves(near, wanted)
        if best_gap < gap <= 0:
            best, best_gap = near, gap
        if -tolerance <= gap <= 0:
            break
        if before is not None and abs(step - before[0]) > 1e-3:
            slope = float(np.clip(abs((gap - before[1]) / (step - before[0])), 0.1, 2.0))
        before = step, gap
        if gap > 0:
            inside = min(2 * inside, 1.0)
        move = float(np.clip((gap + inside) / slope, -6, 6)) * (1 if goal.is_size else -1)
        step = float(np.clip(step + move, source.finest, source.coarsest))
        if step == near.log_step:
            break
    if best is None:
        step = source.coarsest if goal.is_size else source.finest
        near = Encoding(source, step, near.shift, near)
        best = near if goal.octaves(near, wanted) <= 0 else None
    return best

"""The search for the best encoding: in which coordinates, with which classes, at which step."""

from __future__ import annotations

from collections.abc import Iterator

from ..factors import Factors
from ..search import Goal
from .encoding import Encoding
from .source import Source
from .step_search import SLOPE, Make, Met, meet, moved_step, octaves_off, safest_step

SHIFTS = (None, 3, 2, 1, 0)
TRIAL_PASSES = 3  # of each shift
# Of a sample. On an embedding of 32000 × 256 12 lose 0.3 % of the error, 120 gain 0.1 %.
PASSES = 40
FULL_PASSES = 4  # of all values, after those of a sample
MUCH = 0.1  # of a size, for tables and what else is beside the levels


def search(goal: Goal, block_rows: int, make: Make) -> tuple[Factors, bool]:
    """Return the factors of least error within a size, or of least size within an error.

    Parameters
    ----------
    goal : Goal
    block_rows : int
    make : callable
        Returns the factors of an encoding.

    Returns
    -------
    factors
        Where the goal is out of reach, what comes nearest to it: the smallest that there are, or
        those of the finest step.
    reached : bool
    """
    found: list[Met] = []
    for start in _starts(goal, block_rows):
        met = meet(start, goal, make)
        if met is not None:
            found.append(met)
        if found and (not goal.is_size or start.overhead < MUCH * goal.limit):
            break
    if found:
        return min(found, key=lambda met: met.error).factors, True
    factors = make(safest_step(start, goal))
    return factors, goal.allows(goal.measure(factors))


def _starts(goal: Goal, block_rows: int) -> Iterator[Encoding]:
    """Yield where to begin: the best that there is, then, for sizes, ever less beside the levels.

    Whoever has met the goal need not go on, unless tables take much of the size.
    """
    source = Source.of(goal, block_rows)
    if source.energy == 0:
        yield Encoding(source, source.steps.first, None)
        return
    sampled = source.sample()
    trials = [_trial(sampled, shift) for shift in SHIFTS]
    best = min(trials, key=lambda trial: trial.cost)
    yield _on_all(source, _fit(best, goal, PASSES), goal)
    if goal.is_size:
        one_class = trials[0]
        yield _on_all(source, _fit(one_class, goal, PASSES), goal)
        plain = Source.of(goal, block_rows, plain=True)
        yield _fit(Encoding(plain, plain.steps.first, None), goal, FULL_PASSES)


def _trial(source: Source, shift: int | None) -> Encoding:
    """Return an encoding with classes of this width, its costs fitted at the first step."""
    encoding = Encoding(source, source.steps.first, shift)
    for _ in range(TRIAL_PASSES - 1):
        encoding = Encoding(source, source.steps.first, shift, encoding.fitted)
    return encoding


def _fit(encoding: Encoding, goal: Goal, passes: int) -> Encoding:
    """Fit costs and levels to each other in turn, at a step that follows the goal."""
    for _ in range(passes):
        step = moved_step(encoding, octaves_off(encoding, goal) / SLOPE, goal)
        encoding = Encoding(encoding.source, step, encoding.shift, encoding.fitted)
    return encoding


def _on_all(source: Source, fitted: Encoding, goal: Goal) -> Encoding:
    """Return the encoding of all of a source, by the costs that were fitted to a sample of it."""
    if fitted.source is source:
        return fitted
    begun = Encoding(source, fitted.log_step, fitted.shift, fitted.fitted)
    return _fit(begun, goal, FULL_PASSES - 1)

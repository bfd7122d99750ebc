"""The search for the best encoding: its coordinates, its classes and its step."""

from __future__ import annotations

from collections.abc import Iterator

from ..factors import Factors
from ..search import Goal
from .encoding import Encoding
from .source import Source
from .step_search import SLOPE, Make, Met, meet, moved_step, octaves_off, safest_step

SHIFTS = (None, 3, 2, 1, 0)
TRIAL_PASSES = 3  # for each shift
# Passes on a sample. On an embedding of 32000 × 256, 12 passes lose 0.3 % of error and 120 gain
# 0.1 %.
PASSES = 40
FULL_PASSES = 4  # on all values, after those on a sample
LARGE_OVERHEAD = 0.1  # of the allowed size, for everything but the levels


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
        If the goal is out of reach, those nearest to it: the smallest factors or those of the
        finest step.
    reached : bool
    """
    found: list[Met] = []
    for start in _starts(goal, block_rows):
        met = meet(start, goal, make)
        if met is not None:
            found.append(met)
        if found and (not goal.is_size or start.overhead < LARGE_OVERHEAD * goal.limit):
            break
    if found:
        return min(found, key=lambda met: met.error).factors, True
    factors = make(safest_step(start, goal))
    return factors, goal.allows(goal.measure(factors))


def _starts(goal: Goal, block_rows: int) -> Iterator[Encoding]:
    """Yield encodings to start from: the best one and then, for a size, those with less overhead.

    The later ones are only needed if the goal is not met or the overhead is a large part of it.
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
    """Return an encoding with classes of this width, with costs fitted at the first step."""
    encoding = Encoding(source, source.steps.first, shift)
    for _ in range(TRIAL_PASSES - 1):
        encoding = Encoding(source, source.steps.first, shift, encoding.fitted)
    return encoding


def _fit(encoding: Encoding, goal: Goal, passes: int) -> Encoding:
    """Fit costs and levels to each other in turn, while the step moves towards the goal."""
    for _ in range(passes):
        step = moved_step(encoding, octaves_off(encoding, goal) / SLOPE, goal)
        encoding = Encoding(encoding.source, step, encoding.shift, encoding.fitted)
    return encoding


def _on_all(source: Source, fitted: Encoding, goal: Goal) -> Encoding:
    """Return the encoding of a whole source, starting from costs fitted to a sample of it."""
    if fitted.source is source:
        return fitted
    begun = Encoding(source, fitted.log_step, fitted.shift, fitted.fitted)
    return _fit(begun, goal, FULL_PASSES - 1)

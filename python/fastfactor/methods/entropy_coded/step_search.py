"""The step of the grid with which an encoding meets a goal, by one choice of levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..factors import Factors
from ..search import Goal
from .encoding import Encoding

EVALUATIONS = 12
ROUNDS = 8
TOLERANCE = 5e-4  # of the goal
SLOPE = 0.7  # octaves by which the goal's distance changes, about, where the step moves by one
FLATTER = 0.7  # times the slope, where a move did not reach the other side of the goal

Make = Callable[[Encoding], Factors]


class Met(NamedTuple):
    """Factors that meet the goal, and the error that their encoding has in its own coordinates."""

    error: float
    factors: Factors


def meet(start: Encoding, goal: Goal, make: Make) -> Met | None:
    """Return factors that meet the goal, made of the start at some step; None if none does.

    Sizes and errors of encodings are estimates: coding takes a little more than tables say, and
    rounding to W's dtype adds to the error. So a little less is asked for until the factors fit.
    """
    asked = goal
    for attempt in range(ROUNDS):
        encoding = _best_step(start, asked)
        if encoding is None:
            return None
        factors = make(encoding)
        measured = goal.measure(factors)
        if goal.allows(measured):
            return Met(encoding.error, factors)
        if goal.is_size:
            excess = (1 + 2**attempt / 2) * max(measured - goal.limit, 1)
            asked = replace(asked, limit=asked.limit - excess)
        else:
            asked = replace(asked, limit=asked.limit * (0.999 * goal.limit / measured))
        start = encoding
    return None


def octaves_off(encoding: Encoding, goal: Goal) -> float:
    """Return by how many octaves the step is off, about; positive where the goal is missed."""
    if goal.is_size:
        return (encoding.nbytes - goal.limit) * 8 / encoding.source.full_size
    return float(0.5 * np.log2(max(encoding.error, 1e-300) / goal.limit))


def moved_step(encoding: Encoding, octaves: float, goal: Goal) -> float:
    """Return log₂ of a step that is so many octaves safer: coarser for a size, else finer."""
    steps = encoding.source.steps
    move = float(np.clip(octaves, -6, 6)) * (1 if goal.is_size else -1)
    return float(np.clip(encoding.log_step + move, steps.finest, steps.coarsest))


def safest_step(start: Encoding, goal: Goal) -> Encoding:
    """Return the encoding at the step that takes least, or that has the least error."""
    steps = start.source.steps
    return _at(start, steps.coarsest if goal.is_size else steps.finest)


def _best_step(start: Encoding, goal: Goal) -> Encoding | None:
    """Return the best encoding that was found to meet the goal, or None if none does.

    Levels are chosen by the same costs at every step, so that the step alone decides on size and
    error, which rise and fall with it. False position finds it, between a step that meets the goal
    and one that misses; every third time bisection, for where both go by leaps, as those of few
    weights do.
    """
    tolerance = _tolerance(start, goal)
    best: Encoding | None = None
    inside: _Point | None = None  # the last that met the goal
    outside: _Point | None = None  # the last that missed it
    encoding, slope = start, SLOPE
    for evaluation in range(EVALUATIONS):
        off = octaves_off(encoding, goal)
        if off <= 0 and (best is None or _is_better(encoding, best, goal)):
            best = encoding
        if -tolerance <= off <= 0:
            break
        if off > 0:
            outside = _Point(encoding.log_step, off)
        else:
            inside = _Point(encoding.log_step, off)
        if inside and outside:
            step = _between(inside, outside, -tolerance / 2, bisect=evaluation % 3 == 2)
        else:
            step = moved_step(encoding, (off + tolerance / 2) / slope, goal)
            slope *= FLATTER
        if step == encoding.log_step:
            break
        encoding = _at(start, step)
    if best is None:
        encoding = safest_step(start, goal)
        best = encoding if octaves_off(encoding, goal) <= 0 else None
    return best


class _Point(NamedTuple):
    log_step: float
    off: float


def _between(inside: _Point, outside: _Point, wanted: float, *, bisect: bool) -> float:
    """Return the step between two at which `octaves_off` is as wanted, were it linear."""
    part = 0.5 if bisect else (wanted - inside.off) / (outside.off - inside.off)
    move = float(np.clip(part, 0.02, 0.98)) * (outside.log_step - inside.log_step)
    return inside.log_step + move


def _tolerance(encoding: Encoding, goal: Goal) -> float:
    """Return how far inside the goal is near enough, in octaves of the step."""
    if goal.is_size:
        return TOLERANCE * (8 * goal.limit / encoding.source.full_size)
    return TOLERANCE * 0.72  # ½ log₂(1 + x) is about 0.72 x


def _is_better(one: Encoding, other: Encoding, goal: Goal) -> bool:
    """Compare two that meet the goal: by leaps, the nearer one need not be the better."""
    if goal.is_size:
        return one.error < other.error
    return one.nbytes < other.nbytes


def _at(encoding: Encoding, log_step: float) -> Encoding:
    """Return the encoding by the same costs at another step."""
    return Encoding(encoding.source, log_step, encoding.shift, encoding.costs)

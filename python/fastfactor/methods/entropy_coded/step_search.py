"""The search for the step of the grid at which an encoding meets a goal, with costs fixed."""

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
TOLERANCE = 5e-4  # relative to the goal
SLOPE = 0.7  # the expected change of `octaves_off` when the step moves by one octave
FAR_BELOW = 0.9  # an error below this part of estimate and goal leaves room for fewer bytes
FLATTER = 0.7  # the factor on the slope after a move that did not cross the goal

Make = Callable[[Encoding], Factors]


class Met(NamedTuple):
    """Factors that meet the goal, and the error of their encoding in its own coordinates."""

    error: float
    factors: Factors


def meet(start: Encoding, goal: Goal, make: Make) -> Met | None:
    """Return factors that meet the goal, from the start at another step; None if no step does.

    Sizes and errors of encodings are estimates: coding takes a little more than the tables predict,
    and rounding to W's dtype adds to the error. So the goal is tightened until the factors meet it,
    or loosened while an error is far below what was estimated.
    """
    asked, best = goal, None
    for attempt in range(ROUNDS):
        encoding = _best_step(start, asked)
        if encoding is None or (best and encoding.log_step == start.log_step):
            return best
        factors = make(encoding)
        measured = goal.measure(factors)
        if goal.allows(measured):
            best = Met(encoding.error, factors)
            if goal.is_size or measured >= FAR_BELOW * min(encoding.error, goal.limit):
                return best
        if goal.is_size:
            excess = (1 + 2**attempt / 2) * max(measured - goal.limit, 1)
            asked = replace(asked, limit=asked.limit - excess)
        else:
            factor = 0.999 * goal.limit / max(measured, 1e-3 * goal.limit)
            asked = replace(asked, limit=asked.limit * factor)
        start = encoding
    return best


def octaves_off(encoding: Encoding, goal: Goal) -> float:
    """Return roughly how many octaves the step is off; positive if the goal is missed."""
    if goal.is_size:
        return (encoding.nbytes - goal.limit) * 8 / encoding.source.full_size
    return float(0.5 * np.log2(max(encoding.error, 1e-300) / goal.limit))


def moved_step(encoding: Encoding, octaves: float, goal: Goal) -> float:
    """Return log₂ of a step that is safer by ``octaves``: coarser for a size, else finer."""
    steps = encoding.source.steps
    move = float(np.clip(octaves, -6, 6)) * (1 if goal.is_size else -1)
    return float(np.clip(encoding.log_step + move, steps.finest, steps.coarsest))


def safest_step(start: Encoding, goal: Goal) -> Encoding:
    """Return the encoding at the step with the least size or error, whichever is the goal."""
    steps = start.source.steps
    return _at(start, steps.coarsest if goal.is_size else steps.finest)


def _best_step(start: Encoding, goal: Goal) -> Encoding | None:
    """Return the best encoding found that meets the goal, or None if none does.

    Levels are chosen by the same costs at every step, so only the step decides on size and error.
    False position searches between a step that meets the goal and one that misses it. Every third
    evaluation is a bisection, since size and error of few weights change in jumps.
    """
    tolerance = _tolerance(start, goal)
    best: Encoding | None = None
    inside: _Point | None = None  # the last step that met the goal
    outside: _Point | None = None  # the last step that missed it
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
    """Return the step where linear interpolation gives the wanted `octaves_off`, or halfway."""
    part = 0.5 if bisect else (wanted - inside.off) / (outside.off - inside.off)
    move = float(np.clip(part, 0.02, 0.98)) * (outside.log_step - inside.log_step)
    return inside.log_step + move


def _tolerance(encoding: Encoding, goal: Goal) -> float:
    """Return how far inside the goal is close enough, in octaves of the step."""
    if goal.is_size:
        return TOLERANCE * (8 * goal.limit / encoding.source.full_size)
    return TOLERANCE * 0.72  # ½ log₂(1 + x) is about 0.72 x


def _is_better(one: Encoding, other: Encoding, goal: Goal) -> bool:
    """Return whether the first of two encodings that meet the goal is better.

    Size and error may change in jumps, so the one closer to the goal need not be better.
    """
    if goal.is_size:
        return one.error < other.error
    return one.nbytes < other.nbytes


def _at(encoding: Encoding, log_step: float) -> Encoding:
    """Return the encoding with the same costs at another step."""
    return Encoding(encoding.source, log_step, encoding.shift, encoding.costs)

"""Times of functions that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

LEAST_SECONDS = 2e-3  # of a measurement: shorter functions are called several times


def seconds_of(functions: Sequence[Callable[[], object]], n_rounds: int) -> list[float]:
    """Return the median time of each function, of rounds in which all are called.

    Parameters
    ----------
    functions : sequence of callables
    n_rounds : int
        At least 1. A round before these is not counted.

    Returns
    -------
    list of float
        Seconds of one call.
    """
    calls = []
    for function in functions:
        function()
        first = _seconds(function, 1)
        calls.append(max(1, int(LEAST_SECONDS / max(first, 1e-9))))
    rounds = [
        [_seconds(function, n) / n for function, n in zip(functions, calls, strict=True)]
        for _ in range(n_rounds)
    ]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _seconds(function: Callable[[], object], n: int) -> float:
    began = time.perf_counter()
    for _ in range(n):
        function()
    return time.perf_counter() - began

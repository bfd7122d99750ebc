"""When a matrix is factored, and how fast its factors take over from it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from .. import _checks

FOR_EVER = -1
UPDATES = 200  # of α, as in the published recipe for CIFAR-10


@dataclass(frozen=True)
class Schedule:
    """The share α of the dense matrix in a blend, by training step.

    A matrix is factored at the step ``begin``. Then α falls by ``alpha_decrement`` once every
    ``frequency`` steps, until it is 0 or the step ``end`` has passed.

    Parameters
    ----------
    begin : int
        The step at which the matrix is factored, at least 0.
    end : int
        The last step at which α may fall; -1 means that it may fall for ever.
    frequency : int
        Steps from one fall of α to the next, at least 1.
    alpha_decrement : float
        By how much α falls each time, in (0, 1].

    Raises
    ------
    TypeError, ValueError
        For a number of the wrong type or out of range, and for an end before the beginning.

    Warns
    -----
    UserWarning
        If α cannot reach 0 by the step ``end``, so that the dense matrix stays for good.

    Notes
    -----
    ``α(step) = max(0, 1 − alpha_decrement · n)``, where n falls are due by the step. The recipe
    published for CIFAR-10 is ``Schedule(40_000, 100_000, 100, 0.005)``, whose α is 0 from step
    60,000 on.

    Examples
    --------
    >>> from fastfactor.training import Schedule
    >>> schedule = Schedule(begin=100, frequency=10, alpha_decrement=0.25)
    >>> [schedule.alpha(step) for step in (99, 100, 109, 110, 125, 140)]
    [1.0, 1.0, 1.0, 0.75, 0.5, 0.0]
    >>> schedule.zero_step
    140
    >>> Schedule.over(10_000, begin=0.3, end=0.5)
    Schedule(begin=3000, end=5000, frequency=10, alpha_decrement=0.005)
    """

    begin: int = 0
    end: int = FOR_EVER
    frequency: int = 10
    alpha_decrement: float = 0.01

    def __post_init__(self) -> None:
        _checks.integer(self.begin, "begin", 0)
        _checks.integer(self.end, "end", FOR_EVER)
        _checks.integer(self.frequency, "frequency", 1)
        _checks.fraction(self.alpha_decrement, "alpha_decrement")
        if self.end != FOR_EVER and self.end < self.begin:
            raise ValueError(f"end must be -1 or at least begin, {self.begin}, got {self.end}")
        if self.zero_step is None:
            warnings.warn(
                f"α never reaches 0: {self.n_updates(self.end)} falls of {self.alpha_decrement} "
                f"leave it at {self.alpha(self.end):.4g} for good, and the dense matrix with it; "
                f"end must be at least {self._first_zero} for this frequency",
                stacklevel=3,
            )

    @classmethod
    def over(
        cls,
        total_steps: int,
        *,
        begin: float = 0.3,
        end: float = 0.5,
        frequency: int | None = None,
    ) -> Schedule:
        """Return the schedule whose α falls from 1 to 0 between two fractions of a training.

        Parameters
        ----------
        total_steps : int
            Steps of the whole training, at least 1.
        begin, end : float
            The fractions at which the matrix is factored and at which α is 0:
            0 ≤ begin ≤ end ≤ 1.
        frequency : int, optional
            Default: such that α falls about 200 times, or at every step of a short training.

        Returns
        -------
        Schedule
            Its α is 0 at the step ``end · total_steps``, or before it by less than ``frequency``;
            but at the earliest one step after the matrix is factored.

        Raises
        ------
        TypeError, ValueError
            For a number of the wrong type or out of range.
        """
        _checks.integer(total_steps, "total_steps", 1)
        _checks.fraction(begin, "begin", zero=True)
        _checks.fraction(end, "end", zero=True)
        if end < begin:
            raise ValueError(f"end must be at least begin, {begin}, got {end}")
        first = round(begin * total_steps)
        steps = max(round(end * total_steps) - first, 1)
        if frequency is None:
            frequency = max(steps // UPDATES, 1)
        n_updates = max(steps // _checks.integer(frequency, "frequency", 1), 1)
        last = first + max(steps, n_updates * frequency)
        return cls(first, last, frequency, 1 / n_updates)

    def n_updates(self, step: int) -> int:
        """Return how often α was due to fall by a step, the step itself included.

        Parameters
        ----------
        step : int
            The number of the step, from 0.

        Returns
        -------
        int
            0 until ``frequency`` steps after ``begin``.
        """
        last = step if self.end == FOR_EVER else min(step, self.end)
        return max((last - self.begin) // self.frequency, 0)

    def alpha(self, step: int) -> float:
        """Return the share of the dense matrix at a step.

        Parameters
        ----------
        step : int
            The number of the step, from 0.

        Returns
        -------
        float
            1 before the matrix is factored and at that step, 0 from `zero_step` on.
        """
        n = self.n_updates(step)
        return 0.0 if n >= self._updates_to_zero else 1.0 - self.alpha_decrement * n

    @property
    def zero_step(self) -> int | None:
        """The first step at which α is 0; None if it never is."""
        reached = self.end == FOR_EVER or self._first_zero <= self.end
        return self._first_zero if reached else None

    @property
    def _first_zero(self) -> int:
        return self.begin + self.frequency * self._updates_to_zero

    @property
    def _updates_to_zero(self) -> int:
        # 1 / 0.005 must be 200, whatever way it is rounded.
        return math.ceil(1 / self.alpha_decrement * (1 - 1e-12))

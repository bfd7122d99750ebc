"""How the share of zeros grows while a model is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _checks


@dataclass(frozen=True)
class SparsityRamp:
    """The share of weights that are pruned, by training step.

    Parameters
    ----------
    final : float
        The share of zeros from the step ``end`` on, in [0, 1].
    begin, end : int
        The steps at which the share begins and ceases to grow.
    initial : float
        The share of zeros at the step ``begin``, in [0, 1].
    frequency : int
        Steps from one choice of the mask to the next, at least 1.
    power : float
        How much faster it grows at the beginning than at the end; 3 is the cubic ramp.

    Raises
    ------
    TypeError, ValueError
        For a number of the wrong type or out of range, and for an end before the beginning.

    Notes
    -----
    ``s(t) = final + (initial − final) · (1 − p)^power`` with ``p = (t − begin) / (end − begin)``.
    The mask is chosen anew at ``begin``, every ``frequency`` steps from there, and at ``end``;
    between two choices it stays. Source: Zhu and Gupta, "To prune, or not to prune", 2017.

    Examples
    --------
    >>> from fastfactor.training import SparsityRamp
    >>> ramp = SparsityRamp(0.8, begin=100, end=200, frequency=50)
    >>> [round(ramp.sparsity(step), 3) for step in (99, 100, 149, 150, 200, 300)]
    [0.0, 0.0, 0.0, 0.7, 0.8, 0.8]
    >>> [step for step in range(90, 300) if ramp.is_due(step)]
    [100, 150, 200]
    """

    final: float
    begin: int = 0
    end: int = 0
    initial: float = 0.0
    frequency: int = 1
    power: float = 3.0

    def __post_init__(self) -> None:
        _checks.fraction(self.final, "final", zero=True)
        _checks.fraction(self.initial, "initial", zero=True)
        _checks.integer(self.begin, "begin", 0)
        _checks.integer(self.end, "end", 0)
        _checks.integer(self.frequency, "frequency", 1)
        _checks.positive(self.power, "power")
        if self.end < self.begin:
            raise ValueError(f"end must be at least begin, {self.begin}, got {self.end}")

    @classmethod
    def over(
        cls,
        total_steps: int,
        final: float,
        *,
        begin: float = 0.1,
        end: float = 0.7,
        initial: float = 0.0,
        frequency: int | None = None,
    ) -> SparsityRamp:
        """Return the cubic ramp between two fractions of a training.

        Parameters
        ----------
        total_steps : int
            Steps of the whole training, at least 1.
        final : float
            As for the class.
        begin, end : float
            Fractions of the training: 0 ≤ begin ≤ end ≤ 1.
        initial : float
            As for the class.
        frequency : int, optional
            Default: such that the mask is chosen about 100 times, or at every step of a short
            training.

        Returns
        -------
        SparsityRamp
            With a power of 3.

        Raises
        ------
        TypeError, ValueError
            For a number of the wrong type or out of range.
        """
        _checks.integer(total_steps, "total_steps", 1)
        _checks.fraction(begin, "begin", zero=True)
        _checks.fraction(end, "end", zero=True)
        first, last = round(begin * total_steps), round(end * total_steps)
        if frequency is None:
            frequency = max((last - first) // 100, 1)
        return cls(final, first, last, initial, frequency)

    def is_due(self, step: int) -> bool:
        """Return whether the mask is chosen anew at a step.

        Parameters
        ----------
        step : int
            The number of the step, from 0.

        Returns
        -------
        bool
            True at ``begin``, every ``frequency`` steps from there, and at ``end``.
        """
        return step >= 0 and self.last_due(step) == step

    def last_due(self, step: int) -> int:
        """Return the last step up to this one at which the mask was chosen; -1 before the first.

        Parameters
        ----------
        step : int
            The number of the step, from 0.

        Returns
        -------
        int
            ``end`` from there on.
        """
        if step < self.begin:
            return -1
        return self.end if step >= self.end else step - (step - self.begin) % self.frequency

    def sparsity(self, step: int) -> float:
        """Return the share of zeros at a step: that of the last choice of the mask.

        Parameters
        ----------
        step : int
            The number of the step, from 0.

        Returns
        -------
        float
            ``initial`` before ``begin``, ``final`` from ``end`` on.
        """
        if step < self.begin:
            return float(self.initial)
        if step >= self.end:
            return float(self.final)
        progress = (self.last_due(step) - self.begin) / (self.end - self.begin)
        return float(self.final + (self.initial - self.final) * (1 - progress) ** self.power)

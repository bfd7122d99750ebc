"""The stages of one matrix in training: dense, masked or blended with factors, factors alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .. import _checks
from .._checks import Array
from ..errors import CorruptDataError
from ..methods.factors import Factors, check_matrix
from ..methods.pruning.kept_places import KeptPlaces
from ..methods.pruning.prune import PruneFactors
from .compressors import (
    Compressor,
    NotKnown,
    OwnFactors,
    check_compressor,
    compress,
    trainable_tensors,
)
from .gradual import GradualPrune
from .saved_state import Saved, State, read_state, saved_state


@dataclass(frozen=True)
class Change:
    """What a step has changed. It is true if anything has.

    Attributes
    ----------
    factored : bool
        The matrix was factored: the layer must now hold the factors too.
    alpha_changed : bool
        The share α of the dense matrix is another one.
    finished : bool
        α is 0: the layer must drop the dense matrix, its gradient and its optimizer state.
    mask_changed : bool
        Other weights are pruned than before: the layer must compute with zeros in their place.
    """

    factored: bool = False
    alpha_changed: bool = False
    finished: bool = False
    mask_changed: bool = False

    def __bool__(self) -> bool:
        return self.factored or self.alpha_changed or self.finished or self.mask_changed


class AlphaByStep(Protocol):
    """What a matrix needs of a schedule; `Schedule` is one. α must not rise."""

    @property
    def begin(self) -> int: ...

    def alpha(self, step: int) -> float: ...


class CompressedMatrix:
    """One matrix that is compressed while its model trains, without its numbers.

    The layer holds the numbers. This object says at each step what the layer must do, and keeps
    what does not train: which factors there are, their codes, supports and signs.

    Parameters
    ----------
    compressor : Compressor
        A method of :mod:`fastfactor.methods`, or any object with a method ``compress(W)``.
    schedule : Schedule, optional
        Or any object with ``begin`` and ``alpha(step)``. Default: factor the matrix at the first
        step and drop it at once. None for a :class:`GradualPrune`, which goes by its ramp.
    name : str
        The name of the matrix in messages.

    Attributes
    ----------
    state : State
    alpha : float
        The share of the dense matrix: 1 while it is dense, 0 once it is dropped.
    last_step : int
        The last step that `advance` was called with; -1 before the first.
    factors : Factors, OwnFactors or None
        As the compressor returned them; None while the matrix is dense or masked.
    mask : bool array or None
        True for the weights that a :class:`GradualPrune` keeps so far; None unless masked.

    Raises
    ------
    TypeError
        For a compressor or a schedule that is none.
    ValueError
        For a schedule beside a :class:`GradualPrune`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.training import CompressedMatrix, Schedule
    >>> W = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> schedule = Schedule(begin=2, frequency=1, alpha_decrement=0.5)
    >>> matrix = CompressedMatrix(LowRank(rank=1), schedule)
    >>> for step in range(6):
    ...     change = matrix.advance(step, lambda: W)
    ...     print(step, matrix.state.value, matrix.alpha, change.factored, change.finished)
    0 dense 1.0 False False
    1 dense 1.0 False False
    2 blended 1.0 True False
    3 blended 0.5 False False
    4 factors 0.0 False True
    5 factors 0.0 False False
    >>> matrix.trainable
    ('B', 'C')
    """

    state: State
    alpha: float
    last_step: int
    factors: Factors | OwnFactors | None
    mask: Array | None

    def __init__(
        self, compressor: Compressor, schedule: AlphaByStep | None = None, *, name: str = "W"
    ) -> None:
        check_compressor(compressor)
        fits = hasattr(schedule, "begin") and callable(getattr(schedule, "alpha", None))
        if schedule is not None and (not fits or isinstance(schedule, type)):
            raise TypeError(
                f"schedule must have begin and alpha(step), got {_checks.shown(schedule)}"
            )
        if schedule is not None and isinstance(compressor, GradualPrune):
            raise ValueError("schedule must be None for a GradualPrune, which goes by its ramp")
        self.compressor = compressor
        self.schedule: AlphaByStep = AT_ONCE if schedule is None else schedule
        self.name = name
        self.restart()

    @classmethod
    def finished(cls, factors: Factors | OwnFactors, *, name: str = "W") -> CompressedMatrix:
        """Return a matrix that has these factors alone, such as one from a file.

        Parameters
        ----------
        factors : Factors or OwnFactors
            What `factors` will be.
        name : str
            The name of the matrix in messages.

        Returns
        -------
        CompressedMatrix
            In the last of its stages.
        """
        matrix = cls(_Given(), name=name)
        matrix.state, matrix.alpha, matrix.last_step, matrix.factors = (
            State.FACTORS,
            0.0,
            0,
            factors,
        )
        return matrix

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the tensors of the factors that go on training; () while it is dense."""
        return () if self.factors is None else trainable_tensors(self.factors)

    @property
    def sparsity(self) -> float | None:
        """The share of entries that are pruned so far; None for methods that do not prune."""
        if self.mask is not None:
            return 1 - float(self.mask.mean()) if self.mask.size else 0.0
        kept = getattr(self.factors, "kept", None)
        if isinstance(kept, KeptPlaces):
            return 1 - kept.n_kept() / max(kept.shape[0] * kept.shape[1], 1)
        return 0.0 if isinstance(self.compressor, GradualPrune) else None

    @property
    def wants_gradients(self) -> bool:
        """Whether the running mean of a :class:`GradualPrune` is to be kept in the step to come."""
        if not isinstance(self.compressor, GradualPrune) or self.state is State.FACTORS:
            return False
        first = self.compressor.first_gradient
        return first is not None and self.last_step + 1 >= first

    def advance(
        self,
        step: int,
        weights: Callable[[], Array],
        gradients: Callable[[], Array | None] = lambda: None,
    ) -> Change:
        """Go on to a training step; factor the matrix, or choose its mask, if it is time to.

        Parameters
        ----------
        step : int
            The number of the step, from 0. Steps may be left out, but must not fall.
        weights : callable
            Returns the matrix as it is at this step, as a NumPy array of shape
            (out_features, in_features). Called only when the matrix is factored or its mask chosen;
            weights that are pruned so far must be as they were when they were pruned.
        gradients : callable
            Returns the running mean of :meth:`GradualPrune.measure`, of the same shape; None if
            there is none.

        Returns
        -------
        Change
            What the layer must do now.

        Raises
        ------
        TypeError, ValueError
            For a step before the last one, for weights that are not finite, for an α outside [0, 1]
            or above the last one, and for what the compressor refuses. Nothing changes then.
        """
        _checks.integer(step, "step", 0)
        if step < self.last_step:
            raise ValueError(
                f"step must be at least that of the last call, {self.last_step}, got {step}"
            )
        if isinstance(self.compressor, GradualPrune) and self.state is not State.FACTORS:
            return self._pruned(self.compressor, step, weights, gradients)
        if self.state is State.FACTORS or step < self.schedule.begin:
            self.last_step = step
            return Change()
        alpha = self._alpha(step)
        factored = self.state is State.DENSE
        if factored:
            self.factors = self._factored(weights())
        change = Change(factored, alpha != self.alpha, alpha == 0)
        self.alpha, self.last_step = alpha, step
        self.state = State.FACTORS if alpha == 0 else State.BLENDED
        return change

    def changes_at(self, step: int) -> bool:
        """Return whether `advance` to a step will change anything.

        Parameters
        ----------
        step : int
            At least that of the last call.

        Returns
        -------
        bool
            For matrices with a schedule; one of a :class:`GradualPrune` may say True too often.
        """
        if self.state is State.FACTORS:
            return False
        if isinstance(self.compressor, GradualPrune):
            return step >= self.compressor.ramp.begin
        if step < self.schedule.begin:
            return False
        return self.state is State.DENSE or float(self.schedule.alpha(step)) != self.alpha

    def trained(self, tensors: Mapping[str, Array]) -> Factors:
        """Return the factors with other numbers in the trained tensors, to store or to finish.

        Parameters
        ----------
        tensors : mapping of str to array
            Arrays of the shapes and dtypes of those named in `trainable`; the others stay.

        Returns
        -------
        Factors
            Of the same kind, shape and dtype.

        Raises
        ------
        TypeError, ValueError
            For a name that is not trained, for an array of another shape or dtype, while the matrix
            is dense, and for factors that are not a :class:`fastfactor.methods.Factors`.
        """
        if self.factors is None:
            raise ValueError(f"{self.name} must be factored first, got a dense matrix")
        if not isinstance(self.factors, Factors):
            raise TypeError(
                f"factors of {self.name} must be fastfactor.methods.Factors to be rebuilt, "
                f"got {type(self.factors).__name__}"
            )
        return _with_tensors(self.factors, tensors, self.trainable)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs, beside the layer's own numbers.

        Returns
        -------
        dict
            Numbers, text, and the tensors of the factors as NumPy arrays.

        Raises
        ------
        TypeError
            For factors that are not a :class:`fastfactor.methods.Factors`.
        """
        if self.factors is not None and not isinstance(self.factors, Factors):
            raise TypeError(
                f"factors of {self.name} must be fastfactor.methods.Factors to be saved, "
                f"got {type(self.factors).__name__}"
            )
        return saved_state(Saved(self.state, self.alpha, self.last_step, self.factors, self.mask))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another object of the same compressor and schedule was.

        Parameters
        ----------
        state : mapping
            From `state_dict`.

        Raises
        ------
        CorruptDataError
            If it contradicts itself. Nothing changes then.
        ValueError
            If a newer version of fastfactor made it.
        """
        saved = read_state(state)
        is_gradual = isinstance(self.compressor, GradualPrune)
        is_other = saved.state is (State.BLENDED if is_gradual else State.MASKED)
        if is_other and not isinstance(self.compressor, NotKnown):
            raise CorruptDataError(
                f"state of {self.name} must be one of its compressor, "
                f"{type(self.compressor).__name__}, got a matrix that is {saved.state.value}"
            )
        self.state, self.alpha, self.last_step, self.factors, self.mask = saved

    def restart(self) -> None:
        """Go back to the dense matrix, before the first step."""
        self.state = State.DENSE
        self.alpha = 1.0
        self.last_step = -1
        self.factors = None
        self.mask = None

    def __repr__(self) -> str:
        return (
            f"CompressedMatrix({self.name!r}, {self.state.value}, alpha={self.alpha:.4g}, "
            f"last_step={self.last_step})"
        )

    def _pruned(
        self,
        compressor: GradualPrune,
        step: int,
        weights: Callable[[], Array],
        gradients: Callable[[], Array | None],
    ) -> Change:
        """Choose the mask anew if it is due at this step or was at one that was left out."""
        ramp = compressor.ramp
        if ramp.last_due(step) <= self.last_step:
            self.last_step = step
            return Change()
        with self._named():
            W = check_matrix(weights())
            _checks.finite(W, "W")
            mask = compressor.mask(W, ramp.sparsity(step), gradients())
        self.last_step = step
        if step < ramp.end:
            self.state, self.mask = State.MASKED, mask
            return Change(mask_changed=True)
        self.factors = PruneFactors.from_mask(W, mask, compressor.block_shape)
        self.state, self.alpha, self.mask = State.FACTORS, 0.0, None
        return Change(factored=True, alpha_changed=True, finished=True)

    def _alpha(self, step: int) -> float:
        alpha = float(self.schedule.alpha(step))
        if not 0 <= alpha <= self.alpha:
            raise ValueError(
                f"alpha of the schedule must be in [0, {self.alpha}] at step {step}, got {alpha}"
            )
        return alpha

    def _factored(self, W: Array) -> Factors | OwnFactors:
        with self._named():
            return compress(self.compressor, W)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Put the name of the matrix before the messages of errors."""
        try:
            yield
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.name}: {error}") from error


class _Given:
    """The compressor of a matrix that was compressed before."""

    def compress(self, W: Array, /) -> Any:
        raise ValueError("the factors of this matrix must be those given")


class _AtOnce:
    """Factor at the first step, and drop the dense matrix in the same step."""

    begin = 0

    def alpha(self, step: int) -> float:
        return 0.0


AT_ONCE = _AtOnce()


def _with_tensors(
    factors: Factors, tensors: Mapping[str, Array], trainable: tuple[str, ...]
) -> Factors:
    own = factors.tensors()
    for name, array in tensors.items():
        if name not in trainable:
            raise ValueError(f"names of tensors must be among {', '.join(trainable)}, got {name!r}")
        if (array.shape, array.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"tensor {name!r} must have shape {own[name].shape} and dtype {own[name].dtype}, "
                f"got {array.shape} and {array.dtype}"
            )
        _checks.finite(array, f"tensor {name!r}")
    return type(factors).from_tensors(
        {**own, **tensors}, factors.config(), factors.shape, factors.dtype
    )

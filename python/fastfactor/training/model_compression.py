"""What the compression of a model is in every framework, and the checks before it begins."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from ..methods.base import Method
from .compressors import Compressor
from .gradual import GradualPrune
from .matrix import AlphaByStep, Change, CompressedMatrix
from .report import LayerReport
from .saved_state import State


class ModelCompression(ABC):
    """The compression of a model, whose weights go from stage to stage by one call a step.

    Parameters
    ----------
    model : object
        Of a framework.
    names : iterable of str
        Of the compressed weights.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self.model = model
        self.names = tuple(names)

    @abstractmethod
    def _matrices(self) -> list[CompressedMatrix]:
        """Return the matrices of this compression."""

    @abstractmethod
    def _all_matrices(self) -> list[CompressedMatrix]:
        """Return those of the model, whatever call of `apply_compression` they are of."""

    @abstractmethod
    def _save(self, path: str | os.PathLike[str]) -> None:
        """Write a finished model to a compressed file."""

    @property
    def last_step(self) -> int:
        """The last step; -1 before the first."""
        return max((matrix.last_step for matrix in self._matrices()), default=-1)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return how far the compression is.

        Returns
        -------
        dict of dict
            The stage, α and last step of each weight, by name.
        """
        return {
            matrix.name: {
                "stage": matrix.state.value,
                "alpha": matrix.alpha,
                "last_step": matrix.last_step,
            }
            for matrix in self._matrices()
        }

    @abstractmethod
    def report(self) -> list[LayerReport]:
        """Return what became of each weight.

        Returns
        -------
        list of LayerReport
            Bytes, error, α and sparsity.
        """

    def finalize(self) -> Any:
        """Return the model whose layers hold factors only.

        Returns
        -------
        model
            The model itself. Nothing in it refers to this object.

        Raises
        ------
        ValueError
            If a weight is not yet dropped, which may be one of another call of
            `apply_compression`; the message has its name and its α.
        """
        for matrix in self._all_matrices():
            if matrix.state is not State.FACTORS:
                raise ValueError(
                    f"the dense weight {matrix.name!r} must be dropped before, got one with "
                    f"α = {matrix.alpha:.4g}; go on with step(), or begin and end sooner"
                )
        return self.model

    def to_store(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a compressed file: factors, and all other tensors as they are.

        Parameters
        ----------
        path : path
            As for :func:`fastfactor.store.save`.

        Raises
        ------
        TypeError, ValueError
            If a weight is not yet dropped, and for factors that cannot be stored.
        OSError
            If the file cannot be written.
        """
        self.finalize()
        self._save(path)


def change_of(changes: Iterable[Change]) -> Change:
    """Return what has changed in any of the weights."""
    every = list(changes)
    return Change(
        factored=any(change.factored for change in every),
        alpha_changed=any(change.alpha_changed for change in every),
        finished=any(change.finished for change in every),
        mask_changed=any(change.mask_changed for change in every),
    )


def matrix_for(compressor: Compressor, schedule: AlphaByStep | None, name: str) -> CompressedMatrix:
    """Return a matrix that goes by the schedule, or by the ramp of a `GradualPrune`."""
    by_ramp = isinstance(compressor, GradualPrune)
    return CompressedMatrix(compressor, None if by_ramp else schedule, name=name)


def check_schedule(schedule: AlphaByStep | None, compressors: Iterable[Compressor]) -> None:
    """Refuse a schedule that no weight would go by."""
    if schedule is not None and all(isinstance(own, GradualPrune) for own in compressors):
        raise ValueError(
            "schedule must be None where all weights are pruned by a ramp, got "
            f"{type(schedule).__name__}"
        )


def check_fits(name: str, shape: tuple[int, int], dtype: str, compressor: Compressor) -> None:
    """Refuse, before any work, a weight whose shape its method refuses."""
    method = compressor.method if isinstance(compressor, GradualPrune) else compressor
    if isinstance(method, Method):
        try:
            method.planned_size(shape, dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

"""Weights of errors, given for a model: whether they fit it, and those of each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._checks import Array
from ..files.checkpoint import Checkpoint
from ..files.layout import Layout
from ..methods.factors import matrix_shape
from ..metrics import Covariance, Diagonal, Frobenius, Metric
from .suggestion import nearest

METRICS: dict[str, type[Diagonal] | type[Covariance]] = {
    "importance": Diagonal,
    "input_covariance": Covariance,
}
PLAIN = "squares"


@dataclass(frozen=True, eq=False)
class Weights:
    """The files of weights that were given, by the names of tensors; None for one that was not."""

    importance: Checkpoint | None
    input_covariance: Checkpoint | None

    @cached_property
    def given(self) -> dict[str, Checkpoint]:
        """The files that were given, by the argument of `compress` they are for."""
        every = {what: getattr(self, what) for what in METRICS}
        return {what: model for what, model in every.items() if model is not None}

    def check_names(self, known: Iterable[str]) -> None:
        """Check that there are weights for tensors of the model only.

        Raises
        ------
        ValueError
            With the nearest name of the model.
        """
        known = dict.fromkeys(known)
        for what, model in self.given.items():
            for name in model:
                if name not in known:
                    raise ValueError(
                        f"{what} must only have names of tensors in the model, got {name!r}"
                        f"{nearest(name, known)}"
                    )

    def check_fit(self, layouts: Mapping[str, Layout]) -> None:
        """Check by the headers that the weights fit the tensors that are to be compressed.

        Parameters
        ----------
        layouts : mapping of names to Layouts
            How each tensor that is to be compressed is seen as a matrix.

        Raises
        ------
        TypeError, ValueError
            For a wrong shape or dtype, for a tensor that has weights of both kinds, and for a file
            that has weights of none of them.
        """
        for what, model in self.given.items():
            found = [name for name in layouts if name in model]
            if layouts and not found:
                raise ValueError(
                    f"{what} must have a tensor for at least one that is compressed, "
                    f"got none in {model.path}"
                )
            for name in found:
                self._check_one(what, name, layouts[name])

    def metric_name(self, name: str) -> str:
        """Return the name of the error that the compression of a tensor minimises."""
        return next((what for what, model in self.given.items() if name in model), PLAIN)

    def metric_kind(self, name: str) -> type[Metric]:
        """Return the kind of the error that the compression of a tensor minimises."""
        return METRICS.get(self.metric_name(name), Frobenius)

    def are_equal(self, name: str, other: str) -> bool:
        """Return whether two tensors of one shape have the same weights, or both have none."""
        return self.metric_name(name) == self.metric_name(other) and all(
            np.array_equal(model[name], model[other])
            for model in self.given.values()
            if name in model
        )

    def arguments(self, name: str, layout: Layout) -> dict[str, Array]:
        """Return the arguments of `compress` that weight the errors of a tensor."""
        found = {}
        for what, model in self.given.items():
            if name in model:
                array = model[name]
                if what == "importance":
                    found[what] = layout.to_matrix(array.reshape(layout.shape))
                else:
                    found[what] = _in_order(array.reshape(len(array), -1), layout)
        return found

    def _check_one(self, what: str, name: str, layout: Layout) -> None:
        if what != self.metric_name(name):
            raise ValueError(
                f"importance and input_covariance must not both hold {name!r}, got both"
            )
        stored = self.given[what].tensors[name]
        if what == "importance":
            like, wanted = "the shape of W,", matrix_shape(layout.shape)
        else:
            like, wanted = "shape", (layout.matrix[1], layout.matrix[1])
        if len(stored.shape) < 2 or matrix_shape(stored.shape) != wanted:
            raise ValueError(
                f"tensor {name!r}: {what} must have {like} {wanted}, got {stored.shape}"
            )
        if not stored.is_float:
            raise TypeError(
                f"tensor {name!r}: {what} must have a floating-point dtype, got {stored.dtype}"
            )


def _in_order(covariance: Array, layout: Layout) -> Array:
    """Return a covariance of a tensor's axes of inputs in their order in the matrix."""
    n_out, rows = 0, 1
    while rows < layout.matrix[0]:
        rows *= layout.shape[layout.axes[n_out]]
        n_out += 1
    inner = layout.axes[n_out:]
    if rows != layout.matrix[0] or list(inner) == sorted(inner):
        return covariance
    sides = [layout.shape[axis] for axis in sorted(inner)]
    order = np.arange(len(covariance)).reshape(sides)
    order = order.transpose([sorted(inner).index(axis) for axis in inner]).reshape(-1)
    return covariance[np.ix_(order, order)]


def used_metric(weights: Mapping[str, Array]) -> str:
    """Return the name of the error that was minimised; all-zero weights count as none."""
    for what, array in weights.items():
        return what if array.any() else f"{PLAIN} (zero {what})"
    return PLAIN

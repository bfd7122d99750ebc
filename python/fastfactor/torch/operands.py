"""A weight as operators are given it, and where they take the place of PyTorch's operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..methods.factors import Factors
from . import ops
from .cpu_products import FAST
from .description import describe


class Operands:
    """What operators are given of a weight beside its trained tensors.

    Parameters
    ----------
    factors : Factors
    names : tuple of str
        Of the tensors that are trained.
    """

    def __init__(self, factors: Factors, names: tuple[str, ...]) -> None:
        self._has_kernels = factors.kind in FAST
        self._description, self._fixed = describe(factors, names)

    def serve(self, x: torch.Tensor) -> bool:
        """Return whether operators are for these inputs or ids of a layer that does not train.

        Kinds without faster kernels need them only in compiled programs, which cannot look into
        what PyTorch's operations make of codes.
        """
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        return self._has_kernels or torch.compiler.is_compiling()

    def linear(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ W.T``, for x of shape (..., in)."""
        y: torch.Tensor = ops.linear(x, [*tensors.values(), self._fixed], self._description)
        return y

    def rows(self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of W with these ids, of shape ids.shape + (in,)."""
        found: torch.Tensor = ops.rows(ids, [*tensors.values(), self._fixed], self._description)
        return found

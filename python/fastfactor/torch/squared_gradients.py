"""Means of the squared gradients of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from .. import _checks
from .._arrays import Array
from .wide import wide


class SquaredGradients:
    """Sums of squared gradients of weights, a loss at a time.

    Attributes
    ----------
    n : int
        The number of gradients so far.
    """

    def __init__(
        self,
        weights: Mapping[tuple[str, ...], nn.Parameter],
        loss: Callable[[nn.Module, Any], torch.Tensor],
    ) -> None:
        self._weights = weights
        self._loss = loss
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self.n = 0

    def add(self, model: nn.Module, batch: Any, forward: AbstractContextManager[None]) -> None:
        """Add the squared gradient of the loss of a batch; ``forward`` is around its computation.

        Gradients that the weights hold stay as they are.
        """
        with torch.enable_grad(), _without_cudnn(model):
            with forward:
                value = self._loss(model, batch)
            _check_loss(value)
            # Layers that were not called, such as experts, have no gradient.
            gradients = torch.autograd.grad(
                value.reshape(()), list(self._weights.values()), allow_unused=True
            )
        for names, gradient in zip(self._weights, gradients, strict=True):
            if gradient is None:
                continue
            squares = wide(gradient.to_dense()).square_()
            if names in self._sums:
                self._sums[names] += squares
            else:
                self._sums[names] = squares
        self.n += 1

    def means(self) -> dict[tuple[str, ...], Array]:
        """Return the means by the names of weights; zeros where there never was a gradient.

        Raises
        ------
        ValueError
            If one is not finite.
        """
        found = {}
        for names, weight in self._weights.items():
            total = self._sums.get(names)
            if total is None:
                total = torch.zeros(weight.shape, dtype=torch.float64)
            found[names] = (total / max(self.n, 1)).cpu().numpy()
            _checks.finite(found[names], f"squared gradients of {names[0]!r}")
        return found


def _without_cudnn(model: nn.Module) -> AbstractContextManager[Any]:
    """Turn cuDNN off for recurrent layers, of which it has no gradients in eval mode."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def _check_loss(value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"loss must return a tensor of one number, got {got}")
    if not value.requires_grad:
        raise ValueError("loss must depend on a weight that is looked at, got one without gradient")
    if not math.isfinite(value.item()):
        raise ValueError(f"loss must be finite, got {value.item()}")

"""Means of the squared gradients of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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

        Of several losses the squares are added up. Gradients that the weights hold stay as they
        are.
        """
        with torch.enable_grad(), _without_cudnn(model):
            with forward:
                value = self._loss(model, batch)
            _check_loss(value)
            losses = value.reshape(-1).unbind()
            for number, each in enumerate(losses):
                # Layers that were not called, such as experts, have no gradient.
                gradients = torch.autograd.grad(
                    each,
                    list(self._weights.values()),
                    allow_unused=True,
                    retain_graph=number < len(losses) - 1,
                )
                self._add_squares(gradients)
        self.n += 1

    def _add_squares(self, gradients: Iterable[torch.Tensor | None]) -> None:
        for names, gradient in zip(self._weights, gradients, strict=True):
            if gradient is None:
                continue
            squares = wide(gradient.to_dense()).square_()
            if names in self._sums:
                self._sums[names] += squares
            else:
                self._sums[names] = squares

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
    is_tensor = isinstance(value, torch.Tensor)
    if not is_tensor or value.numel() == 0 or (value.ndim > 1 and value.numel() > 1):
        got = tuple(value.shape) if is_tensor else type(value).__name__
        raise TypeError(f"loss must return a tensor of one number, or of one axis, got {got}")
    if not value.requires_grad:
        raise ValueError("loss must depend on a weight that is looked at, got one without gradient")
    for each in value.reshape(-1).tolist():
        if not math.isfinite(each):
            raise ValueError(f"loss must be finite, got {each}")

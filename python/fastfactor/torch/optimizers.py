"""Optimizers that hold a weight get its factors beside it, and lose it when it is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def add_beside(
    optimizers: Iterable[Optimizer], weight: nn.Parameter, factors: Sequence[nn.Parameter]
) -> None:
    """Put factors behind the weight in each group that holds it, with the group's settings.

    Parameters that are in the optimizer already are left where they are.
    """
    for optimizer in optimizers:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in factors if id(p) not in held]
        for group in optimizer.param_groups:
            at = _place(group, weight)
            if at is not None:
                group["params"][at + 1 : at + 1] = new
                _forget_history(optimizer)


def remove(optimizers: Iterable[Optimizer], weight: nn.Parameter) -> None:
    """Take a weight out of each optimizer, with its running means and its gradient."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            at = _place(group, weight)
            if at is not None:
                del group["params"][at]
                _forget_history(optimizer)
        optimizer.state.pop(weight, None)
    weight.grad = None


def _forget_history(optimizer: Optimizer) -> None:
    """Let an optimizer begin anew whose state is of all its parameters at once."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


def _place(group: dict[str, Any], weight: nn.Parameter) -> int | None:
    return next((i for i, p in enumerate(group["params"]) if p is weight), None)

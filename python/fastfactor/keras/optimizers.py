"""A new optimizer for other variables, with what the old one knew of those that stay."""

from __future__ import annotations

from typing import Any

import keras

from .compressed_weight import as_numpy


def rebuilt_optimizer(optimizer: Any, variables: list[Any]) -> Any:
    """Return an optimizer of the same settings for other variables.

    The count of steps, the learning rate and the running means of variables that both have are
    those of the old one; those of new variables begin at zero.
    """
    fresh = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    fresh.build(variables)
    known: dict[str, list[Any]] = {}
    for variable in optimizer.variables:
        known.setdefault(_name(variable, optimizer), []).append(variable)
    for variable in fresh.variables:
        same = known.get(_name(variable, fresh))
        if same and same[0].shape == variable.shape:
            variable.assign(as_numpy(same.pop(0)))
    return fresh


def _name(variable: Any, optimizer: Any) -> str:
    """Return a variable's name without that of its optimizer, which may have got a number."""
    return str(variable.path).removeprefix(f"{optimizer.name}/")

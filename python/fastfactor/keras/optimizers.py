"""Optimizers that go on with other variables, and keep what they know of those that stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .variables import as_numpy


def refit(optimizer: Any, variables: Sequence[Any]) -> None:
    """Make a built optimizer one of other variables, in place.

    The count of steps, the learning rate and the running means of variables that stay are kept.
    The means of new variables begin as in a new optimizer; averages of their values begin at them.
    A factor has weight decay if the weight beside which it stands has it.
    """
    parts = list(_parts(optimizer))
    old: dict[str, list[Any]] = {}
    for variable in optimizer.variables:
        old.setdefault(str(variable.path), []).append(variable)
    before = [list(part._trainable_variables) for part in parts]
    for part in parts:
        _forget_slots(part)
    optimizer.build(list(variables))
    for variable in optimizer.variables:
        same = old.get(str(variable.path))
        if same and same[0].shape == variable.shape:
            variable.assign(as_numpy(same.pop(0)))
    for part, known in zip(parts, before, strict=True):
        _begin_averages(part, known)
        _exclude_factors(part, known)


def _parts(optimizer: Any) -> Iterator[Any]:
    """Iterate over an optimizer and those that it wraps, as one that scales the loss does."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _forget_slots(optimizer: Any) -> None:
    """Leave an optimizer its count of steps and its learning rate, as if it had never been built.

    Its list of variables and the dictionary of their places are other ones afterwards: TensorFlow
    exports no model with one from which anything was taken.
    """
    kept = [
        variable
        for variable in optimizer._variables
        if variable is optimizer._iterations or variable is optimizer._learning_rate
    ]
    for name, fresh in (("_variables", kept), ("_trainable_variables_indices", {})):
        delattr(optimizer, name)
        optimizer.__dict__[name] = fresh
    is_variable, _ = optimizer._tracker.config["variables"]
    optimizer._tracker.config["variables"] = (is_variable, kept)
    optimizer._tracker.stored_ids["variables"] = {id(variable) for variable in kept}
    optimizer.built = False


def _begin_averages(optimizer: Any, known: Sequence[Any]) -> None:
    """Let the moving averages of new variables begin at their values instead of zero."""
    if not optimizer.use_ema:
        return
    ids = {id(variable) for variable in known}
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
        if id(variable) not in ids and average is not None:
            average.assign(as_numpy(variable))


def _exclude_factors(optimizer: Any, known: Sequence[Any]) -> None:
    """Let variables that `exclude_from_weight_decay` was given hand this on to their factors."""
    keys: set[Any] = getattr(optimizer, "_exclude_from_weight_decay", set())
    ids = {id(variable) for variable in known}
    excluded = [variable for variable in known if optimizer._var_key(variable) in keys]
    new = [variable for variable in optimizer._trainable_variables if id(variable) not in ids]
    keys.update(
        optimizer._var_key(variable)
        for variable in new
        if any(str(variable.path).startswith(f"{each.path}_") for each in excluded)
    )
    # A variable that is gone may leave its key to another one.
    there = {optimizer._var_key(variable) for variable in optimizer._trainable_variables}
    keys.intersection_update(there)
    optimizer._exclude_from_weight_decay_cache = {}

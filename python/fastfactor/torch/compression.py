"""Compress the weights of a model's layers while it trains, all by one call a step."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..methods.base import Method
from ..methods.factors import matrix_shape
from ..training import CompressedMatrix, Compressor, State
from ..training.compressors import check_compressor
from ..training.matrix import AlphaByStep
from .layers import CLASSES, make_compressed, refusal
from .optimizers import add_beside, remove
from .saving import save_model
from .shared_weight import CompressedLayer, SharedWeight


@dataclass(frozen=True)
class LayerReport:
    """What became of one weight.

    Attributes
    ----------
    name : str
        Of the weight in the model's `state_dict`; of tied weights, the first.
    tied : tuple of str
        The other names of the same weight.
    stage : State
    alpha : float
        The share of the dense weight.
    bytes_dense : int
    bytes_factors : int or None
        Of the factors as they are stored; None while the weight is dense.
    relative_error : float or None
        ‖W − Ŵ‖² / ‖W‖² of the factors against the weight as they are now; None unless both exist.
    """

    name: str
    tied: tuple[str, ...]
    stage: State
    alpha: float
    bytes_dense: int
    bytes_factors: int | None
    relative_error: float | None


def apply_compression(
    model: nn.Module,
    compressor: Compressor | Mapping[str, Compressor],
    schedule: AlphaByStep | None = None,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
) -> Compression:
    """Prepare a model so that the weights of its layers are compressed while it trains.

    Parameters
    ----------
    model : Module
        A model or a single layer. Its layers are changed in place and keep their names.
    compressor : Compressor, or mapping of patterns to Compressors
        A method of :mod:`fastfactor.methods` or any object with ``compress(W)``. Patterns may have
        ``*``, ``?`` and ``[abc]`` and match whole names of layers; the last that matches decides,
        and layers that match none stay as they are.
    schedule : Schedule, optional
        Default: all is factored at the first step, and the dense weights dropped at once.
    targets : pattern or patterns, optional
        Names of layers to compress. Default: every Linear, Embedding, Conv1d and Conv2d.
    ignore : pattern or patterns, optional
        Names of layers to leave as they are.

    Returns
    -------
    Compression
        Call its `step` once after each step of the optimizer.

    Raises
    ------
    TypeError, ValueError
        For a layer that cannot be compressed, by its name; for a pattern that matches none; for
        layers with one weight of which only some are chosen or which have different compressors.
        The model is unchanged then.

    Notes
    -----
    Layers with the same weight (tied ones) share its factors. Nothing changes before the first step
    at which the schedule begins, but the classes of the layers. The gradient of a codebook's value
    is the sum over all weights that have it, so that codebooks want smaller learning rates.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.torch import apply_compression
    >>> from fastfactor.training import Schedule
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    >>> schedule = Schedule(begin=10, frequency=1, alpha_decrement=0.1)
    >>> compression = apply_compression(model, LowRank(rank=4), schedule, ignore="1")
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> for _ in range(30):
    ...     loss = model(torch.randn(16, 64)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     changed = compression.step()
    >>> [name for name, _ in compression.finalize().named_parameters()]
    ['0.weight_B', '0.weight_C', '0.bias', '1.weight', '1.bias']
    """
    chosen = _chosen(model, compressor, _patterns(targets, "targets"), _patterns(ignore, "ignore"))
    groups: dict[int, dict[str, nn.Module]] = {}
    for name, (module, _) in chosen.items():
        groups.setdefault(id(module.weight), {})[name] = module
    for names in groups.values():
        first, *others = names
        for other in others:
            if chosen[other][1] != chosen[first][1]:
                raise ValueError(
                    f"layers {first!r} and {other!r} have one weight and must have one compressor, "
                    f"got {chosen[first][1]!r} and {chosen[other][1]!r}"
                )
    _check_ties(model, {id(module) for module, _ in chosen.values()}, groups)
    weights = []
    for names in groups.values():
        first = next(iter(names))
        module, own = chosen[first]
        matrix = CompressedMatrix(own, schedule, name=_weight_name(first))
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        shared = SharedWeight(matrix, weight)
        for layer in names.values():
            make_compressed(layer, shared)
        weights.append(shared)
    return Compression(model, {name: module for name, (module, _) in chosen.items()}, weights)


class Compression:
    """The compression of a model, made by `apply_compression`.

    Attributes
    ----------
    model : Module
    layers : dict of CompressedLayer
        By name.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], weights: list[SharedWeight]
    ) -> None:
        self.model = model
        self.layers = {
            n: layer for n, layer in layers.items() if isinstance(layer, CompressedLayer)
        }
        self._weights = weights
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._dropped: list[tuple[weakref.ref[nn.Parameter], SharedWeight]] = []
        itself = weakref.ref(self)

        def after_step(optimizer: Optimizer, *_: Any) -> None:
            compression = itself()
            if compression is not None:
                compression.track(optimizer)

        handle = register_optimizer_step_post_hook(after_step)
        self._stop_looking = weakref.finalize(self, handle.remove)

    def track(self, optimizer: Optimizer) -> None:
        """Give an optimizer the factors of the weights that it holds, from now on.

        Called by itself for every optimizer that has made a step, so that this is only needed for
        one that has made none when the first weight is factored.

        Parameters
        ----------
        optimizer : Optimizer
            Others than those that hold a weight of the model are left alone.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for shared in self._weights:
            weight = shared.weight
            if weight is not None and id(weight) in held:
                self._optimizers.add(optimizer)
                add_beside([optimizer], weight, _factors_of(shared))
        for reference, shared in self._dropped:
            gone = reference()
            if gone is not None and id(gone) in held:
                self._optimizers.add(optimizer)
                add_beside([optimizer], gone, _factors_of(shared))
                remove([optimizer], gone)

    def step(self, step: int | None = None) -> bool:
        """Go on to the next training step, after the optimizer has made its own.

        Parameters
        ----------
        step : int, optional
            The number of the step, from 0, if some are left out. Default: one more than the last.

        Returns
        -------
        bool
            Whether anything has changed.

        Raises
        ------
        TypeError, ValueError
            For a step before the last, weights that are not finite, and what a compressor refuses;
            the message has the name of the weight.
        """
        if step is None:
            step = 1 + max((shared.matrix.last_step for shared in self._weights), default=-1)
        changed = False
        for shared in self._weights:
            weight = shared.weight
            change = shared.advance(step)
            changed = changed or bool(change)
            if change.factored and weight is not None:
                add_beside(self._optimizers, weight, _factors_of(shared))
            if change.finished and weight is not None:
                remove(self._optimizers, weight)
                self._dropped.append((weakref.ref(weight), shared))
        return changed

    def state(self) -> dict[str, dict[str, Any]]:
        """Return how far the compression is.

        Returns
        -------
        dict of dict
            The stage, α and last step of each weight, by name.
        """
        return {
            shared.matrix.name: {
                "stage": shared.matrix.state.value,
                "alpha": shared.matrix.alpha,
                "last_step": shared.matrix.last_step,
            }
            for shared in self._weights
        }

    def report(self) -> list[LayerReport]:
        """Return what became of each weight.

        Returns
        -------
        list of LayerReport
            Bytes, error and α.
        """
        return [self._report(shared) for shared in self._weights]

    def finalize(self) -> nn.Module:
        """Return the model whose layers hold factors only.

        Returns
        -------
        Module
            The model itself. Nothing in it refers to this object.

        Raises
        ------
        ValueError
            If a weight is not yet dropped; the message has its name and its α.
        """
        for shared in self._weights:
            if shared.matrix.state is not State.FACTORS:
                raise ValueError(
                    f"the dense weight {shared.matrix.name!r} must be dropped before, got one with "
                    f"α = {shared.matrix.alpha:.4g}; go on with step(), or begin and end sooner"
                )
        self._stop_looking()
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
        save_model(self.model, self.layers, path)

    def _report(self, shared: SharedWeight) -> LayerReport:
        names = [_weight_name(n) for n, layer in self.layers.items() if layer in shared.layers]
        weight, bytes_factors, error = shared.weight, None, None
        layer = shared.layers[0]
        itemsize = next(layer.parameters_of_weight()).element_size()
        if shared.matrix.factors is not None:
            factors = shared.trained_factors(layer.factor_parameters())
            bytes_factors = factors.nbytes
            if weight is not None:
                error = factors.error(weight.detach().cpu().double().reshape(factors.shape))
        return LayerReport(
            name=names[0],
            tied=tuple(names[1:]),
            stage=shared.matrix.state,
            alpha=shared.matrix.alpha,
            bytes_dense=itemsize * torch.Size(shared.shape).numel(),
            bytes_factors=bytes_factors,
            relative_error=error,
        )


def _factors_of(shared: SharedWeight) -> list[nn.Parameter]:
    return list(shared.layers[0].factor_parameters().values())


def _patterns(given: str | Iterable[str] | None, name: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be patterns of names, got {pattern!r}")
    return patterns


def _chosen(
    model: nn.Module,
    compressor: Compressor | Mapping[str, Compressor],
    targets: tuple[str, ...] | None,
    ignore: tuple[str, ...] | None,
) -> dict[str, tuple[nn.Module, Compressor]]:
    """Return the layers to compress and their compressors, by name; refuse what cannot be."""
    rules = dict(compressor) if isinstance(compressor, Mapping) else {"*": compressor}
    for each in rules.values():
        check_compressor(each)
    modules = dict(model.named_modules())
    every = (*rules, *(targets or ()), *(ignore or ()))
    for pattern in every:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"patterns must match names of layers, got {pattern!r}")
    found: dict[str, tuple[nn.Module, Compressor]] = {}
    for name, module in modules.items():
        fitting = [own for pattern, own in rules.items() if fnmatchcase(name, pattern)]
        if not fitting or _matches(name, ignore):
            continue
        if type(module) not in CLASSES if targets is None else not _matches(name, targets):
            continue
        why = refusal(module)
        if why:
            raise TypeError(f"layer {name!r} {why}; leave it out by ignore=[{name!r}]")
        _check_fits(name, module, fitting[-1])
        found[name] = module, fitting[-1]
    if not found:
        raise ValueError("at least one layer must be compressed, got none")
    return found


def _matches(name: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is not None and any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_fits(name: str, module: nn.Module, compressor: Compressor) -> None:
    """Refuse, before any work, a weight whose shape its method refuses."""
    if not isinstance(compressor, Method):
        return
    assert isinstance(module.weight, nn.Parameter)
    dtype = str(module.weight.dtype).removeprefix("torch.")
    try:
        compressor.planned_size(matrix_shape(tuple(module.weight.shape)), dtype)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _check_ties(
    model: nn.Module, chosen: set[int], groups: Mapping[int, Mapping[str, nn.Module]]
) -> None:
    """Refuse a weight that a layer has too which is not chosen."""
    for name, module in model.named_modules():
        if id(module) in chosen:
            continue
        for own, parameter in module._parameters.items():
            if id(parameter) in groups:
                raise ValueError(
                    f"layer {next(iter(groups[id(parameter)]))!r} must not share its weight with a "
                    f"parameter that is not compressed, got {name}.{own}"
                )


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"

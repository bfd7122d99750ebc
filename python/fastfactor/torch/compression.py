"""Compress the weights of a model's layers while it trains, all by one call a step."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..methods.convolution.base import ConvMethod
from ..methods.factors import matrix_shape
from ..training import Change, CompressedMatrix, Compressor
from ..training.matrix import AlphaByStep
from ..training.model_compression import (
    ModelCompression,
    change_of,
    check_fits,
    check_schedule,
    matrix_for,
)
from ..training.report import LayerReport
from ..training.selection import choose
from .compressed_layer import CompressedLayer
from .kinds import candidates, make_compressed
from .optimizers import add_beside, remove
from .report import report_of, scalars_of
from .saving import save_model
from .shared_weight import SharedWeight


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
        ``*``, ``?`` and ``[abc]`` and match whole names of layers or of weights; the last that
        matches decides, and weights that match none stay as they are.
    schedule : Schedule, optional
        Default: all is factored at the first step, and the dense weights dropped at once. It does
        not count for weights that a :class:`fastfactor.training.GradualPrune` prunes, which go by
        their ramp.
    targets : pattern or patterns, optional
        Names of layers or weights to compress. Default: linear layers, embeddings and bags of
        them, convolutions, recurrent layers and cells, and the projections of attention; for a
        method for convolutions (``ConvSVD`` and others) those over one axis or two. A
        parameter of another module is compressed if a pattern, here or in ``compressor``, matches
        its name and not its module's.
    ignore : pattern or patterns, optional
        Names of layers or weights to leave as they are.

    Returns
    -------
    Compression
        Call its `step` once after each step of the optimizer.

    Raises
    ------
    TypeError, ValueError
        For a layer that cannot be compressed, by its name (patterns with ``*`` pass over such
        layers); for a pattern that matches none; for layers with one weight of which only some are
        chosen or which have different compressors. The model is unchanged then.

    Notes
    -----
    Layers with the same weight (tied ones) share its factors. Nothing changes before the first step
    at which the schedule begins, but the classes of the layers. W is rebuilt from factors only in
    convolutions, but for low rank and the methods for convolutions, which run as chains of smaller
    ones, and in recurrent layers in training or with batches of 16 and
    more, once in each call, and for parameters of other modules, in each access. Pass the whole
    model if it has a ``TransformerEncoder``, which must know of its compressed parts. The gradient
    of a codebook's value is the sum over all weights that have it, so that codebooks want smaller
    learning rates.

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
    chosen = choose(candidates(model), compressor, targets, ignore)
    chosen = {name: _for_layer(model, name, own) for name, own in chosen.items()}
    weights = {name: _parameter(model, name) for name in chosen}
    names: dict[int, list[str]] = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), []).append(name)
        dtype = str(weight.dtype).removeprefix("torch.")
        check_fits(name, matrix_shape(tuple(weight.shape)), dtype, chosen[name])
    for first, *others in names.values():
        for other in others:
            if chosen[other] != chosen[first]:
                raise ValueError(
                    f"weights {first!r} and {other!r} are one and must have one compressor, "
                    f"got {chosen[first]!r} and {chosen[other]!r}"
                )
    _check_ties(model, weights)
    check_schedule(schedule, chosen.values())
    shared = {
        number: SharedWeight(matrix_for(chosen[first], schedule, first), weights[first])
        for number, (first, *_) in names.items()
    }
    make_compressed(model, {name: shared[id(weight)] for name, weight in weights.items()})
    return Compression(model, {each: names[number] for number, each in shared.items()})


class Compression(ModelCompression):
    """The compression of a model, made by `apply_compression`.

    Attributes
    ----------
    model : Module
    names : tuple of str
        Of the compressed weights, as in the model's `state_dict`.
    """

    def __init__(self, model: nn.Module, weights: Mapping[SharedWeight, list[str]]) -> None:
        super().__init__(model, (name for names in weights.values() for name in names))
        self._weights = dict(weights)
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._dropped: list[tuple[weakref.ref[nn.Parameter], SharedWeight]] = []
        itself = weakref.ref(self)

        def after_step(optimizer: Optimizer, *_: Any) -> None:
            compression = itself()
            if compression is not None:
                compression.track(optimizer)
                compression._see_gradients(optimizer)

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
                add_beside([optimizer], weight, list(shared.parameters.values()))
        for reference, shared in self._dropped:
            gone = reference()
            if gone is not None and id(gone) in held:
                self._optimizers.add(optimizer)
                add_beside([optimizer], gone, list(shared.parameters.values()))
                remove([optimizer], gone)

    def _see_gradients(self, optimizer: Optimizer) -> None:
        """Take the gradients that an optimizer has used into the means of weights to prune."""
        # A gradient scaler lets fused optimizers look for themselves whether to leave a step out.
        not_finite = getattr(optimizer, "found_inf", None)
        if not_finite is not None and not_finite.item():
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for shared in self._weights:
            if id(shared.weight) in held:
                shared.see_gradient()

    def step(self, step: int | None = None) -> Change:
        """Go on to the next training step, after the optimizer has made its own.

        Parameters
        ----------
        step : int, optional
            The number of the step, from 0, if some are left out. Default: one more than the last.

        Returns
        -------
        Change
            What has changed in any of the weights. The model has other parameters than before if
            it is ``factored`` or ``finished``. True if anything has changed.

        Raises
        ------
        TypeError, ValueError
            For a step before the last, weights that are not finite, and what a compressor refuses;
            the message has the name of the weight.
        """
        if step is None:
            step = self.last_step + 1
        changes = []
        for shared in self._weights:
            weight = shared.weight
            change = shared.advance(step)
            changes.append(change)
            if change.factored and weight is not None:
                add_beside(self._optimizers, weight, list(shared.parameters.values()))
            if change.finished and weight is not None:
                remove(self._optimizers, weight)
                self._dropped.append((weakref.ref(weight), shared))
        return change_of(changes)

    def report(self) -> list[LayerReport]:
        return [report_of(shared, names) for shared, names in self._weights.items()]

    def scalars(self) -> dict[str, float]:
        """Return numbers to follow in a log.

        Returns
        -------
        dict of float
            For each weight its α, its last step, its bytes as they are now, its sparsity if it is
            pruned, and the norms of the dense weight (A) and of the factors, while there are such,
            under names such as ``head.weight/alpha`` and ``head.weight/norm_B``.

        Examples
        --------
        With TensorBoard's writer::

            for name, value in compression.scalars().items():
                writer.add_scalar(name, value, step)
        """
        return {
            f"{shared.matrix.name}/{name}": value
            for shared in self._weights
            for name, value in scalars_of(shared).items()
        }

    def finalize(self) -> nn.Module:
        model: nn.Module = super().finalize()
        self._stop_looking()
        return model

    def _save(self, path: str | os.PathLike[str]) -> None:
        save_model(self.model, path)

    def _matrices(self) -> list[CompressedMatrix]:
        return [shared.matrix for shared in self._weights]

    def _all_matrices(self) -> list[CompressedMatrix]:
        layers = [part for part in self.model.modules() if isinstance(part, CompressedLayer)]
        return [shared.matrix for layer in layers for shared in layer.compressed.values()]


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    layer, _, own = name.rpartition(".")
    parameter = model.get_submodule(layer)._parameters[own]
    assert parameter is not None
    return parameter


def _for_layer(model: nn.Module, name: str, compressor: Compressor) -> Compressor:
    """Return a method for convolutions with the kernel and the groups of the layer."""
    if not isinstance(compressor, ConvMethod):
        return compressor
    layer, _, own = name.rpartition(".")
    module = model.get_submodule(layer)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if compressor.groups not in (1, module.groups):
        raise ValueError(
            f"{name}: groups must be those of the layer, {module.groups}, got {compressor.groups}"
        )
    filters, channels, *kernel = module._parameters[own].shape
    shape = (filters, channels, *[1] * (2 - len(kernel)), *kernel)
    try:
        return replace(compressor, groups=module.groups).for_tensor(shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_ties(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse a weight that is a parameter too under a name that is not chosen."""
    first: dict[int, str] = {}
    for name, weight in weights.items():
        first.setdefault(id(weight), name)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first and name not in weights and not _is_same(model, name, weights):
            raise ValueError(
                f"{first[id(parameter)]!r} must not be a parameter under another name that is not "
                f"compressed, got {name!r}"
            )


def _is_same(model: nn.Module, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
    """Return whether the layer of this name is a chosen one, which has several names."""
    layer, _, own = name.rpartition(".")
    module = model.get_submodule(layer)
    return any(
        model.get_submodule(each.rpartition(".")[0]) is module and each.rpartition(".")[2] == own
        for each in weights
    )

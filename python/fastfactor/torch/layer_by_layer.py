"""Factor a trained model one layer after the other, and train what follows in between."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ..training import Compressor
from ..training.selection import choose
from .compression import apply_compression
from .kinds import candidates


@dataclass(frozen=True)
class LayerStage:
    """A layer that has just been factored, in `layer_by_layer`.

    Attributes
    ----------
    name : str
        The name of its weight.
    parameters : tuple of Parameter
        What is to be trained now: the parameters of the layers after it.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]


def layer_by_layer(
    model: nn.Module,
    compressor: Compressor | Mapping[str, Compressor],
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
) -> Iterator[LayerStage]:
    """Factor the layers of a model in turn, and freeze each with all before it.

    Denton, Zaremba, Bruna, LeCun and Fergus, 2014, approximate a layer, freeze it and everything
    below, train the layers above until the loss is back, and go on to the next. The training is
    yours, between two steps of the iteration.

    Parameters
    ----------
    model : Module
        It is changed in place. Layers follow one another as the model registers them, which should
        be their order in the forward pass.
    compressor : Compressor, or mapping of patterns to Compressors
        As for `apply_compression`. Each weight is factored as it is when its turn comes.
    targets, ignore : pattern or patterns, optional
        As for `apply_compression`.

    Yields
    ------
    LayerStage
        Once for each weight. ``stage.parameters`` are for a new optimizer; all other parameters get
        no gradients until the iteration ends.

    Raises
    ------
    TypeError, ValueError
        As for `apply_compression`, before the first layer.

    Notes
    -----
    To tune all layers at once while they are blended with their factors, use `apply_compression`
    with a schedule.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.methods import ConvSVD
    >>> from fastfactor.torch import layer_by_layer
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 8, 3))
    >>> for stage in layer_by_layer(model, ConvSVD(ratio=3)):
    ...     print(stage.name, len(stage.parameters))
    ...     if stage.parameters:
    ...         optimizer = torch.optim.SGD(stage.parameters, lr=1e-3)
    0.weight 2
    1.weight 0
    """
    chosen = choose(candidates(model), compressor, targets, ignore)
    apply_compression(copy.deepcopy(model), chosen)  # refuses what does not fit
    trains = {id(p): p.requires_grad for p in model.parameters()}
    try:
        for name, own in chosen.items():
            apply_compression(model, {name: own}).step()
            behind = _behind(model, name.rpartition(".")[0])
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in behind and trains[id(parameter)])
            yield LayerStage(name, tuple(p for p in model.parameters() if p.requires_grad))
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(trains.get(id(parameter), True))


def _behind(model: nn.Module, layer: str) -> set[int]:
    """Return the parameters that come after all those of a layer."""
    own = {id(p) for p in model.get_submodule(layer).parameters()}
    every = list(model.parameters())
    last = max(number for number, parameter in enumerate(every) if id(parameter) in own)
    return {id(parameter) for parameter in every[last + 1 :]}

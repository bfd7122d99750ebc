"""The classes of layers that can be compressed, and which of their parameters are weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from ..training.selection import Candidate
from .attention import (
    IN_PROJECTIONS,
    CompressedAttention,
    CompressedProjection,
    leave_fast_paths,
)
from .compressed_layer import CompressedLayer
from .convolutions import CompressedConv1d, CompressedConv2d, CompressedConv3d
from .layers import CompressedEmbedding, CompressedEmbeddingBag, CompressedLinear
from .other_modules import with_compressed
from .recurrent import (
    CompressedGRU,
    CompressedGRUCell,
    CompressedLSTM,
    CompressedLSTMCell,
    CompressedRNN,
    CompressedRNNCell,
)
from .shared_weight import SharedWeight

CLASSES: dict[type[nn.Module], type[CompressedLayer]] = {
    nn.Linear: CompressedLinear,
    nn.Embedding: CompressedEmbedding,
    nn.EmbeddingBag: CompressedEmbeddingBag,
    nn.Conv1d: CompressedConv1d,
    nn.Conv2d: CompressedConv2d,
    nn.Conv3d: CompressedConv3d,
    nn.LSTM: CompressedLSTM,
    nn.GRU: CompressedGRU,
    nn.RNN: CompressedRNN,
    nn.LSTMCell: CompressedLSTMCell,
    nn.GRUCell: CompressedGRUCell,
    nn.RNNCell: CompressedRNNCell,
    nn.MultiheadAttention: CompressedAttention,
    nn.modules.linear.NonDynamicallyQuantizableLinear: CompressedProjection,
}


def candidates(model: nn.Module) -> Iterator[Candidate]:
    """Iterate over all weights of a model, and over the layers that have none."""
    attention = ""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            attention = name
        if isinstance(module, CompressedLayer):
            for own in module.compressed:
                yield Candidate(f"{prefix}{own}", (name,), refusal=refusal(module, own))
        elif isinstance(module, nn.modules.lazy.LazyModuleMixin):
            why = "must be called before, which gives its weight a shape"
            yield Candidate(f"{prefix}weight", (name,), refusal=why)
        elif type(module) not in CLASSES:
            yield from _of_other(name, prefix, module)
        else:
            # What stands for an attention stands for the projection behind it.
            is_part = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
            layers = (name, attention) if is_part else (name,)
            for own in weights_of(module):
                yield Candidate(
                    f"{prefix}{own}",
                    layers,
                    refusal=refusal(module, own),
                    is_kernel=isinstance(module, nn.Conv1d | nn.Conv2d),
                )


def _of_other(name: str, prefix: str, module: nn.Module) -> Iterator[Candidate]:
    if name:
        known = ", ".join(sorted(each.__name__ for each in CLASSES if each.__name__[0] != "N"))
        why = f"must be one of {known}, got {type(module).__name__}"
        yield Candidate(name, (name,), refusal=why, by_default=False)
    for own in module._parameters:
        why = refusal(module, own)
        yield Candidate(f"{prefix}{own}", owner=name, refusal=why, by_default=False)


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a known layer's parameters that are weights."""
    if isinstance(module, nn.MultiheadAttention):
        return tuple(name for name in IN_PROJECTIONS if module._parameters.get(name) is not None)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return tuple(name for name in module._parameters if name.startswith("weight_"))
    return ("weight",)


def refusal(module: nn.Module, name: str) -> str:
    """Return why a parameter cannot be compressed; "" if it can."""
    if isinstance(module, CompressedLayer):
        return "is compressed already"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return "must have max_norm None, which changes the table when it is read, got a number"
    if nn.utils.parametrize.is_parametrized(module):
        return "must have no parametrization, got one"
    weight = module._parameters.get(name)
    if weight is None:
        return f"must have a parameter {name}, got none"
    if not weight.is_floating_point():
        return f"must have a weight of floats, got {weight.dtype}"
    if weight.dim() < 2:
        return f"must have a weight of two axes or more, got the shape {tuple(weight.shape)}"
    return ""


def make_compressed(model: nn.Module, weights: Mapping[str, SharedWeight]) -> None:
    """Turn the layers of these weights into compressed ones, in place.

    Hooks, names and references stay. Several names may have one weight, or be of one layer.
    """
    by_layer: dict[nn.Module, dict[str, SharedWeight]] = {}
    for name, shared in weights.items():
        layer, _, own = name.rpartition(".")
        by_layer.setdefault(model.get_submodule(layer), {})[own] = shared
    for module, own_weights in by_layer.items():
        _turn(module, own_weights)
    leave_fast_paths(model)


def _turn(module: nn.Module, weights: Mapping[str, SharedWeight]) -> None:
    kind = type(module)
    # A list in the layer's attributes that holds all its weights, beside the parameters.
    module.__dict__.pop("_flat_weights", None)
    module.__class__ = CLASSES[kind] if kind in CLASSES else with_compressed(kind, tuple(weights))
    assert isinstance(module, CompressedLayer)
    for name, shared in weights.items():
        module.compress_weight(name, shared)

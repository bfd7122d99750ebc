"""The layers of Keras that can be compressed, and their weights as matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from ..files.layout import Layout
from ..training.selection import Candidate
from . import layers as own
from . import recurrent
from .compressed_layer import CompressedLayer
from .compressed_weight import CompressedWeight

CLASSES: dict[type, Any] = {
    keras.layers.Dense: own.Dense,
    keras.layers.EinsumDense: own.EinsumDense,
    keras.layers.Embedding: own.Embedding,
    keras.layers.Conv1D: own.Conv1D,
    keras.layers.Conv2D: own.Conv2D,
    keras.layers.LSTM: recurrent.LSTM,
    keras.layers.GRU: recurrent.GRU,
}
COMPRESSED = tuple(CLASSES.values())
CELLS: dict[type, Any] = {
    keras.layers.LSTMCell: recurrent.LSTMCell,
    keras.layers.GRUCell: recurrent.GRUCell,
}


def is_known(layer: Any) -> bool:
    """Return whether a layer is of a class that can be compressed, or is compressed."""
    return type(layer) in CLASSES or type(layer) in COMPRESSED


def is_convolution(layer: Any) -> bool:
    """Return whether the kernel of a known layer is that of a convolution."""
    return isinstance(layer, keras.layers.Conv1D | keras.layers.Conv2D)


def turn(layer: Any) -> None:
    """Turn a layer into its compressed class, in place; one that is stays as it is."""
    if type(layer) in CLASSES:
        layer.__class__ = CLASSES[type(layer)]
        if isinstance(layer, keras.layers.RNN):
            recurrent.turn_cell(layer)


def holder(layer: Any) -> Any:
    """Return the layer that holds the weights of this one: its cell, if it is recurrent."""
    return layer.cell if isinstance(layer, keras.layers.RNN) else layer


def weights_of(layer: Any) -> dict[str, Layout]:
    """Return how the weights of a layer, or of a cell, are matrices, by their attributes."""
    if isinstance(layer, CompressedLayer):
        return layer.layouts()
    kind = CELLS[type(layer)] if type(layer) in CELLS else CLASSES[type(layer)]
    found: dict[str, Layout] = kind.layouts(layer)
    return found


def candidates(model: Any) -> Iterator[tuple[Candidate, Any, str]]:
    """Iterate over all weights of a model, with their layers and attributes."""
    known = ", ".join(sorted(each.__name__ for each in CLASSES))
    for layer in all_layers(model):
        if not is_known(layer):
            why = f"must be one of {known}, got {type(layer).__name__}"
            yield Candidate(layer.name, (layer.name,), refusal=why, by_default=False), layer, ""
            continue
        why = refusal(layer)
        if why:
            yield Candidate(layer.name, (layer.name,), refusal=why), layer, ""
            continue
        inner = holder(layer)
        for attribute in weights_of(inner):
            path = path_of(inner, attribute)
            names = (layer.name, path.rpartition("/")[0])
            yield Candidate(path, names, is_kernel=is_convolution(layer)), layer, attribute


def all_layers(model: Any) -> list[Any]:
    """Return the layers of a model, without the cells inside them."""
    if is_known(model):
        return [model]
    found = list(model._flatten_layers(include_self=False))
    cells = {id(layer.cell) for layer in found if isinstance(layer, keras.layers.RNN)}
    return [layer for layer in found if id(layer) not in cells]


def compressed_weights(model: Any) -> list[CompressedWeight]:
    """Return the compressed weights of all layers of a model."""
    return [
        weight
        for layer in all_layers(model)
        if is_known(layer)
        for weight in getattr(holder(layer), "compressed", {}).values()
    ]


def path_of(layer: Any, attribute: str) -> str:
    """Return the name of a weight, which is the path of its variable."""
    compressed = getattr(layer, "compressed", {})
    if attribute in compressed:
        return str(compressed[attribute].matrix.name)
    return str(layer.__dict__[attribute].path)


def refusal(layer: Any) -> str:
    """Return why a layer of a known class cannot be compressed; "" if it can."""
    if not layer.built:
        return "must be built, got one that was not yet called"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "must have a plain kernel, got one with LoRA or quantization"
    if isinstance(layer, keras.layers.EinsumDense):
        try:
            own.EinsumPlan(layer.equation, layer.input_spec.ndim)
        except ValueError as error:
            return f"has no matrix: {error}"
    if isinstance(layer, keras.layers.RNN):
        plain = (
            keras.layers.LSTMCell
            if isinstance(layer, keras.layers.LSTM)
            else (keras.layers.GRUCell)
        )
        if type(layer.cell) is not plain and not isinstance(layer.cell, CompressedLayer):
            return f"must have its usual cell, got {type(layer.cell).__name__}"
    return ""

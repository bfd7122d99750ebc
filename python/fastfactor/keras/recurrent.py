"""Recurrent layers of Keras whose weights are compressed.

Their kernels are rebuilt from the factors once in a call, before the steps, because a step cannot
keep what another has made.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..files.layout import Layout
from .compressed_layer import CONFIG, CompressedLayer, rebuilt, shape_of, take_structures
from .layers import register, transposed


class _CompressedCell(CompressedLayer):
    kernel = rebuilt("kernel")
    recurrent_kernel = rebuilt("recurrent_kernel")

    def layouts(self) -> dict[str, Layout]:
        return {name: transposed(shape_of(self, name)) for name in ("kernel", "recurrent_kernel")}


class LSTMCell(_CompressedCell, keras.layers.LSTMCell):
    """The cell of a compressed LSTM."""


class GRUCell(_CompressedCell, keras.layers.GRUCell):
    """The cell of a compressed GRU."""


class _CompressedRecurrent(keras.layers.RNN):
    """A recurrent layer whose cell has compressed weights."""

    def inner_loop(self, *arguments: Any, **keywords: Any) -> Any:
        weights = list(self.cell.compressed.values())
        for weight in weights:
            weight.rebuilt = ops.convert_to_tensor(weight.full())
        try:
            return super().inner_loop(*arguments, **keywords)
        finally:
            for weight in weights:
                weight.rebuilt = None

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        cell = self.cell.get_config()
        return {**config, CONFIG: cell[CONFIG]} if CONFIG in cell else config

    @classmethod
    def from_config(cls, config: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        config = dict(config)
        structures = config.pop(CONFIG, {})
        layer = super().from_config(config, *arguments, **keywords)
        turn_cell(layer)
        layer.__dict__["_structures"] = structures
        return layer

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        super().build(sequences_shape, initial_state_shape)
        take_structures(self.cell, self.__dict__.pop("_structures", {}))


@register
class LSTM(_CompressedRecurrent, keras.layers.LSTM):
    """Long short-term memory."""


@register
class GRU(_CompressedRecurrent, keras.layers.GRU):
    """Gated recurrent units."""


def turn_cell(layer: Any) -> None:
    """Turn the cell of a recurrent layer into a compressed one, in place."""
    is_lstm = isinstance(layer, keras.layers.LSTM)
    layer.cell.__class__ = LSTMCell if is_lstm else GRUCell
    layer.use_cudnn = False  # which would read the variables of the dense kernels

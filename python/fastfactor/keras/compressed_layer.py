"""What layers of Keras with compressed weights have in common; mixed into Keras's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from .._checks import shown
from ..errors import CorruptDataError
from ..files.layout import Layout
from ..training import CompressedMatrix, State
from ..training.compressors import NotKnown
from .compressed_weight import STATE, CompressedWeight, decoded, encoded
from .variables import saved_array

CONFIG = "compressed"  # the entry of a layer's configuration


class Weights:
    """The compressed weights of a layer, which Keras is not to look into."""

    def __init__(self) -> None:
        self.by_attribute: dict[str, CompressedWeight] = {}


class CompressedLayer(keras.layers.Layer):
    """A layer some of whose weights are compressed.

    Beside a weight stand the variables of its factors, such as ``kernel_B`` and ``kernel_C``, and
    ``kernel_alpha``, once it is factored.
    """

    _compressed_weights: Weights

    @property
    def compressed(self) -> dict[str, CompressedWeight]:
        """The compressed weights by the attributes of their dense variables."""
        if "_compressed_weights" not in self.__dict__:
            self.__dict__["_compressed_weights"] = Weights()
        return self._compressed_weights.by_attribute

    def layouts(self) -> dict[str, Layout]:
        """Return how the weights are matrices, by their attributes."""
        return {}

    def weight(self, attribute: str) -> Any:
        """Return a weight as it is now, rebuilt from its factors where it has some."""
        compressed = self.compressed.get(attribute)
        return self.__dict__[attribute] if compressed is None else compressed.full()

    def stage_of(self, attribute: str) -> State:
        """Return whether a weight is dense, blended or gone; masked ones have zeros themselves."""
        compressed = self.compressed.get(attribute)
        is_masked = compressed is not None and compressed.state is State.MASKED
        return State.DENSE if compressed is None or is_masked else compressed.state

    def enable_lora(self, *arguments: Any, **keywords: Any) -> None:
        """Refuse: products with factors would pass by what LoRA adds to a kernel."""
        raise ValueError(
            f"layer {self.name!r} must have a plain kernel for LoRA, got a compressed one"
        )

    # --- saving

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        structures = {name: weight.structure() for name, weight in self.compressed.items()}
        return {**config, CONFIG: structures} if structures else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        structures = config.pop(CONFIG, {})
        layer = super().from_config(config)
        layer.__dict__["_structures"] = structures
        return layer

    def build(self, input_shape: Any = None) -> None:
        was_built = self.built
        super().build(input_shape)
        if not was_built:
            take_structures(self, self.__dict__.pop("_structures", {}))

    def save_own_variables(self, store: Any) -> None:
        if not self.compressed:
            super().save_own_variables(store)
            return
        states = {attribute: weight.save(store) for attribute, weight in self.compressed.items()}
        store[STATE] = encoded(states)
        for name, variable in self._other_variables().items():
            store[name] = variable

    def load_own_variables(self, store: Any) -> None:
        if not self.compressed:
            super().load_own_variables(store)
            return
        if STATE not in set(store.keys()):  # of the layer before it was prepared
            for weight in self.compressed.values():
                weight.matrix.restart()
                weight.fit_layer()
            super().load_own_variables(store)
            return
        states = decoded(store[STATE])
        if states.keys() != self.compressed.keys():
            raise CorruptDataError(
                f"the stages of layer {self.name} must be of its weights "
                f"{', '.join(self.compressed)}, got {shown(states)}"
            )
        others = {
            name: saved_array(store, name, variable.shape)
            for name, variable in self._other_variables().items()
        }
        for attribute, weight in self.compressed.items():
            weight.load(store, states[attribute])
        for name, variable in self._other_variables().items():
            variable.assign(others[name])

    def _other_variables(self) -> dict[str, Any]:
        """Return the variables that are not compressed, under the names that they are saved by."""
        own = {
            id(variable)
            for weight in self.compressed.values()
            for variable in (weight.dense, weight.alpha, *weight.variables.values())
        }
        every = self._trainable_variables + self._non_trainable_variables
        others = [variable for variable in every if id(variable) not in own]
        return {str(number): variable for number, variable in enumerate(others)}


def shape_of(layer: Any, attribute: str) -> tuple[int, ...]:
    """Return the shape of a weight, dense or not."""
    compressed = getattr(layer, "compressed", {})
    if attribute in compressed:
        found: tuple[int, ...] = compressed[attribute].layout.shape
        return found
    return tuple(layer.__dict__[attribute].shape)


def rebuilt(attribute: str) -> property:
    """Return a property that gives a weight as it is now, in the place of Keras's attribute."""

    def read(layer: CompressedLayer) -> Any:
        if attribute not in layer.__dict__:
            raise AttributeError(f"{attribute} is there once the layer is built")
        return layer.weight(attribute)

    def write(layer: CompressedLayer, value: Any) -> None:
        layer.__dict__[attribute] = value

    return property(read, write)


def take_structures(layer: Any, structures: Any) -> None:
    """Give a layer that was just built the variables of a saved one, without its numbers."""
    if not isinstance(structures, Mapping):
        raise CorruptDataError(f"compressed must be a mapping, got {shown(structures)}")
    layouts = layer.layouts()
    for attribute, structure in structures.items():
        if attribute not in layouts:
            raise CorruptDataError(
                f"compressed weights of layer {layer.name} must be among {', '.join(layouts)}, "
                f"got {shown(attribute)}"
            )
        path = layer.__dict__[attribute].path
        matrix = CompressedMatrix(NotKnown(), name=path)
        weight = CompressedWeight(layer, attribute, layouts[attribute], matrix)
        layer.compressed[attribute] = weight
        weight.take_structure(structure)
        matrix.state = State(structure["stage"])

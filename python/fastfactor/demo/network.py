"""The demonstration's network: layers in any form that multiplies, and the files it is kept in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .._checks import Array
from ..files.index import Path, Value
from ..files.store import open_store
from ..files.writer import save
from ..methods import Factors, Method

LAYERS = ("fc1", "fc2", "fc3")


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """The matrix itself."""

    weight: Array

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def linear(self, x: Array, *, n_threads: int | None = None) -> Array:
        product: Array = x @ self.weight.T
        return product

    def to_dense(self) -> Array:
        return self.weight


Layer = Factors | DenseLayer  # a weight matrix (out_features, in_features) in some form


@dataclass(frozen=True, eq=False)
class Network:
    """Three layers with biases, ReLU between them."""

    layers: tuple[Layer, ...]
    biases: tuple[Array, ...]

    def forward(self, x: Array, n_threads: int | None = None) -> Array:
        """Scores (batch, 10) of digits (batch, 784)."""
        for layer, bias in zip(self.layers[:-1], self.biases[:-1], strict=True):
            x = layer.linear(x, n_threads=n_threads) + bias
            np.maximum(x, 0, out=x)
        return self.layers[-1].linear(x, n_threads=n_threads) + self.biases[-1]

    def compress(self, settings: Sequence[Method | None], n_threads: int | None = None) -> Network:
        """The network with each layer compressed; where settings are None, as it is."""
        layers = (
            layer if chosen is None else chosen.compress(layer.to_dense(), n_threads=n_threads)
            for layer, chosen in zip(self.layers, settings, strict=True)
        )
        return Network(tuple(layers), self.biases)

    def save(self, path: Path, *, compact: bool = False) -> None:
        """Write a stored file."""
        entries: dict[str, Value] = {}
        for name, layer, bias in zip(LAYERS, self.layers, self.biases, strict=True):
            entries[f"{name}.weight"] = layer.weight if isinstance(layer, DenseLayer) else layer
            entries[f"{name}.bias"] = bias
        save(path, entries, compact=compact)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read a file that `save` wrote, or one of plain tensors by these names, lazily."""
        layers: list[Layer] = []
        biases: list[Array] = []
        with open_store(path) as store:
            for name in LAYERS:
                weight, bias = store[f"{name}.weight"], store[f"{name}.bias"]
                layers.append(DenseLayer(weight) if isinstance(weight, np.ndarray) else weight)
                assert isinstance(bias, np.ndarray)
                biases.append(bias)
        return cls(tuple(layers), tuple(biases))


def load_model() -> Network:
    """The packaged LeNet-300-100, float32, 784-300-100-10."""
    with resources.as_file(_packaged("lenet-300-100.safetensors")) as path:
        return Network.load(path)


def load_digits() -> tuple[Array, Array]:
    """The packaged digits, (1000, 784) float32 in [0, 1], and their labels, (1000,) uint8."""
    data = io.BytesIO(_packaged("mnist-test-1000.npz").read_bytes())
    with np.load(data, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255), labels


def _packaged(name: str) -> resources.abc.Traversable:
    return resources.files(__package__).joinpath("data", name)

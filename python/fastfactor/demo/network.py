"""The network of the demonstration: layers that are dense or factors, and their files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .._checks import Array
from ..files.index import Path, Value
from ..files.save import save
from ..files.store import open_store
from ..methods import Factors, Method

LAYERS = ("fc1", "fc2", "fc3")


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A layer that is not compressed."""

    weight: Array

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def linear(self, x: Array, *, n_threads: int | None = None) -> Array:
        product: Array = x @ self.weight.T
        return product

    def to_dense(self) -> Array:
        return self.weight


Layer = Factors | DenseLayer  # a weight matrix of shape (out_features, in_features)


@dataclass(frozen=True, eq=False)
class Network:
    """Three layers with biases, and ReLU between them."""

    layers: tuple[Layer, ...]
    biases: tuple[Array, ...]

    def forward(self, x: Array, n_threads: int | None = None) -> Array:
        """Compute the scores, of shape (batch, 10), of digits of shape (batch, 784)."""
        for layer, bias in zip(self.layers[:-1], self.biases[:-1], strict=True):
            x = layer.linear(x, n_threads=n_threads) + bias
            np.maximum(x, 0, out=x)
        return self.layers[-1].linear(x, n_threads=n_threads) + self.biases[-1]

    def compress(self, settings: Sequence[Method | None], n_threads: int | None = None) -> Network:
        """Return the network with its layers compressed; settings of None leave a layer dense."""
        layers = (
            layer if chosen is None else chosen.compress(layer.to_dense(), n_threads=n_threads)
            for layer, chosen in zip(self.layers, settings, strict=True)
        )
        return Network(tuple(layers), self.biases)

    def save(self, path: Path, *, compact: bool = False) -> None:
        """Write the network to a stored file."""
        entries: dict[str, Value] = {}
        for name, layer, bias in zip(LAYERS, self.layers, self.biases, strict=True):
            entries[f"{name}.weight"] = layer.weight if isinstance(layer, DenseLayer) else layer
            entries[f"{name}.bias"] = bias
        save(path, entries, compact=compact)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read lazily a file that `save` wrote, or one of plain tensors with the same names."""
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
    """Load the packaged LeNet-300-100: float32, with layers of 784-300-100-10."""
    with resources.as_file(_packaged("lenet-300-100.safetensors")) as path:
        return Network.load(path)


def load_digits() -> tuple[Array, Array]:
    """Load the packaged digits, float32 in [0, 1] of shape (1000, 784), and their uint8 labels."""
    data = io.BytesIO(_packaged("mnist-test-1000.npz").read_bytes())
    with np.load(data, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255), labels


def _packaged(name: str) -> resources.abc.Traversable:
    return resources.files(__package__).joinpath("data", name)

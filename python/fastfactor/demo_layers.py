"""The layers of the demonstration's network, each run from the form it is held in.

Activations are (features, batch), so that a layer is ``W @ x`` in every form. ``nbytes`` counts the
arrays that are held, as they are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import CSR, spmm

Array = npt.NDArray[Any]

# Of 64 to 1,000 columns, 256 ran the first layer fastest: 1.5 ms, against 2.3 in one piece.
COLUMNS_PER_STRIP = 256
ROWS_PER_STRIP = 64


class Layer(Protocol):
    """A weight matrix (out_features, in_features) in some form."""

    @property
    def nbytes(self) -> int: ...
    def matmul(self, x: Array, n_threads: int | None = None) -> Array:
        """W @ x: (in_features, batch) → (out_features, batch)."""

    def to_dense(self) -> Array: ...


@dataclass(frozen=True, eq=False)
class Network:
    """Layers with biases, ReLU between them."""

    layers: tuple[Layer, ...]
    biases: tuple[Array, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers) + sum(b.nbytes for b in self.biases)

    def forward(self, x: Array, n_threads: int | None = None) -> Array:
        """Scores (10, batch) of digits (784, batch)."""
        for layer, bias in zip(self.layers[:-1], self.biases[:-1], strict=True):
            x = layer.matmul(x, n_threads)
            x += bias[:, None]
            np.maximum(x, 0, out=x)
        return self.layers[-1].matmul(x, n_threads) + self.biases[-1][:, None]

    def to_dense(self) -> Network:
        return Network(tuple(DenseLayer(layer.to_dense()) for layer in self.layers), self.biases)


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """The matrix itself."""

    weight: Array

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def matmul(self, x: Array, n_threads: int | None = None) -> Array:
        product: Array = self.weight @ x
        return product

    def to_dense(self) -> Array:
        return self.weight


@dataclass(frozen=True, eq=False)
class PrunedLayer:
    """The weights that are left, in compressed rows."""

    matrix: CSR

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def matmul(self, x: Array, n_threads: int | None = None) -> Array:
        return spmm(self.matrix, x, n_threads=n_threads)

    def to_dense(self) -> Array:
        return self.matrix.to_dense()


@dataclass(frozen=True, eq=False)
class DictionaryLayer:
    """Each piece of each row as a combination of few atoms: piece = code · dictionary.

    A row is an image of shape ``grid``, cut into pieces of shape ``patch``. ``dictionary`` is
    (n_atoms, features of a piece), ``codes`` (out_features, n_atoms · pieces): the coefficient of
    atom a in piece p stands in column a · pieces + p.
    """

    codes: CSR
    dictionary: Array
    grid: tuple[int, int]
    patch: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.dictionary.nbytes

    def matmul(self, x: Array, n_threads: int | None = None) -> Array:
        # Σ_p codes_p · dictionary · x_p: what each atom answers to each piece of the input is
        # computed once and shared by all outputs; the rest is one sparse product. By strips of
        # the batch, so that the answers stay in cache.
        out = np.empty((self.codes.shape[0], x.shape[1]), np.float32)
        for first in range(0, x.shape[1], COLUMNS_PER_STRIP):
            strip = x[:, first : first + COLUMNS_PER_STRIP]
            pieces = cut(strip, self.grid, self.patch)
            answers = (self.dictionary @ pieces.reshape(len(pieces), -1)).reshape(
                -1, strip.shape[1]
            )
            out[:, first : first + COLUMNS_PER_STRIP] = spmm(
                self.codes, answers, n_threads=n_threads
            )
        return out

    def to_dense(self) -> Array:
        n_rows, n_atoms = self.codes.shape[0], len(self.dictionary)
        codes = self.codes.to_dense().reshape(n_rows, n_atoms, -1)
        pieces = np.einsum("rap,af->fpr", codes, self.dictionary, optimize=True)
        return join(pieces, self.grid, self.patch).T


@dataclass(frozen=True, eq=False)
class CodebookLayer:
    """Each block of ``d`` weights of a row as a number into a codebook (K, d).

    ``packed`` is (out_features, bytes of a row), uint8: one code a byte where K = 256; two, the
    first in the low half, where K = 16.
    """

    packed: Array
    codebook: Array
    in_features: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.codebook.nbytes

    def matmul(self, x: Array, n_threads: int | None = None) -> Array:
        # A strip of rows is looked up, multiplied and dropped: W is never whole.
        out = np.empty((len(self.packed), x.shape[1]), np.float32)
        table = self._bytes_to_weights()
        for first in range(0, len(out), ROWS_PER_STRIP):
            strip = slice(first, first + ROWS_PER_STRIP)
            np.matmul(self._look_up(table, self.packed[strip]), x, out=out[strip])
        return out

    def to_dense(self) -> Array:
        return self._look_up(self._bytes_to_weights(), self.packed).copy()

    def _bytes_to_weights(self) -> Array:
        """(256, weights a byte stands for)."""
        if len(self.codebook) == 256:
            return self.codebook
        byte = np.arange(256)
        return np.concatenate([self.codebook[byte & 15], self.codebook[byte >> 4]], axis=1)

    def _look_up(self, table: Array, packed: Array) -> Array:
        weights: Array = np.take(table, packed, axis=0).reshape(len(packed), -1)
        return weights[:, : self.in_features]


def cut(x: Array, grid: tuple[int, int], patch: tuple[int, int]) -> Array:
    """(height · width, n) → (features of a patch, patches, n)."""
    (height, width), (h, w) = grid, patch
    tiles = x.reshape(height // h, h, width // w, w, -1).transpose(1, 3, 0, 2, 4)
    return tiles.reshape(h * w, -1, x.shape[1])


def join(pieces: Array, grid: tuple[int, int], patch: tuple[int, int]) -> Array:
    """The inverse of `cut`."""
    (height, width), (h, w) = grid, patch
    tiles = pieces.reshape(h, w, height // h, width // w, -1).transpose(2, 0, 3, 1, 4)
    return tiles.reshape(height * width, -1)


def pack_nibbles(codes: Array) -> Array:
    """(n, m) codes below 16 → (n, ⌈m / 2⌉) bytes, the first of two in the low half."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: Array = even[:, ::2] | (even[:, 1::2] << 4)
    return packed

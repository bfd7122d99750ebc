"""The demonstration: a trained network, compressed by each method and run from its compressed form.

The network is the LeNet-300-100 that the package carries. Everything reported is computed when the
demonstration runs: the bytes from the arrays that are held, the error from the weights, the digits
from the packaged test digits.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import numpy as np

from . import CSR, kmeans, learn_dictionary
from .demo_layers import (
    Array,
    CodebookLayer,
    DenseLayer,
    DictionaryLayer,
    Layer,
    Network,
    PrunedLayer,
    cut,
    pack_nibbles,
)

# The sparse products of a pass take a fraction of a millisecond, and NumPy's threads run between
# them: two pools that wait for work by spinning hold each other up. With two threads in each, on
# two busy cores, the first layer took 26 ms in place of 1.5.
PASS_THREADS = 1
BATCH_ROUNDS = 20
SINGLE_ROUNDS = 100


@dataclass(frozen=True)
class DictionarySettings:
    """Rows are images of shape ``grid``, cut into pieces of shape ``patch``.

    Every piece of a layer is coded down to the same squared error, ``tolerance`` times the mean
    energy of a piece: so nonzeros go where the energy is, and the border of the image gets none.
    """

    grid: tuple[int, int]
    patch: tuple[int, int]
    n_atoms: int
    tolerance: float = 0.25
    n_rounds: int = 10


@dataclass(frozen=True)
class CodebookSettings:
    """``n_clusters``: 16 (codes of 4 bits) or 256 (8 bits); ``block_size``: weights a code."""

    n_clusters: int
    block_size: int = 1


# Settings a layer; None leaves it dense. Why these: bench/experiments/demo_settings.py.
# Neighbouring inputs of the first layer are neighbouring pixels: small square patches. Those of the
# second have no order: long pieces. The last layer is 0.4 % of the weights.
DICTIONARY = (
    DictionarySettings(grid=(28, 28), patch=(4, 4), n_atoms=64),
    DictionarySettings(grid=(1, 300), patch=(1, 100), n_atoms=32),
    None,
)
SCALAR_CODEBOOK = (CodebookSettings(16), CodebookSettings(16), CodebookSettings(16))
# The last layer has 250 blocks of 4, too few for 256 centroids.
BLOCK_CODEBOOK = (CodebookSettings(256, 4), CodebookSettings(256, 4), CodebookSettings(16))
# Share of zeros. More would need retraining.
PRUNING = (0.85, 0.85, None)


@dataclass(frozen=True)
class Row:
    """One line of the report: a form of the network, what it holds, what it gets right, how fast.

    ``relative_error`` is ‖W − Ŵ‖² / ‖W‖² over all weight matrices; ``ratio`` is the bytes of the
    dense float32 network over ``n_bytes``; times are the best of several, in seconds.
    """

    method: str
    n_bytes: int
    ratio: float
    relative_error: float
    n_digits: int
    right_before: int
    right_after: int
    seconds_batch: float
    seconds_single: float
    seconds_compress: float


def run_demo(n_threads: int | None = None) -> list[Row]:
    """Compress the packaged network by every method; one row a form, the dense network first.

    Parameters
    ----------
    n_threads : int, optional
        For compressing. A pass uses one of ours, and for its dense products NumPy's own setting.

    Notes
    -----
    Seeds are fixed, so that all but the times is the same at every run on one machine.
    """
    dense = load_model()
    digits, labels = load_digits()
    networks, seconds = {"dense float32": dense}, {"dense float32": 0.0}
    for name, compress in methods(n_threads).items():
        start = time.perf_counter()
        networks[name] = compress(dense)
        seconds[name] = time.perf_counter() - start

    batch_times = time_passes(networks, digits, BATCH_ROUNDS)
    single_times = time_passes(networks, digits[:, :1].copy(), SINGLE_ROUNDS)
    right_before = count_right(dense, digits, labels)
    return [
        Row(
            method=name,
            n_bytes=network.nbytes,
            ratio=dense.nbytes / network.nbytes,
            relative_error=relative_error(dense, network),
            n_digits=len(labels),
            right_before=right_before,
            right_after=count_right(network, digits, labels),
            seconds_batch=batch_times[name],
            seconds_single=single_times[name],
            seconds_compress=seconds[name],
        )
        for name, network in networks.items()
    ]


def methods(n_threads: int | None = None) -> dict[str, Callable[[Network], Network]]:
    """What the demonstration compares, in the order of its report."""
    return {
        "learned dictionary": partial(by_dictionary, n_threads=n_threads),
        "codebook, 4 bits": partial(by_codebook, n_threads=n_threads),
        "codebook, blocks of 4": partial(by_codebook, settings=BLOCK_CODEBOOK, n_threads=n_threads),
        f"pruning, {PRUNING[0]:.0%} zeros": by_pruning,
    }


def by_dictionary(
    dense: Network,
    settings: Sequence[DictionarySettings | None] = DICTIONARY,
    *,
    random_state: int = 0,
    n_threads: int | None = None,
) -> Network:
    """A learned dictionary a layer: sparse codes times few atoms (`learn_dictionary`)."""

    def compress(weight: Array, chosen: DictionarySettings) -> Layer:
        pieces = cut(weight.T, chosen.grid, chosen.patch)
        n_features, n_pieces, _ = pieces.shape
        signals = pieces.transpose(2, 1, 0).reshape(-1, n_features)
        energy = np.einsum("ij,ij->i", signals, signals)
        learned = learn_dictionary(
            signals,
            chosen.n_atoms,
            tol=chosen.tolerance * float(energy.mean()),
            max_iter=chosen.n_rounds,
            random_state=random_state,
            n_threads=n_threads,
        )
        codes = side_by_side(learned.codes, n_pieces)
        return DictionaryLayer(codes, learned.dictionary, chosen.grid, chosen.patch)

    return _each_layer(dense, compress, settings)


def by_codebook(
    dense: Network,
    settings: Sequence[CodebookSettings | None] = SCALAR_CODEBOOK,
    *,
    random_state: int = 0,
    n_threads: int | None = None,
) -> Network:
    """A codebook a layer (`kmeans`): a code of 4 or 8 bits for each weight or block of weights."""

    def compress(weight: Array, chosen: CodebookSettings) -> Layer:
        result = kmeans(
            weight.reshape(-1, chosen.block_size),
            chosen.n_clusters,
            # Even steps reach the few large weights, which matter most and are seldom drawn
            # (Han, Mao, Dally 2016).
            init="linear" if chosen.block_size == 1 else "k-means++",
            random_state=random_state,
            n_threads=n_threads,
        )
        codes = result.labels.astype(np.uint8).reshape(len(weight), -1)
        packed = codes if chosen.n_clusters == 256 else pack_nibbles(codes)
        return CodebookLayer(packed, result.centroids, weight.shape[1])

    return _each_layer(dense, compress, settings)


def by_pruning(dense: Network, settings: Sequence[float | None] = PRUNING) -> Network:
    """The smallest weights of each layer set to zero, the others in compressed rows."""

    def compress(weight: Array, sparsity: float) -> Layer:
        magnitude = np.abs(weight)
        kept = magnitude > np.quantile(magnitude, sparsity)
        return PrunedLayer(CSR.from_dense(np.where(kept, weight, np.float32(0))))

    return _each_layer(dense, compress, settings)


def side_by_side(codes: CSR, n_pieces: int) -> CSR:
    """(n_rows · n_pieces, n_atoms) → (n_rows, n_atoms · n_pieces): a row's pieces in one row."""
    by_row = codes.to_dense().reshape(-1, n_pieces, codes.shape[1]).swapaxes(1, 2)
    return CSR.from_dense(by_row.reshape(len(by_row), -1))


def relative_error(dense: Network, other: Network) -> float:
    """‖W − Ŵ‖² / ‖W‖² over all weight matrices."""
    lost = total = 0.0
    for layer, form in zip(dense.layers, other.layers, strict=True):
        weight = layer.to_dense().astype(np.float64)
        lost += float(np.sum((weight - form.to_dense()) ** 2))
        total += float(np.sum(weight**2))
    return lost / total


def count_right(network: Network, digits: Array, labels: Array) -> int:
    return int(np.sum(network.forward(digits, PASS_THREADS).argmax(axis=0) == labels))


def time_passes(networks: dict[str, Network], digits: Array, rounds: int) -> dict[str, float]:
    """Best seconds of a pass; each round times every network, so that a slow spell hits all."""
    best = dict.fromkeys(networks, math.inf)
    for _ in range(rounds):
        for name, network in networks.items():
            network.forward(digits, PASS_THREADS)
            start = time.perf_counter()
            network.forward(digits, PASS_THREADS)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def load_model() -> Network:
    """The packaged LeNet-300-100, float32, 784-300-100-10."""
    from safetensors.numpy import load

    tensors = load(_packaged("lenet-300-100.safetensors"))
    names = [f"fc{number}" for number in (1, 2, 3)]
    return Network(
        layers=tuple(DenseLayer(tensors[f"{name}.weight"]) for name in names),
        biases=tuple(tensors[f"{name}.bias"] for name in names),
    )


def load_digits() -> tuple[Array, Array]:
    """The packaged digits, (784, 1000) float32 in [0, 1], and their labels, (1000,) uint8."""
    with np.load(io.BytesIO(_packaged("mnist-test-1000.npz")), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    pixels = images.reshape(len(images), -1).T
    return np.ascontiguousarray(pixels, np.float32) / np.float32(255), labels


def _packaged(name: str) -> bytes:
    return resources.files("fastfactor").joinpath("data", name).read_bytes()


def _each_layer(
    dense: Network, compress: Callable[[Array, Any], Layer], settings: Sequence[Any]
) -> Network:
    layers = (
        DenseLayer(layer.to_dense()) if chosen is None else compress(layer.to_dense(), chosen)
        for layer, chosen in zip(dense.layers, settings, strict=True)
    )
    return Network(tuple(layers), dense.biases)

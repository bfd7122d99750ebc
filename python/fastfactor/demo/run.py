"""Run the demonstration: compress a trained network by each method and run it from its file.

The network is the LeNet-300-100 in the package. All numbers in the report are computed during the
run: bytes from the files that it writes, errors from the weights, and correct digits from the
packaged test digits.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._checks import Array
from ..files.store import open_store
from .forms import DENSE, FORMS
from .network import Network, load_digits, load_model

__all__ = [
    "DENSE",
    "FORMS",
    "Row",
    "load_digits",
    "load_model",
    "read_digits",
    "relative_error",
    "run_demo",
]

# The products of a forward pass take a fraction of a millisecond, and NumPy's threads run between
# them. Both thread pools spin while they wait for work and so slow each other down: with two
# threads in each, on two busy cores, the first layer of a dictionary took 26 ms instead of 1.5.
PASS_THREADS = 1
BATCH_ROUNDS, BATCH_SECONDS = 20, 0.05
SINGLE_ROUNDS, SINGLE_SECONDS = 100, 0.02


@dataclass(frozen=True)
class Row:
    """The size, error, correct digits and times of one form of the network.

    ``file_bytes`` is the size of the whole file, ``payload_bytes`` that of its tensors; ``ratio``
    is the size of the dense network's file over this one's. ``relative_error`` is ‖W − Ŵ‖² / ‖W‖²
    over all weight matrices. ``right_before`` and ``right_after`` count the digits classified
    correctly by the dense network and by the one read back from its file. ``same_as_held`` says
    whether reading it back changed the class of no digit. Times are in seconds; those of forward
    passes are the best of several, on the network read back.
    """

    method: str
    lesson: str
    file_bytes: int
    payload_bytes: int
    ratio: float
    relative_error: float
    n_digits: int
    right_before: int
    right_after: int
    same_as_held: bool
    seconds_batch: float
    seconds_single: float
    seconds_compress: float


def run_demo(
    n_threads: int | None = None, *, progress: Callable[[str, int, int], None] | None = None
) -> list[Row]:
    """Compress the packaged network by every method; return a row for each, dense first.

    Parameters
    ----------
    n_threads : int, optional
        Number of threads for compression. Forward passes use one, and dense products in them
        NumPy's own setting.
    progress : callable, optional
        Called as ``progress(name, done, total)`` before each form and once at the end, with an
        empty name.

    Notes
    -----
    Seeds are fixed, so that everything but the times is the same in every run on one machine.
    """
    dense = load_model()
    digits, labels = load_digits()
    forms = {DENSE: "W itself", **{name: form.lesson for name, form in FORMS.items()}}
    held, networks, seconds, sizes = {DENSE: dense}, {}, {DENSE: 0.0}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(forms):
            if progress is not None:
                progress(name, number, len(forms))
            if name in FORMS:
                start = time.perf_counter()
                held[name] = dense.compress(FORMS[name].layers, n_threads)
                seconds[name] = time.perf_counter() - start
            path = Path(folder) / f"{number}.safetensors"
            held[name].save(path, compact=name in FORMS and FORMS[name].compact)
            with open_store(path) as store:
                sizes[name] = store.file_nbytes, store.payload_nbytes
            networks[name] = Network.load(path)
        if progress is not None:
            progress("", len(forms), len(forms))
        batch_times = time_passes(networks, digits, BATCH_ROUNDS, BATCH_SECONDS)
        single_times = time_passes(networks, digits[:1], SINGLE_ROUNDS, SINGLE_SECONDS)
        read = {name: read_digits(network, digits) for name, network in networks.items()}
    return [
        Row(
            method=name,
            lesson=lesson,
            file_bytes=sizes[name][0],
            payload_bytes=sizes[name][1],
            ratio=sizes[DENSE][0] / sizes[name][0],
            relative_error=relative_error(dense, networks[name]),
            n_digits=len(labels),
            right_before=int(np.sum(read_digits(dense, digits) == labels)),
            right_after=int(np.sum(read[name] == labels)),
            same_as_held=np.array_equal(read[name], read_digits(held[name], digits)),
            seconds_batch=batch_times[name],
            seconds_single=single_times[name],
            seconds_compress=seconds[name],
        )
        for name, lesson in forms.items()
    ]


def relative_error(dense: Network, other: Network) -> float:
    """Compute ‖W − Ŵ‖² / ‖W‖² over all weight matrices."""
    lost = total = 0.0
    for layer, form in zip(dense.layers, other.layers, strict=True):
        weight = layer.to_dense().astype(np.float64)
        lost += float(np.sum((weight - form.to_dense()) ** 2))
        total += float(np.sum(weight**2))
    return lost / total


def read_digits(network: Network, digits: Array) -> Array:
    """Classify digits; return their classes, of shape (n,)."""
    found: Array = network.forward(digits, PASS_THREADS).argmax(axis=1)
    return found


def time_passes(
    networks: dict[str, Network], digits: Array, rounds: int, seconds: float
) -> dict[str, float]:
    """Measure the shortest time of a forward pass of each network over several rounds.

    Each round times every network once, so that a slow spell of the machine affects all of them.
    A network takes no more part once its passes took ``seconds`` in all. An untimed pass before
    each timed one prepares what a form computes at its first use.
    """
    best, spent = dict.fromkeys(networks, math.inf), dict.fromkeys(networks, 0.0)
    for _ in range(rounds):
        for name, network in networks.items():
            if spent[name] < seconds:
                network.forward(digits, PASS_THREADS)
                start = time.perf_counter()
                network.forward(digits, PASS_THREADS)
                took = time.perf_counter() - start
                best[name], spent[name] = min(best[name], took), spent[name] + took
    return best

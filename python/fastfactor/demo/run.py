"""The demonstration: a trained network, compressed by each method and run from its file.

The network is the LeNet-300-100 that the package carries. Everything reported is computed when the
demonstration runs: the bytes from the files that it writes, the error from the weights, the digits
from the packaged test digits.
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

# The products of a pass take a fraction of a millisecond, and NumPy's threads run between them: two
# pools that wait for work by spinning hold each other up. With two threads in each, on two busy
# cores, the first layer of a dictionary took 26 ms in place of 1.5.
PASS_THREADS = 1
BATCH_ROUNDS, BATCH_SECONDS = 20, 0.05
SINGLE_ROUNDS, SINGLE_SECONDS = 100, 0.02


@dataclass(frozen=True)
class Row:
    """One line of the report: a form of the network, what it takes, what it gets right, how fast.

    ``file_bytes`` is the whole file, ``payload_bytes`` the tensors in it; ``ratio`` is the dense
    network's file over this one. ``relative_error`` is ‖W − Ŵ‖² / ‖W‖² over all weight matrices.
    ``right_after`` and the times are of the network as it was read from its file; ``same_as_held``
    says whether that reads every digit as the network did before it was written. Times are the
    best of several, in seconds.
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
    """Compress the packaged network by every method; one row a form, the dense network first.

    Parameters
    ----------
    n_threads : int, optional
        For compressing. A pass uses one of ours, and for its dense products NumPy's own setting.
    progress : callable, optional
        Called as ``progress(name, done, total)`` before each form and once at the end, with an
        empty name.

    Notes
    -----
    Seeds are fixed, so that all but the times is the same at every run on one machine.
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
    """‖W − Ŵ‖² / ‖W‖² over all weight matrices."""
    lost = total = 0.0
    for layer, form in zip(dense.layers, other.layers, strict=True):
        weight = layer.to_dense().astype(np.float64)
        lost += float(np.sum((weight - form.to_dense()) ** 2))
        total += float(np.sum(weight**2))
    return lost / total


def read_digits(network: Network, digits: Array) -> Array:
    """Which digit each is, (n,)."""
    found: Array = network.forward(digits, PASS_THREADS).argmax(axis=1)
    return found


def time_passes(
    networks: dict[str, Network], digits: Array, rounds: int, seconds: float
) -> dict[str, float]:
    """Best seconds of a pass of each network, over some rounds.

    Each round times every network, so that a slow spell hits all, but those that have had their
    seconds. What a form makes when it is first used is not counted.
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

"""Sparse coding: unit-norm random dictionary, signals that combine a few atoms plus noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Target,
    Workload,
    at_every_level,
    burst,
    copies_for_cold,
    level_in_use,
    level_targets,
)
from machine import old_openblas
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NOISE = 0.01  # standard deviation; the coefficients' is 1
CHECKED_ROWS = 2000  # every contestant's residual is taken over these first rows
SHAPES = {
    "a": {"n": 100_000, "d": 64, "atoms": 256, "nonzero": 5},
    "b": {"n": 30_000, "d": 384, "atoms": 1024, "nonzero": 8},
    "c": {"n": 10_000, "d": 128, "atoms": 512, "nonzero": 32},
}
SKLEARN_ROWS = {"a": 20_000, "b": 4_000, "c": 4_000}  # one to three seconds a sample
AGAINST_SPAMS = {"a": (6, 9), "b": (6, 8), "c": (4.5, 7)}
AGAINST_SKLEARN = {"a": 300, "b": 150, "c": 150}


def workloads(quick: bool) -> list[Workload]:
    return [workload(name, quick) for name in SHAPES]


def workload(name: str, quick: bool) -> Workload:
    sizes = dict(SHAPES[name])
    if quick:
        sizes["n"] //= 50
    title = "n {n:,} d {d} K {atoms} k {nonzero}".format(**sizes)
    least, aim = AGAINST_SPAMS[name]
    return Workload(
        "omp",
        name,
        title,
        sizes,
        (
            *at_every_level(fastfactor),
            Contestant("SPAMS", spams, old_openblas()),
            Contestant("scikit-learn", scikit_learn),
            Contestant("scikit-learn, 2 jobs", scikit_learn_jobs),
        ),
        (
            Target("omp", ("SPAMS",), at_least=least, aim=aim),
            Target("omp", ("scikit-learn",), at_least=AGAINST_SKLEARN[name]),
            Target("omp", ("scikit-learn, 2 jobs",), at_least=AGAINST_SKLEARN[name]),
            Target("omp", ("scikit-learn",), figure="residual", at_most=1.0001),
            *level_targets("omp", 0.4),
        ),
    )


def fastfactor(workload: Workload) -> Job:
    from fastfactor import omp

    signals, dictionary = data(workload)
    nonzero = int(workload.sizes["nonzero"])

    def encode(x: Floats) -> Any:
        return omp(x, dictionary, n_nonzero_coefs=nonzero, n_threads=THREADS)

    def dense_codes(x: Floats) -> NDArray[Any]:
        codes: NDArray[Any] = encode(x).to_dense()
        return codes

    return over_copies(encode, signals, dictionary, dense_codes, note=level_in_use())


def spams(workload: Workload) -> Job:
    """Order-recursive matching pursuit, Fortran order; its default eps loses signals in float32."""
    import spams

    signals, dictionary = data(workload)
    atoms = np.asfortranarray(dictionary.T)
    nonzero = int(workload.sizes["nonzero"])

    def encode(x: Floats) -> Any:
        return spams.omp(x.T, atoms, L=nonzero, eps=0.0, numThreads=THREADS)

    def dense_codes(x: Floats) -> NDArray[Any]:
        codes: NDArray[Any] = encode(x).toarray().T
        return codes

    return over_copies(encode, signals, dictionary, dense_codes)


def scikit_learn(workload: Workload) -> Job:
    return sparse_encode(workload, n_jobs=1)


def scikit_learn_jobs(workload: Workload) -> Job:
    return sparse_encode(workload, n_jobs=THREADS)


def sparse_encode(workload: Workload, n_jobs: int) -> Job:
    from sklearn import decomposition

    signals, dictionary = data(workload)
    gram = dictionary @ dictionary.T
    nonzero = int(workload.sizes["nonzero"])
    part = signals[: SKLEARN_ROWS[workload.name]]
    scale = len(signals) / len(part)

    def encode(x: Floats) -> NDArray[Any]:
        codes: NDArray[Any] = decomposition.sparse_encode(
            x,
            dictionary,
            gram=gram,
            algorithm="omp",
            n_nonzero_coefs=nonzero,
            check_input=False,
            n_jobs=n_jobs,
        )
        return codes

    timed = burst(lambda: encode(part))
    return Job(
        {("omp", "cold"): lambda: scale * timed()},
        lambda: {
            "omp": {
                "residual": residual(encode, signals, dictionary),
                "rows timed": len(part),
            }
        },
        note="loops over rows: timed on some and scaled",
    )


def over_copies(
    encode: Callable[[Floats], Any],
    signals: Floats,
    dictionary: Floats,
    dense_codes: Callable[[Floats], NDArray[Any]],
    note: str = "",
) -> Job:
    copies = [signals, *(signals.copy() for _ in range(copies_for_cold(signals.nbytes) - 1))]
    rotation = cycle(copies)
    return Job(
        {
            ("omp", "cold"): burst(lambda: encode(next(rotation))),
            ("omp", "hot"): burst(lambda: encode(signals)),
        },
        lambda: {"omp": {"residual": residual(dense_codes, signals, dictionary)}},
        work={"omp": {"million signals": len(signals) / 1e6}},
        note=note,
    )


def residual(
    dense_codes: Callable[[Floats], NDArray[Any]], signals: Floats, dictionary: Floats
) -> float:
    atoms = dictionary.astype(np.float64)
    return share_left(lambda x: dense_codes(x).astype(np.float64) @ atoms, signals)


def share_left(approximate: Callable[[Floats], NDArray[Any]], signals: Floats) -> float:
    """‖X − codes·D‖ / ‖X‖ in float64 over the rows that every contestant is checked on."""
    part = signals[:CHECKED_ROWS]
    wide = part.astype(np.float64)
    return float(np.linalg.norm(wide - approximate(part)) / np.linalg.norm(wide))


def unit_atoms(random: np.random.Generator, n_atoms: int, d: int) -> Floats:
    dictionary = random.standard_normal((n_atoms, d), dtype=np.float32)
    return dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Signals (n, d) and a dictionary (atoms, d) of unit rows."""
    n, d, atoms, nonzero = (int(workload.sizes[key]) for key in ("n", "d", "atoms", "nonzero"))
    random = np.random.default_rng(7)
    dictionary = unit_atoms(random, atoms, d)
    signals = NOISE * random.standard_normal((n, d), dtype=np.float32)
    for begin in range(0, n, 5000):
        block = signals[begin : begin + 5000]
        order = random.random((len(block), atoms), dtype=np.float32)
        chosen = np.argpartition(order, nonzero, axis=1)[:, :nonzero]
        codes = np.zeros((len(block), atoms), dtype=np.float32)
        values = random.standard_normal(chosen.shape, dtype=np.float32)
        np.put_along_axis(codes, chosen, values, axis=1)
        block += codes @ dictionary
    return signals, dictionary

"""Sparse coding over large dictionaries: by hash, by all atoms, and by an inverted index of faiss.

Signals combine a few atoms of a random dictionary, plus noise ("planted"), as in omp.py, or are
standard normal ("normal"), as weights are to a dictionary: no code is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Target,
    Workload,
    burst,
    level_in_use,
)
from machine import old_openblas
from omp import NOISE, Floats, share_left, unit_atoms

Approximate = Callable[[Floats], Floats]  # signals -> codes · dictionary

SHAPES = {
    "a": {"n": 100_000, "d": 64, "atoms": 4_096, "nonzero": 5, "planted": 1},
    "b": {"n": 100_000, "d": 64, "atoms": 16_384, "nonzero": 5, "planted": 1},
    "c": {"n": 100_000, "d": 64, "atoms": 16_384, "nonzero": 5, "planted": 0},
    "d": {"n": 50_000, "d": 64, "atoms": 65_536, "nonzero": 5, "planted": 0},
}
AGAINST_OMP = {"a": 1, "b": 2.5, "c": 2.5, "d": 10}
AGAINST_SCAN = {"a": 2, "b": 4, "c": 4, "d": 6}
ROWS_OF_ALL = 2000  # that looking at all atoms is timed on, where no Gram matrix is held
ROWS_OF_FAISS = 10_000
MOST_WITH_GRAM = 16_384  # atoms whose Gram matrix omp holds
REPEATS = 3


def workloads(quick: bool) -> list[Workload]:
    return [workload(name, quick) for name in SHAPES]


def workload(name: str, quick: bool) -> Workload:
    sizes = dict(SHAPES[name])
    if quick:
        sizes["n"] //= 50
        sizes["atoms"] //= 16
    kind = "planted" if sizes["planted"] else "normal"
    title = "n {n:,} d {d} K {atoms:,} k {nonzero}".format(**sizes) + f", {kind}"
    targets = [
        Target("pursuit", ("omp",), at_least=AGAINST_OMP[name]),
        Target("pursuit", ("all atoms, no Gram matrix",), at_least=AGAINST_SCAN[name]),
        Target("pursuit", ("faiss",), at_least=1),
    ]
    if not sizes["planted"]:
        targets.append(Target("pursuit", ("omp",), figure="residual", at_most=1.1))
    return Workload(
        "hashed_omp",
        name,
        title,
        sizes,
        (
            Contestant("fastfactor", fastfactor),
            Contestant("omp", omp),
            Contestant("all atoms, no Gram matrix", all_atoms),
            Contestant("faiss", faiss, old_openblas()),
        ),
        tuple(targets),
        repeats=REPEATS,
    )


def fastfactor(workload: Workload) -> Job:
    return ours(workload, level_in_use())


def all_atoms(workload: Workload) -> Job:
    note = f"hashed_omp with one bucket, {ROWS_OF_ALL:,} rows timed and scaled"
    return ours(workload, note, rows=ROWS_OF_ALL, hash_bits=0)


def ours(workload: Workload, note: str, rows: int | None = None, **options: Any) -> Job:
    from fastfactor import hashed_omp, spmm

    signals, dictionary = data(workload)
    nonzero = int(workload.sizes["nonzero"])

    def approximate(x: Floats) -> Floats:
        codes = hashed_omp(x, dictionary, n_nonzero_coefs=nonzero, n_threads=THREADS, **options)
        found: Floats = spmm(codes, dictionary)
        return found

    return timed(approximate, signals, rows or len(signals), note)


def omp(workload: Workload) -> Job:
    from fastfactor import omp, spmm

    signals, dictionary = data(workload)
    nonzero = int(workload.sizes["nonzero"])
    held = len(dictionary) <= MOST_WITH_GRAM

    def approximate(x: Floats) -> Floats:
        codes = omp(x, dictionary, n_nonzero_coefs=nonzero, n_threads=THREADS)
        found: Floats = spmm(codes, dictionary)
        return found

    note = f"of more than {MOST_WITH_GRAM:,} atoms {ROWS_OF_ALL:,} rows timed and scaled"
    return timed(approximate, signals, len(signals) if held else ROWS_OF_ALL, note)


def faiss(workload: Workload) -> Job:
    """Matching pursuit by hand: steps of an inverted index and of batched least squares.

    As many lists as atoms have a square root, of which so many are looked into as ours looks at of
    the atoms. The index is built beforehand.
    """
    import faiss

    signals, dictionary = data(workload)
    n_atoms, d = dictionary.shape
    nonzero = int(workload.sizes["nonzero"])
    n_lists = 2 * int(n_atoms**0.5)
    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, n_lists, faiss.METRIC_INNER_PRODUCT)
    both = np.concatenate([dictionary, -dictionary])  # an atom serves with either sign
    index.train(both)
    index.add(both)
    index.nprobe = max(1, round(8 / n_atoms**0.5 * n_lists / 2))

    def approximate(x: Floats) -> Floats:
        chosen = np.zeros((len(x), nonzero), np.int64)
        left, found = x, np.zeros_like(x)
        for step in range(nonzero):
            chosen[:, step] = np.maximum(index.search(left, 1)[1][:, 0], 0) % n_atoms
            atoms = dictionary[chosen[:, : step + 1]]
            gram = atoms @ atoms.transpose(0, 2, 1) + 1e-6 * np.eye(step + 1, dtype=x.dtype)
            values = np.linalg.solve(gram, atoms @ x[:, :, None])
            found = (atoms * values).sum(axis=1)
            left = x - found
        return found

    note = f"IndexIVFFlat and NumPy, {ROWS_OF_FAISS:,} rows timed and scaled"
    return timed(approximate, signals, ROWS_OF_FAISS, note)


def timed(approximate: Approximate, signals: Floats, rows: int, note: str) -> Job:
    part = signals[:rows]
    scale = len(signals) / len(part)
    once = burst(lambda: approximate(part))
    return Job(
        {("pursuit", "cold"): lambda: scale * once()},
        lambda: {"pursuit": {"residual": share_left(approximate, signals)}},
        note=note,
    )


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Signals (n, d) and a dictionary (atoms, d) of unit rows."""
    sizes = workload.sizes
    n, d, n_atoms = int(sizes["n"]), int(sizes["d"]), int(sizes["atoms"])
    random = np.random.default_rng(7)
    dictionary = unit_atoms(random, n_atoms, d)
    if not sizes["planted"]:
        return random.standard_normal((n, d), dtype=np.float32), dictionary
    signals = NOISE * random.standard_normal((n, d), dtype=np.float32)
    for _ in range(int(sizes["nonzero"])):
        values = random.standard_normal((n, 1), dtype=np.float32)
        signals += values * dictionary[random.integers(0, n_atoms, n)]
    return signals, dictionary

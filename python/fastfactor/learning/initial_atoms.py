"""Initial atoms of a dictionary, drawn from the signals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import _checks
from .._checks import Array
from ..kernels.sparse import CSR

INITS = ("k-means++", "rows", "neighbours")
SAMPLE_PER_ATOM = 32  # signals an atom from which initial atoms are drawn
ROUNDS = 4  # of draws by "k-means++"
CANDIDATES_PER_ATOM = 4  # signals an atom from which "neighbours" chooses
EXPLAINED = 1e-10  # a signal is not drawn if no more than this share of its energy is left

# A function of signals and unit atoms: the best single atom for each signal, and its coefficient.
NearestAtom = Callable[[Array, Array], CSR]


def initial_atoms(
    X: Array, n_atoms: int, init: str, generator: np.random.Generator, nearest: NearestAtom
) -> Array:
    """Return float64 atoms of unit norm: signals, and random directions if these are too few."""
    sample = _sample(X, SAMPLE_PER_ATOM * n_atoms, generator)
    energy = np.einsum("ij,ij->i", sample, sample, dtype=np.float64)
    sample, energy = sample[energy > 0], energy[energy > 0]
    if init == "k-means++":
        drawn = _draw_by_error(sample, energy, n_atoms, generator, nearest)
    elif init == "rows":
        drawn = generator.permutation(len(sample))[:n_atoms]
    else:
        drawn = _draw_neighbours(sample, energy, n_atoms, generator, nearest)
    atoms = np.zeros((n_atoms, X.shape[1]))
    atoms[: len(drawn)] = sample[drawn]
    return unit_rows(atoms, generator)


def unit_rows(atoms: Array, generator: np.random.Generator) -> Array:
    """Return the rows divided by their norms, with a random direction for each row of zeros."""
    atoms = atoms.copy()
    empty = ~atoms.any(axis=1)
    atoms[empty] = generator.standard_normal((int(empty.sum()), atoms.shape[1]))
    atoms /= np.abs(atoms).max(axis=1, keepdims=True)  # keeps the squares in range
    unit: Array = atoms / np.sqrt(np.einsum("ij,ij->i", atoms, atoms))[:, None]
    return unit


def _sample(X: Array, n: int, generator: np.random.Generator) -> Array:
    """Return n random signals in their order, or all if X has no more, as float32 or float64."""
    chosen = np.arange(len(X))
    if n < len(X):
        chosen = np.sort(generator.choice(len(X), n, replace=False))
    sample: Array = X[chosen].astype(_checks.result_dtype(X))
    return sample


def _draw_by_error(
    sample: Array,
    energy: Array,
    n_atoms: int,
    generator: np.random.Generator,
    nearest: NearestAtom,
) -> Array:
    """Draw signals in rounds, with probabilities proportional to their remaining squared error.

    That is the error of a signal with the best single atom among those drawn so far.
    """
    drawn = np.zeros(0, np.int64)
    error = energy.copy()
    for round_ in range(1, ROUNDS + 1):
        error[drawn] = 0
        error[error <= EXPLAINED * energy] = 0
        wanted: int = n_atoms * round_ // ROUNDS - len(drawn)
        n = min(wanted, int(np.count_nonzero(error)))
        if n == 0:
            continue
        fresh = generator.choice(len(sample), n, replace=False, p=error / error.sum())
        drawn = np.concatenate([drawn, fresh])
        if round_ < ROUNDS:
            error = np.maximum(energy - _explained(sample, energy, drawn, nearest), 0)
    return drawn


def _explained(sample: Array, energy: Array, drawn: Array, nearest: NearestAtom) -> Array:
    """Return the part of each signal's energy that its nearest drawn signal explains."""
    codes = nearest(sample, _unit_signals(sample, energy, drawn))
    signal_of = np.repeat(np.arange(len(sample)), np.diff(codes.indptr))
    return np.bincount(signal_of, codes.data.astype(np.float64) ** 2, len(sample))


def _draw_neighbours(
    sample: Array,
    energy: Array,
    n_atoms: int,
    generator: np.random.Generator,
    nearest: NearestAtom,
) -> Array:
    """Draw candidates, and return those that explain most energy as nearest neighbours."""
    candidates = generator.permutation(len(sample))[: CANDIDATES_PER_ATOM * n_atoms]
    if len(candidates) <= n_atoms:
        return candidates
    codes = nearest(sample, _unit_signals(sample, energy, candidates))
    explained = np.bincount(codes.indices, codes.data.astype(np.float64) ** 2, len(candidates))
    return candidates[np.argsort(-explained, kind="stable")[:n_atoms]]


def _unit_signals(sample: Array, energy: Array, chosen: Array) -> Array:
    """Return the chosen signals, scaled to unit norm."""
    unit: Array = (sample[chosen] / np.sqrt(energy[chosen, None])).astype(sample.dtype)
    return unit

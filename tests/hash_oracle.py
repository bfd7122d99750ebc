"""The hash tables of hashed_omp and the pursuit that looks into them, in plain NumPy."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import oracle

MASK = 2**64 - 1
MIXING = 2  # rotations before the first table's


def mix64(z):
    """The finaliser of SplitMix64."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signs(seed, stream, size):
    """±1: the bits of random words, lowest first."""
    key = mix64(mix64(seed) ^ stream)
    words = [mix64(key ^ mix64(counter)) for counter in range(-(-size // 64))]
    return np.array([1.0 if words[k // 64] >> (k % 64) & 1 == 0 else -1.0 for k in range(size)])


def hadamard(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def directions(n_features, n_tables, n_bits, seed):
    """(n_tables, 2**n_bits, n_features)"""
    size = 1 << (n_features - 1).bit_length()
    turns = -(-(2**n_bits) // size)
    turn, stream = np.eye(size), 0
    found = np.zeros((n_tables, turns * size, size))
    for _ in range(MIXING):
        turn = hadamard(size) @ (signs(seed, stream, size)[:, None] * turn)
        stream += 1
    for table in found:
        for i in range(turns):
            turn = hadamard(size) @ (signs(seed, stream, size)[:, None] * turn)
            table[i * size : (i + 1) * size] = turn
            stream += 1
    return found[:, : 2**n_bits, :n_features]


def threshold(probe_fraction, n_tables, n_features):
    size = 1 << (n_features - 1).bit_length()
    t = -NormalDist().inv_cdf(probe_fraction / n_tables / 2)
    return t / np.sqrt(size - 1 + t * t) if t > 0 else 0.0


def candidates(residual, dictionary, tables, cosine):
    """Which atoms lie in a bucket that the residual looks into."""
    enough = cosine * np.linalg.norm(residual)
    seen = np.zeros(len(dictionary), bool)
    for table in tables:
        filed = np.abs(dictionary @ table.T).argmax(axis=1)
        seen |= (np.abs(table @ residual) >= enough)[filed]
    return seen


def path(x, dictionary, limit, tables, cosine, tol=-1.0):
    """The atoms of one row in the order in which they are taken, and the steps that saw all."""
    chosen, residual, saw_all = [], x, []
    while len(chosen) < min(limit, *dictionary.shape) and residual @ residual > tol:
        atom = best(
            x, residual, dictionary, chosen, candidates(residual, dictionary, tables, cosine)
        )
        if atom is None:
            saw_all.append(len(chosen))
            atom = best(x, residual, dictionary, chosen, np.ones(len(dictionary), bool))
        if atom is None:
            break
        chosen.append(atom)
        residual = oracle.least_squares(x, dictionary, chosen)[1]
    return chosen, saw_all


def best(x, residual, dictionary, chosen, seen):
    """The atom to take, where one of those seen lowers the error."""
    scores = np.where(seen, np.abs(dictionary @ residual), 0)
    atom = int(scores.argmax())
    if scores[atom] <= 1e-13 * np.linalg.norm(x) or oracle.depends(dictionary, chosen, atom):
        return None
    return atom

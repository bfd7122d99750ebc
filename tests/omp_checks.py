"""What the tests of omp share: problems, codes as matrices, and what holds for every code."""

from __future__ import annotations

import numpy as np
import oracle
from fastfactor import omp

SIZES = [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65]


def unit_atoms(rng, n_atoms, n_features, dtype=np.float64):
    atoms = rng.standard_normal((n_atoms, n_features))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(dtype)


def sparse_signals(rng, dictionary, n_samples, n_nonzero):
    """Rows that combine few atoms with coefficients between 1 and 2, and their codes."""
    codes = np.zeros((n_samples, len(dictionary)))
    for row in codes:
        atoms = rng.choice(len(dictionary), n_nonzero, replace=False)
        row[atoms] = rng.choice([-1, 1], n_nonzero) * rng.uniform(1, 2, n_nonzero)
    return codes @ dictionary, codes


def dense(codes):
    """The codes as a matrix, from their arrays alone."""
    matrix = np.zeros(codes.shape)
    for i, (start, end) in enumerate(zip(codes.indptr[:-1], codes.indptr[1:], strict=True)):
        matrix[i, codes.indices[start:end]] = codes.data[start:end]
    return matrix


def errors(X, codes, dictionary):
    """Squared errors of the rows, in float64."""
    left = np.asarray(X, np.float64) - dense(codes) @ np.asarray(dictionary, np.float64)
    return np.einsum("ij,ij->i", left, left)


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.indptr, other.indptr)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.data, other.data)
    assert one.data.dtype == other.data.dtype


def assert_rows_alone_have_the_same_bits(encode, X, dictionary, parts):
    """Rows first to end have the bits that they have among all. `encode(X, dictionary)` codes."""
    together = encode(X, dictionary)
    for first, end in parts:
        part = encode(X[first:end], dictionary)
        at = slice(together.indptr[first], together.indptr[end])
        np.testing.assert_array_equal(part.indices, together.indices[at])
        np.testing.assert_array_equal(part.data, together.data[at])


def assert_codes_scale(encode, X, dictionary, scale):
    """By a power of two, without rounding."""
    base = encode(X, dictionary)
    for scaled, factor in (
        (encode(X * scale, dictionary), scale),
        (encode(X, dictionary * scale), 1 / scale),
    ):
        np.testing.assert_array_equal(scaled.indices, base.indices)
        np.testing.assert_array_equal(scaled.data, base.data * factor)


def assert_tol_is_reached_at_the_error(encode):
    """Errors are small integers, so exact in every precision: tol decides by ≤, not by <."""
    X = np.array([[3, 2, 1, 0]], np.float32)
    atoms = np.eye(4, dtype=np.float32)
    counts = {14: 0, 13: 1, 5: 1, 4.5: 2, 1: 2, 0.5: 3, 0: 3, np.inf: 0}
    assert {tol: encode(X, atoms, tol=tol).indptr[-1] for tol in counts} == counts


def assert_well_formed(codes, n_samples, n_atoms, dtype, limit):
    assert codes.shape == (n_samples, n_atoms)
    assert codes.data.dtype == dtype
    assert codes.indices.dtype == np.int32
    assert len(codes.indptr) == n_samples + 1
    assert codes.indptr[0] == 0
    assert codes.indptr[-1] == len(codes.data) == len(codes.indices)
    counts = np.diff(codes.indptr)
    assert (counts >= 0).all()
    assert (counts <= limit).all()
    assert np.isfinite(codes.data).all()
    for start, end in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        assert (np.diff(codes.indices[start:end]) > 0).all()  # ascending, so none twice
        assert ((codes.indices[start:end] >= 0) & (codes.indices[start:end] < n_atoms)).all()


def assert_greedy(X, dictionary, limit, slack, **options):
    """Each atom taken is the best one for what the atoms before it left, up to rounding.

    The order in which atoms were taken shows in the codes of ever larger limits.
    """
    X64, D64 = np.asarray(X, np.float64), np.asarray(dictionary, np.float64)
    longest = np.linalg.norm(D64, axis=1).max(initial=0)
    chosen = [[] for _ in X64]
    for count in range(1, limit + 1):
        codes = omp(X, dictionary, n_nonzero_coefs=count, **options)
        for i, x in enumerate(X64):
            residual = oracle.least_squares(x, D64, chosen[i])[1] if chosen[i] else x
            correlation = np.abs(D64 @ residual)
            support = set(codes.indices[codes.indptr[i] : codes.indptr[i + 1]].tolist())
            assert set(chosen[i]) <= support
            new = support - set(chosen[i])
            assert len(new) <= 1
            enough = slack * np.linalg.norm(x) * longest
            if new:
                assert correlation[next(iter(new))] >= correlation.max() - enough
                chosen[i].append(new.pop())
            else:
                assert correlation.max() <= enough  # it stopped because nothing was left

"""Canonical polyadic decompositions of blocks: sums of outer products of three vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..._checks import Array
from .tucker import leading

COARSE_SWEEPS, FINE_SWEEPS = 200, 120
FIRST_STEPS = 12  # of the power iteration for one outer product
LEAST_GAIN = 1e-5  # relative to the error
DAMPING = 1e-12  # relative to the mean of a Gram matrix's diagonal


class CP(NamedTuple):
    """Blocks ``T[n, f, c, p] ≈ Σ_k filters[n, f, k] · channels[n, k, c] · windows[n, k, p]``."""

    filters: Array
    channels: Array
    windows: Array


def decompose(T: Array, rank: int, n_init: int, rng: np.random.Generator) -> CP:
    """Return outer products of little error for blocks (n, filters, channels, area).

    The first start takes one outer product after the other from what is left, the others are
    random. All are improved by alternating least squares on a smaller tensor, whose filters and
    channels are the leading singular vectors of the blocks; the best goes on with the blocks.
    """
    n, filters, channels, area = T.shape
    some = 2 * rank + 4
    left = leading(T.reshape(n, filters, -1), min(some, filters))
    small = _times(left.transpose(0, 2, 1), T)
    right = leading(small.transpose(0, 2, 1, 3).reshape(n, channels, -1), min(some, channels))
    small = (right.transpose(0, 2, 1)[:, None] @ small).reshape(n, left.shape[2], -1, area)
    best: CP | None = None
    least = np.inf
    for start in range(n_init):
        first = _greedy(small, rank) if start == 0 else _random(small.shape, rank, rng)
        found, error = improved(small, first, COARSE_SWEEPS)
        if best is None or error < least:
            best, least = found, error
    assert best is not None
    whole = CP(left @ best.filters, best.channels @ right.transpose(0, 2, 1), best.windows)
    return improved(T, whole, FINE_SWEEPS)[0]


def improved(T: Array, start: CP, sweeps: int) -> tuple[CP, float]:
    """Return outer products of less error, by alternating least squares, and the squared error."""
    filters, channels, windows = start
    n, n_filters, n_channels, area = T.shape
    rows = T.reshape(n, n_filters, n_channels * area)
    energy = float(np.einsum("nij,nij->", rows, rows))
    last, best = np.inf, start
    for _ in range(sweeps):
        outer = (channels[:, :, :, None] * windows[:, :, None, :]).reshape(n, -1, rows.shape[2])
        filters = _solved(_gram(channels) * _gram(windows), outer @ rows.transpose(0, 2, 1))
        image = (filters @ rows).reshape(n, -1, n_channels, area)
        right = (image @ windows[:, :, :, None])[..., 0]
        channels = _solved(_gram(filters) * _gram(windows), right)
        right = (channels[:, :, None, :] @ image)[:, :, 0]
        gram = _gram(filters) * _gram(channels)
        windows = _solved(gram, right)
        error = energy - 2 * float(np.sum(right * windows))
        error = max(error + float(np.sum(gram * _gram(windows))), 0.0)
        filters, channels, windows = _balanced(filters, channels, windows)
        if not error < last:
            break
        best, gain, last = CP(filters.transpose(0, 2, 1), channels, windows), last - error, error
        if gain <= LEAST_GAIN * error or error <= 1e-14 * energy:
            break
    return best, last


def _gram(vectors: Array) -> Array:
    return vectors @ vectors.transpose(0, 2, 1)


def _solved(gram: Array, right: Array) -> Array:
    """Return ``gram⁻¹ right`` with a little damping, so that there always is one."""
    rank = gram.shape[1]
    size = np.trace(gram, axis1=1, axis2=2)[:, None, None] / rank
    damped = gram / np.where(size > 0, size, 1) + DAMPING * np.eye(rank)
    damped += np.where(size > 0, 0, 1) * np.eye(rank)
    result: Array = np.linalg.solve(damped, right / np.where(size > 0, size, 1))
    return result


def _balanced(*factors: Array) -> tuple[Array, ...]:
    """Return factors (n, k, ·) with equally long vectors for each outer product."""
    lengths = [np.linalg.norm(each, axis=2, keepdims=True) for each in factors]
    mean = np.cbrt(np.prod(lengths, axis=0))
    return tuple(
        each * np.divide(mean, length, out=np.zeros_like(mean), where=length > 0)
        for each, length in zip(factors, lengths, strict=True)
    )


def _times(matrix: Array, T: Array) -> Array:
    """Return blocks multiplied along their filters by (n, new, filters)."""
    n, filters, *rest = T.shape
    return (matrix @ T.reshape(n, filters, -1)).reshape(n, matrix.shape[1], *rest)


def _random(shape: tuple[int, ...], rank: int, rng: np.random.Generator) -> CP:
    n, filters, channels, area = shape
    return CP(
        rng.standard_normal((n, filters, rank)),
        rng.standard_normal((n, rank, channels)),
        rng.standard_normal((n, rank, area)),
    )


def _greedy(T: Array, rank: int) -> CP:
    """Return outer products, each the best found for what the ones before leave of the blocks."""
    terms = []
    for _ in range(rank):
        f, c, p = _one(T)
        terms.append((f, c, p))
        T = T - f[:, :, None, None] * c[:, None, :, None] * p[:, None, None, :]
    f, c, p = (np.stack(each, axis=1) for each in zip(*terms, strict=True))
    filters, channels, windows = _balanced(f, c, p)
    return CP(filters.transpose(0, 2, 1), channels, windows)


def _one(T: Array) -> tuple[Array, Array, Array]:
    """Return an outer product near blocks, from their leading singular vectors on."""
    n, filters, channels, area = T.shape
    c = leading(T.transpose(0, 2, 1, 3).reshape(n, channels, -1), 1)[:, :, 0]
    p = leading(T.transpose(0, 3, 1, 2).reshape(n, area, -1), 1)[:, :, 0]
    rows = T.reshape(n, filters, channels * area)
    for _ in range(FIRST_STEPS):
        f = _unit((rows @ (c[:, :, None] * p[:, None, :]).reshape(n, -1, 1))[:, :, 0])
        image = (f[:, None, :] @ rows).reshape(n, channels, area)
        c = _unit((image @ p[:, :, None])[:, :, 0])
        p = (c[:, None, :] @ image)[:, 0]
        size = np.linalg.norm(p, axis=1, keepdims=True)
        p = _unit(p)
    return f, c, p * size


def _unit(vectors: Array) -> Array:
    """Return vectors (n, ·) of length 1; the first unit vector in place of zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    first = np.eye(1, vectors.shape[1])
    return np.where(lengths > 0, vectors / np.where(lengths > 0, lengths, 1), first)

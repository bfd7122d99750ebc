"""Additive codebooks: a vector as the sum of one vector of each of several tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._checks import Array
from ...kernels.clustering import assign, kmeans
from ...metrics import exponent_of, scaled
from .weights import nearest

# Errors on columns 32 to 47 of a word embedding of 32,000 rows, with two tables of 256: a residual
# quantizer 0.315, refits and coordinate descent alone 0.310, with local search 0.292, and with
# noise of 0.3 (as here) 0.288, of 1.0 0.299.
ROUNDS = 25
NOISE = 0.3
SEARCH_TRIES = 2  # of local search in a round, times the number of tables
LAST_TRIES = 8
NEIGHBOURS = 8
JOINT_VECTORS = 4096  # the most vectors refitted at once; with more, some tables at a time
RIDGE = 1e-3  # relative to one sample; pulls vectors to their last values, so unused ones stay


def find_sums(
    samples: Array,
    weights: Array | None,
    *,
    n_codebooks: int,
    n_vectors: int,
    dtype: np.dtype[Any],
    seed: int,
    n_threads: int | None,
) -> tuple[Array, Array]:
    """Return tables (n_codebooks, cells, K, d) and codes (n_codebooks, cells, n).

    Samples have the shape (cells, n, d). With weights, the plain result is improved under them, so
    it cannot get worse.
    """
    n_cells, n, d = samples.shape
    tables = np.empty((n_codebooks, n_cells, n_vectors, d), dtype)
    codes = np.empty((n_codebooks, n_cells, n), np.int32)
    for cell in range(n_cells):
        x = samples[cell].astype(np.float32)
        # Scaling keeps squares in range; with a power of two it is exact.
        exponent = exponent_of(x)
        problem = _Problem(np.ldexp(x, -exponent), None, exponent, dtype, n_threads)
        sums = _initial(problem, n_codebooks, n_vectors, seed)
        sums = _improve(problem, sums, np.random.default_rng([seed, cell]))
        if weights is not None:
            weighted = _Problem(problem.x, scaled(weights[cell]), exponent, dtype, n_threads)
            sums = _improve(weighted, sums, np.random.default_rng([seed, cell]))
        tables[:, cell] = np.ldexp(sums.tables, exponent).astype(dtype)
        codes[:, cell] = sums.codes
    return tables, codes


@dataclass(frozen=True, eq=False)
class _Problem:
    """Vectors x · 2**exponent, x (n, d), with weights, to code with tables of a dtype."""

    x: Array
    weights: Array | None
    exponent: int
    dtype: np.dtype[Any]
    n_threads: int | None

    def costs(self, total: Array) -> Array:
        """Return the squared error of each vector if ``total`` stands for it."""
        gap = self.x - total
        if self.weights is None:
            costs: Array = np.einsum("ij,ij->i", gap, gap)
        else:
            costs = np.einsum("ij,ij,ij->i", self.weights, gap, gap)
        return costs

    def cost(self, sums: _Sums) -> float:
        return float(self.costs(sums.total()).sum(dtype=np.float64))

    def nearest(self, target: Array, table: Array) -> Array:
        if self.weights is None:
            return assign(target, table, n_threads=self.n_threads)[0]
        return nearest(target, self.weights, table)[0]

    def held(self, tables: Array) -> Array:
        """Return tables rounded to the dtype in which they are stored."""
        rounded = np.ldexp(tables, self.exponent).astype(self.dtype).astype(np.float32)
        return np.ldexp(rounded, -self.exponent)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Tables (B, K, d) and codes (B, n)."""

    tables: Array
    codes: Array

    def total(self) -> Array:
        total: Array = self.tables[0][self.codes[0]]
        for table, code in zip(self.tables[1:], self.codes[1:], strict=True):
            total = total + table[code]
        return total


def _initial(problem: _Problem, n_codebooks: int, n_vectors: int, seed: int) -> _Sums:
    """Return the start that costs less: a residual or, if d allows one, a product quantizer."""
    x = problem.x
    d = x.shape[1]
    spans = [slice(0, d)] * n_codebooks
    starts = [_greedy(problem, spans, n_vectors, seed)]
    if d % n_codebooks == 0:
        width = d // n_codebooks
        spans = [slice(b * width, (b + 1) * width) for b in range(n_codebooks)]
        starts.append(_greedy(problem, spans, n_vectors, seed))
    return min(starts, key=problem.cost)


def _greedy(problem: _Problem, spans: list[slice], n_vectors: int, seed: int) -> _Sums:
    """Fit one codebook after the other, each to its span of what those before left over."""
    left = problem.x.copy()
    tables = np.zeros((len(spans), n_vectors, left.shape[1]), np.float32)
    codes = np.empty((len(spans), len(left)), np.int32)
    for b, span in enumerate(spans):
        found = kmeans(
            left[:, span], n_vectors, random_state=(seed + b) % 2**64, n_threads=problem.n_threads
        )
        tables[b, :, span] = found.centroids
        codes[b] = found.labels
        left[:, span] -= found.centroids[found.labels]
    return _Sums(tables, codes)


def _improve(problem: _Problem, start: _Sums, rng: np.random.Generator) -> _Sums:
    """Improve sums by refits and local search in turn, with noise on the tables that fades away.

    The resulting tables are rounded as they will be stored.
    """
    n_codebooks, _, d = start.tables.shape
    sums = start
    for done in range(1, ROUNDS + 1):
        cost = problem.cost(sums)
        if cost == 0:
            break
        sums = _refit(problem, sums)
        deviation = np.sqrt(_mean_square(problem, cost) / d) / n_codebooks
        shake = NOISE * np.sqrt(1 - done / ROUNDS) * deviation
        noise = rng.standard_normal(sums.tables.shape, np.float32) * np.float32(shake)
        shaken = _descend(problem, _Sums(sums.tables + noise, sums.codes))
        codes = _search(problem, shaken, SEARCH_TRIES * n_codebooks, rng).codes
        sums = _Sums(sums.tables, codes)
    sums = _descend(problem, _Sums(problem.held(sums.tables), sums.codes))
    sums = _search(problem, sums, LAST_TRIES * n_codebooks, rng)
    begun = _descend(problem, _Sums(problem.held(start.tables), start.codes))
    return min((sums, begun), key=problem.cost)


def _mean_square(problem: _Problem, cost: float) -> float:
    """Return the weighted mean of the vectors' squared errors."""
    n, d = problem.x.shape
    weight: float = n if problem.weights is None else float(problem.weights.sum()) / d
    return cost / max(weight, 1e-300)


def _refit(problem: _Problem, sums: _Sums) -> _Sums:
    """Return the best tables for the codes, by exact least squares on some tables at a time."""
    tables, codes = sums.tables.copy(), sums.codes
    n_codebooks, n_vectors, _ = tables.shape
    step = max(JOINT_VECTORS // n_vectors, 1)
    for first in range(0, n_codebooks, step):
        part = slice(first, first + step)
        target = problem.x
        if step < n_codebooks:
            apart = _Sums(tables[part], codes[part]).total()
            target = target - _Sums(tables, codes).total() + apart
        tables[part] = _solve(target, problem.weights, tables[part], codes[part])
    return _Sums(tables, codes)


def _solve(target: Array, weights: Array | None, before: Array, codes: Array) -> Array:
    """Solve (Sᵀ A S + λ) C = Sᵀ A x + λ C₀ for C; S is 1 where a sample uses a vector, else 0."""
    n_vectors, d = before.shape[1:]
    flat = before.reshape(-1, d).astype(np.float64)
    if weights is None:
        moments = np.stack([_sums_of(codes, n_vectors, target[:, i]) for i in range(d)], axis=1)
        normal = _normal(codes, n_vectors, None, RIDGE)
        return np.linalg.solve(normal, moments + RIDGE * flat).reshape(before.shape)
    result = np.empty(flat.shape)
    for i in range(d):  # every coordinate has weights, and so an A, of its own
        weight = weights[:, i]
        ridge = RIDGE * max(float(weight.mean()), 1e-300)
        moments = _sums_of(codes, n_vectors, target[:, i] * weight) + ridge * flat[:, i]
        result[:, i] = np.linalg.solve(_normal(codes, n_vectors, weight, ridge), moments)
    return result.reshape(before.shape)


def _sums_of(codes: Array, n_vectors: int, values: Array) -> Array:
    return np.concatenate([np.bincount(code, values, n_vectors) for code in codes])


def _normal(codes: Array, n_vectors: int, weight: Array | None, ridge: float) -> Array:
    n_codebooks = len(codes)
    normal = np.empty((n_codebooks, n_vectors, n_codebooks, n_vectors))
    for b in range(n_codebooks):
        for e in range(b, n_codebooks):
            pairs = codes[b].astype(np.int64) * n_vectors + codes[e]
            counts = np.bincount(pairs, weight, n_vectors**2).reshape(n_vectors, n_vectors)
            normal[b, :, e] = counts
            normal[e, :, b] = counts.T
    result: Array = normal.reshape(n_codebooks * n_vectors, -1)
    result[np.diag_indices(len(result))] += ridge
    return result


def _descend(problem: _Problem, sums: _Sums) -> _Sums:
    """Choose the codes of each table once, with the others fixed."""
    codes = sums.codes.copy()
    total = sums.total()
    for b in range(len(codes)):
        total = _recode(problem, sums.tables[b], codes, b, total)
    return _Sums(sums.tables, codes)


def _recode(problem: _Problem, table: Array, codes: Array, b: int, total: Array) -> Array:
    total = total - table[codes[b]]
    codes[b] = problem.nearest(problem.x - total, table)
    total += table[codes[b]]
    return total


def _search(problem: _Problem, sums: _Sums, tries: int, rng: np.random.Generator) -> _Sums:
    """Improve codes by iterated local search: move one to a neighbour, then choose all again.

    A vector keeps its new codes only if they cost less.
    """
    tables, codes = sums.tables, sums.codes.copy()
    n_codebooks, n = codes.shape
    neighbours = [_neighbours(table) for table in tables]
    if neighbours[0].shape[1] == 0:
        return sums
    least = problem.costs(sums.total())
    for attempt in range(tries):
        moved = attempt % n_codebooks
        trial = codes.copy()
        drawn = rng.integers(0, neighbours[moved].shape[1], n)
        trial[moved] = neighbours[moved][codes[moved], drawn]
        total = _Sums(tables, trial).total()
        for b in [*range(moved + 1, n_codebooks), *range(moved + 1)]:
            total = _recode(problem, tables[b], trial, b, total)
        costs = problem.costs(_Sums(tables, trial).total())
        better = costs < least
        codes[:, better] = trial[:, better]
        least[better] = costs[better]
    return _Sums(tables, codes)


def _neighbours(table: Array) -> Array:
    """Return the indices of the other vectors nearest to each, (K, at most NEIGHBOURS)."""
    wide = table.astype(np.float64)
    squares = np.einsum("ij,ij->i", wide, wide)
    gaps = squares[:, None] + squares - 2 * (wide @ wide.T)
    np.fill_diagonal(gaps, np.inf)
    nearest_first: Array = np.argsort(gaps, axis=1, kind="stable")
    return nearest_first[:, : min(NEIGHBOURS, len(table) - 1)]

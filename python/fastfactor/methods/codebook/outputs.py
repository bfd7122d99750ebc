"""Improvement of tables and codes for a layer's outputs: minimise trace(E Σ Eᵀ), E = Ŵ − W."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._checks import Array
from ...kernels.clustering import assign
from ...metrics import exponent_of
from ..narrow import narrowed
from .sharing import Coded, Sharing

ROUNDS = 8
MIN_GAIN = 1e-3  # the rounds stop when the error falls by a smaller fraction
STEPS = 10  # of conjugate gradients, for tables
COLUMNS_AT_ONCE = 128
RIDGE = 1e-6  # relative to a place's mean variance; gives inputs that are always 0 a solution
MIN_VARIANCE = 1e-12  # relative to the largest
DISTANCES_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class OutputProblem:
    """W, Σ, and which weights share a table. With ``codes_stay`` only tables are improved."""

    W: Array
    covariance: Array
    sharing: Sharing
    dtype: np.dtype[Any]
    codes_stay: bool


def improve_outputs(problem: OutputProblem, starts: list[Coded]) -> Coded:
    """Return tables in their stored shape and codes (B, rows, vectors), no worse than any start.

    Coordinate descent improves the codes: given all others, the best vector for a place is the one
    nearest to the value that compensates their errors, in the metric of the place's columns.
    Conjugate gradients improve the tables, in which Ŵ is linear. They take turns until a round
    gains little.
    """
    begun = [_Search(problem, *start) for start in starts]
    given = min(begun, key=_Search.error)
    search = given.copy()
    last = search.error()
    for _ in range(ROUNDS):
        if not problem.codes_stay:
            search.recode()
        search.refit()
        error = search.error()
        if error >= last * (1 - MIN_GAIN):
            break
        last = error
    search.round_tables()
    if not problem.codes_stay:
        search.recode()
    best = min((search, given), key=_Search.error)
    return Coded(best.held().reshape(starts[0].tables.shape), best.codes)


class _Search:
    """The state of the search: tables (all vectors, d), codes, and the scaled W and Σ."""

    def __init__(self, problem: OutputProblem, tables: Array, codes: Array) -> None:
        self.problem = problem
        self.n_vectors, self.d = tables.shape[-2:]
        # W and the tables are scaled to lie within ±1, so that errors stay in range.
        self.exponent = exponent_of(problem.W)
        self.tables = np.ldexp(tables.astype(np.float32), -self.exponent).reshape(-1, self.d)
        self.codes = codes.copy()
        self.W = np.ldexp(problem.W.astype(np.float32), -self.exponent)
        covariance = problem.covariance.astype(np.float64)
        top = float(np.abs(covariance).max(initial=0))
        self.covariance = (covariance / (top if top > 0 else 1)).astype(np.float32)
        # The index of each place's first vector among all tables; adding the code gives its own.
        self.bases = problem.sharing.places(np.zeros_like(codes), self.n_vectors)

    def copy(self) -> _Search:
        other = copy.copy(self)
        other.codes = self.codes.copy()
        return other

    def dense(self) -> Array:
        total = np.zeros(self.W.shape, np.float32)
        for places in self.places():
            total += self.tables[places].reshape(self.W.shape)
        return total

    def places(self) -> Array:
        places: Array = self.bases + self.codes
        return places

    def error(self) -> float:
        gap = self.dense() - self.W
        return float(np.einsum("ij,ij->", gap @ self.covariance, gap, dtype=np.float64))

    def round_tables(self) -> None:
        self.tables = np.ldexp(self.held().astype(np.float32), -self.exponent)

    def held(self) -> Array:
        """Return the tables as they will be stored."""
        wide = np.ldexp(self.tables.astype(np.float64), self.exponent)
        return narrowed(wide, self.problem.dtype)

    # --- codes

    def recode(self) -> None:
        """Choose every code once, left to right: one column of vectors in all rows at a time."""
        rebuilt = self.dense()
        gap = rebuilt - self.W
        width = max(COLUMNS_AT_ONCE // self.d, 1) * self.d
        for first in range(0, self.W.shape[1], width):
            block = slice(first, min(first + width, self.W.shape[1]))
            # E Σ of these columns, kept up to date while they change.
            pull = gap @ self.covariance[:, block]
            for left in range(block.start, block.stop, self.d):
                columns = slice(left, left + self.d)
                own = _damped(self.covariance[columns, columns])
                here = slice(left - first, left - first + self.d)
                back = np.linalg.solve(own, pull[:, here].T.astype(np.float64)).T
                wanted = rebuilt[:, columns] - back.astype(np.float32)
                before = rebuilt[:, columns].copy()
                rebuilt[:, columns] = self._recode_place(left // self.d, wanted, own)
                moved = rebuilt[:, columns] - before
                gap[:, columns] += moved
                # Columns to the left are done, so their part of `pull` is not updated.
                after = slice(left + self.d, block.stop)
                pull[:, here.stop :] += moved @ self.covariance[columns, after]

    def _recode_place(self, place: int, wanted: Array, own: Array) -> Array:
        """Choose the codes of one column of vectors and return the vectors they stand for."""
        # (c − t)ᵀ S (c − t) = ‖Lᵀ c − Lᵀ t‖² with S = L Lᵀ: a plain distance after multiplication.
        metric = np.linalg.cholesky(own).astype(np.float32)
        bases, codes = self.bases[:, :, place], self.codes[:, :, place]
        total: Array = self.tables[bases + codes].sum(axis=0)
        for b in range(len(codes)):
            total -= self.tables[bases[b] + codes[b]]
            codes[b] = self._nearest((wanted - total) @ metric, bases[b], metric)
            total += self.tables[bases[b] + codes[b]]
        return total

    def _nearest(self, target: Array, bases: Array, metric: Array) -> Array:
        if not self.problem.sharing.by_row:
            table = self.tables[bases[0] : bases[0] + self.n_vectors] @ metric
            # One column of vectors is little work, and NumPy's threads run between these calls.
            # A second thread pool that spins while it waits for work would slow them down.
            return assign(target, table, n_threads=1)[0]
        labels = np.empty(len(target), np.int32)
        step = max(DISTANCES_AT_ONCE // (self.n_vectors * self.d), 1)
        for first in range(0, len(target), step):
            part = slice(first, first + step)
            vectors = self.tables[bases[part, None] + np.arange(self.n_vectors)] @ metric
            gaps = vectors - target[part, None]
            labels[part] = np.einsum("rkd,rkd->rk", gaps, gaps).argmin(axis=1)
        return labels

    # --- tables

    def refit(self) -> None:
        """Improve the tables by conjugate gradients; a product is a look-up, · Σ and a sum."""
        places = self.places()
        scale = self._gathered(np.broadcast_to(np.diag(self.covariance), self.W.shape), places)
        scale = np.where(scale > 0, scale, 1)
        residual = -self._gathered((self.dense() - self.W) @ self.covariance, places)
        step = direction = residual / scale
        size = float(np.vdot(residual, step))
        tables = self.tables.astype(np.float64)
        for _ in range(STEPS):
            if size <= 0:
                break
            moved = np.zeros(self.W.shape, np.float32)
            for where in places:
                moved += direction.astype(np.float32)[where].reshape(self.W.shape)
            answer = self._gathered(moved @ self.covariance, places)
            curvature = float(np.vdot(direction, answer))
            if curvature <= 0:
                break
            tables += size / curvature * direction
            residual = residual - size / curvature * answer
            step = residual / scale
            grown = float(np.vdot(residual, step))
            direction = step + grown / size * direction
            size = grown
        self.tables = tables.astype(np.float32)

    def _gathered(self, values: Array, places: Array) -> Array:
        """Return for each vector of the tables the sum of the values at the places that use it."""
        result = np.zeros(self.tables.shape)
        for where in places:
            flat = where.reshape(-1)
            for i in range(self.d):
                part = values[:, i :: self.d].reshape(-1)
                result[:, i] += np.bincount(flat, part, len(result))
        return result


def _damped(covariance: Array) -> Array:
    wide: Array = covariance.astype(np.float64)
    wide[np.diag_indices(len(wide))] += RIDGE * max(float(np.trace(wide)) / len(wide), 0)
    wide[np.diag_indices(len(wide))] += MIN_VARIANCE
    return wide

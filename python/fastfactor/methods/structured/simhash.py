"""Signs of random projections, one bit each, and a scale for every column or row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.codebooks import codebook_matmul
from ...kernels.packing import PackedCodes
from ...metrics import Covariance, Diagonal, Frobenius, exponent_of
from ..base import Method
from ..factors import FLOAT_NAMES, Factors, check_ids
from ..forward import ArrayNamespace, constant, length, transpose
from ..narrow import as_factors, narrowed
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor
from .gaussian import TILE, gaussian, gaussian_tile

MAX_CACHED_BYTES = 64 << 20  # a projection up to this size is kept, not drawn for every product
SIGNS = np.array([[-1], [1]], np.float32)
ROWS_AT_ONCE = 256
DRAWN_ROWS = 1 << 16  # of a projection that is not kept
SCALES = ("least_squares", "norm")
LARGE = 64  # rows and columns of a matrix whose error can be foretold
LUCKY = 0.5  # the part of the foretold error below which none is tried


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SimhashFactors(Factors):
    """``W ≈ c R S D`` if columns are hashed, ``W ≈ c D S Rᵀ`` if rows are.

    R is random and is drawn again from the seed when it is needed. ``c = √length / n_hashes``
    keeps the scales about as large as the weights.

    Attributes
    ----------
    signs : uint8 array
        S, one bit for each sign (1: +1, 0: −1), least significant first, rows aligned to bytes. It
        has (n_hashes, in_features) signs or, if rows are hashed, (out_features, n_hashes).
    scale : array of shape (in_features,) or (out_features,)
        The diagonal of D.
    seed : uint64 array of shape (1,)
        The seed of R, which is (out_features, n_hashes) or, if rows are hashed, (in_features,
        n_hashes).
    n_hashes : int
    axis : int
        0 if columns are hashed, 1 if rows are.
    length : int
        The number of rows of R. A file states it because a seed gives an R for any shape.
    """

    kind: ClassVar[str] = "simhash"
    trainable: ClassVar[tuple[str, ...]] = ("scale",)

    signs: Array
    scale: Array
    seed: Array
    n_hashes: int
    axis: int
    length: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        flat, dtype = ids.reshape(-1), self._wide.dtype
        found = np.zeros((flat.size, self.shape[1]), dtype)
        if found.size == 0:
            return found.reshape(*ids.shape, self.shape[1]).astype(self.dtype)
        if self.axis == 0:
            for _, part, tile in self._tiles(flat):
                found += tile.astype(dtype, copy=False) @ self._unpack(part, dtype)
            found *= self._wide * self._constant
        else:
            signs = self._unpack(flat, dtype)
            for rows, part, tile in self._tiles():
                found[:, rows] += signs[:, part] @ tile.T
            found *= self._wide[flat, None] * self._constant
        return narrowed(found.reshape(*ids.shape, self.shape[1]), self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        dtype = _checks.result_dtype(x, self._wide)
        x = x.astype(dtype, copy=False)
        if self.axis == 0:
            hashes = self._by_signs(x * self._wide, n_threads)
            y = np.zeros((len(x), self.shape[0]), dtype)
            for rows, part, tile in self._tiles():
                y[:, rows] += hashes[:, part] @ tile.T
        else:
            hashes = np.zeros((len(x), self.n_hashes), dtype)
            for rows, part, tile in self._tiles():
                hashes[:, part] += x[:, rows] @ tile
            y = self._by_signs(hashes, n_threads) * self._wide
        y *= self._constant
        return y

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        scale = tensors["scale"] * self._constant
        y = x * scale if self.axis == 0 else x
        for factor in reversed(self._hashed):
            y = xp.matmul(y, transpose(xp, constant(xp, factor, x)))
        return y if self.axis == 0 else y * scale

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        scale = tensors["scale"] * self._constant
        first, *others = (constant(xp, factor, scale) for factor in self._hashed)
        rows = xp.take(first, ids, axis=0)
        for factor in others:
            rows = xp.matmul(rows, factor)
        if self.axis == 0:
            return rows * scale
        return rows * xp.reshape(xp.take(scale, ids, axis=0), (length(*ids.shape), 1))

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> SimhashFactors:
        axis = stored_number(config, "axis", 0, 1)
        signs = stored_tensor(tensors, "signs", ("uint8",), (None, None))
        most = len(signs) if axis == 0 else 8 * signs.shape[1]
        n_hashes = stored_number(config, "n_hashes", 1, max(most, 1))
        of = (n_hashes, shape[1]) if axis == 0 else (shape[0], n_hashes)
        stored_tensor(tensors, "signs", ("uint8",), (of[0], -(-of[1] // 8)))
        factors = cls(
            signs=signs,
            scale=stored_tensor(tensors, "scale", FLOAT_NAMES, (shape[1 - axis],)),
            seed=stored_tensor(tensors, "seed", ("uint64",), (1,)),
            n_hashes=n_hashes,
            axis=axis,
            length=stored_number(config, "length", shape[axis], shape[axis]),
            shape=shape,
            dtype=dtype,
        )
        if factors._packed.shape != of:
            raise CorruptDataError(f"signs must have shape {of}, got {factors._packed.shape}")
        return factors

    @cached_property
    def _packed(self) -> PackedCodes:
        of = (self.n_hashes, self.shape[1]) if self.axis == 0 else (self.shape[0], self.n_hashes)
        return PackedCodes(self.signs, 1, of)

    @property
    def _constant(self) -> float:
        """The factor c of W ≈ c R S D."""
        return float(np.sqrt(self.length)) / self.n_hashes

    @cached_property
    def _wide(self) -> Array:
        """The scale in the dtype in which products are computed."""
        return self.scale.astype(_checks.result_dtype(self.scale), copy=False)

    @cached_property
    def _hashed(self) -> tuple[Array, ...]:
        """R and S, or S and Rᵀ, in float32 for `forward`; their product if that is smaller."""
        R, signs = self._projection(), self._unpack(slice(None), np.dtype(np.float32))
        left, right = (R, signs) if self.axis == 0 else (signs, np.ascontiguousarray(R.T))
        if self.n_hashes * sum(self.shape) < self.shape[0] * self.shape[1]:
            return left, right
        return (left @ right,)

    @cached_property
    def _cached_projection(self) -> Array | None:
        """R, or None if it takes more than ``MAX_CACHED_BYTES``."""
        few = 4 * self.length * self.n_hashes <= MAX_CACHED_BYTES
        return self._projection() if few else None

    def _projection(self) -> Array:
        return gaussian(int(self.seed[0]), 0, self.length, self.n_hashes)

    def _tiles(self, ids: Array | None = None) -> Iterator[tuple[slice, slice, Array]]:
        """Yield tiles of R with the rows and columns they are for: all rows, or only these ids."""
        whole = self._cached_projection
        step = max(self.length, 1) if whole is not None else DRAWN_ROWS
        for columns in _slices(self.n_hashes, TILE):
            if ids is not None:
                tile = self._drawn_rows(ids, columns) if whole is None else whole[ids, columns]
                yield slice(0, len(ids)), columns, tile
                continue
            for rows in _slices(self.length, step):
                if whole is None:
                    yield rows, columns, self._drawn(rows.start, rows.stop, columns)
                else:
                    yield rows, columns, whole[rows, columns]

    def _drawn_rows(self, ids: Array, columns: slice) -> Array:
        """Return some columns of R, up to a tile, in the rows with these ids."""
        wanted, places = np.unique(ids, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        drawn = [self._drawn(int(run[0]), int(run[-1]) + 1, columns) for run in runs]
        found: Array = np.concatenate(drawn)[places]
        return found

    def _drawn(self, first: int, last: int, columns: slice) -> Array:
        tile = gaussian_tile(int(self.seed[0]), 0, first, last, columns.start // TILE)
        return tile[:, : columns.stop - columns.start]

    def _unpack(self, rows: Any, dtype: np.dtype[Any]) -> Array:
        """Return rows of the signs as −1 and 1."""
        signs = self.signs[rows]
        packed = PackedCodes(signs, 1, (len(signs), self._packed.shape[1]))
        # One thread only: a second pool of threads would slow down the BLAS products around it.
        return np.array([-1, 1], dtype)[packed.unpack(n_threads=1)]

    def _by_signs(self, vectors: Array, n_threads: int | None) -> Array:
        """Return ``vectors @ Sᵀ``, in float64 if the vectors are."""
        if vectors.dtype == np.float32:
            return codebook_matmul(vectors, self._packed, SIGNS, n_threads=n_threads)
        result = np.empty((len(vectors), self._packed.shape[0]))
        for first in range(0, result.shape[1], ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            result[:, part] = vectors @ self._unpack(part, vectors.dtype).T
        return result


def _slices(n: int, step: int) -> Iterator[slice]:
    """Yield slices that cover range(n), up to ``step`` long."""
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))


@dataclass(frozen=True, kw_only=True)
class Simhash(Method):
    """Signs of random projections: ``W ≈ R S D``, ``S = sign(Rᵀ W)``, with R drawn from a seed.

    Parameters
    ----------
    n_hashes : int, optional
        Bits for every column of W (every row if ``axis`` is 1), at least 1.
    ratio, max_error : float, optional
        As in :class:`Method`.
    axis : {0, 1}
        0 hashes columns, as published. 1 hashes rows, which is faster by ``out / in`` if W is tall
        like a table of embeddings, and looks up rows without drawing a row of R for each.
    scale : {"least_squares", "norm"}
        The rule for the scale of each column (or row): ``"least_squares"`` has the least error,
        ``"norm"`` keeps the column's length, as published.
    random_state : int, Generator, RandomState or None
        The seed of R, which is stored instead of R.

    Raises
    ------
    TypeError, ValueError
        For settings out of range and, when a matrix is compressed, ``scale="norm"`` under an
        importance or an input covariance.

    Notes
    -----
    The scale has W's dtype. It is the exact minimum for the signs, under the sum of squares, an
    importance or an input covariance; the signs do not depend on the metric. With b bits a weight a
    random column loses about ``1 / (1 + 2 b / π)`` of its energy, so other methods need fewer
    bits for the same error. In return S is found in one pass, and a product multiplies by R
    and the scales only. Compression takes ``4 · out · in · n_hashes`` operations, a product
    ``2 · n_hashes · (out + in)``. If R takes more than 64 MB, each product draws it again, 128
    columns at a time. Sums use BLAS, so a projection that is almost zero may get either sign.

    Source: M. Charikar, Similarity Estimation Techniques from Rounding Algorithms, 2002; as a
    compressor A. Panigrahi et al., 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import Simhash
    >>> W = np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)
    >>> factors = Simhash(n_hashes=128).compress(W)
    >>> factors.nbytes == 128 * 80 // 8 + 80 * 4 + 8  # bits, scales, the seed
    True
    """

    parameter: ClassVar[str] = "n_hashes"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    n_hashes: int | None = None
    axis: int = 0
    scale: str = "least_squares"
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_hashes is not None:
            _checks.integer(self.n_hashes, "n_hashes", 1)
        _checks.integer(self.axis, "axis", 0, 1)
        _checks.choice(self.scale, "scale", SCALES)

    def _compress(self, problem: Problem) -> SimhashFactors:
        if self.scale == "norm" and not isinstance(problem.metric, Frobenius):
            name = "importance" if problem.importance is not None else "input_covariance"
            raise ValueError(f"scale must be 'least_squares' where {name} is given, got 'norm'")
        n_hashes, W = self.n_hashes or 1, problem.W
        A = W if self.axis == 0 else W.T
        exponent = exponent_of(W)
        A = np.ldexp(A.astype(_checks.result_dtype(W), copy=False), -exponent)
        hashed = np.zeros_like(A)
        of = (n_hashes, -(-A.shape[1] // 8)) if self.axis == 0 else (A.shape[1], -(-n_hashes // 8))
        signs = np.empty(of, np.uint8)
        for first in range(0, n_hashes, TILE):
            last = min(first + TILE, n_hashes)
            tile = gaussian_tile(self.random_state, 0, 0, len(A), first // TILE).astype(A.dtype)
            tile = tile[:, : last - first]
            positive = tile.T @ A >= 0
            hashed += tile @ np.where(positive, 1, -1).astype(A.dtype)
            if self.axis == 0:
                signs[first:last] = PackedCodes.pack(positive, 1, n_threads=1).data
            else:
                packed = PackedCodes.pack(positive.T, 1, n_threads=1).data
                signs[:, first // 8 : first // 8 + packed.shape[1]] = packed
        hashed *= np.sqrt(len(A)) / n_hashes
        return SimhashFactors(
            signs=signs,
            scale=as_factors(self._scales(problem, A, hashed), W.dtype, exponent),
            seed=np.array([self.random_state], np.uint64),
            n_hashes=n_hashes,
            axis=self.axis,
            length=len(A),
            shape=W.shape,
            dtype=W.dtype,
        )

    def _tries_plain(self, problem: Problem) -> bool:
        return False  # the scales are the best ones, and the signs do not depend on the metric

    def _scales(self, problem: Problem, A: Array, hashed: Array) -> Array:
        """Return d of least error in ``A ≈ hashed · diag(d)``, or d that keeps column lengths."""
        if self.scale == "norm":
            lengths = np.sqrt(_dots(hashed, hashed))
            return np.sqrt(_dots(A, A)) / np.where(lengths > 0, lengths, 1)
        weighted = hashed
        if problem.importance is not None:
            importance = problem.importance if self.axis == 0 else problem.importance.T
            weighted = importance.astype(np.float64) * hashed
        elif problem.input_covariance is not None:
            covariance = problem.input_covariance.astype(np.float64)
            if self.axis == 0:
                # trace(E Σ Eᵀ) couples the columns: with P = hashed, (Σ ∘ PᵀP) d = (Σ ∘ PᵀA) 1.
                wide = hashed.astype(np.float64)
                normal = covariance * (wide.T @ wide)
                target = np.einsum("ij,ij->i", covariance, wide.T @ A)
                scales: Array = np.linalg.lstsq(normal, target, rcond=None)[0]
                return scales
            weighted = covariance @ hashed
        sizes = _dots(weighted, hashed)
        return _dots(weighted, A) / np.where(sizes > 0, sizes, 1)

    def _levels(self, problem: Problem) -> Sequence[int]:
        most = 8 * problem.W.itemsize * problem.W.shape[self.axis] if problem.W.size else 0
        return range(1, most + 1)

    def _search(self, problem: Problem) -> Factors:
        if self.ratio is not None:
            return super()._search(problem)
        levels, goal = self._checked_levels(problem), self._goal(problem)
        self._check_error(problem)
        # The cost grows with the number of bits: double it until it suffices, then bisect below.
        n_hashes = 1
        error = goal.measure(self._at(n_hashes)._best(problem))
        while not goal.allows(error):
            if n_hashes == len(levels):
                raise self._unreachable(error, problem)
            n_hashes = min(2 * n_hashes, len(levels))
            error = goal.measure(self._at(n_hashes)._best(problem))
        return self._bisect(levels[n_hashes // 2 : n_hashes], problem)

    def _check_error(self, problem: Problem) -> None:
        """Refuse, before any work, an error that even the most bits do not reach.

        Random projections favour no direction, so the share of energy that is lost does not depend
        on the weights: n − 1 of n − 2/π + 2 b/π for b bits and columns of length n. It varies by
        few percent in a large matrix, under the sum of squares.
        """
        assert self.max_error is not None
        W, length, most = problem.W, problem.W.shape[self.axis], len(self._levels(problem))
        least = (length - 1) / (length + (most - 1) * 2 / np.pi)
        known = min(W.shape) >= LARGE and isinstance(problem.metric, Frobenius) and W.any()
        if known and self.max_error < LUCKY * least:
            raise ValueError(
                f"max_error must be at least about {least:.2g} with no more bits than {W.dtype} "
                f"has, got {self.max_error!r}"
            )

    def _size(self, problem: Problem) -> Size:
        (out, inputs), n_hashes = problem.W.shape, self.n_hashes or 1
        n_signs = (n_hashes, inputs) if self.axis == 0 else (out, n_hashes)
        scales = problem.W.shape[1 - self.axis] * problem.W.itemsize
        return Size(n_signs[0] * -(-n_signs[1] // 8) + scales + 8, exact=True)


def _dots(left: Array, right: Array) -> Array:
    """Return the dot products of the columns of two matrices, in float64."""
    result: Array = np.einsum("ij,ij->j", left, right, dtype=np.float64)
    return result

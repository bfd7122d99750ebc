"""Block projection: a smaller matrix between projections of blocks of inputs and of outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...metrics import Covariance, Diagonal, Frobenius, exponent_of
from ..base import Method
from ..factors import FLOAT_NAMES, Factors, check_ids
from ..forward import (
    NUMPY,
    ArrayNamespace,
    as_batch,
    constant,
    length,
    transpose,
    with_lead,
)
from ..narrow import as_factors, narrowed
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor
from .gaussian import gaussian
from .projection_fit import fit_core, fit_projections, project_blocks, transpose_blocks

# Limits for projections that are drawn, so that a short file does not fill the memory.
MAX_DRAWN, MAX_DRAWN_RATIO = 1 << 26, 4096


class ProjectedFactors(Factors):
    """Base of factors ``W ≈ D̄ᵀ C B̄ᵀ`` with block-diagonal projections B̄ and D̄."""

    C: Array

    @property
    @abstractmethod
    def _wide(self) -> tuple[Array, Array, Array]:
        """B, C and D in the dtype in which products are computed."""

    @abstractmethod
    def _projections(self, xp: ArrayNamespace, tensors: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return B and D as arrays of a library, from the trained tensors where they are."""

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        found = _rows(*self._wide, check_ids(ids, self.shape[0]), self.shape)
        return narrowed(found, self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        B, C, D = self._wide
        x = x.astype(_checks.result_dtype(x, C), copy=False)
        result: Array = _product(NUMPY, B, C, D, x, self.shape[0])
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        B, D = self._projections(xp, tensors)
        return _product(xp, B, tensors["C"], D, x, self.shape[0])

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        (B, D), C = self._projections(xp, tensors), tensors["C"]
        (groups, reduced, block), (height, width) = D.shape, C.shape
        place, column = (xp.take(constant(xp, table, C), ids, axis=0) for table in self._row_tables)
        n = length(*ids.shape)
        # Row i of W is column i of its block's D, times the rows of C for that block, times B̄ᵀ.
        each = xp.reshape(xp.permute_dims(D, (0, 2, 1)), (groups * block, reduced))
        each = xp.reshape(xp.take(each, column, axis=0), (n, 1, reduced))
        parts = xp.reshape(C, (height // reduced, reduced * width))
        parts = xp.reshape(xp.take(parts, place, axis=0), (n, reduced, width))
        inner = xp.reshape(xp.matmul(each, parts), (n, width))
        return project_blocks(xp, inner, xp.permute_dims(B, (0, 2, 1)))[:, : self.shape[1]]

    @cached_property
    def _row_tables(self) -> tuple[Array, Array]:
        """For each row of W its block, and its column among those of all projections D."""
        groups, _, block = self._wide[2].shape
        place, within = np.divmod(np.arange(self.shape[0]), block)
        return place, within + block * place if groups > 1 else within


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BlockProjectionFactors(ProjectedFactors):
    """``W ≈ D̄ᵀ C B̄ᵀ``, where B̄ and D̄ are block diagonal with blocks B and D.

    B̄ has a block for each block of inputs, D̄ for each block of outputs.

    Attributes
    ----------
    B : array of shape (1 or blocks of inputs, block_in, reduced_in)
        One projection that all blocks share, or one for each. The last block may be shorter.
    C : array of shape (blocks of outputs · reduced_out, blocks of inputs · reduced_in)
    D : array of shape (1 or blocks of outputs, reduced_out, block_out)
    """

    kind: ClassVar[str] = "block_projection"
    trainable: ClassVar[tuple[str, ...]] = ("B", "C", "D")

    B: Array
    C: Array
    D: Array

    def _projections(self, xp: ArrayNamespace, tensors: Mapping[str, Any]) -> tuple[Any, Any]:
        return tensors["B"], tensors["D"]

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> BlockProjectionFactors:
        B = stored_tensor(tensors, "B", FLOAT_NAMES, (None, None, None))
        D = stored_tensor(tensors, "D", FLOAT_NAMES, (None, None, None))
        counts = []
        for name, tensor, (shared, block, reduced), size in (
            ("B", B, B.shape, shape[1]),
            ("D", D, D.transpose(0, 2, 1).shape, shape[0]),
        ):
            count = -(-size // max(block, 1))
            if not (1 <= reduced <= block <= max(size, 1) and shared in (1, count)):
                raise CorruptDataError(
                    f"{name} must hold 1 or {count} projections of blocks of at most {size}, "
                    f"got shape {tensor.shape}"
                )
            counts.append(count * reduced)
        C = stored_tensor(tensors, "C", FLOAT_NAMES, (counts[1], counts[0]))
        return cls(B=B, C=C, D=D, shape=shape, dtype=dtype)

    @cached_property
    def _wide(self) -> tuple[Array, Array, Array]:
        """B, C and D in the dtype in which products are computed."""
        dtype = _checks.result_dtype(self.B, self.C, self.D)
        B, C, D = (array.astype(dtype, copy=False) for array in (self.B, self.C, self.D))
        return B, C, D


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RandomProjectionFactors(ProjectedFactors):
    """:class:`BlockProjectionFactors` whose B and D are drawn from a seed; C alone is stored.

    Attributes
    ----------
    C : array of shape (blocks of outputs · reduced_out, blocks of inputs · reduced_in)
    seed : uint64 array of shape (1,)
    block_in, reduced_in, block_out, reduced_out : int
        Lengths of a block before and after its projection; there is no projection if they are
        equal.
    shared : int
        1 if all blocks of a side share a projection, 0 if each has its own.
    """

    kind: ClassVar[str] = "random_projection"
    trainable: ClassVar[tuple[str, ...]] = ("C",)

    C: Array
    seed: Array
    block_in: int
    reduced_in: int
    block_out: int
    reduced_out: int
    shared: int

    def _projections(self, xp: ArrayNamespace, tensors: Mapping[str, Any]) -> tuple[Any, Any]:
        B, _, D = self._wide
        return constant(xp, B, tensors["C"]), constant(xp, D, tensors["C"])

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> RandomProjectionFactors:
        numbers, reduced = {"shared": stored_number(config, "shared", 0, 1)}, []
        for side, size in (("out", shape[0]), ("in", shape[1])):
            block = stored_number(config, f"block_{side}", 1, max(size, 1))
            numbers[f"block_{side}"] = block
            numbers[f"reduced_{side}"] = stored_number(config, f"reduced_{side}", 1, block)
            reduced.append(-(-size // block) * numbers[f"reduced_{side}"])
        C = stored_tensor(tensors, "C", FLOAT_NAMES, (reduced[0], reduced[1]))
        drawn = sum(
            numbers[f"block_{side}"] * (numbers[f"reduced_{side}"] if numbers["shared"] else n)
            for side, n in zip(("out", "in"), reduced, strict=True)
        )
        if drawn > MAX_DRAWN + MAX_DRAWN_RATIO * C.size:
            raise CorruptDataError(
                f"projections must have at most {MAX_DRAWN} numbers and {MAX_DRAWN_RATIO} more for "
                f"each one of C, got {drawn} for {C.size}"
            )
        return cls(
            C=C,
            seed=stored_tensor(tensors, "seed", ("uint64",), (1,)),
            shape=shape,
            dtype=dtype,
            **numbers,
        )

    @cached_property
    def _wide(self) -> tuple[Array, Array, Array]:
        """B and D, drawn, and C, in the dtype in which products are computed."""
        dtype, seed = _checks.result_dtype(self.C), int(self.seed[0])
        counts = [1, 1]
        if not self.shared:
            counts = [len(self.C) // self.reduced_out, self.C.shape[1] // self.reduced_in]
        B = _random_projections(seed, 0, counts[1], self.block_in, self.reduced_in).astype(dtype)
        D = _random_projections(seed, 1, counts[0], self.block_out, self.reduced_out).astype(dtype)
        return B, self.C.astype(dtype, copy=False), D.transpose(0, 2, 1)


@dataclass(frozen=True, kw_only=True)
class BlockProjection(Method):
    """A smaller matrix between projections of blocks of inputs and of blocks of outputs.

    Parameters
    ----------
    reduction : float, optional
        The factor, at least 1, by which projections shorten a block. Lengths are rounded, and are
        at least 1.
    ratio, max_error : float, optional
        As in :class:`Method`.
    block_in, block_out : int
        Length of a block of inputs and of outputs; with 1 that side is not projected.
    learned : bool
        Whether B and D are fitted and stored. If False, they are drawn from a seed, and only the
        seed is stored.
    shared : bool
        Whether all blocks of a side share one projection, as published. If False, each has its own.
    random_state : int, Generator, RandomState or None
        Seed of the projections that are drawn.

    Raises
    ------
    TypeError, ValueError
        For settings out of range.

    Notes
    -----
    For drawn B and D, C is the solution of least squares, found directly under the sum of squares
    and under an input covariance, and by conjugate gradients under an importance. Learned B and D
    are a local minimum, starting from the leading directions of the blocks (a Tucker decomposition
    of the blocks). They are found by orthogonal iteration under the sum of squares; otherwise fits
    of B and D by conjugate gradients alternate with that of C. Factors have W's dtype. With drawn
    projections a random W loses ``1 − 1 / reduction²`` of its energy. A product takes
    ``2 · out · in / reduction²`` operations an input, and those of the projections. The method uses
    LAPACK, so bits may depend on NumPy's threads and Ctrl-C waits for the call that is under way,
    seconds for matrices of some thousand rows and columns. An importance or covariance takes a few
    copies of W in float64.

    Sources: the input and output projection of A. Panigrahi et al., 2020; L. De Lathauwer, B. De
    Moor, J. Vandewalle, On the Best Rank-1 and Rank-(R1, …, RN) Approximation, 2000; J. Ye,
    Generalized Low Rank Approximations of Matrices, 2005.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import BlockProjection
    >>> W = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    >>> factors = BlockProjection(reduction=4, block_in=16, block_out=16).compress(W)
    >>> factors.C.shape, factors.nbytes
    ((16, 32), 2056)
    """

    parameter: ClassVar[str] = "reduction"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    reduction: float | None = None
    block_in: int = 64
    block_out: int = 64
    learned: bool = False
    shared: bool = True
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction is not None and _checks.positive(self.reduction, "reduction") < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction!r}")
        _checks.integer(self.block_in, "block_in", 1)
        _checks.integer(self.block_out, "block_out", 1)
        _checks.boolean(self.learned, "learned")
        _checks.boolean(self.shared, "shared")

    def _compress(self, problem: Problem) -> Factors:
        blocks, reduced, counts = self._sizes(problem, self.reduction or 1)
        dtype, exponent = problem.W.dtype, exponent_of(problem.W)
        W = np.ldexp(problem.W.astype(np.float64), -exponent)
        if self.learned:
            B, D = (
                np.ascontiguousarray(side, dtype)
                for side in fit_projections(W, problem, blocks, reduced, self.shared)
            )
            C = fit_core(W, problem, B.astype(np.float64), D.astype(np.float64))
            return BlockProjectionFactors(
                B=B,
                C=as_factors(C, dtype, exponent),
                D=np.ascontiguousarray(transpose_blocks(D)),
                shape=W.shape,
                dtype=dtype,
            )
        groups = (1, 1) if self.shared else counts
        D, B = (
            _random_projections(
                self.random_state, 1 - side, groups[side], blocks[side], reduced[side]
            )
            for side in (0, 1)
        )
        return RandomProjectionFactors(
            C=as_factors(fit_core(W, problem, B, D), dtype, exponent),
            seed=np.array([self.random_state], np.uint64),
            block_out=blocks[0],
            block_in=blocks[1],
            reduced_out=reduced[0],
            reduced_in=reduced[1],
            shared=int(self.shared),
            shape=W.shape,
            dtype=dtype,
        )

    def _levels(self, problem: Problem) -> Sequence[float]:
        if not problem.W.size:
            return []
        blocks = self._sizes(problem, 1)[0]
        return sorted({b / r for b in blocks for r in range(1, b + 1)}, reverse=True)

    def _size(self, problem: Problem) -> Size:
        blocks, reduced, counts = self._sizes(problem, self.reduction or 1)
        C = counts[0] * reduced[0] * counts[1] * reduced[1]
        if not self.learned:
            return Size(C * problem.W.itemsize + 8, exact=True)
        groups = (1, 1) if self.shared else counts
        sides = sum(g * b * r for g, b, r in zip(groups, blocks, reduced, strict=True))
        return Size((C + sides) * problem.W.itemsize, exact=True)

    def _sizes(self, problem: Problem, reduction: float) -> tuple[tuple[int, int], ...]:
        """Return three pairs (of outputs, of inputs): block lengths, reduced lengths, counts."""
        out, inputs = problem.W.shape
        blocks = min(self.block_out, max(out, 1)), min(self.block_in, max(inputs, 1))
        reduced = max(round(blocks[0] / reduction), 1), max(round(blocks[1] / reduction), 1)
        return blocks, reduced, (-(-out // blocks[0]), -(-inputs // blocks[1]))


# --- products


def _product(xp: ArrayNamespace, B: Any, C: Any, D: Any, x: Any, out_features: int) -> Any:
    """Return the product of x (..., in) with the factors, by an array library's functions."""
    inner = xp.matmul(project_blocks(xp, as_batch(xp, x), B), transpose(xp, C))
    return with_lead(xp, project_blocks(xp, inner, D)[:, :out_features], x.shape[:-1])


def _rows(B: Array, C: Array, D: Array, ids: Array, shape: tuple[int, int]) -> Array:
    """Return the rows of the matrix with these ids, an array of any shape."""
    reduced, block = D.shape[1:]
    place, within = np.divmod(ids.reshape(-1), block)
    each = D[place if len(D) > 1 else np.zeros_like(place), :, within]
    parts = C.reshape(len(C) // reduced, reduced, C.shape[1])
    inner = np.empty((place.size, C.shape[1]), C.dtype)
    for one in np.unique(place):
        inner[place == one] = each[place == one] @ parts[one]
    found: Array = project_blocks(NUMPY, inner, transpose_blocks(B))[:, : shape[1]]
    return found.reshape(*ids.shape, shape[1])


def _random_projections(seed: int, stream: int, groups: int, block: int, reduced: int) -> Array:
    """Return projections (groups, block, reduced) of normal numbers with variance 1 / block.

    If block and reduced are equal, each projection is the identity.
    """
    if block == reduced:
        return np.broadcast_to(np.eye(block), (groups, block, block))
    drawn = gaussian(seed, stream, groups * block, reduced).astype(np.float64)
    result: Array = drawn.reshape(groups, block, reduced) / np.sqrt(block)
    return result

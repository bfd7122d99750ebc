"""Entropy coding: a rotation, uneven rates, a trellis quantizer and asymmetric numeral systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.packing import PackedCodes
from ...kernels.trellis import MAX_CLASSES, N_CENTERS, Classes, TrellisDecoder
from ...metrics import Covariance, Diagonal, Frobenius, Metric, relative_error
from ..base import Method
from ..factors import Config, Factors, check_ids
from ..forward import ArrayNamespace, constant, transpose
from ..narrow import narrowed
from ..search import MOST_NBYTES, Goal, Problem, Size
from ..stored import stored_number, stored_tensor
from .encoding import CENTER_STEP, Encoding
from .rotation import nearest_rotation
from .search import search
from .tables import Tables

WEIGHTS_AT_ONCE = 1 << 20
LARGEST_SCALE = 2.0**90  # values are up to 2^17 times this and are summed over columns
ZEROS_NBYTES = 14
ZERO_BLOCK_NBYTES = 6
ROTATION_WIDTHS = (0, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EntropyCodedFactors(Factors):
    """``W ≈ Û diag(steps) Rᵀ`` with Û from entropy-coded levels and R orthogonal.

    Attributes
    ----------
    words : uint16 array
        The coded levels. A block contains `block_rows` rows of W and can be decoded alone.
    lengths : uint16 or uint32 array of shape (n_blocks,)
        Number of words in each block.
    step : float32 array of shape (1,)
        Step of the levels' grid.
    table_lengths, table_logs : uint8 arrays
        Probabilities of the levels. With several classes, the last table is for the rows' scales.
    centers : int8 array of shape (2 · classes, 3)
        Offsets of reconstructed values from the points of the grid, in 1/128 of the step.
    columns : int8 array of shape (in_features,), optional
        4 log₂ of each column's scale. With the row's scale it gives the class of a weight.
    column_steps : uint8 array of shape (in_features,), optional
        4 log₂ of the factor by which each column's grid is wider.
    rotation : uint8 array of shape (in_features, bytes of a row), optional
        Codes of `rotation_bits` bits for a matrix to which R is the nearest orthogonal matrix,
        packed as in :class:`fastfactor.PackedCodes`.
    block_rows : int
        Number of rows of W in a block.
    classes : int
        Number of classes of weights. Each has its own tables.
    class_shift : int
        A class spans 2**class_shift quarters of an octave.
    rotation_bits : int
        Bits of a code of the rotation; 0 without a rotation.
    """

    kind: ClassVar[str] = "entropy_coded"
    trainable: ClassVar[tuple[str, ...]] = ("step",)

    words: Array
    lengths: Array
    step: Array
    table_lengths: Array
    table_logs: Array
    centers: Array
    columns: Array | None
    column_steps: Array | None
    rotation: Array | None
    block_rows: int
    classes: int
    class_shift: int
    rotation_bits: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        if ids.size * self.shape[1] == 0:
            return np.zeros((*ids.shape, self.shape[1]), self.dtype)
        wanted, place = np.unique(ids, return_inverse=True)
        values = self._decoder.rows(wanted, n_threads=n_threads)
        return self._dense(values)[place].reshape(*ids.shape, self.shape[1])

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        x = x.astype(_checks.result_dtype(x), copy=False)
        inner = _times(x, self._basis) * self.step[0]
        result = np.empty((len(x), self.shape[0]), x.dtype)
        for first, values in self._spans(n_threads):
            result[:, first : first + len(values)] = inner @ values.T
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        scaled = self.shape[1] < self.shape[0]  # the smaller of x and the result
        y = xp.matmul(
            x * tensors["step"] if scaled else x, transpose(xp, constant(xp, self._unscaled, x))
        )
        return y if scaled else y * tensors["step"]

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        step = tensors["step"]
        return xp.take(constant(xp, self._unscaled, step), ids, axis=0) * step

    def _error(self, W: Array, metric: Metric, n_threads: int | None = None) -> float:
        spans = self._spans(n_threads)
        held: list[Any] = [0, np.empty((0, self.shape[1]))]

        def rows_of(first: int, last: int) -> Array:
            # Rows are requested in order, so each span is decoded once.
            parts = []
            while first < last:
                if first >= held[0] + len(held[1]):
                    held[0], values = next(spans)
                    held[1] = self._dense(values)
                parts.append(held[1][first - held[0] : last - held[0]])
                first += len(parts[-1])
            return np.concatenate(parts).astype(np.float64)

        return relative_error(W, rows_of, metric)

    def verify(self, *, n_threads: int | None = None) -> None:
        for _ in self._spans(n_threads):
            pass

    def config(self) -> Config:
        return {
            "out_features": self.shape[0],
            "in_features": self.shape[1],
            "block_rows": self.block_rows,
            "classes": self.classes,
            "class_shift": self.class_shift,
            "rotation_bits": self.rotation_bits,
            "uneven": int(self.column_steps is not None),
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> EntropyCodedFactors:
        # The last block may be short, so the number of rows does not follow from any tensor.
        stored_number(config, "out_features", shape[0], shape[0])
        stored_number(config, "in_features", shape[1], shape[1])
        block_rows = stored_number(config, "block_rows", 1, 1 << 16)
        classes = stored_number(config, "classes", 1, MAX_CLASSES)
        class_shift = stored_number(config, "class_shift", 0, 8)
        rotation_bits = stored_number(config, "rotation_bits", 0, 8)
        uneven = stored_number(config, "uneven", 0, 1)
        if rotation_bits not in ROTATION_WIDTHS:
            raise CorruptDataError(
                f"'rotation_bits' must be one of {ROTATION_WIDTHS}, got {rotation_bits}"
            )
        n_blocks = -(-shape[0] // block_rows)
        n_tables = 2 * classes + (classes > 1)
        found = {
            "words": stored_tensor(tensors, "words", ("uint16",), (None,)),
            "lengths": stored_tensor(tensors, "lengths", ("uint16", "uint32"), (n_blocks,)),
            "step": stored_tensor(tensors, "step", ("float32",), (1,)),
            "table_lengths": stored_tensor(tensors, "table_lengths", ("uint8",), (n_tables,)),
            "table_logs": stored_tensor(tensors, "table_logs", ("uint8",), (None,)),
            "centers": stored_tensor(tensors, "centers", ("int8",), (2 * classes, N_CENTERS)),
        }
        optional: dict[str, Any] = {
            "columns": stored_tensor(tensors, "columns", ("int8",), (shape[1],))
            if classes > 1
            else None,
            "column_steps": stored_tensor(tensors, "column_steps", ("uint8",), (shape[1],))
            if uneven
            else None,
            "rotation": None,
        }
        if rotation_bits:
            row_bytes = -(-shape[1] * rotation_bits // 8)
            packed = stored_tensor(tensors, "rotation", ("uint8",), (shape[1], row_bytes))
            PackedCodes(packed, rotation_bits, (shape[1], shape[1]))
            optional["rotation"] = packed
        Tables(found["table_lengths"], found["table_logs"])
        if not np.isfinite(found["step"][0]):
            raise CorruptDataError(f"tensor 'step' must be finite, got {found['step'][0]}")
        total = int(found["lengths"].sum(dtype=np.int64))
        if total != len(found["words"]):
            raise CorruptDataError(
                f"tensor 'words' must have length {total}, got {len(found['words'])}"
            )
        return cls(
            **found,
            **optional,
            block_rows=block_rows,
            classes=classes,
            class_shift=class_shift,
            rotation_bits=rotation_bits,
            shape=shape,
            dtype=dtype,
        )

    def _spans(self, n_threads: int | None) -> Any:
        """Yield the rows in coded coordinates, some whole blocks at a time, each with its start."""
        if self.shape[1] == 0:
            return
        n_blocks = max(WEIGHTS_AT_ONCE // max(self.block_rows * self.shape[1], 1), 1)
        for first in range(0, self.shape[0], n_blocks * self.block_rows):
            last = min(first + n_blocks * self.block_rows, self.shape[0])
            yield first, self._decoder.rows(np.arange(first, last), n_threads=n_threads)

    def _row_blocks(self, n_threads: int | None) -> Iterator[tuple[int, Array]]:
        for first, values in self._spans(n_threads):
            yield first, self._dense(values)

    @cached_property
    def _decoder(self) -> TrellisDecoder:
        columns = np.zeros(self.shape[1], np.int8) if self.columns is None else self.columns
        return TrellisDecoder(
            self.words,
            self.lengths,
            self.shape[0],
            self.block_rows,
            Classes(columns, self.class_shift, self.classes),
            Tables(self.table_lengths, self.table_logs).frequencies,
            self.centers.astype(np.float32) * np.float32(CENTER_STEP),
        )

    @cached_property
    def _basis(self) -> Array:
        """R diag(2**(column_steps / 4)), float32; only the diagonal if there is no rotation."""
        n = self.shape[1]
        basis = np.ones(n)
        if self.rotation is not None:
            codes = PackedCodes(self.rotation, self.rotation_bits, (n, n)).unpack()
            basis = nearest_rotation(codes, self.rotation_bits)
        if self.column_steps is not None:
            basis = basis * 2.0 ** (self.column_steps / 4.0)
        return basis.astype(np.float32)

    @cached_property
    def _scaled_basis(self) -> Array:
        """`_basis` times the step, float32; float64 if products may exceed float32's range."""
        scaled: Array = self._basis.astype(np.float64) * float(self.step[0])
        if np.abs(scaled).max(initial=0) < LARGEST_SCALE:
            scaled = self.step[0] * self._basis
        return scaled

    @cached_property
    def _unscaled(self) -> Array:
        """W divided by the step, float32, for `forward`: decoded once and kept."""
        W = np.empty(self.shape, np.float32)
        for first, values in self._spans(None):
            W[first : first + len(values)] = _times(values, self._basis.T)
        return W

    def _dense(self, values: Array) -> Array:
        """Return rows of W from rows in coded coordinates, limited to the range of its dtype."""
        return narrowed(_times(values, self._scaled_basis.T), self.dtype)


def _times(rows: Array, basis: Array) -> Array:
    """Return rows times a matrix, or times a diagonal matrix given as a vector."""
    found: Array = rows @ basis if basis.ndim == 2 else rows * basis
    return found


@dataclass(frozen=True, kw_only=True)
class EntropyCoded(Method):
    """Entropy-coded, trellis-coded quantization in rotated coordinates.

    All of W has one grid, in the coordinates of its principal directions. Directions that vary
    little get few bits or none (reverse water-filling), because the probabilities of levels depend
    on the scales of row and column.

    Parameters
    ----------
    bits_per_weight : float, optional
        The most bits that a weight may take, counting everything stored.
    block_rows : int
        Number of rows coded as one stream. Looking up a row decodes those before it in its block.
    ratio, max_error : float, optional
        As in :class:`Method`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range. In `compress`, also for too few bits for the matrix.

    Notes
    -----
    The rotation is stored with 2 to 8 bits an entry, or left out, whichever serves the goal best.
    Under an input covariance Σ it consists of Σ's eigenvectors, and columns whose errors weigh less
    get wider grids. Under an importance there is no rotation: each column's grid follows its mean
    importance, and each weight's own importance decides on its level; weights of importance zero
    become zero. Quantizers are as in Marcellin and Fischer (1990) with the 64-state code of
    Ungerboeck (1982); coding is that of Duda (2013).

    A size is met within 0.1 %, less closely by small matrices. It is refused only if a matrix of
    zeros would not fit either. Choosing levels takes 20 ns a weight and is done some twenty times,
    mostly on a sample: 32000 × 256 takes about 3 s on one core. Decoding takes 5 ns a weight. So
    does a product with few inputs, which decodes 1 M weights at a time. Looking up a row takes up
    to `block_rows` times 8 ns a weight. The rotation goes through LAPACK in float64, so bits may
    depend on its threads. Decoding uses integers and is the same everywhere, except for the
    rounding of the rotation.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import EntropyCoded
    >>> W = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    >>> factors = EntropyCoded(bits_per_weight=2).compress(W)
    >>> factors.bits_per_weight <= 2, factors.error(W) < 0.09
    (True, True)
    """

    parameter: ClassVar[str] = "bits_per_weight"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    bits_per_weight: float | None = None
    block_rows: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits_per_weight is not None:
            _checks.positive(self.bits_per_weight, "bits_per_weight")
        _checks.integer(self.block_rows, "block_rows", 1, 1 << 16)

    def _compress(self, problem: Problem) -> Factors:
        assert self.bits_per_weight is not None
        self._size(problem)  # refuses too few bits for any matrix of this shape
        nbytes = self.bits_per_weight * problem.W.size / 8
        factors, reached = self._meet(Goal(problem, nbytes, is_size=True))
        if not reached:
            raise self._too_few_bits(factors.bits_per_weight)
        return factors

    def _least_nbytes(self, problem: Problem) -> int:
        # Those of a matrix of zeros: for each block of rows a length and a final state, beside the
        # step, the tables and the centres.
        n_blocks = -(-len(problem.W) // self.block_rows)
        return ZEROS_NBYTES + ZERO_BLOCK_NBYTES * n_blocks

    def _size(self, problem: Problem) -> Size:
        _check_not_empty(problem.W)
        nbytes = (self.bits_per_weight or 0) * problem.W.size / 8
        least = self._least_nbytes(problem)
        if nbytes < least:
            raise self._too_few_bits(least / problem.W.size * 8)
        return Size(int(min(nbytes, MOST_NBYTES)), exact=False)

    def _too_few_bits(self, least: float) -> ValueError:
        return ValueError(
            f"bits_per_weight must be at least {least:.4g} for this matrix, "
            f"got {self.bits_per_weight!r}"
        )

    def _levels(self, problem: Problem) -> Sequence[int]:
        if problem.W.size == 0:
            return range(0)
        # Whole bits, from the first that suffices for a matrix of zeros.
        first = max(-(-8 * self._least_nbytes(problem) // problem.W.size), 1)
        return range(first, max(17, first + 1))

    def _search(self, problem: Problem) -> Factors:
        self._checked_levels(problem)  # refuses an empty matrix
        goal = self._goal(problem)
        factors, reached = self._meet(goal)
        if not reached:
            raise self._unreachable(goal.measure(factors), problem)
        return factors

    def _meet(self, goal: Goal) -> tuple[Factors, bool]:
        """Return the factors that are best for a goal, or nearest to it, and whether they meet it.

        An encoding's own error leaves out the rounding to W's dtype and the metric's correlations
        between columns, so the factors are measured. Coordinates in which columns weigh unequally
        may cost more than they gain, so those for the sum of squares are tried, too.
        """
        W = goal.problem.W

        def factors_of(encoding: Encoding) -> EntropyCodedFactors:
            return EntropyCodedFactors(**encoding.tensors(), shape=W.shape, dtype=W.dtype)

        found = search(goal, self.block_rows, factors_of)
        if isinstance(goal.problem.metric, Frobenius):
            return found
        plain = search(replace(goal, problem=goal.problem.plain), self.block_rows, factors_of)
        if found[1] and plain[1] and goal.is_size:
            return min(found, plain, key=lambda each: goal.problem.error_of(each[0]))
        # What meets the goal goes before what does not.
        return min(found, plain, key=lambda each: (not each[1], each[0].nbytes))

    def _tries_plain(self, problem: Problem) -> bool:
        return False  # `_meet` does


def _check_not_empty(W: Array) -> None:
    if W.size == 0:
        raise ValueError(f"W must not be empty for EntropyCoded, got shape {W.shape}")

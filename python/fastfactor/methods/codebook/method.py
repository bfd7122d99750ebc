"""Codebooks: scalars or short vectors of a matrix as codes of a few bits into shared tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.codebooks import MAX_CODE_BITS, codebook_matmul, codebook_rows
from ...kernels.packing import MAX_CODEBOOKS, PackedCodes, packed_nbytes
from ...metrics import Covariance, Diagonal, Frobenius
from ..base import Method
from ..factors import ROWS_AT_ONCE, Config, Factors, Tensors, check_ids
from ..forward import ArrayNamespace, constant, transpose
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor
from .cells import CodebookSettings, find_codes
from .outputs import OutputProblem, improve_outputs
from .sharing import Coded, Sharing

TABLE_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CodebookFactors(Factors):
    """Every ``vector_dim`` neighbours in a row are a vector of a table, or a sum of several.

    Attributes
    ----------
    packed : PackedCodes
        Which vector; its bytes are the tensor ``codes``.
    codebook : array of shape ([n_codebooks,] [out_features,] [n_groups,] 2**n_bits, vector_dim)
        float16, bfloat16 or float32. One table for all, or for each row, each group of columns, or
        each row and group; an axis of codebooks before where there is more than one.
    group_size : int
        Columns of a group; 0 where all columns share a table.
    """

    kind: ClassVar[str] = "codebook"
    trainable: ClassVar[tuple[str, ...]] = ("codebook",)

    packed: PackedCodes
    codebook: Array
    group_size: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        found = self._rows(check_ids(ids, self.shape[0]), n_threads)
        return found.astype(self.dtype, copy=False)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        if x.dtype != np.float64:
            return codebook_matmul(
                x,
                self.packed,
                self.codebook,
                group_size=self.group_size or None,
                n_threads=n_threads,
            )
        # The product from codes is float32's: float64 takes a few decoded rows at a time.
        result = np.empty((len(x), self.shape[0]))
        for first in range(0, self.shape[0], ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, self.shape[0])
            result[:, first:last] = x @ self._rows(np.arange(first, last), n_threads).T
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        vectors = xp.reshape(tensors["codebook"], (-1, self.packed.vector_dim))
        W = None
        for places in self._places:
            part = xp.take(vectors, constant(xp, places, x), axis=0)
            W = part if W is None else W + part
        return xp.matmul(x, transpose(xp, xp.reshape(W, self.shape)))

    def tensors(self) -> Tensors:
        return {"codes": self.packed.data, "codebook": self.codebook}

    def config(self) -> Config:
        return {
            "n_bits": self.packed.n_bits,
            "vector_dim": self.packed.vector_dim,
            "n_codebooks": self.packed.n_codebooks,
            "group_size": self.group_size,
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> CodebookFactors:
        n_bits = stored_number(config, "n_bits", 1, MAX_CODE_BITS)
        # Where there are no columns any length fits them, and the tables say whether it is theirs.
        vector_dim = stored_number(config, "vector_dim", 1, shape[1] or 2**31 - 1)
        n_codebooks = stored_number(config, "n_codebooks", 1, MAX_CODEBOOKS)
        group_size = stored_number(config, "group_size", 0, max(shape[1] - 1, 0))
        if shape[1] % vector_dim or group_size % vector_dim:
            raise CorruptDataError(
                f"'vector_dim' must divide the columns and 'group_size', {shape[1]} and "
                f"{group_size}, got {vector_dim}"
            )
        segment = packed_nbytes(shape[1] // vector_dim, n_bits)
        codes = stored_tensor(tensors, "codes", ("uint8",), (shape[0], n_codebooks * segment))
        sharing = Sharing(shape, vector_dim, False, group_size)
        rank = 2 + (n_codebooks > 1) + (group_size > 0)
        if "codebook" in tensors and tensors["codebook"].ndim == rank + 1:
            sharing = Sharing(shape, vector_dim, True, group_size)
        expected = sharing.table_shape(n_codebooks, 2**n_bits)
        codebook = stored_tensor(tensors, "codebook", TABLE_DTYPES, expected)
        packed = PackedCodes(codes, n_bits, shape, vector_dim, n_codebooks)
        return cls(
            packed=packed, codebook=codebook, group_size=group_size, shape=shape, dtype=dtype
        )

    def _rows(self, ids: Array, n_threads: int | None) -> Array:
        return codebook_rows(
            self.packed,
            self.codebook,
            ids,
            group_size=self.group_size or None,
            n_threads=n_threads,
        )

    @cached_property
    def _places(self) -> Array:
        """(n_codebooks, codes): which vector of all tables, laid one after the other."""
        packed = self.packed
        codes = packed.unpack().reshape(
            packed.n_codebooks, self.shape[0], self.shape[1] // packed.vector_dim
        )
        rank = 2 + (packed.n_codebooks > 1) + (self.group_size > 0)
        sharing = Sharing(self.shape, packed.vector_dim, self.codebook.ndim > rank, self.group_size)
        return sharing.places(codes, 2**packed.n_bits).reshape(packed.n_codebooks, -1)


@dataclass(frozen=True, kw_only=True)
class Codebook(Method):
    """k-means of a matrix's scalars or vectors: codes of ``n_bits`` and tables of 2**n_bits.

    Parameters
    ----------
    n_bits : int, optional
        Bits of a code, 1 to 8. A weight takes ``n_bits · n_codebooks / vector_dim`` bits, tables
        apart.
    vector_dim : int
        Neighbours in a row that a code stands for; divides the columns of W.
    granularity : {"tensor", "row"}
        Who shares a table: the whole matrix, or each row by itself.
    group_size : int, optional
        Every so many columns have tables of their own; a multiple of ``vector_dim``, the last group
        may be shorter. Equal to ``vector_dim`` it is product quantization.
    n_codebooks : int
        More than 1: a vector is the sum of one vector of each of so many tables.
    balanced : bool
        Every vector of a table is used equally often, to one. For one codebook only. Takes 8 bytes
        of memory for each pair of a vector of W and one of the table that it shares.
    codebook_dtype : {"float16", "bfloat16", "float32"}, optional
        Of the tables. Unless given, W's, and float32 for float64.
    n_init : int
        How often vectors of one codebook, or scalars that are balanced, are clustered, each time
        from another start; the best counts. Of wordllama's embeddings, vectors of 8 in 8 bits, the
        error is 0.3295, 0.3292 and 0.3290 with 1, 2 and 3.
    random_state : int, Generator, RandomState or None
        Seed of the starts. Scalars that are not balanced need none.
    ratio, max_error : float, optional
        As in :class:`Method`, by ``n_bits``; all else stays as it is set.

    Raises
    ------
    TypeError, ValueError
        For settings out of range or at odds with each other and, when a matrix is compressed,
        columns that `vector_dim` does not divide and weights beyond the range of the tables'
        dtype.

    Notes
    -----
    Scalars: the optimum (:func:`fastfactor.kmeans1d`), among values of ``codebook_dtype`` where
    that has 16 bits. Vectors: k-means++ and Lloyd; what is rounded is coded once more.

    Sums begin as a product quantizer or, each codebook on what those before left over, as a
    residual one, whichever has less error. Then all tables are refitted by least squares and codes
    improved in turn by iterated local search, tables with noise that dies away (as in LSQ++). That
    takes some 20 times as long as product quantization with as many codes, and at least 15 ms for
    each part of W that has tables of its own.

    Under an importance each coordinate of each vector has its own weight, in distances and means.
    Under an input covariance codes are improved by coordinate descent, each place given all others,
    and tables by conjugate gradients, from the plain result on or that for the inputs' variances;
    a round costs some ``25 · out · in²`` operations: 4096 x 1024 at 4 bits took 24 s of one core.
    What is balanced keeps its codes, and tables are improved. Under no metric is a result worse
    than without it.

    The same bits for any number of threads, but with several codebooks, an importance of vectors
    or an input covariance, which go through NumPy's BLAS and LAPACK.

    Sources: H. Jégou, M. Douze, C. Schmid, Product Quantization for Nearest Neighbor Search, 2011;
    J. Martinez et al., LSQ++: lower running time and higher recall in multi-codebook quantization,
    2018; E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, GPTQ, 2023, for the error of outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import Codebook
    >>> W = np.array([[0.0, 0.1, 5.0, 5.1], [0.1, 5.0, 5.1, 0.0]], np.float32)
    >>> factors = Codebook(n_bits=1).compress(W)
    >>> factors.codebook.ravel(), factors.nbytes
    (array([0.05, 5.05], dtype=float32), 10)
    >>> Codebook(n_bits=1, vector_dim=2).compress(W).bits_per_weight
    18.0
    """

    parameter: ClassVar[str] = "n_bits"
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    n_bits: int | None = None
    vector_dim: int = 1
    granularity: str = "tensor"
    group_size: int | None = None
    n_codebooks: int = 1
    balanced: bool = False
    codebook_dtype: str | None = None
    n_init: int = 2
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_bits is not None:
            _checks.integer(self.n_bits, "n_bits", 1, MAX_CODE_BITS)
        _checks.integer(self.vector_dim, "vector_dim", 1)
        _checks.choice(self.granularity, "granularity", ("tensor", "row"))
        if self.group_size is not None:
            size = _checks.integer(self.group_size, "group_size", 1)
            if size % self.vector_dim:
                raise ValueError(
                    f"group_size must be a multiple of vector_dim, {self.vector_dim}, got {size}"
                )
        _checks.integer(self.n_codebooks, "n_codebooks", 1, MAX_CODEBOOKS)
        _checks.integer(self.n_init, "n_init", 1)
        _checks.boolean(self.balanced, "balanced")
        if self.balanced and self.n_codebooks > 1:
            raise ValueError(
                f"balanced must be False where there are several codebooks, got True and "
                f"n_codebooks = {self.n_codebooks}"
            )
        if self.codebook_dtype is not None:
            _checks.choice(self.codebook_dtype, "codebook_dtype", TABLE_DTYPES)

    def _compress(self, problem: Problem) -> CodebookFactors:
        assert self.n_bits is not None
        settings = CodebookSettings(
            sharing=self._sharing(problem.W.shape),
            n_bits=self.n_bits,
            n_codebooks=self.n_codebooks,
            balanced=self.balanced,
            dtype=self._table_dtype(problem.W.dtype),
            n_init=self.n_init,
            seed=_checks.seed(self.random_state),
            n_threads=problem.n_threads,
        )
        check_range(problem.W, settings.dtype)
        found = find_codes(problem.W, problem.importance, settings)
        if problem.input_covariance is not None and problem.W.size:
            found = _improved_for_outputs(problem.W, problem.input_covariance, settings, found)
        packed = PackedCodes.pack(
            found.codes if self.n_codebooks > 1 else found.codes[0],
            self.n_bits,
            vector_dim=self.vector_dim,
            n_threads=problem.n_threads,
        )
        return CodebookFactors(
            packed=packed,
            codebook=found.tables,
            group_size=settings.sharing.group_size,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _levels(self, problem: Problem) -> Sequence[int]:
        return range(1, MAX_CODE_BITS + 1) if problem.W.size else ()

    def _size(self, problem: Problem) -> Size:
        W, n_bits = problem.W, self.n_bits or 1
        tables = prod(self._sharing(W.shape).table_shape(self.n_codebooks, 2**n_bits))
        segment = packed_nbytes(W.shape[1] // self.vector_dim, n_bits)
        codes = W.shape[0] * self.n_codebooks * segment
        return Size(codes + tables * self._table_dtype(W.dtype).itemsize, exact=True)

    def _sharing(self, shape: tuple[int, ...]) -> Sharing:
        rows, columns = shape
        if columns % self.vector_dim:
            raise ValueError(
                f"vector_dim must divide the columns of W, {columns}, got {self.vector_dim}"
            )
        size = self.group_size or 0
        by_row = self.granularity == "row"
        return Sharing((rows, columns), self.vector_dim, by_row, size if size < columns else 0)

    def _table_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return table_dtype(self.codebook_dtype, dtype)


def _improved_for_outputs(
    W: Array, covariance: Array, settings: CodebookSettings, plain: Coded
) -> Coded:
    """Improve codes and tables for the outputs, from the plain ones or those for the variances."""
    starts = [plain]
    variances = np.diagonal(covariance)
    if settings.n_codebooks == 1 and variances.max() > 0:
        importance = np.broadcast_to(np.maximum(variances, 0), W.shape)
        starts.append(find_codes(W, importance, settings))
    outputs = OutputProblem(
        W, covariance, settings.sharing, settings.dtype, codes_stay=settings.balanced
    )
    return improve_outputs(outputs, starts)


def table_dtype(name: str | None, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a table is held in: the dtype named, else W's, float32 for float64."""
    if name is None:
        return np.dtype(np.float32) if dtype == np.float64 else dtype
    return _checks.dtype_named(name)


def check_range(W: Array, dtype: np.dtype[Any]) -> None:
    """That tables can hold what W, which is finite, holds."""
    if W.dtype in (dtype, np.float16):
        return  # it must; NumPy's maximum of 16-bit floats took a sixth of a file's time
    limit = float(np.finfo(np.float16 if dtype == np.float16 else np.float32).max)
    largest = max(float(W.max(initial=0)), -float(W.min(initial=0)))
    if largest > limit:
        raise ValueError(f"W must be within ±{limit:.6g} for tables of {dtype}, got ±{largest:.6g}")

"""Codebooks: scalars or short vectors of a matrix as codes of a few bits into shared tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._arrays import as_array
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.codebooks import (
    MAX_CODE_BITS,
    codebook_look_up,
    codebook_matmul,
    codebook_product,
    codebook_rows,
)
from ...kernels.packing import MAX_CODEBOOKS, PackedCodes, packed_nbytes
from ...metrics import Covariance, Diagonal, Frobenius
from ..base import Method
from ..factors import ROWS_AT_ONCE, Config, Factors, Tensors, check_ids
from ..forward import ArrayNamespace, constant, length, transpose
from ..narrow import check_kept, narrowed
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor
from .cells import CodebookSettings, find_codes
from .outputs import OutputProblem, improve_outputs
from .sharing import Coded, Sharing

TABLE_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CodebookFactors(Factors):
    """``vector_dim`` neighbours in a row are one vector of a table, or the sum of several.

    Attributes
    ----------
    packed : PackedCodes
        The codes; their bytes are the tensor ``codes``.
    codebook : array of shape ([n_codebooks,] [out_features,] [n_groups,] 2**n_bits, vector_dim)
        float16, bfloat16 or float32. One table for the whole matrix, or one for each row, each
        group of columns, or each row and group. With several codebooks, they are the first axis.
    group_size : int
        Number of columns in a group; 0 if all columns share a table.
    """

    kind: ClassVar[str] = "codebook"
    trainable: ClassVar[tuple[str, ...]] = ("codebook",)

    packed: PackedCodes
    codebook: Array
    group_size: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        return narrowed(self._rows(check_ids(ids, self.shape[0]), n_threads), self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        if x.dtype != np.float64:
            return codebook_matmul(
                x,
                self.packed,
                self.codebook,
                group_size=self.group_size or None,
                n_threads=n_threads,
            )
        # `codebook_matmul` computes in float32; for float64, decode a few rows at a time.
        result = np.empty((len(x), self.shape[0]))
        for first in range(0, self.shape[0], ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, self.shape[0])
            result[:, first:last] = x @ self._rows(np.arange(first, last), n_threads).T
        return result

    def _prepared_linear(self) -> Callable[[Array, int], Array]:
        size = self.group_size or None
        return codebook_product(self.packed, self.codebook, group_size=size)

    def _prepared_rows(self) -> Callable[[Array, int], Array]:
        size = self.group_size or None
        found = codebook_look_up(self.packed, self.codebook, group_size=size)
        return lambda ids, n_threads: narrowed(found(ids, n_threads), self.dtype)

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        # Products of x with the tables, to be looked up instead of W, would cost less than W only
        # for fewer inputs than a vector has numbers.
        W = self._decoded(xp, tensors["codebook"], [constant(xp, p, x) for p in self._places])
        return xp.matmul(x, transpose(xp, W))

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        codebook = tensors["codebook"]
        places = [xp.take(constant(xp, p, codebook), ids, axis=0) for p in self._places]
        return self._decoded(xp, codebook, places)

    def _decoded(self, xp: ArrayNamespace, codebook: Any, places: Sequence[Any]) -> Any:
        """Return the rows whose vectors have these places (rows, codes), one array a codebook."""
        n, each = places[0].shape
        vectors, rows = xp.reshape(codebook, (-1, self.packed.vector_dim)), None
        for of_book in places:
            part = xp.take(vectors, xp.reshape(of_book, (length(n, each),)), axis=0)
            rows = part if rows is None else rows + part
        return xp.reshape(rows, (length(n), self.shape[1]))

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
        # Without columns any vector_dim is possible here; the shape of the tables is checked below.
        vector_dim = stored_number(config, "vector_dim", 1, shape[1] or 2**31 - 1)
        n_codebooks = stored_number(config, "n_codebooks", 1, MAX_CODEBOOKS)
        group_size = stored_number(config, "group_size", 0, max(shape[1] - 1, 0))
        if shape[1] % vector_dim or group_size % vector_dim:
            raise CorruptDataError(
                f"'vector_dim' must divide the number of columns, {shape[1]}, and 'group_size', "
                f"{group_size}, got {vector_dim}"
            )
        segment = packed_nbytes(shape[1] // vector_dim, n_bits)
        codes = stored_tensor(tensors, "codes", ("uint8",), (shape[0], n_codebooks * segment))
        rank = 2 + (n_codebooks > 1) + (group_size > 0)
        by_row = (
            "codebook" in tensors
            and as_array(tensors["codebook"], "tensor 'codebook'").ndim == rank + 1
        )
        sharing = Sharing(shape, vector_dim, by_row, group_size)
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
    def _places(self) -> tuple[Array, ...]:
        """For each codebook the index of each code's vector among all tables, (rows, codes)."""
        packed = self.packed
        codes = packed.unpack().reshape(
            packed.n_codebooks, self.shape[0], self.shape[1] // packed.vector_dim
        )
        rank = 2 + (packed.n_codebooks > 1) + (self.group_size > 0)
        sharing = Sharing(self.shape, packed.vector_dim, self.codebook.ndim > rank, self.group_size)
        return tuple(sharing.places(codes, 2**packed.n_bits))


@dataclass(frozen=True, kw_only=True)
class Codebook(Method):
    """K-means of a matrix's scalars or vectors: codes of ``n_bits`` bits into tables of 2**n_bits.

    Parameters
    ----------
    n_bits : int, optional
        Bits of a code, 1 to 8. A weight takes ``n_bits · n_codebooks / vector_dim`` bits, not
        counting the tables.
    vector_dim : int
        Number of neighbours in a row that a code stands for. It must divide the columns of W.
    granularity : {"tensor", "row"}
        Whether all rows share a table or each row has its own.
    group_size : int, optional
        Number of columns in a group that has its own tables: a multiple of ``vector_dim``. The last
        group may be shorter. If equal to ``vector_dim``, this is product quantization.
    n_codebooks : int
        If more than 1, a vector is the sum of one vector from each of this many tables.
    balanced : bool
        Use the vectors of a table equally often, give or take one. For one codebook only. Needs 8
        bytes of memory for each pair of a vector of W and a vector of its table.
    codebook_dtype : {"float16", "bfloat16", "float32"}, optional
        Dtype of the tables. Defaults to W's, or to float32 if W is float64.
    n_init : int
        Number of starts for the clustering of vectors with one codebook, or of balanced scalars.
        The best result is kept. On wordllama's embeddings, vectors of 8 in 8 bits have the error
        0.3295, 0.3292 and 0.3290 with 1, 2 and 3 starts.
    random_state : int, Generator, RandomState or None
        Seed of the starts. With one codebook, scalars that are not balanced do not use it.
    ratio, max_error : float, optional
        As in :class:`Method`: they choose ``n_bits``, and all other settings apply.

    Raises
    ------
    TypeError, ValueError
        For settings out of range or in conflict with each other. In `compress`, also for columns
        that `vector_dim` does not divide and weights beyond the range of the tables' dtype.

    Notes
    -----
    For scalars the result is optimal (:func:`fastfactor.kmeans1d`), among values of
    ``codebook_dtype`` if that has 16 bits. Vectors are clustered by k-means++ and Lloyd's
    algorithm; if the tables are rounded, codes are assigned once more.

    Sums of several codebooks start as a product quantizer or as a residual quantizer (each codebook
    fits what those before left over), whichever has less error. Then least squares refits the
    tables and iterated local search improves the codes, in turn, while noise is added to the tables
    and fades away (as in LSQ++). This takes about 20 times as long as product quantization with as
    many codes, and at least 15 ms for each part of W that has its own tables.

    Under an importance, each coordinate of each vector has its own weight in distances and means.
    Under an input covariance, coordinate descent improves the codes, each with all others fixed,
    and conjugate gradients improve the tables. The start is the plain result or that for the
    inputs' variances. A round costs about ``25 · out · in²`` operations: 4096 x 1024 at 4 bits took
    24 s on one core. Balanced codes are kept, and only the tables are improved. The result for a
    metric is never worse under it than the plain result.

    Results have the same bits for any number of threads. The exceptions are several codebooks, an
    importance of vectors and an input covariance, which go through NumPy's BLAS and LAPACK.

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
                f"balanced must be False if n_codebooks is above 1, got True and "
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

    def _tries_plain(self, problem: Problem) -> bool:
        return False  # `_compress` starts from the result without the metric, or finds the best

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
    """Return codes and tables that have less error in the layer's outputs.

    The start is the plain result or that for the inputs' variances, whichever has less.
    """
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
    """Return the dtype to store tables in: the one named, else W's, or float32 for float64."""
    if name is None:
        return np.dtype(np.float32) if dtype == np.float64 else dtype
    return _checks.dtype_named(name)


def check_range(W: Array, dtype: np.dtype[Any]) -> None:
    """Check that the tables' dtype can hold the values of a finite W."""
    if W.dtype in (dtype, np.float16):
        return  # always in range; NumPy's maximum of 16-bit floats took a sixth of a file's time
    limit = float(np.finfo(np.float16 if dtype == np.float16 else np.float32).max)
    largest = max(float(W.max(initial=0)), -float(W.min(initial=0)))
    if largest > limit:
        raise ValueError(f"W must be within ±{limit:.6g} for tables of {dtype}, got ±{largest:.6g}")
    check_kept(W, dtype, "W", "tables")

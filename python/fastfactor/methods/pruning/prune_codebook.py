"""Pruning and weight sharing: kept weights are codes into one table, the others are zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.codebooks import MAX_CODE_BITS
from ...kernels.gaps import gap_encode
from ...kernels.packing import pack_bits, packed_nbytes, unpack_bits
from ...kernels.scalar_clustering import kmeans1d
from ...kernels.sparse import CSR
from ...kernels.sparse_codes import SparseCodes
from ..base import Method
from ..codebook.method import TABLE_DTYPES, check_range, table_dtype
from ..factors import Config, Factors, Tensors
from ..search import Problem, Size
from ..stored import stored_number, stored_tensor
from .kept_places import KeptPlaces, kept_csr
from .prune import Prune
from .shared_weights import SharedWeightsFactors
from .value_numbers import ValueNumbers


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PruneCodebookFactors(SharedWeightsFactors):
    """The codes of the weights that are kept, their places, and the table of values.

    Attributes
    ----------
    codes : uint8 array
        The codes in C order, ``n_bits`` bits each, packed like one row of
        :class:`fastfactor.PackedCodes`.
    codebook : array of shape (2**n_bits, 1)
        float16, bfloat16 or float32; one of its values is zero.
    kept : KeptPlaces
        The places of the kept weights, stored as the tensor ``positions``.
    n_bits : int
    """

    kind: ClassVar[str] = "prune_codebook"

    codes: Array
    codebook: Array
    kept: KeptPlaces
    n_bits: int

    def tensors(self) -> Tensors:
        return {"codes": self.codes, "codebook": self.codebook, **self.kept.tensors()}

    def config(self) -> Config:
        return {"n_bits": self.n_bits, **self.kept.config()}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> PruneCodebookFactors:
        n_bits = stored_number(config, "n_bits", 1, MAX_CODE_BITS)
        kept = KeptPlaces.from_tensors(tensors, config, shape)
        n_kept = kept.n_kept()
        codes = stored_tensor(tensors, "codes", ("uint8",), (packed_nbytes(n_kept, n_bits),))
        unpack_bits(codes, n_bits, n_kept)  # refuses damaged bytes
        codebook = stored_tensor(tensors, "codebook", TABLE_DTYPES, (2**n_bits, 1))
        table = codebook.astype(np.float32)
        if not np.isfinite(table).all() or (table != 0).all():
            raise CorruptDataError("tensor 'codebook' must be finite and contain a zero")
        return cls(
            codes=codes, codebook=codebook, kept=kept, n_bits=n_bits, shape=shape, dtype=dtype
        )

    @cached_property
    def sparse_codes(self) -> SparseCodes:
        """The matrix in the form that products read, made on first use."""
        places, size = self.kept.places(), self.shape[0] * self.shape[1]
        coded = gap_encode(places, size=size, value_bits=self.n_bits)
        table = self.codebook.astype(np.float32)
        codes = np.full(coded.gaps.size, np.flatnonzero(table == 0)[0], np.uint8)
        weights = np.ones(codes.size, np.bool_)
        weights[coded.fillers] = False
        codes[weights] = self._labels(places.size)
        return SparseCodes(codes, coded.gaps, coded.gap_bits, self.codebook, self.shape)

    def _labels(self, n_kept: int) -> Array:
        """Return the codes of the kept weights, unpacked."""
        return unpack_bits(self.codes, self.n_bits, n_kept)

    @cached_property
    def _kept(self) -> tuple[Array, Array]:
        places = self.kept.places()
        return places, self.codebook.astype(np.float32)[self._labels(places.size), 0]

    @cached_property
    def _matrix(self) -> CSR:
        return kept_csr(*self._kept, self.shape)

    @cached_property
    def _numbers(self) -> ValueNumbers:
        places = self.kept.places()
        return ValueNumbers(places, self._labels(places.size), len(self.codebook), self.shape)


@dataclass(frozen=True, kw_only=True)
class PruneCodebook(Prune):
    """Pruning, then one codebook for the weights that are kept: two stages of Deep Compression.

    Parameters
    ----------
    sparsity, std_multiple, nm_sparsity, scope, block_shape, pool : optional
        Which weights are kept, as in :class:`Prune`.
    n_bits : int
        Bits of a code, 1 to 8. One of the table's 2**n_bits values is zero.
    codebook_dtype : {"float16", "bfloat16", "float32"}, optional
        The dtype of the table. Default: W's, or float32 if W is float64.
    ratio, max_error : float, optional
        As in :class:`Method`, by ``sparsity``; ``n_bits`` does not change.

    Raises
    ------
    TypeError, ValueError
        As for :class:`Prune`, and for weights beyond the range of the table's dtype.

    Notes
    -----
    The values have the least squared error for the kept weights, with zero as one of them
    (:func:`kmeans1d` with ``fixed=[0]``), weighted by the importance if one is given. Dropped
    weights have no code, so they stay zero when the table is trained. Products read the codes
    (:func:`fastfactor.sparse_codebook_matmul`) in a form that the first product makes.

    The same bits for any number of threads.

    Source: S. Han, H. Mao, W. Dally, Deep Compression, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import PruneCodebook
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> factors = PruneCodebook(sparsity=0.5, n_bits=2).compress(W)
    >>> factors.to_dense()
    array([[ 0. , -3. ,  0. ,  1.5],
           [ 4. ,  0. ,  0. ,  1.5]], dtype=float32)
    """

    n_bits: int = 4
    codebook_dtype: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.integer(self.n_bits, "n_bits", 1, MAX_CODE_BITS)
        if self.codebook_dtype is not None:
            _checks.choice(self.codebook_dtype, "codebook_dtype", TABLE_DTYPES)

    def _compress(self, problem: Problem) -> Factors:
        dtype = table_dtype(self.codebook_dtype, problem.W.dtype)
        check_range(problem.W, dtype)
        mask = self.mask_of(problem)
        codebook, labels = self._share(problem, mask, dtype)
        return PruneCodebookFactors(
            codes=pack_bits(labels, self.n_bits, n_threads=problem.n_threads),
            codebook=codebook,
            kept=KeptPlaces.from_mask(mask, self.block_shape or (1, 1)),
            n_bits=self.n_bits,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _tries_plain(self, problem: Problem) -> bool:
        # Weights that cost little to drop may leave values that are harder to share.
        return self.std_multiple is None

    def _least_nbytes(self, problem: Problem) -> int:
        dtype = table_dtype(self.codebook_dtype, problem.W.dtype)
        n_kept, positions = self._fewest(problem)
        codes = packed_nbytes(n_kept, self.n_bits)
        return int(2**self.n_bits * dtype.itemsize) + codes + positions

    def _size(self, problem: Problem) -> Size | None:
        most = self._most(problem)
        if most is None:
            return None
        n_kept, positions = most
        table = 2**self.n_bits * table_dtype(self.codebook_dtype, problem.W.dtype).itemsize
        return Size(packed_nbytes(n_kept, self.n_bits) + table + positions, exact=False)

    def _search(self, problem: Problem) -> Factors:
        # Prune's own search counts only the error of pruning, not that of sharing values.
        return Method._search(self, problem)

    def _share(self, problem: Problem, mask: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Return the table (K, 1) and the code of each kept weight."""
        values = problem.W[mask]
        if values.size == 0:
            return np.zeros((2**self.n_bits, 1), dtype), np.zeros(0, np.int32)
        weights = None
        if problem.importance is not None:
            weights = problem.importance[mask]
            weights = weights if weights.max() > 0 else None
        best = kmeans1d(
            values,
            2**self.n_bits,
            sample_weight=weights,
            fixed=[0],
            centroid_dtype=dtype.name if dtype.itemsize == 2 else None,
            n_threads=problem.n_threads,
        )
        return best.centroids.astype(dtype), best.labels

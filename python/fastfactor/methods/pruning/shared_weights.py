"""What all factors of pruned weights with shared values have in common: look-ups and products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..._checks import Array
from ...kernels.sparse import CSR, spmm
from ...kernels.sparse_codes import SparseCodes, sparse_codebook_matmul, sparse_codebook_product
from ..factors import Factors, check_ids
from ..forward import ArrayNamespace
from .kept_places import kept_rows
from .value_numbers import ValueNumbers


class SharedWeightsFactors(Factors):
    """Base of factors that keep few weights, each a code into one codebook."""

    trainable: ClassVar[tuple[str, ...]] = ("codebook",)

    codebook: Array  # (K, 1): declared again by subclasses, because files keep the order of fields

    @property
    @abstractmethod
    def sparse_codes(self) -> SparseCodes:
        """The matrix in the form that products read."""

    @property
    @abstractmethod
    def _numbers(self) -> ValueNumbers:
        """Which value of the codebook each kept weight has."""

    @property
    @abstractmethod
    def _kept(self) -> tuple[Array, Array]:
        """The places of the kept weights in C order, ascending, and their values in float32."""

    @cached_property
    def _matrix(self) -> CSR:
        return self.sparse_codes.to_csr()

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        return kept_rows(*self._kept, ids, self.shape, self.dtype)

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        if x.dtype == np.float64:  # the product by codes is computed in float32
            return spmm(self._matrix, x.T, n_threads=n_threads).T
        return sparse_codebook_matmul(x, self.sparse_codes, n_threads=n_threads)

    def _prepared_linear(self) -> Callable[[Array, int], Array]:
        return sparse_codebook_product(self.sparse_codes)

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        return self._numbers.product(xp, xp.reshape(tensors["codebook"], (-1,)), x)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        return self._numbers.rows(xp, xp.reshape(tensors["codebook"], (-1,)), ids)

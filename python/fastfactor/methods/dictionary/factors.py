"""The factors of `Dictionary`: atoms, and for each block a few values with their atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.packing import bits_for, packed_nbytes, unpack_bits
from ...kernels.sparse import CSR, spmm, spmm_product
from ..factors import FLOAT_NAMES, Config, Factors, Tensors, check_ids
from ..forward import (
    ArrayNamespace,
    constant,
    gathered_product,
    length,
    n_inputs,
    transpose,
    with_zero,
    zero_product,
    zero_rows,
)
from ..narrow import narrowed
from ..stored import stored_number, stored_tensor

# Inputs multiplied at once, so that their products with the atoms stay in cache.
BATCH_AT_ONCE = 256


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DictionaryFactors(Factors):
    """A matrix whose rows are cut into blocks, each the sum of ``value · atom`` over a few atoms.

    Attributes
    ----------
    dictionary : array of shape (n_atoms, block_size)
    values : array of shape (n_nonzeros,)
        Block by block, a row's blocks from left to right.
    indices : uint8 array
        The atom of each value, in ⌈log₂ n_atoms⌉ bits each, least significant bit first.
    counts : uint8 array
        The number of values of each block, in ``count_bits`` bits each; empty if all blocks have
        ``count`` values.
    count_bits, count : int
    """

    kind: ClassVar[str] = "dictionary"
    trainable: ClassVar[tuple[str, ...]] = ("values", "dictionary")

    dictionary: Array
    values: Array
    indices: Array
    counts: Array
    count_bits: int
    count: int

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        if len(self.values) == 0:  # then there may be any number of blocks
            return np.zeros((*ids.shape, self.shape[1]), self.dtype)
        part, dictionary = self._codes_of(ids.reshape(-1)), self._wide
        found = spmm(part, dictionary, n_threads=n_threads)
        return narrowed(found.reshape(*ids.shape, self.shape[1]), self.dtype)

    def _codes_of(self, ids: Array) -> CSR:
        """Return the codes of the blocks of these rows (n,) as a CSR of shape (blocks, n_atoms)."""
        codes, n = self._codes, self.shape[1] // self._block_size
        if np.array_equal(ids, np.arange(self.shape[0])):
            return codes
        blocks = (ids[:, None] * n + np.arange(n)).reshape(-1)
        begins = codes.indptr[blocks]
        counts = codes.indptr[blocks + 1] - begins
        indptr = np.zeros(len(blocks) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        at = np.repeat(begins - indptr[:-1], counts) + np.arange(indptr[-1])
        return CSR(codes.data[at], codes.indices[at], indptr, (len(blocks), codes.shape[1]))

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        dictionary = self._wide
        dtype = _checks.result_dtype(x, dictionary, self.values)
        if len(self.values) == 0:
            return np.zeros((len(x), self.shape[0]), dtype)
        result = np.empty((len(x), self.shape[0]), dtype)
        for first in range(0, len(x), BATCH_AT_ONCE):
            part = x[first : first + BATCH_AT_ONCE].astype(dtype)
            # Multiply each atom by each block once, for all outputs.
            found = part.reshape(-1, self._block_size) @ dictionary.T
            found = found.reshape(len(part), -1)
            result[first : first + len(part)] = spmm(self._by_row, found.T, n_threads=n_threads).T
        return result

    def _prepared_linear(self) -> Callable[[Array, int], Array]:
        if len(self.values) == 0:
            return self._linear
        atoms, product = self._wide.T, spmm_product(self._by_row)

        def multiply(x: Array, n_threads: int) -> Array:
            if len(x) > BATCH_AT_ONCE:
                return self._linear(x, n_threads)
            found = x.reshape(-1, self._block_size) @ atoms
            return product(found.reshape(len(x), -1), n_threads)

        return multiply

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        if len(self.values) == 0:  # then there may be any number of rows
            return zero_product(xp, tensors["values"], x, self.shape)
        batch = n_inputs(x)
        # A value reads a number for each input in one product, and block_size to build W.
        if batch is not None and batch <= self._block_size:
            return self._gathered(xp, tensors, x)
        slots = [[constant(xp, table, x) for table in slot] for slot in self._slots]
        return xp.matmul(x, transpose(xp, self._sums(xp, tensors, slots)))

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        values = tensors["values"]
        if len(self.values) == 0:
            return zero_rows(xp, values, ids, self.shape)
        slots = [
            [xp.take(constant(xp, table, values), ids, axis=0) for table in slot]
            for slot in self._slots
        ]
        return self._sums(xp, tensors, slots)

    def _gathered(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        """Return `forward` by products of each block of x with each atom, without building W."""
        which, columns = (constant(xp, table, x) for table in self._slots_by_row)
        n_blocks = self.shape[1] // self._block_size
        blocks = xp.reshape(x, (-1, self._block_size))
        found = xp.matmul(blocks, transpose(xp, tensors["dictionary"]))
        found = xp.reshape(found, (*x.shape[:-1], n_blocks * len(self.dictionary)))
        values = xp.take(with_zero(xp, tensors["values"]), xp.reshape(which, (-1,)), axis=0)
        return gathered_product(xp, values, columns, found)

    def _sums(
        self, xp: ArrayNamespace, tensors: Mapping[str, Any], slots: Sequence[Sequence[Any]]
    ) -> Any:
        """Return the rows whose blocks have these values and atoms in each slot, both (n, blocks).

        One slot after the other, because PyTorch's gradients of a product over all slots at once
        take 40 % longer.
        """
        n, n_blocks = slots[0][0].shape
        values, rows = with_zero(xp, tensors["values"]), None
        for slot in slots:
            which, atom = (xp.reshape(table, (length(n, n_blocks),)) for table in slot)
            value = xp.reshape(xp.take(values, which, axis=0), (length(n, n_blocks), 1))
            part = value * xp.take(tensors["dictionary"], atom, axis=0)
            rows = part if rows is None else rows + part
        return xp.reshape(rows, (length(n), self.shape[1]))

    def tensors(self) -> Tensors:
        found = super().tensors()
        if self.count_bits == 0:
            del found["counts"]
        return found

    def config(self) -> Config:
        return {"piece": self._block_size, "count_bits": self.count_bits, "count": self.count}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> DictionaryFactors:
        block_size = stored_number(config, "piece", 1, max(shape[1], 1))
        if shape[1] % block_size:
            raise CorruptDataError(f"'piece' must divide {shape[1]}, got {block_size}")
        n = shape[0] * (shape[1] // block_size)
        count_bits = stored_number(config, "count_bits", 0, 32)
        count = stored_number(config, "count", 0, block_size if count_bits == 0 else 0)
        dictionary = stored_tensor(tensors, "dictionary", FLOAT_NAMES, (None, block_size))
        if count_bits:
            counts_nbytes = packed_nbytes(n, count_bits)
            counts = stored_tensor(tensors, "counts", ("uint8",), (counts_nbytes,))
            each = unpack_bits(counts, count_bits, n)
            if (each > block_size).any():
                raise CorruptDataError(f"'counts' must be at most {block_size}, got {each.max()}")
            total = int(each.sum(dtype=np.int64))
        else:
            counts, total = np.zeros(0, np.uint8), n * count
        values = stored_tensor(tensors, "values", FLOAT_NAMES, (total,))
        bits = bits_for(len(dictionary))
        indices = stored_tensor(tensors, "indices", ("uint8",), (packed_nbytes(total, bits),))
        atoms = unpack_bits(indices, bits, total)
        if total and int(atoms.max()) >= len(dictionary):
            raise CorruptDataError(
                f"'indices' must be less than {len(dictionary)}, got {atoms.max()}"
            )
        return cls(
            dictionary=dictionary,
            values=values,
            indices=indices,
            counts=counts,
            count_bits=count_bits,
            count=count,
            shape=shape,
            dtype=dtype,
        )

    @property
    def _block_size(self) -> int:
        return int(self.dictionary.shape[1])

    @cached_property
    def _wide(self) -> Array:
        """The atoms in the dtype in which products are computed."""
        wide: Array = self.dictionary.astype(_checks.result_dtype(self.dictionary), copy=False)
        return wide

    @cached_property
    def _codes(self) -> CSR:
        """The codes as a CSR of shape (blocks, n_atoms)."""
        n = self.shape[0] * (self.shape[1] // self._block_size)
        indptr = np.arange(n + 1, dtype=np.int64) * self.count
        if self.count_bits:
            np.cumsum(unpack_bits(self.counts, self.count_bits, n), out=indptr[1:])
        n_atoms = len(self.dictionary)
        atoms = unpack_bits(self.indices, bits_for(n_atoms), len(self.values)).astype(np.int32)
        values = self.values.astype(_checks.result_dtype(self.values), copy=False)
        return CSR(values, atoms, indptr, (n, n_atoms))._with_data(values)

    @cached_property
    def _by_row(self) -> CSR:
        """The codes as a CSR of shape (out_features, blocks a row · n_atoms).

        Column ``p * n_atoms + a`` belongs to atom a in block p of a row.
        """
        codes, n = self._codes, self.shape[1] // self._block_size
        n_atoms = codes.shape[1]
        block_of = np.repeat(np.arange(codes.shape[0]) % n, np.diff(codes.indptr))
        columns = (codes.indices + block_of * n_atoms).astype(np.int64)
        if n * n_atoms < 1 << 31:
            columns = columns.astype(np.int32)
        by_row = CSR(codes.data, columns, codes.indptr[::n], (self.shape[0], n * n_atoms))
        return by_row._with_data(codes.data)

    @cached_property
    def _slots(self) -> list[tuple[Array, Array]]:
        """For the first, second, … value of every block: its index in `values`, and its atom.

        Both are of shape (out_features, blocks of a row). If a block has no such value, the index
        is the number of values, and the atom is arbitrary.
        """
        codes = self._codes
        counts = np.diff(codes.indptr)
        shape = (self.shape[0], self.shape[1] // self._block_size)
        slots = []
        for slot in range(int(counts.max(initial=0))):
            which = np.where(counts > slot, codes.indptr[:-1] + slot, len(codes.indices))
            atom = np.append(codes.indices, 0).astype(np.int64)[which]
            slots.append((which.reshape(shape), atom.reshape(shape)))
        return slots

    @cached_property
    def _slots_by_row(self) -> tuple[Array, Array]:
        """For each row of W the indices in `values`, and where `_by_row` has its columns.

        Both are of shape (out_features, slots of all blocks in a row).
        """
        n_blocks = self.shape[1] // self._block_size
        first = np.arange(n_blocks) * len(self.dictionary)
        which = np.concatenate([which for which, _ in self._slots], axis=1)
        return which, np.concatenate([first + atom for _, atom in self._slots], axis=1)

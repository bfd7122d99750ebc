"""Which places of a pruned matrix are kept, in as few bytes as either of two codes takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _checks
from ..._checks import Array
from ..._records import ArrayRecord
from ...errors import CorruptDataError
from ...kernels.gaps import gap_decode, gap_encode
from ...kernels.packing import pack_bits, packed_nbytes, unpack_bits
from ...kernels.sparse import CSR
from ..factors import Config, Tensors
from ..stored import stored_number, stored_tensor

MAX_GAP_BITS = 16


@dataclass(frozen=True, eq=False, repr=False)
class KeptPlaces(ArrayRecord):
    """The places of a matrix, or its blocks, that are kept.

    Blocks are counted row by row; those at the lower and right edge hold what is left there.

    Attributes
    ----------
    positions : uint8 array
        A bit for each block, least significant first, zeros after the last. Or, where that is less,
        how many blocks lie between each that is kept and the one before (the beginning of the
        first), and between the last and the end. Such a gap is an entry of ``gap_bits`` bits; all
        of them set mean that so many are passed, and the gap goes on in the next entry
        (:func:`fastfactor.gap_encode` with ``escape``). Entries are packed from the lowest bit of a
        byte up; of entries wider than a byte the low bytes come first, then what is left of each.
    gap_bits : int
        0 where there is a bit for each block.
    n_entries : int
        How many entries there are, 0 where there are bits.
    block : (int, int)
        Rows and columns.
    shape : (int, int)
        Of the matrix.
    """

    positions: Array
    gap_bits: int
    n_entries: int
    block: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def from_mask(cls, mask: Array, block: tuple[int, int] = (1, 1)) -> KeptPlaces:
        """Of a mask that keeps blocks whole."""
        shape = (mask.shape[0], mask.shape[1])
        # A block that is larger than the matrix is the matrix.
        block = min(block[0], max(shape[0], 1)), min(block[1], max(shape[1], 1))
        of_blocks = np.ascontiguousarray(mask[:: block[0], :: block[1]])
        size = of_blocks.size
        ends = np.append(np.flatnonzero(of_blocks), size)
        coded = gap_encode(ends, size=size + 1, value_bits=0, escape=True)
        if packed_nbytes(coded.gaps.size, coded.gap_bits) < packed_nbytes(size, 1):
            packed = _pack(coded.gaps, coded.gap_bits)
            return cls(packed, coded.gap_bits, coded.gaps.size, block, shape)
        return cls(pack_bits(of_blocks.reshape(-1), 1), 0, 0, block, shape)

    @staticmethod
    def most_nbytes(n_kept: int, n_blocks: int) -> int:
        """The most that `positions` takes, wherever so many blocks of so many are."""
        sizes = [packed_nbytes(n_blocks, 1)]
        for gap_bits in range(1, MAX_GAP_BITS + 1):
            escapes = (n_blocks - n_kept) // ((1 << gap_bits) - 1)
            sizes.append(packed_nbytes(n_kept + 1 + escapes, gap_bits))
        return min(sizes)

    def places(self) -> Array:
        """The entries of the matrix that are kept, rising, in C order.

        Raises
        ------
        CorruptDataError
            Where what is stored does not fit the matrix.
        """
        kept = self._blocks()
        if self.block == (1, 1):
            return kept
        rows, columns = self.shape
        height, width = self.block
        found = [np.zeros(0, np.int64)]
        block_rows, block_columns = np.divmod(kept, -(-columns // width))
        for row in np.unique(block_rows):
            starts = block_columns[block_rows == row] * width
            inside = (starts[:, None] + np.arange(width)).reshape(-1)
            inside = inside[inside < columns]
            these = np.arange(row * height, min((row + 1) * height, rows))
            found.append((these[:, None] * columns + inside).reshape(-1))
        return np.concatenate(found)

    def n_kept(self) -> int:
        """How many entries of the matrix are kept, known before they take memory."""
        if self.block == (1, 1):
            return int(self._blocks().size)
        (rows, columns), (height, width) = self.shape, self.block
        block_rows, block_columns = np.divmod(self._blocks(), max(-(-columns // width), 1))
        heights = np.minimum(rows - block_rows * height, height)
        return int(heights @ np.minimum(columns - block_columns * width, width))

    def tensors(self) -> Tensors:
        return {"positions": self.positions}

    def config(self) -> Config:
        return {
            "gap_bits": self.gap_bits,
            "n_entries": self.n_entries,
            "block_rows": self.block[0],
            "block_columns": self.block[1],
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Array], config: Mapping[str, Any], shape: tuple[int, int]
    ) -> KeptPlaces:
        """The inverse of `tensors` and `config`; `places` and `n_kept` check the rest."""
        positions = stored_tensor(tensors, "positions", ("uint8",), (None,))
        gap_bits = stored_number(config, "gap_bits", 0, MAX_GAP_BITS)
        n_entries = stored_number(config, "n_entries", 0, 8 * positions.size if gap_bits else 0)
        block = (
            stored_number(config, "block_rows", 1, max(shape[0], 1)),
            stored_number(config, "block_columns", 1, max(shape[1], 1)),
        )
        return cls(positions, gap_bits, n_entries, block, shape)

    def _blocks(self) -> Array:
        """Which blocks are kept."""
        size = -(-self.shape[0] // self.block[0]) * -(-self.shape[1] // self.block[1])
        if not self.gap_bits:
            return np.flatnonzero(unpack_bits(self.positions, 1, size))
        gaps = _unpack(self.positions, self.gap_bits, self.n_entries)
        ends = gap_decode(gaps, self.gap_bits, size + 1, escape=True)
        if ends.size == 0 or int(ends[-1]) != size:
            reached = int(ends[-1]) if ends.size else 0
            raise CorruptDataError(
                f"tensor 'positions' must lead to the end of the matrix, {size}, got {reached}"
            )
        return ends[:-1]


def kept_csr(places: Array, values: Array, shape: tuple[int, int]) -> CSR:
    """The matrix that has these values in these places, of float32 or float64."""
    indptr = np.searchsorted(places, np.arange(shape[0] + 1) * shape[1])
    narrow = shape[1] <= np.iinfo(np.int32).max
    columns = (places % max(shape[1], 1)).astype(np.int32 if narrow else np.int64)
    return CSR(values.astype(_checks.result_dtype(values), copy=False), columns, indptr, shape)


def dense_order(places: Array, numbers: Array, other: int, shape: tuple[int, int]) -> Array:
    """Return the numbers at these places of a matrix and ``other`` elsewhere: int64, in C order."""
    order = np.full(shape[0] * shape[1], other, np.int64)
    order[places] = numbers
    return order


def csr_rows(matrix: CSR, ids: Array, dtype: np.dtype[Any]) -> Array:
    """Some rows, any shape of ids, with their zeros."""
    flat = ids.reshape(-1)
    starts, counts = matrix.indptr[flat], np.diff(matrix.indptr)[flat]
    before = np.cumsum(counts) - counts
    taken = np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
    found = np.zeros((flat.size, matrix.shape[1]), dtype)
    found[np.repeat(np.arange(flat.size), counts), matrix.indices[taken]] = matrix.data[taken]
    return found.reshape(*ids.shape, matrix.shape[1])


def _pack(gaps: Array, gap_bits: int) -> Array:
    if gap_bits <= 8:
        return pack_bits(gaps, gap_bits)
    return np.concatenate([(gaps & 0xFF).astype(np.uint8), pack_bits(gaps >> 8, gap_bits - 8)])


def _unpack(data: Array, gap_bits: int, n_entries: int) -> Array:
    if gap_bits <= 8:
        return unpack_bits(data, gap_bits, n_entries)
    high = unpack_bits(data[n_entries:], gap_bits - 8, n_entries).astype(np.uint16)
    wide: Array = data[:n_entries] | high << np.uint16(8)
    return wide

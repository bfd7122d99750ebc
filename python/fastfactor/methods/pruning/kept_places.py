"""Which places of a pruned matrix are kept, stored as bits or as gaps, whichever is smaller."""

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
from ..narrow import narrowed
from ..stored import stored_number, stored_tensor

MAX_GAP_BITS = 16


@dataclass(frozen=True, eq=False, repr=False)
class KeptPlaces(ArrayRecord):
    """The blocks of a matrix that are kept; a block may be a single entry.

    Blocks are counted row by row. Those at the lower and right edges may be smaller.

    Attributes
    ----------
    positions : uint8 array
        One of two forms, the smaller. Either a bit for each block, least significant first, padded
        with zeros; or the gaps: the number of dropped blocks before each kept block, and after the
        last. A gap is an entry of ``gap_bits`` bits. An entry whose bits are all set skips
        2**gap_bits - 1 blocks, and the gap continues in the next entry
        (:func:`fastfactor.gap_encode` with ``escape``). Entries are packed from the lowest bit of a
        byte up. If entries are wider than a byte, the low bytes of all of them come first, then
        their packed high bits.
    gap_bits : int
        Bits of an entry; 0 if there is a bit for each block.
    n_entries : int
        The number of entries; 0 if there is a bit for each block.
    block : (int, int)
        Rows and columns of a block.
    shape : (int, int)
        Rows and columns of the matrix.
    """

    positions: Array
    gap_bits: int
    n_entries: int
    block: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def from_mask(cls, mask: Array, block: tuple[int, int] = (1, 1)) -> KeptPlaces:
        """Return the kept places of a mask that keeps or drops blocks as a whole."""
        shape = (mask.shape[0], mask.shape[1])
        # A block cannot be larger than the matrix.
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
        """Return the most bytes that `positions` takes for ``n_kept`` of ``n_blocks`` blocks."""
        sizes = [packed_nbytes(n_blocks, 1)]
        for gap_bits in range(1, MAX_GAP_BITS + 1):
            escapes = (n_blocks - n_kept) // ((1 << gap_bits) - 1)
            sizes.append(packed_nbytes(n_kept + 1 + escapes, gap_bits))
        return min(sizes)

    def places(self) -> Array:
        """Return the indices of the kept entries in C order, ascending.

        Raises
        ------
        CorruptDataError
            For positions that do not fit the matrix.
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
        """Return how many entries of the matrix are kept, without an array of all of them."""
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
        """Read what `tensors` and `config` gave; `places` and `n_kept` check the positions."""
        positions = stored_tensor(tensors, "positions", ("uint8",), (None,))
        gap_bits = stored_number(config, "gap_bits", 0, MAX_GAP_BITS)
        n_entries = stored_number(config, "n_entries", 0, 8 * positions.size if gap_bits else 0)
        block = (
            stored_number(config, "block_rows", 1, max(shape[0], 1)),
            stored_number(config, "block_columns", 1, max(shape[1], 1)),
        )
        return cls(positions, gap_bits, n_entries, block, shape)

    def _blocks(self) -> Array:
        """Return the numbers of the blocks that are kept, ascending."""
        size = -(-self.shape[0] // self.block[0]) * -(-self.shape[1] // self.block[1])
        if not self.gap_bits:
            return np.flatnonzero(unpack_bits(self.positions, 1, size))
        gaps = _unpack(self.positions, self.gap_bits, self.n_entries)
        ends = gap_decode(gaps, self.gap_bits, size + 1, escape=True)
        if ends.size == 0 or int(ends[-1]) != size:
            reached = int(ends[-1]) if ends.size else 0
            raise CorruptDataError(
                f"tensor 'positions' must end at block {size}, the end of the matrix, got {reached}"
            )
        return ends[:-1]


def kept_csr(places: Array, values: Array, shape: tuple[int, int]) -> CSR:
    """Return a CSR in float32 or float64 that has these values in these ascending places."""
    indptr = np.searchsorted(places, np.arange(shape[0] + 1) * shape[1])
    narrow = shape[1] <= np.iinfo(np.int32).max
    columns = (places % max(shape[1], 1)).astype(np.int32 if narrow else np.int64)
    wide = values.astype(_checks.result_dtype(values), copy=False)
    return CSR(wide, columns, indptr, shape)._with_data(wide)


def kept_rows(
    places: Array, values: Array, ids: Array, shape: tuple[int, int], dtype: np.dtype[Any]
) -> Array:
    """Return the dense rows with these ids, an array of any shape, of values in ascending places.

    Time and memory are those of the kept places and of the result, not of all rows.
    """
    flat = ids.reshape(-1)
    begins = flat * shape[1]
    first = places.searchsorted(begins)
    counts = places.searchsorted(begins + shape[1]) - first
    found = np.zeros(flat.size * shape[1], dtype)
    if flat.size == 1 or (
        flat.size and (np.diff(flat) == 1).all()
    ):  # as for all of W: a third of the time
        taken: Any = slice(first[0], first[-1] + counts[-1])
        to = places[taken] - begins[0] if begins[0] else places[taken]
    else:
        before = np.cumsum(counts) - counts
        taken = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
        to = places[taken] + np.repeat(np.arange(flat.size) * shape[1] - begins, counts)
    found[to] = narrowed(values[taken], dtype)
    return found.reshape(*ids.shape, shape[1])


def _pack(gaps: Array, gap_bits: int) -> Array:
    """Return the bytes of the gaps; those wider than a byte are low bytes, then high bits."""
    if gap_bits <= 8:
        return pack_bits(gaps, gap_bits)
    return np.concatenate([(gaps & 0xFF).astype(np.uint8), pack_bits(gaps >> 8, gap_bits - 8)])


def _unpack(data: Array, gap_bits: int, n_entries: int) -> Array:
    """Return the gaps that `_pack` packed."""
    if gap_bits <= 8:
        return unpack_bits(data, gap_bits, n_entries)
    high = unpack_bits(data[n_entries:], gap_bits - 8, n_entries).astype(np.uint16)
    wide: Array = data[:n_entries] | high << np.uint16(8)
    return wide

"""The factors of Deep Compression: coded weights, multiplied without decoding to dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.gaps import gap_decode
from ...kernels.packing import code_bits_for
from ...kernels.sparse_codes import SparseCodes
from ..factors import Config
from ..pruning.shared_weights import SharedWeightsFactors
from ..pruning.value_numbers import ValueNumbers
from ..stored import stored_number, stored_tensor
from .stages import CODEBOOK_DTYPES
from .streams import decoded_stream

MAX_VALUES = 256


@dataclass(frozen=True)
class LayerSizes:
    """The size of a layer after each stage: a row of the paper's tables.

    Attributes
    ----------
    n_weights : int
        The number of weights before pruning.
    n_kept, n_entries : int
        The number of weights that are not zero, and the same with the fillers that split wide gaps.
    code_bits, gap_bits : int
        Bits of a code and of a gap before Huffman coding.
    codes_nbytes, gaps_nbytes, codebook_nbytes : int
        Bytes in the file.
    """

    n_weights: int
    n_kept: int
    n_entries: int
    code_bits: int
    gap_bits: int
    codes_nbytes: int
    gaps_nbytes: int
    codebook_nbytes: int

    @property
    def kept(self) -> float:
        """The share of weights that are kept."""
        return self.n_kept / max(self.n_weights, 1)

    @property
    def coded_code_bits(self) -> float:
        """The mean number of bits of an entry's code in the file."""
        return 8 * self.codes_nbytes / max(self.n_entries, 1)

    @property
    def coded_gap_bits(self) -> float:
        """The mean number of bits of an entry's gap in the file."""
        return 8 * self.gaps_nbytes / max(self.n_entries, 1)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the weights as float32, with which the paper compares."""
        return 4 * self.n_weights

    @property
    def shared_nbytes(self) -> int:
        """Bytes of codes, gaps and codebook before Huffman coding."""
        return -(-self.n_entries * (self.code_bits + self.gap_bits) // 8) + self.codebook_nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of codes, gaps and codebook in the file."""
        return self.codes_nbytes + self.gaps_nbytes + self.codebook_nbytes

    def as_row(self) -> dict[str, Any]:
        """Return a row of a table: the sizes by name, and compressed bytes over dense ones.

        Returns
        -------
        dict of str to number
            Counts, bits and bytes; ``share`` and ``share_shared`` are fractions of the dense bytes.
        """
        return {
            "weights": self.n_weights,
            "kept": self.kept,
            "fillers": self.n_entries - self.n_kept,
            "code_bits": self.code_bits,
            "code_bits_coded": self.coded_code_bits,
            "gap_bits": self.gap_bits,
            "gap_bits_coded": self.coded_gap_bits,
            "bytes_dense": self.dense_nbytes,
            "bytes_shared": self.shared_nbytes,
            "bytes": self.nbytes,
            "share_shared": self.shared_nbytes / max(self.dense_nbytes, 1),
            "share": self.nbytes / max(self.dense_nbytes, 1),
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DeepCompressionFactors(SharedWeightsFactors):
    """Codes of the kept weights, gaps from one to the next, and the codebook of their values.

    The entries are those of :class:`fastfactor.SparseCodes`: the kept weights, and fillers of value
    zero that split gaps too wide for ``gap_bits``. Codes and gaps are each one stream of bytes. A
    stream is Huffman-coded (:func:`fastfactor.huffman_encode`) if that takes fewer bytes than
    packing; otherwise it is packed from the lowest bit of a byte up, in the smallest of 1, 2, 3, 4,
    5, 6, 8 or 16 bits that suffices. A reader tells them apart by the number of bytes.

    Attributes
    ----------
    codes : uint8 array
        The stream of the entries' codes; a code has as few bits as the codebook needs.
    codebook : array of shape (K, 1)
        The shared values, up to 256, in float16, bfloat16 or float32. The first is zero if any
        weight is pruned.
    gaps : uint8 array
        The stream of gaps: the number of places, in C order, between each entry and the one before.
    gap_bits : int
    n_entries : int
        The number of kept weights and fillers.
    """

    kind: ClassVar[str] = "deep_compression"

    codes: Array
    codebook: Array
    gaps: Array
    gap_bits: int
    n_entries: int

    def config(self) -> Config:
        # The number of weights lets a reader check that the streams belong to this shape.
        return {**super().config(), "n_weights": self.shape[0] * self.shape[1]}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> DeepCompressionFactors:
        size = shape[0] * shape[1]
        stored_number(config, "n_weights", size, size)
        codebook = stored_tensor(tensors, "codebook", CODEBOOK_DTYPES, (None, 1))
        if not 1 <= len(codebook) <= MAX_VALUES:
            raise CorruptDataError(
                f"tensor 'codebook' must hold 1 to {MAX_VALUES} values, got {len(codebook)}"
            )
        factors = cls(
            codes=stored_tensor(tensors, "codes", ("uint8",), (None,)),
            codebook=codebook,
            gaps=stored_tensor(tensors, "gaps", ("uint8",), (None,)),
            gap_bits=stored_number(config, "gap_bits", 1, 16),
            n_entries=stored_number(config, "n_entries", 0, size),
            shape=shape,
            dtype=dtype,
        )
        _ = factors.sparse_codes  # decode now, so that damage is found on reading
        return factors

    @cached_property
    def sparse_codes(self) -> SparseCodes:
        """The decoded entries, in the form that products read."""
        codes = decoded_stream(self.codes, self.n_entries, code_bits_for(len(self.codebook)))
        gaps = decoded_stream(self.gaps, self.n_entries, self.gap_bits)
        try:
            return SparseCodes(codes, gaps, self.gap_bits, self.codebook, self.shape)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"codes, gaps and codebook must agree: {error}") from error

    @cached_property
    def _kept(self) -> tuple[Array, Array]:
        # Fillers are places of the value zero.
        sparse = self.sparse_codes
        places = gap_decode(sparse.gaps, sparse.gap_bits, self.shape[0] * self.shape[1])
        return places, sparse.codebook.astype(np.float32)[sparse.codes].reshape(-1)

    @cached_property
    def labels(self) -> tuple[Array, Array]:
        """The index of each weight's value (uint8), and the mask of kept weights, of W's shape."""
        sparse = self.sparse_codes
        kept = sparse.codebook.astype(np.float32)[sparse.codes] != 0
        labels, mask = np.zeros(self.shape, np.uint8), np.zeros(self.shape, np.bool_)
        places = gap_decode(sparse.gaps, sparse.gap_bits, mask.size)[kept]
        labels.reshape(-1)[places] = sparse.codes[kept]
        mask.reshape(-1)[places] = True
        for array in (labels, mask):
            array.setflags(write=False)
        return labels, mask

    @cached_property
    def _numbers(self) -> ValueNumbers:
        labels, mask = self.labels
        return ValueNumbers(np.flatnonzero(mask), labels[mask], len(self.codebook), self.shape)

    @property
    def sizes(self) -> LayerSizes:
        """The size of each part: a row of the paper's tables."""
        sparse = self.sparse_codes
        values = sparse.codebook.astype(np.float32)[sparse.codes]
        return LayerSizes(
            n_weights=self.shape[0] * self.shape[1],
            n_kept=int(np.count_nonzero(values)),
            n_entries=self.n_entries,
            code_bits=code_bits_for(len(self.codebook)),
            gap_bits=self.gap_bits,
            codes_nbytes=self.codes.nbytes,
            gaps_nbytes=self.gaps.nbytes,
            codebook_nbytes=self.codebook.nbytes,
        )

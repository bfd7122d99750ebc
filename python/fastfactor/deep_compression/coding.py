"""The stage that loses nothing: positions as gaps, then Huffman codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from ..kernels.gaps import gap_encode
from ..kernels.sparse_codes import SparseCodes
from .layer import CodedLayer, packed
from .stages import SharedWeights

MAX_GAP_BITS = 16
NEAR = 1.05


def encode(
    shared: SharedWeights, *, gap_bits: int | None = None, n_threads: int | None = None
) -> bytes:
    """The third stage: codes of the kept weights and gaps between them, Huffman-coded.

    Parameters
    ----------
    shared : SharedWeights
    gap_bits : int, optional
        Bits of a gap, 1 to 16. Unless given, the number for which the coded layer takes least.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bytes
        What :func:`decode` reads. `CodedLayer.to_bytes` says how they lie.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or width.

    Notes
    -----
    Linear in the number of weights. The same bytes for any number of threads. Without loss.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> shared = deep_compression.share(np.eye(8, dtype=np.float32), n_bits=1)
    >>> len(deep_compression.encode(shared, gap_bits=4))
    22
    """
    return coded_layer(shared, gap_bits, n_threads).to_bytes()


def decode(data: Any) -> CodedLayer:
    """The layer that :func:`encode` coded, ready to be multiplied.

    Parameters
    ----------
    data : bytes, or uint8 array of shape (n,)

    Returns
    -------
    CodedLayer

    Raises
    ------
    CorruptDataError
        Where the bytes are no layer's. A layer alone has checksums on what is Huffman-coded only;
        a :class:`CodedNetwork` has one on everything.

    Notes
    -----
    Linear in the number of entries. Takes at most 16,384 times the bytes given, which data of one
    symbol need.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> shared = deep_compression.share(np.eye(2, dtype=np.float32), n_bits=1)
    >>> deep_compression.decode(deep_compression.encode(shared)).to_dense()
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    return CodedLayer.from_bytes(data)


def coded_layer(shared: SharedWeights, gap_bits: int | None, n_threads: int | None) -> CodedLayer:
    """Positions as gaps of the width given, or of that for which the bytes are fewest."""
    if not isinstance(shared, SharedWeights):
        raise TypeError(f"shared must be SharedWeights, got {type(shared).__name__}")
    positions, codes = np.flatnonzero(shared.mask), shared.labels[shared.mask]
    check_gap_bits(gap_bits)
    widths = _likely_widths(positions, codes) if gap_bits is None else [gap_bits]
    tried = [_entries(shared, codes, width, n_threads) for width in widths]
    if len(tried) > 1:
        code_bits = max((shared.codebook.size - 1).bit_length(), 1)
        sizes = [
            packed(entries, code_bits)[1].size + packed(gaps, width)[1].size
            for width, (entries, gaps) in zip(widths, tried, strict=True)
        ]
        best = int(np.argmin(sizes))
    else:
        best = 0
    shape = shared.labels.shape
    matrix = shape[0], math.prod(shape[1:])
    return CodedLayer(SparseCodes(*tried[best], widths[best], shared.codebook, matrix), shape)


def check_gap_bits(gap_bits: int | None) -> None:
    """None, or a width that a gap may have."""
    if gap_bits is not None:
        _checks.integer(gap_bits, "gap_bits", 1, MAX_GAP_BITS)


def _entries(
    shared: SharedWeights, codes: Array, width: int, n_threads: int | None
) -> tuple[Array, Array]:
    """Codes and gaps of all entries, fillers among them."""
    coded = gap_encode(shared.mask, gap_bits=width, n_threads=n_threads)
    # Fillers stand for zero; the codebook has one first wherever something was pruned.
    entries = np.zeros(coded.gaps.size, np.uint8)
    kept = np.ones(entries.size, np.bool_)
    kept[coded.fillers] = False
    entries[kept] = codes
    return entries, coded.gaps


def _likely_widths(positions: Array, codes: Array) -> list[int]:
    """The widths for which the entropies of gaps and codes, fillers among them, are near the least.

    Huffman codes come within a few percent of an entropy: which width is best is seen by trying.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    counts = np.bincount(codes, minlength=1).astype(np.float64)
    sizes = []
    for width in range(1, MAX_GAP_BITS + 1):
        fillers = float((gaps >> width).sum())
        rest = np.bincount(gaps & (2**width - 1), minlength=2**width).astype(np.float64)
        rest[-1] += fillers
        with_fillers = counts.copy()
        with_fillers[0] += fillers
        sizes.append(_entropy_bytes(rest) + _entropy_bytes(with_fillers))
        if not fillers:  # from here on they are all the same
            break
    return [1 + i for i, size in enumerate(sizes) if size <= NEAR * min(sizes)]


def _entropy_bytes(counts: Array) -> float:
    """Of symbols that come so often, coded as well as can be, and a length of 3 bits for each."""
    used = counts[counts > 0]
    bits = used.sum() * np.log2(used.sum()) - (used * np.log2(used)).sum() if used.size else 0
    return float(bits + 3 * used.size) / 8

"""The third, lossless stage: positions become gaps, then codes and gaps are Huffman-coded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.gaps import gap_encode
from ...kernels.packing import code_bits_for
from ..factors import FLOAT_NAMES, matrix_shape
from .factors import DeepCompressionFactors
from .stages import CODEBOOK_DTYPES, SharedWeights
from .streams import encoded_stream, stream_nbytes

MAX_GAP_BITS = 16
NEAR = 1.05  # widths are tried whose estimated size is up to this factor above the least


def encode(
    shared: SharedWeights,
    *,
    gap_bits: int | None = None,
    dtype: Any = None,
    n_threads: int | None = None,
) -> DeepCompressionFactors:
    """Huffman-code the codes of the kept weights and the gaps between them: the third stage.

    This stage is lossless.

    Parameters
    ----------
    shared : SharedWeights
        Weights of any shape; they are coded as a matrix of shape (shape[0], product of the rest).
    gap_bits : int, optional
        Bits of a gap, 1 to 16. Default: the number for which codes and gaps take the fewest bytes.
    dtype : dtype, optional
        The dtype of the matrix that the factors represent. Default: the codebook's.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    DeepCompressionFactors
        Of shape (shape[0], all else); ``sizes`` says what each stage takes.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or width, and for a float64 codebook.

    Notes
    -----
    Linear in the number of weights. The same bytes for any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> shared = deep_compression.share(np.eye(8, dtype=np.float32), n_bits=1)
    >>> factors = deep_compression.encode(shared, gap_bits=4)
    >>> factors.sizes.n_kept, factors.nbytes
    (8, 13)
    """
    if not isinstance(shared, SharedWeights):
        raise TypeError(f"shared must be SharedWeights, got {type(shared).__name__}")
    _checks.choice(shared.codebook.dtype.name, "dtype of the codebook", CODEBOOK_DTYPES)
    check_gap_bits(gap_bits)
    name = shared.codebook.dtype.name if dtype is None else np.dtype(dtype).name
    _checks.choice(name, "dtype", FLOAT_NAMES)
    kept = _Kept(
        positions=np.flatnonzero(shared.mask),
        codes=shared.labels[shared.mask],
        n_weights=shared.mask.size,
        code_bits=code_bits_for(shared.codebook.size),
    )
    widths = _likely_widths(kept) if gap_bits is None else [gap_bits]
    tried = [_streams(kept, width, n_threads) for width in widths]
    best = min(range(len(widths)), key=lambda i: tried[i][0].size + tried[i][1].size)
    codes, gaps, n_entries = tried[best]
    return DeepCompressionFactors(
        codes=codes,
        codebook=shared.codebook.reshape(-1, 1),
        gaps=gaps,
        gap_bits=widths[best],
        n_entries=n_entries,
        shape=matrix_shape(shared.labels.shape),
        dtype=_checks.dtype_named(name),
    )


def decode(factors: DeepCompressionFactors) -> SharedWeights:
    """Return the shared weights that were coded: the inverse of :func:`encode`.

    Parameters
    ----------
    factors : DeepCompressionFactors
        Factors that were compressed, or read from a file.

    Returns
    -------
    SharedWeights
        Arrays of the matrix's shape. Weights whose value is zero count as pruned.

    Raises
    ------
    TypeError
        For factors of another kind.

    Notes
    -----
    Linear in the number of weights.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> shared = deep_compression.share(np.eye(2, dtype=np.float32), n_bits=1)
    >>> deep_compression.decode(deep_compression.encode(shared)).to_dense()
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    if not isinstance(factors, DeepCompressionFactors):
        raise TypeError(f"factors must be DeepCompressionFactors, got {type(factors).__name__}")
    labels, mask = factors.labels
    return SharedWeights(labels, factors.codebook[:, 0], mask)


def check_gap_bits(gap_bits: int | None) -> None:
    """Check that gap_bits is None or in [1, 16]."""
    if gap_bits is not None:
        _checks.integer(gap_bits, "gap_bits", 1, MAX_GAP_BITS)


def most_nbytes(n_kept: int, n_weights: int, n_values: int, gap_bits: int | None) -> int:
    """Return the most bytes of codes and gaps for n_kept of n_weights, with n_values in a table."""
    widths = range(1, MAX_GAP_BITS + 1) if gap_bits is None else [gap_bits]
    return min(_most_packed(n_kept, n_weights, code_bits_for(n_values), width) for width in widths)


def _most_packed(n_kept: int, n_weights: int, code_bits: int, gap_bits: int) -> int:
    """Return the most bytes of packed codes and gaps of this width."""
    # A filler stands for 2**gap_bits places that are not kept.
    n_entries = n_kept + ((n_weights - n_kept) >> gap_bits)
    return stream_nbytes(n_entries, code_bits) + stream_nbytes(n_entries, gap_bits)


class _Kept(NamedTuple):
    """The positions and codes of the weights that are kept."""

    positions: Array
    codes: Array
    n_weights: int  # including those that are not kept
    code_bits: int


def _streams(kept: _Kept, gap_bits: int, n_threads: int | None) -> tuple[Array, Array, int]:
    """Return the stored bytes of codes and of gaps, and the number of entries with fillers."""
    coded = gap_encode(kept.positions, size=kept.n_weights, gap_bits=gap_bits, n_threads=n_threads)
    # Fillers have the value zero, which comes first in the codebook if any weight is pruned.
    codes = np.zeros(coded.gaps.size, np.uint8)
    weights = np.ones(codes.size, np.bool_)
    weights[coded.fillers] = False
    codes[weights] = kept.codes
    return (
        encoded_stream(codes, kept.code_bits, n_threads),
        encoded_stream(coded.gaps, gap_bits, n_threads),
        codes.size,
    )


def _likely_widths(kept: _Kept) -> list[int]:
    """Return the widths of gaps to try.

    These are the widths for which the entropies of gaps and codes, including fillers, are within
    5 % of the least: Huffman codes are a few percent longer than the entropy, so only a trial tells
    which width is best. The width of the fewest packed bytes is tried too, so that `most_nbytes` is
    an upper bound.
    """
    gaps = np.diff(kept.positions, prepend=-1) - 1
    counts = np.bincount(kept.codes, minlength=1).astype(np.float64)
    sizes = []
    for width in range(1, MAX_GAP_BITS + 1):
        fillers = float((gaps >> width).sum())
        rest = np.bincount(gaps & (2**width - 1), minlength=2**width).astype(np.float64)
        rest[-1] += fillers
        with_fillers = counts.copy()
        with_fillers[0] += fillers
        sizes.append(_entropy_bytes(rest) + _entropy_bytes(with_fillers))
        if not fillers:  # wider gaps would have the same entropies
            break
    likely = {1 + i for i, size in enumerate(sizes) if size <= NEAR * min(sizes)}
    packed = [
        _most_packed(kept.positions.size, kept.n_weights, kept.code_bits, width)
        for width in range(1, MAX_GAP_BITS + 1)
    ]
    return sorted(likely | {1 + int(np.argmin(packed))})


def _entropy_bytes(counts: Array) -> float:
    """Return the bytes of symbols with these counts, coded at their entropy.

    A table of code lengths is added, of 3 bits for each symbol.
    """
    used = counts[counts > 0]
    bits = used.sum() * np.log2(used.sum()) - (used * np.log2(used)).sum() if used.size else 0
    return float(bits + 3 * used.size) / 8

"""Deep Compression as a method: pruning, weight sharing and Huffman coding, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ... import _checks
from ..base import Method
from ..codebook.method import table_dtype
from ..factors import Factors
from ..pruning.prune import Prune
from ..search import Problem, Size
from .coding import check_gap_bits, encode, most_nbytes
from .stages import CODEBOOK_DTYPES, INITS, MAX_BITS, share


@dataclass(frozen=True, kw_only=True)
class DeepCompression(Prune):
    """Pruning, weight sharing and Huffman coding, without training in between.

    Parameters
    ----------
    sparsity, std_multiple, nm_sparsity, scope, block_shape, pool : optional
        Which weights are kept, as in :class:`Prune`; weights that are zero are never kept.
    n_bits : int
        Bits of a code, 1 to 8. One of the 2**n_bits values is zero if any weight is pruned.
    gap_bits : int, optional
        Bits of a gap, 1 to 16. Default: the number for which codes and gaps take the fewest bytes.
    init, codebook_dtype, random_state : optional
        As in :func:`fastfactor.deep_compression.share`.
    ratio, max_error : float, optional
        As in :class:`Method`, by ``sparsity``; ``n_bits`` does not change.

    Raises
    ------
    TypeError, ValueError
        As for :class:`Prune`, and for weights beyond the range of the codebook's dtype.

    Notes
    -----
    The three stages are also functions of :mod:`fastfactor.deep_compression`, so that a network can
    be trained between them. There are two differences from :class:`PruneCodebook`. Codes and gaps
    are Huffman-coded, which takes fewer bytes if their values are unevenly frequent; and values are
    a local minimum by Lloyd's iterations unless ``init="exact"``. Products read the codes
    (:func:`fastfactor.sparse_codebook_matmul`), which are Huffman-decoded once, on first use.

    The same bits for any number of threads.

    Source: S. Han, H. Mao, W. Dally, Deep Compression, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import DeepCompression
    >>> W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> factors = DeepCompression(sparsity=0.9, n_bits=4).compress(W)
    >>> factors.sizes.n_kept, factors.nbytes < W.nbytes / 20
    (410, True)
    """

    n_bits: int = 4
    gap_bits: int | None = None
    init: str = "linear"
    codebook_dtype: str | None = None
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.integer(self.n_bits, "n_bits", 1, MAX_BITS)
        check_gap_bits(self.gap_bits)
        _checks.choice(self.init, "init", INITS)
        if self.codebook_dtype is not None:
            _checks.choice(self.codebook_dtype, "codebook_dtype", CODEBOOK_DTYPES)

    def _compress(self, problem: Problem) -> Factors:
        mask = self.mask_of(problem) & (problem.W != 0)
        shared = share(
            problem.W,
            mask,
            n_bits=self.n_bits,
            init=self.init,
            codebook_dtype=self.codebook_dtype,
            importance=problem.importance,
            random_state=self.random_state,
            n_threads=problem.n_threads,
        )
        dtype, n_threads = problem.W.dtype, problem.n_threads
        return encode(shared, gap_bits=self.gap_bits, dtype=dtype, n_threads=n_threads)

    def _tries_plain(self, problem: Problem) -> bool:
        return self.std_multiple is None  # which says itself what is kept under an importance

    def _least_nbytes(self, problem: Problem) -> int:
        return table_dtype(self.codebook_dtype, problem.W.dtype).itemsize

    def _size(self, problem: Problem) -> Size | None:
        most = self._most(problem)
        if most is None:
            return None
        n_kept, _ = most
        n_values = min(2**self.n_bits, n_kept + 1)
        table = n_values * table_dtype(self.codebook_dtype, problem.W.dtype).itemsize
        coded = most_nbytes(n_kept, problem.W.size, n_values, self.gap_bits)
        return Size(coded + table, exact=False)

    def _search(self, problem: Problem) -> Factors:
        # Prune's own search counts only the error of pruning, not that of sharing values.
        return Method._search(self, problem)

"""Convolutions as sums of outer products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ..search import Problem, Size
from .base import ConvMethod, narrow_all
from .fit import Blocks, Fit, Kernel, along, refined
from .outer_products import CP, decompose
from .two_sided import ConvCPFactors

SPEC = {"filters": "nfk", "channels": "nkc", "windows": "nkp"}


@dataclass(frozen=True, kw_only=True)
class ConvCP(ConvMethod):
    """Canonical polyadic decomposition of a convolution: a sum of outer products.

    ``W[f, c, x, y] ≈ Σ_k filters[f, k] · windows[k, x, y] · channels[k, c]`` runs as a convolution
    of single points from C channels to K, one with a window for each of these channels, and one of
    single points from K to F.

    Parameters
    ----------
    rank : int, optional
        K, the number of outer products, at least 1.
    n_init : int
        Starts, of which the best is kept. The first takes one outer product after the other from
        what is left (Denton et al., 2014), the others are random.
    random_state : int, Generator, RandomState or None
        The seed of random starts.
    kernel_size, groups, ratio, max_error : optional
        As in :class:`ConvMethod`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range.

    Notes
    -----
    An image of N × M points takes ``N M K (C + X Y / Δ² + F / Δ²)`` multiplications at stride Δ,
    and ``K (C + X Y + F)`` numbers are stored. Alternating least squares finds a local minimum; a
    sweep takes ``4 K F C X Y`` operations. Zeros give zeros. Under an importance or an input
    covariance the structure is kept, as in :class:`ConvSVD`.

    Sources: Denton, Zaremba, Bruna, LeCun and Fergus, 2014; Lebedev, Ganin, Rakhuba, Oseledets and
    Lempitsky, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvCP
    >>> a, b, c = (np.arange(1.0, n + 1) for n in (6, 4, 9))
    >>> W = np.einsum("f,c,p->fcp", a, b, c).reshape(6, 4, 3, 3)
    >>> factors = ConvCP(rank=1).compress(W)
    >>> factors.n_parameters, np.allclose(factors.to_dense().reshape(W.shape), W)
    (19, True)
    """

    parameter: ClassVar[str] = "rank"

    rank: int | None = None
    n_init: int = 3
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.integer(self.n_init, "n_init", 1)
        if self.rank is not None:
            _checks.integer(self.rank, "rank", 1)

    def _compress(self, problem: Problem) -> ConvCPFactors:
        kernel = self._kernel(problem)
        rank = possible(self.rank or 1, kernel, (1, 1))
        fit = Fit(problem, Blocks(kernel))
        found = solve(fit, rank, self.n_init, _checks.seed(self.random_state))
        return ConvCPFactors(
            **narrow_all(conv_weights(found, fit.blocks), problem.W.dtype, fit.exponent),
            groups=self.groups,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _levels(self, problem: Problem) -> Sequence[int]:
        if not problem.W.size:
            return ()
        return range(1, possible(problem.W.size, self._kernel(problem), (1, 1)) + 1)

    def _size(self, problem: Problem) -> Size:
        kernel = self._kernel(problem)
        rank = possible(self.rank or 1, kernel, (1, 1))
        return Size(n_numbers(rank, kernel, (1, 1)) * problem.W.itemsize, exact=True)


def solve(fit: Fit, rank: int, n_init: int, seed: int) -> CP:
    """Return outer products for blocks under the metric of their errors."""
    rng = np.random.default_rng(seed)
    if fit.is_plain:
        return decompose(fit.T, rank, n_init, rng)
    scales = fit.scales()
    found = decompose(along(fit.T, "nfcp", scales.matrices), rank, n_init, rng)
    start = {name: along(t, SPEC[name], scales.inverses) for name, t in found._asdict().items()}
    return CP(**refined(fit, SPEC, start))


def conv_weights(found: CP, blocks: Blocks) -> dict[str, Array]:
    """Return the weights of the convolutions that outer products of blocks run as."""
    n, rank, in_cluster = found.channels.shape
    (g, h), groups = blocks.counts, blocks.kernel.groups
    filters = found.filters.reshape(groups, g, h, -1, rank).transpose(0, 2, 3, 1, 4)
    return {
        "filters": filters.reshape(blocks.kernel.filters, g * rank),
        "core": found.windows.reshape(n * rank, 1, blocks.kernel.height, blocks.kernel.width),
        "channels": found.channels.reshape(n * rank, in_cluster),
    }


def possible(rank: int, kernel: Kernel, counts: tuple[int, int]) -> int:
    """Return a rank without what a block of this shape cannot need."""
    channels, filters = kernel.channels // counts[0], kernel.filters // kernel.groups // counts[1]
    sides = (channels, filters, kernel.area)
    return min(rank, channels * filters * kernel.area // max(sides))


def n_numbers(rank: int, kernel: Kernel, counts: tuple[int, int]) -> int:
    """Return how many numbers outer products of blocks have."""
    g, h = counts
    channels, filters = kernel.channels // g, kernel.filters // kernel.groups // h
    return kernel.groups * g * h * rank * (channels + kernel.area + filters)

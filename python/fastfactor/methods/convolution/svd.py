"""Tensor singular value decompositions of convolutions, whole or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..._checks import Array
from ..factors import Factors
from ..search import Problem, Size
from .base import ConvMethod, narrow_all, two
from .fit import Blocks, Fit, Kernel, along, refined
from .tucker import Tucker, decompose, energies
from .two_sided import ConvSVDFactors

TINY = 1e-300
TRIED = 4  # pairs of ranks that are tried for a size, those that promise the least error
SPEC = {"filters": "nfk", "core": "nklp", "channels": "nlc"}
Ranks = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ConvSVD(ConvMethod):
    """Tensor singular value decomposition of a convolution: few channels and filters in the window.

    ``W[f, c, x, y] ≈ Σ_kl filters[f, k] · core[k, l, x, y] · channels[l, c]`` runs as a convolution
    of single points from C channels to K₁, one with the window from K₁ to K₂, and one of single
    points from K₂ to F.

    Parameters
    ----------
    ranks : (int, int), optional
        K₁, the channels of the window, and K₂, its filters. What exceeds the ranks that a tensor
        of this shape can have is left out.
    kernel_size, groups, ratio, max_error : optional
        As in :class:`ConvMethod`.

    Raises
    ------
    TypeError, ValueError
        For ranks that are not two integers of at least 1.

    Notes
    -----
    An image of N × M points takes ``N M (K₁ C + K₁ K₂ X Y / Δ² + K₂ F / Δ²)`` multiplications at
    stride Δ, and ``K₁ C + K₁ K₂ X Y + K₂ F`` numbers are stored.

    Source: Denton, Zaremba, Bruna, LeCun and Fergus, "Exploiting linear structure within
    convolutional networks for efficient evaluation", 2014. Their two decompositions are repeated in
    turn here until little is gained. Under an importance or an input covariance, the weight is
    decomposed in coordinates in which a metric of product form is the sum of squares, and improved
    by alternating least squares under the metric itself; the structure is kept. Where a ratio is
    given, the two ranks are those of least error at that size, as far as the singular values along
    channels and filters tell.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvSVD
    >>> W = np.random.default_rng(0).standard_normal((32, 16, 5, 5)).astype(np.float32)
    >>> factors = ConvSVD(ranks=(8, 12)).compress(W)
    >>> factors.weight_shape, factors.ranks, W.size, factors.n_parameters
    ((32, 16, 5, 5), (8, 12), 12800, 2912)
    >>> factors.conv(np.ones((1, 16, 10, 10), np.float32), stride=2, padding=2).shape
    (1, 32, 5, 5)
    """

    parameter: ClassVar[str] = "ranks"

    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks is not None:
            object.__setattr__(self, "ranks", two(self.ranks, "ranks"))

    def _compress(self, problem: Problem) -> ConvSVDFactors:
        kernel = self._kernel(problem)
        assert self.ranks is not None
        ranks = possible(self.ranks, kernel, (1, 1))
        fit = Fit(problem, Blocks(kernel))
        tensors = conv_weights(solve(fit, ranks), fit.blocks)
        return ConvSVDFactors(
            **narrow_all(tensors, problem.W.dtype, fit.exponent),
            groups=self.groups,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _levels(self, problem: Problem) -> Sequence[Ranks]:
        return rank_levels(self._kernel(problem), (1, 1)) if problem.W.size else ()

    def _size(self, problem: Problem) -> Size:
        kernel = self._kernel(problem)
        assert self.ranks is not None
        n = n_numbers(possible(self.ranks, kernel, (1, 1)), kernel, (1, 1))
        return Size(int(n) * problem.W.itemsize, exact=False)

    def _search(self, problem: Problem) -> Factors:
        self._checked_levels(problem)
        return search_ranks(self, problem, Blocks(self._kernel(problem)))


def solve(fit: Fit, ranks: Ranks) -> Tucker:
    """Return a decomposition of blocks under the metric of their errors."""
    if fit.is_plain:
        return decompose(fit.T, ranks)
    scales = fit.scales()
    found = decompose(along(fit.T, "nfcp", scales.matrices), ranks)
    start = {"filters": found.filters, "core": found.core, "channels": found.channels}
    letters = {"filters": "nfk", "core": "nklp", "channels": "nlc"}
    start = {name: along(t, letters[name], scales.inverses) for name, t in start.items()}
    return Tucker(**refined(fit, SPEC, start))


def conv_weights(found: Tucker, blocks: Blocks) -> dict[str, Array]:
    """Return the weights of the convolutions that a decomposition of blocks runs as."""
    n, first, in_cluster = found.channels.shape
    second, (g, h), groups = found.core.shape[1], blocks.counts, blocks.kernel.groups
    filters = found.filters.reshape(groups, g, h, -1, second).transpose(0, 2, 3, 1, 4)
    kernel = (blocks.kernel.height, blocks.kernel.width)
    return {
        "filters": filters.reshape(blocks.kernel.filters, g * second),
        "core": found.core.reshape(n * second, first, *kernel),
        "channels": found.channels.reshape(n * first, in_cluster),
    }


def possible(ranks: Ranks, kernel: Kernel, counts: tuple[int, int]) -> Ranks:
    """Return ranks without what a block of this shape cannot have."""
    channels, filters = kernel.channels // counts[0], kernel.filters // kernel.groups // counts[1]
    first = min(ranks[0], channels)
    second = min(ranks[1], filters, first * kernel.area)
    return min(first, second * kernel.area), second


def n_numbers(ranks: tuple[Any, Any], kernel: Kernel, counts: tuple[int, int]) -> Any:
    """Return how many numbers a decomposition has; ranks may be arrays."""
    first, second = ranks
    g, h = counts
    channels, filters = kernel.channels // g, kernel.filters // kernel.groups // h
    each = first * channels + first * second * kernel.area + second * filters
    return kernel.groups * g * h * each


def rank_levels(kernel: Kernel, counts: tuple[int, int]) -> list[Ranks]:
    """Return pairs of ranks in proportion to a block's sides, from the smallest on."""
    channels, filters = kernel.channels // counts[0], kernel.filters // kernel.groups // counts[1]
    most = max(channels, filters)
    pairs = [(-(-channels * k // most), -(-filters * k // most)) for k in range(1, most + 1)]
    return list(dict.fromkeys(possible(pair, kernel, counts) for pair in pairs))


def search_ranks(method: ConvMethod, problem: Problem, blocks: Blocks) -> Factors:
    """Return the factors of least error at a size, or the smallest within an error.

    What is lost along channels and along filters is added up as an estimate of what both lose.
    """
    goal = method._goal(problem)
    pairs, sizes, estimates = _candidates(problem, blocks)
    smallest = method._planned((1, 1), problem).nbytes
    sizes = (sizes - sizes[0]) * problem.W.itemsize + smallest
    if goal.is_size:
        if smallest > goal.limit:
            raise method._unreachable(smallest, problem)
        fitting = np.flatnonzero(sizes <= goal.limit)
        best = fitting[np.argsort(estimates[fitting], kind="stable")[:TRIED]]
        return min((method._at(pairs[k])._best(problem) for k in best), key=problem.error_of)
    before = np.minimum.accumulate(np.concatenate([[np.inf], estimates[:-1]]))
    found = method._bisect([pairs[k] for k in np.flatnonzero(estimates < before)], problem)
    while True:  # smaller ones that the estimates have put behind others
        fitting = np.flatnonzero(sizes < found.nbytes)
        best = np.sort(fitting[np.argsort(estimates[fitting], kind="stable")[:TRIED]])
        tried = (method._at(pairs[k])._best(problem) for k in best)
        smaller = next((each for each in tried if goal.allows(goal.measure(each))), None)
        if smaller is None:
            return found
        found = smaller


def _candidates(problem: Problem, blocks: Blocks) -> tuple[list[Ranks], Array, Array]:
    """Return pairs of ranks by size, the numbers that they take, and estimates of their errors."""
    kernel = blocks.kernel
    lost = [1 - np.cumsum(e) / max(e.sum(), TINY) for e in energies(Fit(problem, blocks).T)]
    first, second = (a.reshape(-1) for a in np.indices([len(each) for each in lost]) + 1)
    possible = (first <= second * kernel.area) & (second <= first * kernel.area)
    first, second = first[possible], second[possible]
    estimates = lost[0][first - 1] + lost[1][second - 1]
    sizes = n_numbers((first, second), kernel, blocks.counts)
    order = np.lexsort((estimates, sizes))
    pairs = [(int(first[k]), int(second[k])) for k in order]
    return pairs, sizes[order], estimates[order]

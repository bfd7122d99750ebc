"""Convolutions in blocks: clusters of channels by clusters of filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ..factors import Factors
from ..search import Problem, Size
from . import cp, svd
from .base import ConvMethod, narrow_all, two
from .clusters import equal_flats, equal_means, order_of
from .factors import order_dtype
from .fit import Blocks, Fit, Kernel, along
from .two_sided import BiclusterCPFactors, BiclusterSVDFactors

INSIDE = ("svd", "cp")
CLUSTERINGS = ("kmeans", "flats")
Ranks = tuple[int, int] | int


@dataclass(frozen=True, kw_only=True)
class ConvBicluster(ConvMethod):
    """Clusters of channels by clusters of filters, each pair with a decomposition of its own.

    The channels are put into G clusters of equal size and the filters into H. Each of the G · H
    blocks of the weight has a tensor SVD or a sum of outer products, which run as convolutions with
    G, G · H and H groups.

    Parameters
    ----------
    ranks : (int, int) or int, optional
        K₁ and K₂ of the SVD in each block, as in :class:`ConvSVD`, or K, the number of outer
        products in each block, as in :class:`ConvCP`.
    n_clusters : (int, int)
        G, which divides the channels of a group, and H, which divides its filters.
    inside : {"svd", "cp"}
        What a block is decomposed by.
    clustering : {"kmeans", "flats"}
        What a cluster has in common: rows near a mean, or near a subspace of as many dimensions as
        a block's rank.
    random_state : int, Generator, RandomState or None
        The seed of the first clusters, and of starts as in :class:`ConvCP`.
    kernel_size, groups, ratio, max_error : optional
        As in :class:`ConvMethod`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range and, when a weight is compressed, clusters that do not divide it.

    Notes
    -----
    An image of N × M points takes, at stride Δ, ``G H N M (K₁ C / G + K₁ K₂ X Y / Δ² + K₂ F / (H
    Δ²))`` multiplications with an SVD inside and ``G H K N M (C / G + X Y / Δ² + F / (H Δ²))`` with
    outer products. Under an importance or an input covariance the structure is kept, as in
    :class:`ConvSVD`.

    Source: Denton, Zaremba, Bruna, LeCun and Fergus, 2014. Their clusters are balanced by a greedy
    rule; here each assignment is the cheapest that is balanced.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvBicluster
    >>> W = np.random.default_rng(0).standard_normal((32, 16, 5, 5)).astype(np.float32)
    >>> factors = ConvBicluster(ranks=(4, 6), n_clusters=(2, 2)).compress(W)
    >>> factors.counts, factors.ranks, factors.n_parameters
    ((2, 2), (4, 6), 2912)
    """

    parameter: ClassVar[str] = "ranks"

    ranks: Ranks | None = None
    n_clusters: tuple[int, int] = (2, 2)
    inside: str = "svd"
    clustering: str = "kmeans"
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice(self.inside, "inside", INSIDE)
        _checks.choice(self.clustering, "clustering", CLUSTERINGS)
        object.__setattr__(self, "n_clusters", two(self.n_clusters, "n_clusters"))
        if self.ranks is None:
            return
        if self.inside == "svd":
            object.__setattr__(self, "ranks", two(self.ranks, "ranks"))
        else:
            _checks.integer(self.ranks, "ranks", 1)

    def _compress(self, problem: Problem) -> BiclusterSVDFactors | BiclusterCPFactors:
        fit = Fit(problem, self._blocks(problem))
        kernel, seed = fit.blocks.kernel, _checks.seed(self.random_state)
        assert fit.blocks.filter_order is not None
        assert fit.blocks.channel_order is not None
        starts = np.arange(kernel.groups)[:, None] * kernel.channels
        channel_order = (fit.blocks.channel_order + starts).reshape(-1)
        rest: dict[str, Any] = {
            "channel_clusters": self.n_clusters[0],
            "filter_order": fit.blocks.filter_order.astype(order_dtype(kernel.filters)),
            "channel_order": channel_order.astype(order_dtype(channel_order.size)),
            "groups": self.groups,
            "shape": problem.W.shape,
            "dtype": problem.W.dtype,
        }
        ranks = self._possible(problem)
        kind: type[BiclusterSVDFactors | BiclusterCPFactors]
        if isinstance(ranks, tuple):
            kind = BiclusterSVDFactors
            weights = svd.conv_weights(svd.solve(fit, ranks), fit.blocks)
        else:
            kind = BiclusterCPFactors
            weights = cp.conv_weights(cp.solve(fit, ranks, 1, seed), fit.blocks)
        return kind(**rest | narrow_all(weights, problem.W.dtype, fit.exponent))

    def _possible(self, problem: Problem) -> Ranks:
        kernel = self._checked_clusters(problem)
        if isinstance(self.ranks, tuple):
            return svd.possible(self.ranks, kernel, self.n_clusters)
        assert self.ranks is not None
        return cp.possible(self.ranks, kernel, self.n_clusters)

    def _checked_clusters(self, problem: Problem) -> Kernel:
        kernel = self._kernel(problem)
        sides = (kernel.channels, kernel.filters // kernel.groups)
        if any(side % n for side, n in zip(sides, self.n_clusters, strict=True)):
            raise ValueError(
                f"n_clusters must divide the {sides[0]} channels and {sides[1]} filters of a "
                f"group, got {self.n_clusters}"
            )
        return kernel

    def _blocks(self, problem: Problem) -> Blocks:
        """Return the clusters of channels and filters, each found with all of the other."""
        kernel, (g, h) = self._checked_clusters(problem), self.n_clusters
        whole = Fit(problem, Blocks(kernel))
        ranks = self._possible(problem)
        pair = ranks if isinstance(ranks, tuple) else (ranks, ranks)
        T = along(whole.T, "nfcp", whole.scales().matrices)
        filters, channels = [], []
        per_group = kernel.filters // kernel.groups
        for group, each in enumerate(T):
            rows = each.reshape(per_group, -1)
            filters.append(self._order(rows, h, pair[1], problem) + group * per_group)
            rows = each.transpose(1, 0, 2).reshape(kernel.channels, -1)
            channels.append(self._order(rows, g, pair[0], problem))
        return Blocks(kernel, (g, h), np.concatenate(filters), np.stack(channels))

    def _order(self, rows: Array, n: int, rank: int, problem: Problem) -> Array:
        seed = _checks.seed(self.random_state)
        if self.clustering == "kmeans":
            return order_of(equal_means(rows, n, seed, problem.n_threads))
        return order_of(equal_flats(rows, n, rank, seed, problem.n_threads))

    def _levels(self, problem: Problem) -> Sequence[Ranks]:
        kernel = self._checked_clusters(problem)
        if not problem.W.size:
            return ()
        if self.inside == "svd":
            return svd.rank_levels(kernel, self.n_clusters)
        return range(1, cp.possible(problem.W.size, kernel, self.n_clusters) + 1)

    def _size(self, problem: Problem) -> Size:
        kernel, ranks = self._checked_clusters(problem), self._possible(problem)
        if isinstance(ranks, tuple):
            n = int(svd.n_numbers(ranks, kernel, self.n_clusters))
        else:
            n = cp.n_numbers(ranks, kernel, self.n_clusters)
        sides = (kernel.filters, kernel.channels * kernel.groups)
        orders = sum(side * order_dtype(side).itemsize for side in sides)
        return Size(n * problem.W.itemsize + orders, exact=self.inside == "cp")

    def _search(self, problem: Problem) -> Factors:
        if self.inside == "cp":
            return super()._search(problem)
        levels = self._checked_levels(problem)
        middle = self._at(levels[len(levels) // 2])
        return svd.search_ranks(self, problem, middle._blocks(problem))

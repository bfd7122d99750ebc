"""Convolutions of few colors: each filter sees one linear combination of the channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...errors import CorruptDataError
from ..factors import FLOAT_NAMES
from ..search import Problem, Size
from ..stored import stored_tensor
from .base import ConvMethod, narrow_all
from .chain import Link, Reorder
from .clusters import assigned, equal_means, order_of
from .factors import ConvFactors, order_dtype, stored_groups, stored_order
from .fit import Blocks, Fit, along, refined
from .tucker import leading

ROUNDS = 20  # of clustering
LEAST_GAIN = 1e-6  # relative to what is lost
SPEC = {"windows": "nfp", "colors": "nc"}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConvMonochromaticFactors(ConvFactors):
    """Filters that see one of a few colors each.

    Attributes
    ----------
    colors : array of shape (groups · C', C)
        From the layer's channels to colors.
    windows : array of shape (F, X, Y)
        The filters' windows, color by color.
    filter_order : array of shape (F,)
        Which filters these are: unsigned integers.
    """

    kind: ClassVar[str] = "conv_monochromatic"
    trainable: ClassVar[tuple[str, ...]] = ("colors", "windows")

    colors: Array
    windows: Array
    filter_order: Array

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.windows.shape[1], self.windows.shape[2]

    @property
    def n_colors(self) -> int:
        """The number of colors, C'."""
        n_colors: int = self.colors.shape[0] // self.groups
        return n_colors

    @cached_property
    def links(self) -> tuple[Link | Reorder, ...]:
        filters, height, width = self.windows.shape
        return (
            Link("colors", (*self.colors.shape, 1, 1), self.groups),
            Link("windows", (filters, 1, height, width), self.colors.shape[0]),
            Reorder(np.argsort(self.filter_order)),
        )

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> ConvMonochromaticFactors:
        groups = stored_groups(config, shape)
        windows = stored_tensor(tensors, "windows", FLOAT_NAMES, (shape[0], None, None))
        colors = stored_tensor(tensors, "colors", FLOAT_NAMES, (None, None))
        columns = colors.shape[1] * windows.shape[1] * windows.shape[2]
        n_colors = colors.shape[0]
        fits = columns == shape[1] and colors.size and windows.size
        if not fits or n_colors % groups or shape[0] % n_colors:
            raise CorruptDataError(
                f"tensors 'colors' and 'windows' must fit a matrix of shape {tuple(shape)} in "
                f"{groups} groups, got {colors.shape} and {windows.shape}"
            )
        order = stored_order(tensors, "filter_order", shape[0], groups)
        return cls(
            colors=colors,
            windows=windows,
            filter_order=order,
            groups=groups,
            shape=shape,
            dtype=dtype,
        )


@dataclass(frozen=True, kw_only=True)
class ConvMonochromatic(ConvMethod):
    """Filters that see one color each: for first layers, whose filters see few channels.

    ``W[f, c, x, y] ≈ colors[color of f, c] · windows[f, x, y]`` runs as a convolution of single
    points from C channels to C' colors, and one with a window for each filter on its color. Each
    color serves F / C' filters.

    Parameters
    ----------
    n_colors : int, optional
        C', which divides the filters of a group.
    random_state : int, Generator, RandomState or None
        The seed of the first clusters.
    kernel_size, groups, ratio, max_error : optional
        As in :class:`ConvMethod`. A ratio or an error is met by the divisors of the number of
        filters.

    Raises
    ------
    TypeError, ValueError
        For an n_colors that is not an integer or is less than 1 and, when a weight is compressed,
        one that does not divide its filters.

    Notes
    -----
    An image of N × M points takes ``C' C N M + X Y F N M / Δ²`` multiplications at stride Δ, and
    ``C C' + X Y F`` numbers are stored.

    Source: Denton, Zaremba, Bruna, LeCun and Fergus, 2014, who cluster the leading singular vectors
    of the filters by k-means with clusters of equal size. Their signs are arbitrary: here each has
    a positive sum. From these clusters on, the colors that lose least and the equal clusters that
    lose least (an exact assignment, by what each filter loses with each color) take turns. Under an
    importance or an input covariance the structure is kept, as in :class:`ConvSVD`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvMonochromatic
    >>> rng = np.random.default_rng(0)
    >>> colors = np.repeat([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]], 4, axis=0)
    >>> W = np.einsum("fc,fxy->fcxy", colors, rng.standard_normal((8, 5, 5)))
    >>> factors = ConvMonochromatic(n_colors=2).compress(W)
    >>> factors.n_parameters, np.allclose(factors.to_dense().reshape(W.shape), W)
    (206, True)
    """

    parameter: ClassVar[str] = "n_colors"

    n_colors: int | None = None
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_colors is not None:
            _checks.integer(self.n_colors, "n_colors", 1)

    def _compress(self, problem: Problem) -> ConvMonochromaticFactors:
        n_colors, kernel = self._checked_colors(problem), self._kernel(problem)
        seed = _checks.seed(self.random_state)
        whole = Fit(problem, Blocks(kernel))
        scaled_T = along(whole.T, "nfcp", whole.scales().matrices)
        orders, per_group = [], kernel.filters // kernel.groups
        for group, T in enumerate(scaled_T):
            labels = _clusters(T, n_colors, seed, problem.n_threads)
            orders.append(order_of(labels) + group * per_group)
        order = np.concatenate(orders)
        fit = Fit(problem, Blocks(kernel, (1, n_colors), order))
        tensors = _solved(fit)
        weights = {
            "colors": tensors["colors"],
            "windows": tensors["windows"].reshape(kernel.filters, kernel.height, kernel.width),
        }
        return ConvMonochromaticFactors(
            **narrow_all(weights, problem.W.dtype, fit.exponent),
            filter_order=order.astype(order_dtype(kernel.filters)),
            groups=self.groups,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _checked_colors(self, problem: Problem) -> int:
        per_group = self._kernel(problem).filters // self.groups
        n_colors = self.n_colors or 1
        if per_group % n_colors:
            raise ValueError(
                f"n_colors must divide the {per_group} filters of a group, got {n_colors}"
            )
        return n_colors

    def _levels(self, problem: Problem) -> Sequence[int]:
        per_group = self._kernel(problem).filters // self.groups
        if not problem.W.size:
            return ()
        return [n for n in range(1, per_group + 1) if per_group % n == 0]

    def _size(self, problem: Problem) -> Size:
        n_colors, kernel = self._checked_colors(problem), self._kernel(problem)
        numbers = kernel.groups * n_colors * kernel.channels + kernel.filters * kernel.area
        orders = kernel.filters * order_dtype(kernel.filters).itemsize
        return Size(numbers * problem.W.itemsize + orders, exact=True)


def _clusters(T: Array, n_colors: int, seed: int, n_threads: int | None) -> Array:
    """Return which color each filter (filters, channels, area) has."""
    filters = len(T)
    first = leading(T, 1)[:, :, 0]
    sums = first.sum(axis=1, keepdims=True)
    first = np.where(sums < 0, -first, first)
    labels = equal_means(first, n_colors, seed, n_threads)
    energies = np.einsum("fcp,fcp->f", T, T)
    best, last = labels, np.inf
    for _ in range(ROUNDS):
        colors = _colors(T, labels, n_colors)
        seen = np.einsum("kc,fcp->fkp", colors, T)
        costs = energies[:, None] - np.einsum("fkp,fkp->fk", seen, seen)
        cost = float(costs[np.arange(filters), labels].sum())
        if cost >= last - LEAST_GAIN * max(last, 0):
            break
        best, last = labels, cost
        labels = assigned(costs, n_threads)
    return best


def _colors(T: Array, labels: Array, n_colors: int) -> Array:
    """Return the unit vectors of colors that lose least."""
    members = np.stack([T[labels == k] for k in range(n_colors)])
    rows = members.transpose(0, 2, 1, 3).reshape(n_colors, T.shape[1], -1)
    return leading(rows, 1)[:, :, 0]


def _solved(fit: Fit) -> dict[str, Array]:
    """Return colors and windows of blocks, a block for each color."""
    scales = fit.scales()
    T = along(fit.T, "nfcp", scales.matrices)
    n, filters, channels, area = T.shape
    rows = T.transpose(0, 2, 1, 3).reshape(n, channels, filters * area)
    colors = leading(rows, 1)[:, :, 0]
    windows = (colors[:, None, :] @ rows).reshape(n, filters, area)
    found = {"windows": windows, "colors": colors}
    if fit.is_plain:
        return found
    start = {name: along(t, SPEC[name], scales.inverses) for name, t in found.items()}
    return refined(fit, SPEC, start)

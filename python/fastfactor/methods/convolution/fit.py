"""What the methods for convolutions minimise: the error of blocks of a weight, under a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..._checks import Array
from ...metrics import exponent_of, scaled
from ..least_squares import solve_least_squares
from ..search import Problem
from .contraction import Named, contract

SWEEPS = 16
STEPS = 6  # of conjugate gradients, for each tensor in a sweep
LEAST_GAIN = 1e-3  # the relative gain in error that justifies another sweep
RIDGE = 1e-3  # relative to the mean; with it, what no input reaches still has a weight
Spec = Mapping[str, str]  # the axes of each tensor, by its name


class Kernel(NamedTuple):
    """The shape of a weight: filters, channels that a filter sees, height, width; and groups."""

    filters: int
    channels: int
    height: int
    width: int
    groups: int

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a weight is cut into blocks (n, filters, channels, area), n = groups · G · H.

    Attributes
    ----------
    kernel : Kernel
    counts : (int, int)
        G clusters of channels and H clusters of filters, in each of the layer's groups.
    filter_order : int array of shape (F,) or None
        Filters, cluster by cluster.
    channel_order : int array of shape (groups, C) or None
        Channels of each group, cluster by cluster.
    """

    kernel: Kernel
    counts: tuple[int, int] = (1, 1)
    filter_order: Array | None = None
    channel_order: Array | None = None

    def split(self, W: Array) -> Array:
        """Return the blocks of a matrix (F, C·X·Y)."""
        filters, channels, *_, groups = self.kernel
        W = W if self.filter_order is None else W[self.filter_order]
        T = W.reshape(groups, filters // groups, channels, self.kernel.area)
        if self.channel_order is not None:
            T = np.take_along_axis(T, self.channel_order[:, None, :, None], axis=2)
        g, h = self.counts
        T = T.reshape(groups, h, filters // groups // h, g, channels // g, self.kernel.area)
        T = T.transpose(0, 3, 1, 2, 4, 5)
        return np.ascontiguousarray(T).reshape(groups * g * h, *T.shape[3:])

    def join(self, T: Array) -> Array:
        """Return the matrix of which these are the blocks."""
        filters, channels, *_, groups = self.kernel
        g, h = self.counts
        T = T.reshape(groups, g, h, *T.shape[1:]).transpose(0, 2, 3, 1, 4, 5)
        T = T.reshape(groups, filters // groups, channels, self.kernel.area)
        if self.channel_order is not None:
            back = np.argsort(self.channel_order, axis=1)
            T = np.take_along_axis(T, back[:, None, :, None], axis=2)
        W = T.reshape(filters, channels * self.kernel.area)
        return W if self.filter_order is None else W[np.argsort(self.filter_order)]


class Scales(NamedTuple):
    """A metric in product form: a matrix for each axis of blocks, and its inverse.

    A tensor multiplied by the matrices along its axes has the sum of squares that is nearest to its
    error under the metric. Axes without an entry count alike.
    """

    matrices: dict[str, Array]  # by the letter of the axis, each (n, length, length)
    inverses: dict[str, Array]


class Fit:
    """A weight in float64, within ±1, cut into blocks; and the metric of its errors."""

    def __init__(self, problem: Problem, blocks: Blocks) -> None:
        self.problem, self.blocks = problem, blocks
        self.exponent = exponent_of(problem.W)
        self.W = np.ldexp(problem.W.astype(np.float64), -self.exponent)
        self.T = blocks.split(self.W)
        self.is_plain = problem.importance is None and problem.input_covariance is None
        if problem.importance is not None:
            self._weights = scaled(problem.importance)
        elif problem.input_covariance is not None:
            self._weights = scaled(problem.input_covariance)

    def weigh(self, residual: Array) -> Array:
        """Return half the gradient of a residual's error, both as matrices."""
        if self.is_plain:
            return residual
        if self.problem.importance is not None:
            return self._weights * residual
        return residual @ self._weights

    def scales(self, axes: str = "fcp") -> Scales:
        """Return the metric in product form, for some of the axes of blocks."""
        found = {} if self.is_plain else self._mode_weights()
        matrices, inverses = {}, {}
        for name in axes:
            if name in found:
                matrices[name], inverses[name] = _roots(found[name])
        return Scales(matrices, inverses)

    def _mode_weights(self) -> dict[str, Array]:
        """Return for each axis the weights of squares along it, as matrices (n, length, length)."""
        if self.problem.importance is not None:
            T = self.blocks.split(self._weights)
            means = {"f": T.mean(axis=(2, 3)), "c": T.mean(axis=(1, 3)), "p": T.mean(axis=(1, 2))}
            return {name: mean[:, :, None] * np.eye(mean.shape[1]) for name, mean in means.items()}
        channels, area = self.blocks.kernel.channels, self.blocks.kernel.area
        covariance = self._weights.reshape(channels, area, channels, area)
        of_channels = np.trace(covariance, axis1=1, axis2=3)
        of_places = np.trace(covariance, axis1=0, axis2=2)
        g, h = self.blocks.counts
        groups = self.blocks.kernel.groups
        order = self.blocks.channel_order
        if order is None:
            order = np.broadcast_to(np.arange(channels), (groups, channels))
        clusters = order.reshape(groups * g, channels // g)
        own = of_channels[clusters[:, :, None], clusters[:, None, :]]
        own = np.repeat(own.reshape(groups, g, 1, *own.shape[1:]), h, axis=2)
        n = groups * g * h
        return {
            "c": own.reshape(n, *own.shape[3:]),
            "p": np.broadcast_to(of_places, (n, area, area)),
        }


def _roots(weights: Array) -> tuple[Array, Array]:
    """Return square roots of symmetric matrices with a ridge, and their inverses."""
    n = weights.shape[1]
    means = np.trace(weights, axis1=1, axis2=2)[:, None, None] / n
    means = np.where(means > 0, means, 1)
    values, vectors = np.linalg.eigh(weights / means + RIDGE * np.eye(n))
    roots = np.sqrt(np.maximum(values, RIDGE))[:, None, :]
    back = vectors.transpose(0, 2, 1)
    return (vectors * roots) @ back, (vectors / roots) @ back


def along(T: Array, axes: str, matrices: Mapping[str, Array]) -> Array:
    """Return a tensor with axes "n…", multiplied by a symmetric matrix along some of them."""
    for name, matrix in matrices.items():
        if name in axes:
            moved = axes.replace(name, "z")
            T = contract([Named(axes, T), Named(f"n{name}z", matrix)], moved)
    return T


def refined(
    fit: Fit,
    spec: Spec,
    tensors: dict[str, Array],
    *,
    out: str = "nfcp",
    sweeps: int = SWEEPS,
    steps: int = STEPS,
) -> dict[str, Array]:
    """Return tensors of less error under the metric: alternating least squares.

    ``spec`` has the axes of each tensor; their product, summed over all axes but those of ``out``,
    stands for the blocks. For each tensor in turn the least squares problem is improved by a few
    steps of conjugate gradients, so that the error never rises.
    """
    shape = fit.T.shape if out == "nfcp" else _with_sides(fit)

    def dense(given: Mapping[str, Array]) -> Array:
        product = contract([Named(spec[name], t) for name, t in given.items()], out)
        return fit.blocks.join(product.reshape(fit.T.shape))

    def error(given: Mapping[str, Array]) -> float:
        residual = fit.W - dense(given)
        return float(np.sum(residual * fit.weigh(residual)))

    def better(name: str) -> Array:
        """Return one of the tensors, improved while the others stay."""
        others = [Named(spec[other], t) for other, t in tensors.items() if other != name]

        def apply(x: Array) -> Array:
            return dense(tensors | {name: x})

        def adjoint(R: Array) -> Array:
            return contract([Named(out, fit.blocks.split(R).reshape(shape)), *others], spec[name])

        start = np.ascontiguousarray(tensors[name])
        return solve_least_squares(fit.weigh, fit.W, apply, adjoint, start, steps)

    last = error(tensors)
    for _ in range(sweeps):
        for name in spec:
            tensors = tensors | {name: better(name)}
        now = error(tensors)
        if now >= last * (1 - LEAST_GAIN):
            break
        last = now
    return tensors


def _with_sides(fit: Fit) -> tuple[int, ...]:
    return (*fit.T.shape[:3], fit.blocks.kernel.height, fit.blocks.kernel.width)

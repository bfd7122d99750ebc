"""Convolutions as a vertical and a horizontal one."""

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
from .factors import ConvFactors, stored_groups
from .fit import Blocks, Fit, along, refined

SPEC = {"vertical": "nkcx", "horizontal": "nfky"}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConvSeparableFactors(ConvFactors):
    """A vertical convolution to few channels, and a horizontal one.

    Attributes
    ----------
    vertical : array of shape (groups · K, C, X)
    horizontal : array of shape (F, K, Y)
    """

    kind: ClassVar[str] = "conv_separable"
    trainable: ClassVar[tuple[str, ...]] = ("vertical", "horizontal")

    vertical: Array
    horizontal: Array

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.vertical.shape[2], self.horizontal.shape[2]

    @property
    def rank(self) -> int:
        """The number of channels in between."""
        rank: int = self.horizontal.shape[1]
        return rank

    @cached_property
    def links(self) -> tuple[Link | Reorder, ...]:
        filters, rank, width = self.horizontal.shape
        return (
            Link("vertical", (*self.vertical.shape, 1), self.groups),
            Link("horizontal", (filters, rank, 1, width), self.groups),
        )

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> ConvSeparableFactors:
        groups = stored_groups(config, shape)
        horizontal = stored_tensor(tensors, "horizontal", FLOAT_NAMES, (shape[0], None, None))
        between = groups * horizontal.shape[1]
        vertical = stored_tensor(tensors, "vertical", FLOAT_NAMES, (between, None, None))
        columns = vertical.shape[1] * vertical.shape[2] * horizontal.shape[2]
        if columns != shape[1] or not horizontal.size or not vertical.size:
            raise CorruptDataError(
                f"tensors 'vertical' and 'horizontal' must fit a matrix of shape {tuple(shape)}, "
                f"got {vertical.shape} and {horizontal.shape}"
            )
        return cls(
            vertical=vertical, horizontal=horizontal, groups=groups, shape=shape, dtype=dtype
        )


@dataclass(frozen=True, kw_only=True)
class ConvSeparable(ConvMethod):
    """A vertical convolution followed by a horizontal one.

    ``W[f, c, x, y] ≈ Σ_k horizontal[f, k, y] · vertical[k, c, x]`` runs as a convolution with a
    window of X × 1 from C channels to K, and one with a window of 1 × Y from K to F.

    Parameters
    ----------
    rank : int, optional
        K, the channels in between, at least 1. What exceeds the rank that a kernel of this shape
        can have is left out.
    kernel_size, groups, ratio, max_error : optional
        As in :class:`ConvMethod`.

    Raises
    ------
    TypeError, ValueError
        For a rank that is not an integer or is less than 1.

    Notes
    -----
    The least error under the sum of squares: it is the singular value decomposition of the weight
    as a matrix (C·X, F·Y). An image of N × M points takes ``N M K (C X / Δ + F Y / Δ²)``
    multiplications at stride Δ, and ``K (C X + F Y)`` numbers are stored. Under an importance or an
    input covariance the structure is kept, as in :class:`ConvSVD`.

    Source: Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low
    rank expansions", 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvSeparable
    >>> blur = np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]).reshape(1, 1, 3, 3)
    >>> factors = ConvSeparable(rank=1).compress(blur)
    >>> factors.n_parameters, np.allclose(factors.to_dense().reshape(3, 3), blur)
    (6, True)
    """

    parameter: ClassVar[str] = "rank"

    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            _checks.integer(self.rank, "rank", 1)

    def _compress(self, problem: Problem) -> ConvSeparableFactors:
        rank, fit = self._possible(problem), Fit(problem, Blocks(self._kernel(problem)))
        tensors = _solved(fit, rank)
        shapes = {"vertical": (-1, *tensors["vertical"].shape[2:])}
        shapes["horizontal"] = (-1, *tensors["horizontal"].shape[2:])
        weights = {name: t.reshape(shapes[name]) for name, t in tensors.items()}
        return ConvSeparableFactors(
            **narrow_all(weights, problem.W.dtype, fit.exponent),
            groups=self.groups,
            shape=problem.W.shape,
            dtype=problem.W.dtype,
        )

    def _possible(self, problem: Problem) -> int:
        filters, channels, height, width, groups = self._kernel(problem)
        return min(self.rank or problem.W.size, channels * height, filters // groups * width)

    def _levels(self, problem: Problem) -> Sequence[int]:
        return range(1, self._possible(problem) + 1) if problem.W.size else ()

    def _size(self, problem: Problem) -> Size:
        filters, channels, height, width, groups = self._kernel(problem)
        each = groups * channels * height + filters * width
        return Size(self._possible(problem) * each * problem.W.itemsize, exact=True)


def _solved(fit: Fit, rank: int) -> dict[str, Array]:
    scales = fit.scales("fc")
    found = _decomposed(fit, along(fit.T, "nfcp", scales.matrices), rank)
    if fit.is_plain:
        return found
    start = {name: along(t, SPEC[name], scales.inverses) for name, t in found.items()}
    return refined(fit, SPEC, start, out="nfcxy")


def _decomposed(fit: Fit, T: Array, rank: int) -> dict[str, Array]:
    n, filters, channels, _ = T.shape
    height, width = fit.blocks.kernel.height, fit.blocks.kernel.width
    sides = T.reshape(n, filters, channels, height, width).transpose(0, 2, 3, 1, 4)
    left, values, right = np.linalg.svd(
        sides.reshape(n, channels * height, filters * width), full_matrices=False
    )
    roots = np.sqrt(values[:, :rank])
    vertical = left[:, :, :rank].transpose(0, 2, 1) * roots[:, :, None]
    horizontal = right[:, :rank] * roots[:, :, None]
    return {
        "vertical": vertical.reshape(n, rank, channels, height),
        "horizontal": horizontal.reshape(n, rank, filters, width).transpose(0, 2, 1, 3),
    }

"""Factors to train from scratch: a method's structure, as large as a layer's first numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import _checks
from .._checks import Array
from ..methods.base import Method
from ..methods.factors import Factors


@dataclass(frozen=True)
class FromScratch:
    """A compressor for layers that are never trained dense.

    Factors of random numbers are smaller than these: `LowRank` at an eighth of the rank keeps about
    a third of their squares. This compressor makes up for it, so that outputs begin as large as the
    layer's initial numbers make them.

    Parameters
    ----------
    method : Method
        Whose structure the factors have, such as `LowRank`, `BlockDiagonal`, `MixedBlock` or
        `BlockProjection`.

    Raises
    ------
    TypeError
        For a method that is none.

    Notes
    -----
    W is factored, multiplied so that the product of its factors has W's mean square, and factored
    again: twice the time of the method. Use it without a schedule, at the first step.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.training import FromScratch
    >>> W = np.random.default_rng(0).uniform(-0.1, 0.1, (64, 32)).astype(np.float32)
    >>> def size(W):
    ...     return round(float(np.sqrt(np.mean(W**2))), 2)
    >>> size(W), size(LowRank(rank=4).compress(W).to_dense())
    (0.06, 0.03)
    >>> size(FromScratch(LowRank(rank=4)).compress(W).to_dense())
    0.06
    """

    method: Method

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise TypeError(
                f"method must be the settings of a method, got {_checks.shown(self.method)}"
            )

    def compress(self, W: Array, /) -> Factors:
        """Return factors of a layer's initial numbers, multiplied to their size.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            Random floats.

        Returns
        -------
        Factors
            Of the method's kind.

        Raises
        ------
        TypeError, ValueError
            For what the method refuses, and for a W of which nothing is left.
        """
        left = _root_mean_square(self.method.compress(W).to_dense())
        if left == 0:
            raise ValueError("W must be random numbers, got a matrix whose factors are zero")
        return self.method.compress((W * (_root_mean_square(W) / left)).astype(W.dtype))


def _root_mean_square(W: Array) -> float:
    return float(np.sqrt(np.mean(np.square(W, dtype=np.float64)))) if W.size else 0.0

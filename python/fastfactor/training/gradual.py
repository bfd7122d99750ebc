"""Pruning step by step while a model trains, by magnitude or by gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from ..kernels.selection import nm_sparsity_mask, prune_mask
from ..methods.factors import Factors
from ..methods.pruning.prune import Prune
from .ramp import SparsityRamp

SCORES = ("magnitude", "gradient", "taylor", "second_order")
# Steps before the first mask for which gradients are averaged, in those that a mean looks back on.
WARM_UP = 5


@dataclass(frozen=True)
class GradualPrune:
    """Prune a matrix more and more while its model trains, as a ramp says.

    The matrix is dense until the ramp begins. From then on it is masked: the layer computes with
    zeros in place of the weights that are pruned, and which these are is chosen anew at each step
    that the ramp names. At its end the choice is final, and only the kept weights stay.

    Parameters
    ----------
    ramp : SparsityRamp
        The share of weights that are pruned, by step.
    score : {"magnitude", "gradient", "taylor", "second_order"}
        By what weights w are ranked, where g is the gradient of the loss by w in a step, and a mean
        is a running one:

        * ``"magnitude"``: ``|w|``;
        * ``"gradient"``: ``|w · mean(g)|``, by how much the loss changes to first order if w goes;
        * ``"taylor"``: ``mean(|w · g|)``, in which gradients of both signs do not cancel out;
        * ``"second_order"``: ``½ mean(g²) w²``, by how much the loss grows to second order if w
          goes near a minimum, with ``mean(g²)`` for the second derivative.

    decay : float
        Of the running means, in [0, 1): ``mean ← decay · mean + (1 − decay) · new``.
    scope : {"global", "row"}
        Which weights are ranked together: all of them, or those of each row.
    block_shape : (int, int), optional
        Rows and columns of blocks that are ranked, and kept or pruned, as a whole.
    pool : {"square", "max", "mean"}
        The score of a block, of the scores s of its weights: the mean of s², the largest or the
        mean s. For ``"second_order"`` s is the root of the score, so that ``"square"`` is the mean
        growth of the loss.
    nm_sparsity : (int, int), optional
        (n, m) keeps n weights in every m neighbours of a row in the end, and as many more before as
        the ramp says: ``max(n, round((1 − s) · m))`` at a share s. The ramp's ``final`` must be
        ``1 − n / m``.

    Raises
    ------
    TypeError, ValueError
        For settings out of range or that exclude each other.

    Notes
    -----
    A pruned weight keeps the value that it had when it was pruned, and is ranked by it, with the
    gradient at zero. If its score is among the best at a later choice, it returns with this value.
    In between it does not train (no straight-through gradient), whatever momentum and weight decay
    the optimizer has. Under ``"magnitude"`` it can only return when others have become smaller.

    Running means begin some hundred steps before the first choice, ``5 / (1 − decay)``, and begin
    at zero, which is the same factor for all weights. Weights that never had a gradient, such as
    rows of an embedding for words that did not come, have the score 0 and are pruned first.

    Sources: the ramp is that of Zhu and Gupta, "To prune, or not to prune", 2017; ``"taylor"`` of
    Molchanov, Tyree, Karras, Aila and Kautz, "Pruning convolutional neural networks for resource
    efficient inference", 2016, and ``"gradient"`` its form of Molchanov, Mallya, Tyree, Frosio and
    Kautz, "Importance estimation for neural network pruning", 2019, with a mean before the product;
    ``"second_order"`` of LeCun, Denker and Solla, "Optimal brain damage", 1990.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.training import CompressedMatrix, GradualPrune, SparsityRamp
    >>> W = np.array([[4.0, 1.0, 3.0, 2.0]], np.float32)
    >>> matrix = CompressedMatrix(GradualPrune(SparsityRamp(0.5, begin=1, end=3)))
    >>> for step in range(4):
    ...     change = matrix.advance(step, lambda: W)
    ...     print(matrix.state.value, matrix.mask, change.mask_changed)
    dense None False
    masked [[ True  True  True  True]] True
    masked [[ True False  True False]] True
    factors None False
    >>> matrix.factors.to_dense()
    array([[4., 0., 3., 0.]], dtype=float32)
    """

    ramp: SparsityRamp
    score: str = field(default="magnitude", kw_only=True)
    decay: float = field(default=0.99, kw_only=True)
    scope: str = field(default="global", kw_only=True)
    block_shape: tuple[int, int] | None = field(default=None, kw_only=True)
    pool: str = field(default="square", kw_only=True)
    nm_sparsity: tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.ramp, SparsityRamp):
            raise TypeError(f"ramp must be a SparsityRamp, got {_checks.shown(self.ramp)}")
        _checks.choice(self.score, "score", SCORES)
        if _checks.fraction(self.decay, "decay", zero=True) == 1:
            raise ValueError(f"decay must be less than 1, got {self.decay}")
        method = self.method  # which checks the other settings
        if method.nm_sparsity is not None:
            n, m = method.nm_sparsity
            if not math.isclose(self.ramp.final, 1 - n / m, abs_tol=1e-6):
                raise ValueError(
                    f"final of the ramp must be 1 − n / m, {1 - n / m:.6g}, for nm_sparsity "
                    f"{self.nm_sparsity}, got {self.ramp.final}"
                )

    @property
    def method(self) -> Prune:
        """The method whose factors a matrix has in the end."""
        return Prune(
            sparsity=self.ramp.final if self.nm_sparsity is None else None,
            scope=self.scope,
            block_shape=self.block_shape,
            pool=self.pool,
            nm_sparsity=self.nm_sparsity,
        )

    @property
    def first_gradient(self) -> int | None:
        """The step from which on gradients are averaged; None if the score needs none."""
        if self.score == "magnitude":
            return None
        return max(self.ramp.begin - round(WARM_UP / (1 - self.decay)), 0)

    def compress(self, W: Array, /) -> Factors:
        """Prune at once, as at the end of the ramp; only by magnitude.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            Finite floats.

        Returns
        -------
        Factors
            PruneFactors.

        Raises
        ------
        TypeError, ValueError
            As for :class:`fastfactor.methods.Prune`, and for a score that needs gradients.
        """
        if self.first_gradient is not None:
            raise ValueError(
                f"score must be 'magnitude' where a matrix is pruned at once, got {self.score!r}"
            )
        return self.method.compress(W)

    def measure(self, W: Any, gradient: Any) -> Any:
        """Return what the score takes the running mean of, for one gradient.

        Parameters
        ----------
        W, gradient : array
            The weights, with the kept values of those that are pruned, and the gradient of the loss
            by the weights that the layer computed with. Arrays of any library; W only counts for
            ``"taylor"``.

        Returns
        -------
        array
            Of the same shape.
        """
        if self.score == "gradient":
            return gradient
        return abs(W * gradient) if self.score == "taylor" else gradient * gradient

    def mask(self, W: Array, sparsity: float, mean: Array | None) -> Array:
        """Return which weights are kept.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            The weights, with the kept values of those that are pruned.
        sparsity : float
            The share of weights to prune, in [0, 1].
        mean : array of W's shape or None
            The running mean of what `measure` returned; None if the score needs none, or if all
            weights are kept.

        Returns
        -------
        bool array of W's shape
            True for kept weights.

        Raises
        ------
        TypeError, ValueError
            For numbers that are not finite, a mean of another shape or none where the score needs
            one, and columns that m does not divide.
        """
        W = _checks.float_array(W, "W", ndim=(2,))
        scores = np.zeros(W.shape) if sparsity == 0 else self._scores(W, mean)
        if self.nm_sparsity is not None:
            n, m = self.nm_sparsity
            return nm_sparsity_mask(scores, max(n, round((1 - sparsity) * m)), m)
        return prune_mask(
            scores, sparsity, scope=self.scope, block_shape=self.block_shape, pool=self.pool
        )

    def _scores(self, W: Array, mean: Array | None) -> Array:
        """Return numbers whose magnitudes rank the weights."""
        if self.first_gradient is None:
            return W
        if mean is None:
            raise ValueError(
                f"a gradient must come before the first choice by {self.score!r}, got none; begin "
                "the ramp later, and make a step of the optimizer before"
            )
        mean = _checks.float_array(mean, "mean", ndim=(2,))
        if mean.shape != W.shape:
            raise ValueError(f"mean must have the shape of W, {W.shape}, got {mean.shape}")
        # In float64, because products of small gradients leave the range of float32.
        wide = mean.astype(np.float64)
        if self.score == "taylor":
            return wide
        scores: Array = (np.sqrt(wide / 2) if self.score == "second_order" else wide) * W
        return scores

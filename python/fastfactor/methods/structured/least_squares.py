"""Conjugate gradients, for least squares whose matrix is too large to write down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..._checks import Array

CONVERGED = 1e-16  # of the gradient's square


def conjugate_gradients(
    weigh: Callable[[Array], Array],
    W: Array,
    apply: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    start: Array,
    steps: int,
) -> Array:
    """A better x in ``W ≈ apply(x)``, the error falling at each step.

    ``apply`` is linear and ``adjoint`` its transpose; ``weigh`` is half the gradient of the error's
    square. What is solved is ``adjoint(weigh(W − apply(x))) = 0``.
    """
    x = start.copy()
    gradient = adjoint(weigh(W - apply(x)))
    direction, size = gradient, float(np.sum(gradient**2))
    first = size
    for _ in range(steps):
        if size <= CONVERGED * first:
            break
        change = adjoint(weigh(apply(direction)))
        curvature = float(np.sum(direction * change))
        if curvature <= 0:
            break
        x += size / curvature * direction
        gradient = gradient - size / curvature * change
        last, size = size, float(np.sum(gradient**2))
        direction = gradient + size / last * direction
    return x

"""Conjugate gradients, for least squares whose matrix is too large to write down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._checks import Array

CONVERGED = 1e-16  # of the gradient's square


def solve_least_squares(
    weigh: Callable[[Array], Array],
    W: Array,
    apply: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    start: Array,
    steps: int,
) -> Array:
    """Return a better x in ``W ≈ apply(x)``; the error falls at each step.

    ``apply`` is linear and ``adjoint`` its transpose; ``weigh`` is half the gradient of the error's
    square. What is solved is ``adjoint(weigh(W − apply(x))) = 0``.
    """
    gradient = adjoint(weigh(W - apply(start)))
    enough = CONVERGED * float(np.sum(gradient**2))
    return conjugate_gradients(
        lambda x: adjoint(weigh(apply(x))), gradient, start, steps=steps, enough=enough
    )


def conjugate_gradients(
    matrix: Callable[[Array], Array],
    residual: Array,
    start: Array,
    *,
    steps: int,
    enough: float,
) -> Array:
    """Return a better x in ``matrix(x) = b``, where ``residual`` is ``b − matrix(start)``.

    ``matrix`` is linear, symmetric and positive semidefinite. Ends once ‖residual‖² is ``enough``.
    """
    x = start.copy()
    direction, size = residual, float(np.sum(residual**2))
    for _ in range(steps):
        if size <= enough:
            break
        image = matrix(direction)
        curvature = float(np.sum(direction * image))
        if curvature <= 0:
            break
        x += size / curvature * direction
        residual = residual - size / curvature * image
        last, size = size, float(np.sum(residual**2))
        direction = residual + size / last * direction
    return x

"""Conjugate gradients, for least squares problems whose matrix is too large to store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._checks import Array

CONVERGED = 1e-16  # relative to the squared norm of the first gradient


def solve_least_squares(
    weigh: Callable[[Array], Array],
    W: Array,
    apply: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    start: Array,
    steps: int,
) -> Array:
    """Return an x that improves ``W ≈ apply(x)``; the error falls at each step.

    ``apply`` is linear and ``adjoint`` is its transpose. ``weigh`` maps a residual to half the
    gradient of its squared error. The equation solved is ``adjoint(weigh(W − apply(x))) = 0``.
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

    ``matrix`` is linear, symmetric and positive semidefinite. The iteration stops after ``steps``
    steps, or once ‖residual‖² is at most ``enough``.
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

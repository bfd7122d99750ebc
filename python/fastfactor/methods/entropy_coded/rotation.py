"""The rotation of columns with which a matrix is coded best, and how it is stored.

Sizes and errors are predicted by rate–distortion theory for independent Gaussian columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..._checks import Array
from ...kernels.packing import PackedCodes

LARGEST_ROTATION = 1024  # columns
# For each number of bits: the range, in standard deviations, that rounds a normal value best.
RANGES = {2: 1.6, 3: 2.3, 4: 2.8, 5: 3.3, 6: 3.8, 8: 4.6}


class Rotation(NamedTuple):
    """An orthogonal matrix, rebuilt from entries that were rounded to a few bits."""

    basis: Array  # (n, n), float64
    packed: Array  # the codes from which `nearest_rotation` rebuilds it
    n_bits: int


@dataclass(frozen=True)
class Budget:
    """The goal for each weight: a number of bits or a squared error."""

    n_weights: int
    bits: float | None
    noise: float  # the squared error, if bits is None

    def cost(self, variances: Array, rotation_bits: int = 0) -> float:
        """Return the squared error if the goal gives the bits, or the bits if it gives the error.

        ``variances`` are those of the columns. The rotation's entries take bits, too.
        """
        of_rotation = rotation_bits * len(variances) ** 2 / self.n_weights
        if self.bits is None:
            return _rate(variances, self.noise) + of_rotation
        return _noise_at(variances, self.bits - of_rotation)


def best_rotation(
    gram: Array, covariance: Array | None, budget: Budget, least: float
) -> tuple[Rotation | None, float]:
    """Return the rotation that costs least and its cost, or None if none costs below ``least``.

    It rotates to the eigenvectors of the inputs' covariance, or, without one, of the Gram matrix of
    W's columns.
    """
    best: Rotation | None = None
    if least <= 0:
        return best, least
    exact = np.linalg.eigh(gram if covariance is None else covariance)[1]
    lower_bound = _weighed_variances(exact, gram, covariance)
    for n_bits in RANGES:
        if budget.cost(lower_bound, n_bits) >= least:
            break
        codes = _rounded(exact, n_bits)
        basis = nearest_rotation(codes, n_bits)
        cost = budget.cost(_weighed_variances(basis, gram, covariance), n_bits)
        if cost < least:
            packed = PackedCodes.pack(codes, n_bits).data
            best, least = Rotation(basis, packed, n_bits), cost
    return best, least


def nearest_rotation(codes: Array, n_bits: int) -> Array:
    """Return the orthogonal matrix nearest to centred codes, in float64."""
    left, _, right = np.linalg.svd(codes.astype(np.float64) - ((1 << n_bits) - 1) / 2)
    result: Array = left @ right
    return result


def along(basis: Array, matrix: Array) -> Array:
    """Return bᵀ · matrix · b for each column b of a basis, with 0 for negative values."""
    found: Array = np.maximum(np.einsum("ij,ij->j", basis, matrix @ basis), 0)
    return found


def _rounded(basis: Array, n_bits: int) -> Array:
    """Return the entries rounded to codes on a grid that is symmetric about zero."""
    top = (1 << n_bits) - 1
    scaled = basis * np.sqrt(len(basis)) / RANGES[n_bits]
    codes: Array = np.clip(np.rint((scaled + 1) * top / 2), 0, top).astype(np.uint8)
    return codes


def _weighed_variances(basis: Array, gram: Array, covariance: Array | None) -> Array:
    """Return for each column of a basis the variance along it times the weight of its errors."""
    variances = along(basis, gram)
    return variances if covariance is None else variances * along(basis, covariance)


def _rate(variances: Array, noise: float) -> float:
    """Return the bits a weight of Gaussian columns at a noise level, by reverse water-filling."""
    ratios = np.maximum(variances / max(noise, 1e-300), 1)
    return float(0.5 * np.log2(ratios).mean()) if variances.size else 0.0


def _noise_at(variances: Array, bits: float) -> float:
    """Return the squared error a weight at which `_rate` is ``bits``; infinite if negative."""
    largest = float(variances.max(initial=0))
    if bits < 0 or largest == 0:
        return np.inf if bits < 0 else 0.0
    low, high = -120.0, 0.0  # log₂ of the water level over the largest variance
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = _rate(variances, largest * 2.0**middle) > bits
        low, high = (middle, high) if above else (low, middle)
    noise = largest * 2.0**high
    return float(np.minimum(variances, noise).mean())

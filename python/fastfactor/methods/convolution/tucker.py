"""Tensor singular value decompositions of blocks, along filters and channels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..._checks import Array

SWEEPS = 10
LEAST_GAIN = 1e-5  # the relative gain in what is kept that justifies another sweep


class Tucker(NamedTuple):
    """Blocks ``T[n, f, c, p] ≈ Σ_kl filters[n, f, k] · core[n, k, l, p] · channels[n, l, c]``."""

    filters: Array
    core: Array
    channels: Array


def decompose(T: Array, ranks: tuple[int, int]) -> Tucker:
    """Return factors of blocks (n, filters, channels, area), of ranks K₁ (channels), K₂ (filters).

    First the singular value decompositions of Denton et al., 2014, along filters and then along
    channels; then each in turn again for the other (higher-order orthogonal iteration, De
    Lathauwer, De Moor and Vandewalle, 2000), until little is gained.
    """
    n, n_filters, n_channels, area = T.shape
    first, second = ranks
    filters = leading(T.reshape(n, n_filters, -1), second)
    kept = 0.0
    for sweep in range(SWEEPS):
        middle = (filters.transpose(0, 2, 1) @ T.reshape(n, n_filters, -1)).reshape(
            n, second, n_channels, area
        )
        channels = leading(
            middle.transpose(0, 2, 1, 3).reshape(n, n_channels, -1), first
        ).transpose(0, 2, 1)
        core = channels[:, None] @ middle
        last, kept = kept, float(np.einsum("nklp,nklp->", core, core))
        if sweep == SWEEPS - 1 or kept - last <= LEAST_GAIN * kept:
            break
        other = (channels[:, None] @ T).reshape(n, n_filters, -1)
        filters = leading(other, second)
    return Tucker(filters, core, channels)


def leading(matrices: Array, rank: int) -> Array:
    """Return the leading left singular vectors (n, rows, rank) of matrices (n, rows, columns)."""
    _, rows, columns = matrices.shape
    if rows <= columns:
        # The Gram matrix squares the condition number, which spoils the trailing vectors only.
        vectors = np.linalg.eigh(matrices @ matrices.transpose(0, 2, 1))[1]
        return np.ascontiguousarray(vectors[:, :, ::-1][:, :, :rank])
    return np.linalg.svd(matrices, full_matrices=False)[0][:, :, :rank]


def energies(T: Array) -> tuple[Array, Array]:
    """Return the squared singular values along channels and filters, of all blocks together."""
    n, filters, channels, _ = T.shape
    rows = T.reshape(n, filters, -1)
    columns = T.transpose(0, 2, 1, 3).reshape(n, channels, -1)
    along_channels, along_filters = (
        np.maximum(np.linalg.eigvalsh(m @ m.transpose(0, 2, 1)), 0).sum(axis=0)[::-1]
        for m in (columns, rows)
    )
    return along_channels, along_filters

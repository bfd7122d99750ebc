"""What became of one weight of a model."""

from __future__ import annotations

from dataclasses import dataclass

from .saved_state import State


@dataclass(frozen=True)
class LayerReport:
    """What became of one weight.

    Attributes
    ----------
    name : str
        Of the weight in the model's `state_dict`; of tied weights, the first.
    tied : tuple of str
        The other names of the same weight.
    stage : State
    alpha : float
        The share of the dense weight.
    bytes_dense : int
    bytes_factors : int or None
        Of the factors as they are stored; None while the weight is dense.
    relative_error : float or None
        ‖W − Ŵ‖² / ‖W‖² of the factors against the weight as they are now; None unless both exist.
    sparsity : float or None
        The share of entries that are pruned so far; None for methods that do not prune.
    """

    name: str
    tied: tuple[str, ...]
    stage: State
    alpha: float
    bytes_dense: int
    bytes_factors: int | None
    relative_error: float | None
    sparsity: float | None

"""What became of the weights of a model: one row, and the numbers for a log, of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from ..methods.factors import Factors
from ..training import State
from .shared_weight import SharedWeight


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


def report_of(shared: SharedWeight, names: Sequence[str]) -> LayerReport:
    """Return what became of a weight, which has these names."""
    weight, is_blended = shared.weight, shared.state is State.BLENDED
    return LayerReport(
        name=names[0],
        tied=tuple(names[1:]),
        stage=shared.state,
        alpha=shared.matrix.alpha,
        bytes_dense=_bytes_dense(shared),
        bytes_factors=_bytes_of_factors(shared),
        relative_error=_error_now(shared, weight) if is_blended and weight is not None else None,
        sparsity=shared.matrix.sparsity,
    )


def scalars_of(shared: SharedWeight) -> dict[str, float]:
    """Return numbers to follow in a log."""
    weight, factors = shared.weight, shared.parameters
    tensors = factors if weight is None else {"A": weight, **factors}
    found: dict[str, float] = {
        "alpha": shared.matrix.alpha,
        "last_step": shared.matrix.last_step,
        "bytes": (0 if weight is None else _bytes_dense(shared)) + (_bytes_of_factors(shared) or 0),
        **{f"norm_{name}": float(p.detach().norm()) for name, p in tensors.items()},
    }
    if shared.matrix.sparsity is not None:
        found["sparsity"] = shared.matrix.sparsity
    return found


def _bytes_dense(shared: SharedWeight) -> int:
    layer, own = shared.uses[0]
    return next(layer.parameters_of(own)).element_size() * prod(shared.shape)


def _bytes_of_factors(shared: SharedWeight) -> int | None:
    factors = shared.matrix.factors
    if factors is None or isinstance(factors, Factors):
        return None if factors is None else factors.nbytes
    return sum(array.nbytes for array in factors.tensors().values())


def _error_now(shared: SharedWeight, weight: torch.Tensor) -> float:
    """Return ‖W − Ŵ‖² / ‖W‖² of a weight that is blended."""
    W = weight.detach().cpu().double()
    if isinstance(shared.matrix.factors, Factors):
        factors = shared.trained_factors()
        return float(factors.error(W.reshape(factors.shape)))
    left = W - shared.dense(shared.parameters).detach().cpu().double()
    return float(left.square().sum() / W.square().sum())

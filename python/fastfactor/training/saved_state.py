"""What is saved of a matrix in training beside its layer's numbers, and read with suspicion."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._arrays import Array, as_array
from ..errors import CorruptDataError
from ..methods.factors import FLOAT_NAMES, Factors

FORMAT = 2
# The version of the states that all versions of fastfactor read: those without a mask.
WITHOUT_MASK = 1


class State(Enum):
    """The stage of a matrix."""

    DENSE = "dense"
    MASKED = "masked"
    BLENDED = "blended"
    FACTORS = "factors"


class Saved(NamedTuple):
    """What `saved_state` is given, and `read_state` returns."""

    state: State
    alpha: float
    last_step: int
    factors: Factors | None
    mask: Array | None


def saved_state(saved: Saved) -> dict[str, Any]:
    """Return numbers, text and arrays from which `read_state` gets the same."""
    found = {
        "version": WITHOUT_MASK,
        "state": saved.state.value,
        "alpha": saved.alpha,
        "last_step": saved.last_step,
        "factors": None if saved.factors is None else _saved_factors(saved.factors),
    }
    if saved.mask is not None:
        bits = np.packbits(saved.mask.reshape(-1), bitorder="little")
        found |= {"version": FORMAT, "mask": {"shape": list(saved.mask.shape), "bits": bits}}
    return found


def read_state(state: Any) -> Saved:
    """Return stage, α, last step, factors and mask from what `saved_state` returned.

    Raises
    ------
    CorruptDataError
        If it contradicts itself.
    ValueError
        If a newer version of fastfactor made it.
    """
    fields = {"version", "state", "alpha", "last_step", "factors"}
    if not isinstance(state, Mapping) or state.keys() - {"mask"} != fields:
        raise CorruptDataError(
            f"state must have {', '.join(sorted(fields))}, got {_checks.shown(state)}"
        )
    version = state["version"]
    if type(version) is not int or version < 1:
        raise CorruptDataError(f"version must be a positive integer, got {_checks.shown(version)}")
    if version > FORMAT:
        raise ValueError(
            f"version of the state must be at most {FORMAT} for this fastfactor, got {version}: "
            "a newer fastfactor made it"
        )
    try:
        stage = State(state["state"])
        alpha = _checks.fraction(state["alpha"], "alpha", zero=True)
        last_step = _checks.integer(state["last_step"], "last_step", -1)
    except (TypeError, ValueError) as error:
        raise CorruptDataError(f"state: {error}") from error
    factors = None if state["factors"] is None else _read_factors(state["factors"])
    mask = _read_mask(state["mask"]) if "mask" in state else None
    right_alpha = {
        State.DENSE: alpha == 1,
        State.MASKED: alpha == 1,
        State.BLENDED: alpha > 0,
        State.FACTORS: alpha == 0,
    }
    has_factors = stage in (State.BLENDED, State.FACTORS)
    if (factors is not None) != has_factors or not right_alpha[stage]:
        raise CorruptDataError(
            f"state must have the α and the factors of a matrix that is {stage.value}, got "
            f"α = {alpha} and {'no' if factors is None else 'some'} factors"
        )
    if (mask is not None) != (stage is State.MASKED):
        raise CorruptDataError(
            "state must have a mask in the stage masked and in no other, got "
            f"{'none' if mask is None else 'one'} of a matrix that is {stage.value}"
        )
    return Saved(stage, alpha, last_step, factors, mask)


def _read_mask(saved: Any) -> Array:
    if not isinstance(saved, Mapping) or saved.keys() != {"shape", "bits"}:
        raise CorruptDataError(f"mask must have bits, shape, got {_checks.shown(saved)}")
    try:
        rows, columns = (_checks.integer(size, "shape", 0) for size in saved["shape"])
        bits = as_array(saved["bits"], "bits")
    except (TypeError, ValueError) as error:
        raise CorruptDataError(f"mask: {error}") from error
    size = rows * columns
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise CorruptDataError(
            f"bits of the mask must be {-(-size // 8)} bytes for shape {(rows, columns)}, "
            f"got {bits.dtype} of shape {bits.shape}"
        )
    mask = np.unpackbits(bits, count=size, bitorder="little").astype(np.bool_)
    return mask.reshape(rows, columns)


def _saved_factors(factors: Factors) -> dict[str, Any]:
    return {
        "kind": factors.kind,
        "shape": list(factors.shape),
        "dtype": _checks.name_of(factors.dtype),
        "config": factors.config(),
        "tensors": factors.tensors(),
    }


def _read_factors(saved: Any) -> Factors:
    fields = {"kind", "shape", "dtype", "config", "tensors"}
    if not isinstance(saved, Mapping) or saved.keys() != fields:
        raise CorruptDataError(
            f"factors must have {', '.join(sorted(fields))}, got {_checks.shown(saved)}"
        )
    kind, config, tensors = saved["kind"], saved["config"], saved["tensors"]
    known = isinstance(kind, str) and kind in Factors.kinds
    if not known or not isinstance(config, Mapping):
        raise CorruptDataError(
            f"kind of the factors must be one of {', '.join(sorted(Factors.kinds))}, "
            f"got {_checks.shown(kind)}; a kind of your own must be imported before"
        )
    try:
        rows, columns = (_checks.integer(size, "shape", 0) for size in saved["shape"])
        dtype = _checks.dtype_named(_checks.choice(saved["dtype"], "dtype", FLOAT_NAMES))
        arrays = {str(name): as_array(array, name) for name, array in tensors.items()}
        factors = Factors.kinds[kind].from_tensors(arrays, dict(config), (rows, columns), dtype)
    except (TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(f"factors: {error}") from error
    if factors.tensors().keys() != arrays.keys():
        raise CorruptDataError(
            f"factors must have the tensors {', '.join(sorted(factors.tensors()))}, "
            f"got {', '.join(sorted(arrays))}"
        )
    return factors

"""The tensors of one run over a model: what is planned for each, and each of them done."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ._checks import Array
from .checkpoint import Checkpoint, Stored
from .comparison import difference
from .container import CODES, dtype_of
from .methods.base import Factors
from .metrics import Diagonal
from .recipe import KEEP, Recipe, Rule, located
from .report import TensorRow
from .store_index import Entry, Value


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe, the model that it is for, and the importance of its weights, if that is known.

    Attributes
    ----------
    plan : dict
        By name, in the model's order: the rule, and why a tensor is kept, else "".
    """

    recipe: Recipe
    checkpoint: Checkpoint
    weights: Checkpoint | None
    n_threads: int | None

    def __post_init__(self) -> None:
        self.recipe.check_names(self.checkpoint)
        for name, (rule, _) in self.plan.items():
            if self.weights is not None and rule.compressor and name not in self.weights:
                raise ValueError(
                    f"importance must hold every tensor that is compressed, got none for {name!r}"
                )

    @cached_property
    def plan(self) -> dict[str, tuple[Rule, str]]:
        return {
            name: self.recipe.decide(name, stored.shape, is_float=stored.is_float)
            for name, stored in self.checkpoint.tensors.items()
        }

    def fingerprint(self) -> str:
        """What must be the same for a run to go on where another ended."""
        from . import __version__

        found = [__version__, self.recipe.fingerprint()]
        for model in (self.checkpoint, self.weights):
            for file in model.files if model is not None else ():
                status = os.stat(file)
                found.append(f"{os.path.basename(file)} {status.st_size} {status.st_mtime_ns}")
            found.append("")
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def planned(self, name: str) -> TensorRow:
        """The report's row of a tensor before anything is done."""
        (rule, reason), stored = self.plan[name], self.checkpoint.tensors[name]
        known = rule.compressor is None and rule.dtype in (None, stored.dtype.name)
        return _row(name, stored, rule, reason, stored.nbytes if known else None)

    def done(self, name: str) -> tuple[Value, TensorRow]:
        """What is stored for a tensor, and its row."""
        start = time.perf_counter()
        (rule, reason), stored = self.plan[name], self.checkpoint.tensors[name]
        W = self.checkpoint[name]
        value: Value = W
        error = None
        weight = self._weight(name)
        try:
            if rule.compressor is not None:
                factors = rule.compressor.compress(
                    _as_matrix(W), importance=weight, n_threads=self.n_threads
                )
                if factors.nbytes < W.nbytes:
                    value, error = factors, self._error(W, factors, weight)
                else:
                    reason = f"not smaller as {rule.method}: {factors.nbytes} bytes"
            elif rule.dtype not in (None, stored.dtype.name):
                value = _converted(W, rule.dtype)
                error = difference(W, value).relative_error
        except (TypeError, ValueError) as fault:
            if self.recipe.if_impossible == "stop":
                raise located(fault, f"tensor {name!r}") from fault
            reason = f"impossible: {fault}"
        row = _row(name, stored, rule, reason, value.nbytes)
        return value, replace(row, relative_error=error, seconds=time.perf_counter() - start)

    def done_before(self, entry: Entry, value: Value) -> TensorRow:
        """The row of a tensor that an earlier run wrote, as the file has it."""
        row = replace(self.planned(entry.name), bytes_after=entry.nbytes)
        if isinstance(value, Factors):
            error = self._error(self.checkpoint[entry.name], value, self._weight(entry.name))
            return replace(row, relative_error=error)
        if entry.dtype.name != row.dtype:
            error = difference(self.checkpoint[entry.name], value).relative_error
            return replace(row, relative_error=error)
        if not row.reason:
            return replace(row, method=KEEP, settings={}, reason="left so by the earlier run")
        return row

    def _weight(self, name: str) -> Array | None:
        if self.weights is None or self.plan[name][0].compressor is None:
            return None
        return _as_matrix(self.weights[name])

    def _error(self, W: Array, factors: Factors, weight: Array | None) -> float:
        metric = None if weight is None else Diagonal(weight)
        return factors.error(_as_matrix(W), metric=metric, n_threads=self.n_threads)


def _row(name: str, stored: Stored, rule: Rule, reason: str, bytes_after: int | None) -> TensorRow:
    return TensorRow(
        name=name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        method=KEEP if reason else rule.method,
        settings={} if reason else rule.settings,
        reason=reason,
        bytes_before=stored.nbytes,
        bytes_after=bytes_after,
        relative_error=None,
        seconds=None,
    )


def _as_matrix(array: Array) -> Array:
    """A tensor as methods see it; what is none stays."""
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array


def _converted(W: Array, name: str) -> Array:
    with np.errstate(over="ignore"):
        converted: Array = W.astype(dtype_of(CODES[name]))
    if not np.array_equal(np.isfinite(converted), np.isfinite(W)):
        raise ValueError(f"its values must be in the range of {name}, got larger ones")
    return converted

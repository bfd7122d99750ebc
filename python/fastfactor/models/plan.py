"""One run over a model: the plan for each tensor, and its compression."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._checks import Array
from ..files.checkpoint import Checkpoint, Stored
from ..files.container import CODES, dtype_of
from ..files.index import Entry, Value
from ..methods.factors import Factors
from ..methods.narrow import check_kept
from ..metrics import Covariance, Diagonal, Frobenius
from .compare import difference
from .recipe import KEEP, Recipe, Rule, located, nearest
from .report import TensorRow

METRICS: dict[str, type[Diagonal] | type[Covariance]] = {
    "importance": Diagonal,
    "input_covariance": Covariance,
}
PLAIN = "squares"


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe, the model to compress, and the weights of its errors if they are given.

    Attributes
    ----------
    importance, input_covariance : Checkpoint or None
        Weights of errors, by the names of tensors.
    plan : dict
        By name, in the order of the model: the rule of a tensor, and why it is kept (else "").
    """

    recipe: Recipe
    checkpoint: Checkpoint
    importance: Checkpoint | None
    input_covariance: Checkpoint | None
    n_threads: int | None

    def __post_init__(self) -> None:
        self.recipe.check_names(self.checkpoint)
        for what, model in self._weights.items():
            self._check_weights(what, model)

    @cached_property
    def plan(self) -> dict[str, tuple[Rule, str]]:
        return {
            name: self.recipe.decide(name, stored.shape, is_float=stored.is_float)
            for name, stored in self.checkpoint.tensors.items()
        }

    def fingerprint(self) -> str:
        """Return a hash of everything that a resumed run must have in common with the first."""
        models = (self.checkpoint, self.importance, self.input_covariance)
        return fingerprint(self.recipe.fingerprint(), (m.files if m else () for m in models))

    def planned(self, name: str) -> TensorRow:
        """Return the planned row of a tensor for the report, without reading its values.

        Raises
        ------
        ValueError
            For a tensor that its method cannot compress, unless the recipe keeps such tensors.
        """
        (rule, reason), stored = self.plan[name], self.checkpoint.tensors[name]
        row = _row(name, stored, rule, reason)
        if rule.compressor is None:
            dtype = stored.dtype if rule.dtype is None else dtype_of(CODES[rule.dtype])
            return replace(row, bytes_after=math.prod(stored.shape) * dtype.itemsize)
        try:
            rule.compressor.check_metric(METRICS.get(self._metric_name(name), Frobenius))
            size = rule.compressor.planned_size(_matrix_shape(stored.shape), stored.dtype)
        except ValueError as fault:
            reason = self._impossible(name, fault)
            return replace(_row(name, stored, rule, reason), bytes_after=stored.nbytes)
        if size is None:
            return replace(row, bytes_after=None)
        if not size.exact:
            return replace(row, bytes_after=min(size.nbytes, stored.nbytes), at_most=True)
        if size.nbytes < stored.nbytes:
            return replace(row, bytes_after=size.nbytes)
        row = _row(name, stored, rule, _not_smaller(rule, size.nbytes))
        return replace(row, bytes_after=stored.nbytes)

    def done(self, name: str) -> tuple[Value, TensorRow]:
        """Compress or copy a tensor; return what to store for it, and its row."""
        start = time.perf_counter()
        (rule, reason), stored = self.plan[name], self.checkpoint.tensors[name]
        W = self.checkpoint[name]
        value: Value = W
        error, metric = None, None
        weights = {} if rule.compressor is None else self._weights_of(name)
        try:
            if rule.compressor is not None:
                factors = rule.compressor.compress(
                    _as_matrix(W), n_threads=self.n_threads, **weights
                )
                if factors.nbytes < W.nbytes:
                    value = factors
                    error, metric = self._error(W, factors, weights), _used_metric(weights)
                else:
                    reason = _not_smaller(rule, factors.nbytes)
            elif rule.dtype not in (None, stored.dtype.name):
                value = _converted(W, rule.dtype)
                error, metric = difference(W, value).relative_error, PLAIN
        except ValueError as fault:
            reason = self._impossible(name, fault)
        row = replace(
            _row(name, stored, rule, reason),
            bytes_after=value.nbytes,
            relative_error=error,
            metric=metric,
            seconds=time.perf_counter() - start,
        )
        return value, row

    def done_before(self, entry: Entry, value: Value) -> TensorRow:
        """Return the row of a tensor that an earlier run has written to the file."""
        row = replace(self.planned(entry.name), bytes_after=entry.nbytes, at_most=False)
        if isinstance(value, Factors):
            W, weights = self.checkpoint[entry.name], self._weights_of(entry.name)
            error = self._error(W, value, weights)
            return replace(row, relative_error=error, metric=_used_metric(weights))
        if entry.dtype.name != row.dtype:
            error = difference(self.checkpoint[entry.name], value).relative_error
            return replace(row, relative_error=error, metric=PLAIN)
        if not row.reason:
            return replace(row, method=KEEP, settings={}, reason="kept by the earlier run")
        return row

    @property
    def _weights(self) -> dict[str, Checkpoint]:
        """The files of weights that were given, by the argument of `compress` they are for."""
        given = {what: getattr(self, what) for what in METRICS}
        return {what: model for what, model in given.items() if model is not None}

    def _check_weights(self, what: str, model: Checkpoint) -> None:
        """Check before any work, by the headers, that a file of weights fits the model."""
        for name in model:
            if name not in self.checkpoint:
                raise ValueError(
                    f"{what} must only have names of tensors in the model, got {name!r}"
                    f"{nearest(name, self.checkpoint)}"
                )
        compressed = [name for name, (rule, _) in self.plan.items() if rule.compressor]
        found = [name for name in compressed if name in model]
        if compressed and not found:
            raise ValueError(
                f"{what} must have a tensor for at least one that is compressed, "
                f"got none in {model.path}"
            )
        for name in found:
            if what != self._metric_name(name):
                raise ValueError(
                    f"importance and input_covariance must not both hold {name!r}, got both"
                )
            stored = model.tensors[name]
            rows, columns = _matrix_shape(self.checkpoint.tensors[name].shape)
            wanted = (rows, columns) if what == "importance" else (columns, columns)
            if _matrix_shape(stored.shape) != wanted:
                like = "the shape of W," if what == "importance" else "shape"
                raise ValueError(
                    f"tensor {name!r}: {what} must have {like} {wanted}, got {stored.shape}"
                )
            if not stored.is_float:
                raise TypeError(
                    f"tensor {name!r}: {what} must have a floating-point dtype, got {stored.dtype}"
                )

    def _metric_name(self, name: str) -> str:
        """Return the name of the error that the compression of a tensor minimises."""
        return next((what for what, model in self._weights.items() if name in model), PLAIN)

    def _weights_of(self, name: str) -> dict[str, Array]:
        """Return the arguments of `compress` that weight the errors of a tensor."""
        return {w: _as_matrix(m[name]) for w, m in self._weights.items() if name in m}

    def _error(self, W: Array, factors: Factors, weights: dict[str, Array]) -> float:
        return factors.error(_as_matrix(W), **weights, n_threads=self.n_threads)

    def _impossible(self, name: str, fault: ValueError) -> str:
        """Return why a tensor is kept; raise the fault if the recipe does not keep such tensors."""
        if self.recipe.if_impossible == "stop":
            raise located(fault, f"tensor {name!r}") from fault
        return f"impossible: {fault}"


def fingerprint(what: str, files: Iterable[Iterable[str]]) -> str:
    """Hash the version, a description of the work, and the names, sizes and times of files."""
    from .._version import __version__

    found = [__version__, what]
    for group in files:
        for file in group:
            status = os.stat(file)
            found.append(f"{os.path.basename(file)} {status.st_size} {status.st_mtime_ns}")
        found.append("")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _row(name: str, stored: Stored, rule: Rule, reason: str) -> TensorRow:
    return TensorRow(
        name=name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        method=KEEP if reason else rule.method,
        settings={} if reason else rule.settings,
        reason=reason,
        bytes_before=stored.nbytes,
        bytes_after=None,
        relative_error=None,
        seconds=None,
    )


def _used_metric(weights: dict[str, Array]) -> str:
    """Return the name of the error that was minimised; all-zero weights count as none."""
    for what, array in weights.items():
        return what if array.any() else f"{PLAIN} (zero {what})"
    return PLAIN


def _not_smaller(rule: Rule, nbytes: int) -> str:
    return f"not smaller as {rule.method}: {nbytes} bytes"


def _as_matrix(array: Array) -> Array:
    """Return a tensor as the matrix that methods see; one of fewer than 2 axes unchanged."""
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape


def _converted(W: Array, name: str) -> Array:
    with np.errstate(over="ignore"):
        converted: Array = W.astype(dtype_of(CODES[name]))
    if not np.array_equal(np.isfinite(converted), np.isfinite(W)):
        raise ValueError(f"values must be in the range of {name}, got larger ones")
    if np.isfinite(W).all():
        check_kept(W, converted.dtype, "values", "it")
    return converted

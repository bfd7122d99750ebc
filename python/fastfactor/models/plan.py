"""One run over a model: the plan for each tensor, and its compression."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from ..files.checkpoint import Checkpoint, Stored
from ..files.container import CODES, dtype_of
from ..files.index import Entry, Value
from ..files.layout import Layout
from ..methods.convolution.base import ConvMethod
from ..methods.factors import Factors
from ..methods.narrow import check_kept
from ..methods.search import Size
from .compare import difference
from .layouts import AUTO, Layouts, convolution_layout, kernel_shape
from .quantized import quantized_layers
from .report import TensorRow
from .rules import KEEP, Recipe, Rule
from .ties import equal_tensors, tie_text
from .weights import PLAIN, Weights, used_metric

SHORT_SIDE = 32  # a matrix with a shorter side need not fit its method: see Plan.may_fail


@dataclass(frozen=True)
class Plan:
    """What a run will do with a tensor.

    Attributes
    ----------
    rule : Rule
    reason : str
        Why the tensor is kept; "" if it is to be compressed.
    dtype : dtype
        That it is stored in if it is kept.
    layout : Layout or None
        How it is seen as a matrix; None if it has fewer than two axes.
    may_fail : bool
        Whether it is kept if its method cannot compress it, even if other tensors are not.
    """

    rule: Rule
    reason: str
    dtype: np.dtype[Any]
    layout: Layout | None
    may_fail: bool


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe, the model to compress, and the weights of its errors if they are given.

    Attributes
    ----------
    importance, input_covariance : Checkpoint or None
        Weights of errors, by the names of tensors.
    plan : dict of Plan
        By name, in the order of the model.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    importance: Checkpoint | None
    input_covariance: Checkpoint | None
    n_threads: int | None

    _sizes: dict[Any, Size | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.recipe.check_names(self.checkpoint)
        self.weights.check_names(self.checkpoint)
        if self.weights.given:
            self.weights.check_fit(self._compressed_layouts())

    @cached_property
    def weights(self) -> Weights:
        """The weights of errors, if they are given."""
        return Weights(importance=self.importance, input_covariance=self.input_covariance)

    @cached_property
    def plan(self) -> dict[str, Plan]:
        tensors = self.checkpoint.tensors
        layouts, codes = Layouts(tensors), quantized_layers(tensors)
        return {name: self._plan(name, layouts, codes.get(name)) for name in tensors}

    @cached_property
    def ties(self) -> dict[str, str]:
        """Tensors that are stored as the same as an earlier one, by name, and that one's name."""
        if self.recipe.tied == "each":
            return {}
        ties: dict[str, str] = {}
        own: dict[str, list[str]] = {}  # by the first of equal tensors, those that are not tied
        for name, first in equal_tensors(self.checkpoint).items():
            others = own.setdefault(first, [first])
            like = next((other for other in others if self._are_alike(name, other)), None)
            if like is None:
                others.append(name)
            else:
                ties[name] = like
        return ties

    def source_fingerprint(self) -> str:
        """Return a hash of the files that a resumed run must have in common with the first."""
        models = (self.checkpoint, self.importance, self.input_covariance)
        return fingerprint("compress", (m.files if m else () for m in models))

    def fingerprint(self, name: str, *, kept: bool) -> str:
        """Return a hash of what decides the bytes of a tensor, compressed or kept, beside files."""
        if name in self.ties:
            return tie_text(self.ties[name])
        plan = self.plan[name]
        done = [plan.rule.method, sorted(plan.rule.settings.items())] if not plan.reason else []
        matrix = plan.layout and [plan.layout.axes, plan.layout.matrix]
        said = [done, matrix, self.weights.metric_name(name), plan.dtype.name if kept else None]
        return _hash_of(json.dumps(said))

    def check_values(self) -> None:
        """Check that all tensors to compress are finite, by reading them.

        Raises
        ------
        ValueError
            For the first that is not, unless the recipe keeps such tensors.
        """
        for name in self.plan:
            self._value_fault(name)

    def planned(self, name: str, *, check_values: bool = False) -> TensorRow:
        """Return the planned row of a tensor for the report.

        Parameters
        ----------
        name : str
        check_values : bool
            Read the tensor, and report it as kept if it is not finite.

        Raises
        ------
        ValueError
            For a tensor that its method cannot compress, unless the recipe keeps such tensors.
        """
        plan, stored = self.plan[name], self.checkpoint.tensors[name]
        if name in self.ties:
            row = _row(name, stored, replace(plan, reason=tie_text(self.ties[name])))
            return row.changed(bytes_after=0)
        if plan.reason or plan.layout is None or plan.rule.compressor is None:
            return self._kept_row(name, plan.reason)
        row = _row(name, stored, plan)
        try:
            plan.rule.compressor.check_metric(self.weights.metric_kind(name))
            size = self._planned_size(plan.rule, plan.layout.matrix, stored.dtype)
        except ValueError as fault:
            return self._kept_row(name, self._impossible(name, fault))
        found = self._value_fault(name) if check_values else None
        if found is not None:
            return self._kept_row(name, found)
        if size is None:
            return row.changed(bytes_after=None)
        if not size.exact:
            return row.changed(bytes_after=min(size.nbytes, stored.nbytes), at_most=True)
        if size.nbytes < stored.nbytes:
            return row.changed(bytes_after=size.nbytes)
        return self._kept_row(name, _not_smaller(plan.rule, size.nbytes))

    def _planned_size(
        self, rule: Rule, matrix: tuple[int, int], dtype: np.dtype[Any]
    ) -> Size | None:
        """Return the planned size of a matrix; most models have many of the same shape."""
        assert rule.compressor is not None
        key = (id(rule), matrix, dtype)
        if key not in self._sizes:
            self._sizes[key] = rule.compressor.planned_size(matrix, dtype)
        return self._sizes[key]

    def done(self, name: str) -> tuple[Value, TensorRow]:
        """Compress or copy a tensor; return what to store for it, and its row."""
        start = time.perf_counter()
        plan, W = self.plan[name], self.checkpoint[name]
        reason = plan.reason
        if not reason:
            found = self._compressed(name, W)
            if not isinstance(found, str):
                row = _row(name, self.checkpoint.tensors[name], plan)
                return found, self._measured(row, W, found, start)
            reason = found
        value, reason = self._kept(name, W, reason)
        return value, self._measured(self._kept_row(name, reason, value.dtype), W, value, start)

    def done_before(self, entry: Entry, value: Value) -> TensorRow:
        """Return the row of a tensor that an earlier run has written to the file."""
        row = self.planned(entry.name)
        if entry.same_as is not None:
            return row
        if not isinstance(value, Factors):
            reason = self.plan[entry.name].reason or "kept by the earlier run"
            row = row if row.reason else self._kept_row(entry.name, reason, value.dtype)
        return self._measured(row, self.checkpoint[entry.name], value, None)

    def _plan(self, name: str, layouts: Layouts, codes: str | None) -> Plan:
        stored = self.checkpoint.tensors[name]
        wanted = self.recipe.rule_of(name)
        layout = None
        if len(stored.shape) > 1:
            of_convolution = wanted is not None and isinstance(wanted.compressor, ConvMethod)
            may_group = self.weights.metric_name(name) != "input_covariance" and not of_convolution
            layout = layouts.find(name, wanted.layout if wanted else AUTO, may_group=may_group)
        rule, reason = self.recipe.decide(
            name, layout.matrix if layout else stored.shape, is_float=stored.is_float, codes=codes
        )
        if not reason and layout is not None and isinstance(rule.compressor, ConvMethod):
            layout = convolution_layout(layout)
            if layout is None:
                reason = "not a convolution over two axes"
            else:
                rule = replace(rule, compressor=rule.compressor.for_tensor(kernel_shape(layout)))
        dtype = stored.dtype
        if rule.dtype is not None:
            dtype = dtype_of(CODES[rule.dtype])
        elif self.recipe.keep_dtype is not None and stored.is_float and codes is None:
            dtype = min(dtype, dtype_of(CODES[self.recipe.keep_dtype]), key=lambda d: d.itemsize)
        short = not reason and layout is not None and min(layout.matrix) < SHORT_SIDE
        return Plan(rule, reason, dtype, layout, short and name not in self.recipe.names)

    def _compressed_layouts(self) -> dict[str, Layout]:
        """Return how the tensors that are to be compressed are seen as matrices, by name."""
        plans = ((name, plan) for name, plan in self.plan.items() if not plan.reason)
        return {name: plan.layout for name, plan in plans if plan.layout is not None}

    def _compressed(self, name: str, W: Array) -> Factors | str:
        """Return the factors of a tensor, or why it is kept."""
        plan = self.plan[name]
        assert plan.layout is not None
        assert plan.rule.compressor is not None
        weights = self.weights.arguments(name, plan.layout)
        try:
            factors = plan.rule.compressor.compress(
                plan.layout.to_matrix(W), n_threads=self.n_threads, **weights
            )
        except ValueError as fault:
            return self._impossible(name, fault)
        return factors if factors.nbytes < W.nbytes else _not_smaller(plan.rule, factors.nbytes)

    def _kept(self, name: str, W: Array, reason: str) -> tuple[Array, str]:
        """Return what to store for a tensor that is not compressed, and why it is not."""
        plan = self.plan[name]
        if plan.dtype == W.dtype:
            return W, reason
        try:
            return _converted(W, plan.dtype), reason
        except ValueError as fault:
            if plan.rule.dtype is None:  # converted only where that does no harm
                return W, f"{reason}; not as {plan.dtype.name}: {fault}"
            return W, self._impossible(name, fault)

    def _kept_row(self, name: str, reason: str, dtype: np.dtype[Any] | None = None) -> TensorRow:
        """Return the row of a tensor that is stored as it is, or in the dtype that was planned."""
        plan, stored = self.plan[name], self.checkpoint.tensors[name]
        dtype = plan.dtype if dtype is None else dtype
        if dtype != stored.dtype and plan.rule.dtype is None:
            reason = f"{reason}, as {dtype.name}"
        row = _row(name, stored, replace(plan, reason=reason))
        same = dtype == stored.dtype
        nbytes = stored.nbytes if same else math.prod(stored.shape) * dtype.itemsize
        return row.changed(bytes_after=nbytes)

    def _measured(self, row: TensorRow, W: Array, value: Value, start: float | None) -> TensorRow:
        """Return a row with the size and error of what is stored, and the time since `start`."""
        error = plain = metric = None
        if isinstance(value, Factors):
            layout = self.plan[row.name].layout
            assert layout is not None
            weights = self.weights.arguments(row.name, layout)
            error = value.error(layout.to_matrix(W), **weights, n_threads=self.n_threads)
            metric = used_metric(weights)
            plain = error
            if weights:
                plain = value.error(layout.to_matrix(W), n_threads=self.n_threads)
        elif value.dtype != W.dtype:
            error = plain = difference(W, value).relative_error
            metric = PLAIN
        return row.changed(
            bytes_after=value.nbytes,
            at_most=False,
            relative_error=error,
            metric=metric,
            plain_error=plain,
            seconds=None if start is None else time.perf_counter() - start,
        )

    def _are_alike(self, name: str, other: str) -> bool:
        """Return whether two equal tensors are to be stored alike."""
        plan, like = self.plan[name], self.plan[other]
        return (plan.rule, plan.reason, plan.dtype) == (
            like.rule,
            like.reason,
            like.dtype,
        ) and self.weights.are_equal(name, other)

    def _value_fault(self, name: str) -> str | None:
        """Return why a tensor is kept for its values; None if they are finite or not compressed."""
        if self.plan[name].reason or name in self.ties:
            return None
        W = self.checkpoint[name]
        try:
            _checks.finite(W, "W")
        except ValueError as fault:
            return self._impossible(name, fault)
        return None

    def _impossible(self, name: str, fault: ValueError) -> str:
        """Return why a tensor is kept; raise the fault if the recipe does not keep such tensors."""
        if self.recipe.if_impossible == "stop" and not self.plan[name].may_fail:
            advice = 'to keep such tensors, set if_impossible = "keep" (--if-impossible keep)'
            raise ValueError(f"tensor {name!r}: {fault}; {advice}") from fault
        return f"impossible: {fault}"


@lru_cache(maxsize=1024)
def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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


def _row(name: str, stored: Stored, plan: Plan) -> TensorRow:
    return TensorRow(
        name=name,
        shape=stored.shape,
        dtype=stored.dtype_name,
        method=KEEP if plan.reason else plan.rule.method,
        settings={} if plan.reason else plan.rule.settings,
        reason=plan.reason,
        bytes_before=stored.nbytes,
        bytes_after=None,
        relative_error=None,
        seconds=None,
        layout=None if plan.reason else plan.layout,
    )


def _not_smaller(rule: Rule, nbytes: int) -> str:
    return f"not smaller as {rule.method}: {nbytes} bytes"


def _converted(W: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        converted: Array = W.astype(dtype)
    if not np.array_equal(np.isfinite(converted), np.isfinite(W)):
        raise ValueError(f"values must be in the range of {dtype.name}, got larger ones")
    if np.isfinite(W).all():
        check_kept(W, converted.dtype, "values", "it")
    return converted

"""Rules for how each tensor of a model is compressed, and which of a recipe's applies."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..methods.base import Method
from ..methods.factors import matrix_shape
from .layouts import AUTO
from .quantized import quantized_text
from .suggestion import nearest

TIED = ("once", "each")
KEEP = "keep"


@dataclass(frozen=True)
class Rule:
    """How a tensor is compressed.

    Attributes
    ----------
    method : str
        A method's name in snake case, or ``"keep"``.
    settings : dict
        As the recipe gave them.
    compressor : Method or None
        The method with these settings; None for ``"keep"``.
    dtype : str or None
        For ``"keep"``: the dtype that floating-point values are converted to.
    layout : str
        How a tensor is seen as a matrix: a name of `fastfactor.models.layouts.LAYOUTS`.
    """

    method: str
    settings: dict[str, Any]
    compressor: Method | None
    dtype: str | None = None
    layout: str = AUTO


@dataclass(frozen=True)
class Recipe:
    """The checked rules for the tensors of a model.

    For each tensor the first of these that applies decides: the rule for its full name; whether it
    belongs to a layer that another library has quantized; the skip list; the last pattern that
    matches; the default. Patterns may have ``*``, ``?`` and ``[abc]``, match full names and are
    case-sensitive. Only tensors of floats with at least two axes are compressed. One with fewer
    weights than ``min_size``, or a side below ``min_side``, is compressed only if there is a rule
    for its full name.

    Attributes
    ----------
    default : Rule
    patterns, names : dict of Rules
    skip : tuple of str
    min_size : int
        The fewest weights of a tensor that is compressed.
    min_side : int
        The shortest side of a matrix that is compressed.
    keep_dtype : str or None
        The dtype that wider floating-point tensors are converted to if they are not compressed.
    if_impossible : {"stop", "keep"}
        What to do with a tensor that its method cannot compress.
    tied : {"once", "each"}
        How often large equal tensors under equal rules are stored.
    """

    default: Rule
    patterns: dict[str, Rule]
    names: dict[str, Rule]
    skip: tuple[str, ...]
    min_size: int
    min_side: int
    keep_dtype: str | None
    if_impossible: str
    tied: str = TIED[0]

    def rule_of(self, name: str) -> Rule | None:
        """Return the rule for a name; None if it is on the skip list."""
        if name in self.names:
            return self.names[name]
        if any(fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        fitting = [rule for pattern, rule in self.patterns.items() if fnmatchcase(name, pattern)]
        return fitting[-1] if fitting else self.default

    def decide(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        is_float: bool,
        codes: str | None = None,
    ) -> tuple[Rule, str]:
        """Return the rule for a tensor, and why it is kept (else "").

        Parameters
        ----------
        name : str
        shape : tuple of int
            Of the tensor, or of its matrix.
        is_float : bool
            Whether it has a dtype that can be compressed.
        codes : str, optional
            If another library has quantized its layer: the name of the codes.
        """
        by_name = name in self.names
        if codes is not None and not by_name:
            return KEPT, quantized_text(name, codes)
        rule = self.rule_of(name)
        if rule is None:
            return KEPT, "on the skip list"
        if rule.compressor is None:
            if rule.dtype is not None and not is_float:
                return KEPT, "not floating-point"
            return rule, f"kept as {rule.dtype}" if rule.dtype else "kept by the recipe"
        if not is_float:
            return KEPT, "not floating-point"
        if len(shape) < 2:
            return KEPT, "not a matrix"
        too_small = self._too_small(shape, by_name=by_name)
        return (KEPT, too_small) if too_small else (rule, "")

    def _too_small(self, shape: tuple[int, ...], *, by_name: bool) -> str:
        """Return why a matrix is too small to be compressed, or ""."""
        size, side = math.prod(shape), min(matrix_shape(shape))
        if size == 0:
            return "no weights"
        if side < self.min_side and not by_name:
            return f"a side of {side}, shorter than min_side, {self.min_side}"
        if size < self.min_size and not by_name:
            return f"{size:,} weights, fewer than min_size, {self.min_size:,}"
        return ""

    def check_names(self, names: Iterable[str]) -> None:
        """Check that every full name in the recipe is a tensor of the model.

        Raises
        ------
        ValueError
            With the nearest name of the model.
        """
        known = dict.fromkeys(names)
        for name in self.names:
            if name not in known:
                raise ValueError(
                    f"names in the recipe must be tensors of the model, got {name!r}"
                    f"{nearest(name, known)}"
                )

    def fingerprint(self) -> str:
        """Return a hash that is equal for recipes of equal meaning."""
        rules = {
            "default": self.default,
            **{f"patterns {pattern}": rule for pattern, rule in self.patterns.items()},
            **{f"names {name}": rule for name, rule in sorted(self.names.items())},
        }
        said = [
            [where, rule.method, sorted(rule.settings.items()), rule.dtype, rule.layout]
            for where, rule in rules.items()
        ]
        rest = [self.skip, self.min_size, self.min_side, self.keep_dtype, self.if_impossible]
        rest += [self.tied] if self.tied != TIED[0] else []
        return hashlib.sha256(json.dumps([said, rest]).encode()).hexdigest()


KEPT = Rule(KEEP, {}, None)

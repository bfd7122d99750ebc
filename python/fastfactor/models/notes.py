"""Notes on a run, made before its work: rules that change nothing, and tables that cost a lot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ..methods.codebook.method import Codebook
from .plan import Job
from .rules import Recipe

# Settings that make the tables of a codebook fewer, in the order in which they are tried.
FEWER_TABLES: tuple[dict[str, Any], ...] = (
    {"codebook_dtype": "float16"},
    {"granularity": "tensor"},
    {"group_size": None},
    {"granularity": "tensor", "group_size": None},
)
LITTLE = 0.5  # bytes of tables over those of codes, which is advised


def notes_on(job: Job) -> list[str]:
    """Return what a user should know before the work begins, a sentence each."""
    return [*unused_patterns(job.recipe, job.checkpoint), *_costs(job)]


def unused_patterns(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Return a note for each pattern of a recipe that no name matches."""
    known = list(names)
    return [
        f"no tensor has a name that matches {pattern!r}"
        for pattern in (*recipe.skip, *recipe.patterns)
        if not any(fnmatchcase(name, pattern) for name in known)
    ]


def _costs(job: Job) -> list[str]:
    """Return a note for each setting of tables that takes more bytes than the codes."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    known: dict[Any, tuple[str, float, float] | None] = {}  # many tensors have the same shape
    for name, plan in job.plan.items():
        if plan.reason or plan.layout is None or not isinstance(plan.rule.compressor, Codebook):
            continue
        matrix, dtype = plan.layout.matrix, job.checkpoint.tensors[name].dtype
        key = (id(plan.rule), matrix, dtype)
        if key not in known:
            known[key] = _advice(plan.rule.compressor, matrix, dtype)
        advice = known[key]
        if advice is not None:
            setting, before, after = advice
            found.setdefault(setting, []).append((name, before, after))
    return [_cost_text(setting, tensors) for setting, tensors in found.items()]


def _cost_text(setting: str, tensors: list[tuple[str, float, float]]) -> str:
    name, before, after = max(tensors, key=lambda tensor: tensor[1])
    which = f"{name!r}" if len(tensors) == 1 else f"{len(tensors)} tensors, such as {name!r}"
    return (
        f"tables take more bytes than codes in {which}: {before:.1f} bits a weight in all; "
        f"{setting} would take {after:.1f}"
    )


def _advice(
    method: Codebook, shape: tuple[int, int], dtype: Any
) -> tuple[str, float, float] | None:
    """Return a setting with fewer tables, and the bits a weight without and with it.

    None if tables take fewer bytes than codes, or nothing is known before the run.
    """
    weights = math.prod(shape)
    if method.n_bits is None:
        return None
    codes = method.n_bits * method.n_codebooks / method.vector_dim
    bits = _bits(method, shape, dtype)
    if bits is None or bits <= 2 * codes:
        return None
    best: tuple[str, float] | None = None
    for change in FEWER_TABLES:
        now = _bits(replace(method, **change), shape, dtype)
        if now is not None and now < bits and (best is None or now < best[1]):
            best = ", ".join(f"{key}={_word(value)}" for key, value in change.items()), now
        if best is not None and best[1] <= (1 + LITTLE) * codes:
            break
    return None if best is None or not weights else (best[0], bits, best[1])


def _bits(method: Codebook, shape: tuple[int, int], dtype: Any) -> float | None:
    try:
        size = method.planned_size(shape, dtype)
    except ValueError:  # the method cannot compress this shape
        return None
    return None if size is None else 8 * size.nbytes / max(math.prod(shape), 1)


def _word(value: Any) -> str:
    return "none" if value is None else str(value)

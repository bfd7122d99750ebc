"""Sums over products of arrays with named axes, by matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np

from ..._checks import Array


class Named(NamedTuple):
    """An array, and a letter for each of its axes."""

    axes: str
    array: Array


def contract(terms: Sequence[Named], axes: str) -> Array:
    """Return the product of arrays, summed over all axes but these.

    ``numpy.einsum`` does the same, without matrix products where an axis is in both factors and in
    the result. Pairs are multiplied in the order that gives the smallest results.
    """
    left = list(terms)
    if len(left) == 1:
        left.append(Named("", np.ones((), left[0].array.dtype)))
    lengths = {name: n for term in left for name, n in zip(*_with_shape(term), strict=True)}
    while len(left) > 1:
        i, j = min(combinations(range(len(left)), 2), key=lambda ij: _size(left, ij, axes, lengths))
        kept = _kept(left, (i, j), axes)
        pair = _pairwise(left[i], left[j], kept, lengths)
        left = [term for k, term in enumerate(left) if k not in (i, j)] + [pair]
    found = left[0]
    return found.array.transpose([found.axes.index(name) for name in axes])


def _with_shape(term: Named) -> tuple[str, tuple[int, ...]]:
    return term.axes, term.array.shape


def _kept(terms: Sequence[Named], pair: tuple[int, int], axes: str) -> str:
    """Return the axes of the product of a pair that the result or other terms still need."""
    needed = set(axes).union(*(t.axes for k, t in enumerate(terms) if k not in pair))
    both = dict.fromkeys(terms[pair[0]].axes + terms[pair[1]].axes)
    return "".join(name for name in both if name in needed)


def _size(
    terms: Sequence[Named], pair: tuple[int, int], axes: str, lengths: Mapping[str, int]
) -> int:
    return prod(lengths[name] for name in _kept(terms, pair, axes))


def _pairwise(a: Named, b: Named, kept: str, lengths: Mapping[str, int]) -> Named:
    """Return the product of two arrays, summed over the axes that are not kept."""
    a, b = _summed(a, b.axes, kept), _summed(b, a.axes, kept)
    shared = [name for name in a.axes if name in b.axes]
    batch = "".join(name for name in shared if name in kept)
    inner = "".join(name for name in shared if name not in kept)
    rows = "".join(name for name in a.axes if name not in shared)
    columns = "".join(name for name in b.axes if name not in shared)

    def as_matrices(term: Named, first: str, second: str) -> Array:
        ordered = term.array.transpose([term.axes.index(name) for name in batch + first + second])
        sides = [prod(lengths[name] for name in part) for part in (first, second)]
        return ordered.reshape(*(lengths[name] for name in batch), *sides)

    product = as_matrices(a, rows, inner) @ as_matrices(b, inner, columns)
    order = batch + rows + columns
    return Named(order, product.reshape([lengths[name] for name in order]))


def _summed(term: Named, others: str, kept: str) -> Named:
    """Return an array summed over the axes that only it has and that are not kept."""
    lone = [k for k, name in enumerate(term.axes) if name not in others and name not in kept]
    axes = "".join(name for k, name in enumerate(term.axes) if k not in lone)
    return Named(axes, term.array.sum(axis=tuple(lone)) if lone else term.array)

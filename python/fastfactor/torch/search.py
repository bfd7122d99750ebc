"""Which convolutions of a network to factor, how and how far: by measured times and qualities."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import _checks
from ..methods.convolution.base import ConvMethod
from ..methods.convolution.bicluster import ConvBicluster
from ..methods.convolution.cp import ConvCP
from ..methods.convolution.monochromatic import ConvMonochromatic
from ..methods.convolution.separable import ConvSeparable
from ..methods.convolution.svd import ConvSVD
from ..methods.factors import matrix_shape
from ..training.selection import Candidate, patterns
from .search_measurements import Key, Measurements, settings_text
from .search_report import SearchResult, SearchRow
from .statistics import Statistics

GOALS = ("seconds", "bytes")
RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
FEW_CHANNELS = 4  # up to which filters are given colors


def search_convolutions(
    model: nn.Module,
    example: torch.Tensor,
    quality: Callable[[nn.Module], float],
    max_loss: float,
    *,
    goal: str = "seconds",
    candidates: Iterable[ConvMethod] | Mapping[str, Iterable[ConvMethod]] | None = None,
    statistics: Statistics | None = None,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> SearchResult:
    """Choose which convolutions of a network to factor, for an allowed loss of quality.

    Parameters
    ----------
    model : Module
        A trained network. It is not changed.
    example : Tensor
        What the network is called with to measure times: images of the size, and as many at a
        time, as it will be used for.
    quality : callable
        ``quality(model)`` returns a number that is larger for better networks, such as the share of
        validation images that are classified correctly. It is called once for each candidate.
    max_loss : float
        How much quality may be lost, at least 0.
    goal : {"seconds", "bytes"}
        What is to become as small as possible: the time for the example, measured on this machine
        with ``torch.get_num_threads()`` threads, or the bytes of the weights.
    candidates : methods, or mapping of names of weights to methods, optional
        Default: `ConvSVD`, `ConvCP`, `ConvSeparable` and, with 2 × 2 clusters, `ConvBicluster`, at
        ratios from 1.5 to 8; for layers of up to 4 channels also `ConvMonochromatic`.
    statistics : Statistics, optional
        From `collect_statistics`: errors of factors count by the covariance of the layer's inputs
        or, where there is none, by the importance of its weights.
    targets, ignore : pattern or patterns, optional
        Names of layers or weights to look at, and to leave out.
    folder : path, optional
        Where measurements are kept in search.json, so that a search that was stopped goes on. They
        are those of one model, size of the example, goal, number of threads, statistics, and one
        quality, which is not checked.
    progress : callable, optional
        Called with a line of text after each candidate.

    Returns
    -------
    SearchResult
        Of the candidates that together lose at most `max_loss`; with none of them if all lose more.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, if there is no convolution to look at, and if the folder holds
        measurements of something else.
    OSError
        If the folder cannot be read or written.

    Notes
    -----
    First each candidate is measured alone: its time in turns with the dense layer's and, if it
    gains something, the network's quality. Then layers are changed one at a time, each time what
    gains most for each bit of quality that it loses alone; a change that makes the whole network
    lose more than allowed is taken back and not tried again. Nothing is trained, so that a network
    that will be fine-tuned may lose more here.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.methods import ConvSVD
    >>> from fastfactor.torch import search_convolutions
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 5), torch.nn.Conv2d(16, 8, 5))
    >>> x = torch.randn(4, 8, 16, 16)
    >>> with torch.no_grad():
    ...     y = model(x)
    >>> def quality(other):
    ...     return -float((other(x) - y).square().mean() / y.square().mean())
    >>> found = search_convolutions(
    ...     model, x, quality, 0.2, goal="bytes", candidates=[ConvSVD(ratio=2), ConvSVD(ratio=4)]
    ... )
    >>> found.quality >= -0.2
    True
    """
    _checks.nonnegative(max_loss, "max_loss", finite=True)
    _checks.choice(goal, "goal", GOALS)
    model = copy.deepcopy(model).eval()
    layers = dict(_convolutions(model, patterns(targets, "targets"), patterns(ignore, "ignore")))
    if not layers:
        raise ValueError("at least one convolution must be looked at, got none")
    methods = {name: _methods(name, layer, candidates) for name, layer in layers.items()}
    measurements = Measurements(model, example, quality, statistics, goal, folder)
    say = progress or (lambda line: None)
    rows: dict[Key, SearchRow] = {}
    for name, layer in layers.items():
        x = measurements.inputs_of(layer)
        for method in methods[name] if x is not None else ():
            row = measurements.row(name, layer, method, x)
            rows[name, row.method] = row
            say(f"{name}: {row.method}: {_said(row)}")
    return _chosen(measurements, rows, methods, max_loss)


def _said(row: SearchRow) -> str:
    if row.quality is None:
        return "gains nothing"
    return f"{row.seconds_dense / row.seconds_factors:.2f} times faster, quality {row.quality:.4f}"


def _convolutions(
    model: nn.Module, targets: tuple[str, ...] | None, ignore: tuple[str, ...] | None
) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in model.named_modules():
        if type(module) is not nn.Conv2d:
            continue
        weight = Candidate(f"{name}.weight" if name else "weight", layers=(name,))
        if targets is not None and not any(map(weight.is_meant_by, targets)):
            continue
        if not any(map(weight.is_meant_by, ignore or ())):
            yield weight.name, module


def _methods(name: str, layer: nn.Conv2d, candidates: Any) -> list[ConvMethod]:
    """Return the candidates for a layer, with its kernel and groups."""
    if isinstance(candidates, Mapping):
        given: Sequence[ConvMethod] = list(candidates.get(name, ()))
    else:
        given = _default(layer) if candidates is None else list(candidates)
    for each in given:
        if not isinstance(each, ConvMethod):
            raise TypeError(f"candidates must be methods for convolutions, got {each!r}")
    shape = tuple(layer.weight.shape)
    fitted = (replace(each, groups=layer.groups).for_tensor(shape) for each in given)
    return [method for method in fitted if _fits(method, layer.weight)]


def _fits(method: ConvMethod, weight: torch.Tensor) -> bool:
    """Return whether a weight of this shape can be given to the method."""
    try:
        method.planned_size(matrix_shape(tuple(weight.shape)), str(weight.dtype).split(".")[-1])
    except ValueError:  # clusters or colors that do not divide it, a ratio out of reach
        return False
    return True


def _default(layer: nn.Conv2d) -> list[ConvMethod]:
    filters, channels = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
    found: list[ConvMethod] = []
    for ratio in RATIOS:
        found += [ConvSVD(ratio=ratio), ConvCP(ratio=ratio), ConvSeparable(ratio=ratio)]
        if filters % 2 == 0 and channels % 2 == 0:
            found.append(ConvBicluster(ratio=ratio))
    if channels <= FEW_CHANNELS:
        found += [ConvMonochromatic(n_colors=n) for n in range(2, 17) if filters % n == 0]
    return found


def _chosen(
    measurements: Measurements,
    rows: Mapping[Key, SearchRow],
    methods: Mapping[str, Sequence[ConvMethod]],
    max_loss: float,
) -> SearchResult:
    """Change one layer at a time, as long as the whole network loses no more than allowed."""
    by_key = {(name, settings_text(m)): m for name, own in methods.items() for m in own}
    left = {key: row for key, row in rows.items() if row.quality is not None}
    chosen: dict[str, Key] = {}
    quality = measurements.quality_dense
    while left:
        key = max(left, key=lambda each: _worth(measurements, rows, chosen, each))
        row = left.pop(key)
        if _more(measurements, rows, chosen, row) <= 0:
            continue
        tried = {**chosen, row.name: key}
        found = measurements.quality({each: by_key[each] for each in tried.values()})
        if found >= measurements.quality_dense - max_loss:
            chosen, quality = tried, found
    compressors = {name: by_key[key] for name, key in chosen.items()}
    model = measurements.factored({key: by_key[key] for key in chosen.values()})
    marked = (replace(row, chosen=key in chosen.values()) for key, row in rows.items())
    return SearchResult(
        model,
        compressors,
        measurements.quality_dense,
        quality,
        *measurements.seconds(model),
        tuple(marked),
    )


def _more(
    measurements: Measurements,
    rows: Mapping[Key, SearchRow],
    chosen: Mapping[str, Key],
    row: SearchRow,
) -> float:
    """Return what a candidate saves beyond the one that is chosen for its layer."""
    now = chosen.get(row.name)
    return measurements.gain(row) - (measurements.gain(rows[now]) if now else 0.0)


def _worth(
    measurements: Measurements,
    rows: Mapping[Key, SearchRow],
    chosen: Mapping[str, Key],
    key: Key,
) -> float:
    """Return what a candidate saves for the quality that it loses more than the chosen one."""
    row, now = rows[key], chosen.get(key[0])
    before = measurements.quality_dense if now is None else rows[now].quality
    assert row.quality is not None  # others are left out
    assert before is not None
    more = _more(measurements, rows, chosen, row)
    return more / max(before - row.quality, 1e-6) if more > 0 else -1.0

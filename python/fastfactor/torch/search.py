"""Which convolutions of a network to factor, how and how far: by measured times and qualities."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import _checks
from .._arrays import as_array
from ..files.disk import atomic_write
from ..methods.convolution.base import ConvMethod
from ..methods.convolution.bicluster import ConvBicluster
from ..methods.convolution.cp import ConvCP
from ..methods.convolution.monochromatic import ConvMonochromatic
from ..methods.convolution.separable import ConvSeparable
from ..methods.convolution.svd import ConvSVD
from ..methods.factors import Factors
from ..training.selection import Candidate, patterns
from .measuring import seconds_of
from .saving import insert_factors
from .statistics import Statistics

GOALS = ("seconds", "bytes")
RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
FEW_CHANNELS = 4  # up to which filters are given colors
N_ROUNDS = 7  # of measured times
LEAST_GAIN = 0.97  # of the dense layer's seconds: candidates that gain less are left out
RESULTS = "search.json"
OF = "of"  # the entry that says what the measurements are of


@dataclass(frozen=True)
class SearchRow:
    """A candidate for a layer, alone in the network.

    Attributes
    ----------
    name : str
        The name of the layer's weight.
    method : str
        The settings, as text.
    bytes_dense, bytes_factors : int
    seconds_dense, seconds_factors : float
        Of the layer, for the inputs that it has in the example.
    quality : float or None
        Of the network with this layer factored; None if the candidate gains nothing.
    chosen : bool
        Whether it is in the result.
    """

    name: str
    method: str
    bytes_dense: int
    bytes_factors: int
    seconds_dense: float
    seconds_factors: float
    quality: float | None
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What `search_convolutions` has found.

    Attributes
    ----------
    model : Module
        A copy of the network with the chosen factors, in eval mode.
    compressors : dict of methods
        The chosen settings by names of weights, as `apply_compression` takes them.
    quality_dense, quality : float
        Of the network before and after.
    seconds_dense, seconds : float
        Of the whole network for the example, before and after.
    rows : tuple of SearchRow
        All candidates.
    """

    model: nn.Module
    compressors: dict[str, ConvMethod]
    quality_dense: float
    quality: float
    seconds_dense: float
    seconds: float
    rows: tuple[SearchRow, ...]

    def to_text(self) -> str:
        """Return a table of the chosen candidates, and what the whole network gains.

        Returns
        -------
        str
            A line for each, and one for the network.
        """
        lines = [f"{'weight':24} {'times faster':>12} {'smaller':>8} {'quality':>9}  method"]
        for row in self.rows:
            if row.chosen:
                faster = row.seconds_dense / row.seconds_factors
                smaller = row.bytes_dense / row.bytes_factors
                lines.append(
                    f"{row.name:24} {faster:12.2f} {smaller:8.2f} {row.quality:9.4f}  {row.method}"
                )
        lines.append(
            f"the whole network: {self.seconds_dense / self.seconds:.2f} times faster, quality "
            f"{self.quality_dense:.4f} → {self.quality:.4f}"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"SearchResult({len(self.compressors)} weights, {self.to_text().splitlines()[-1]})"


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
        are those of one model, example and quality.
    progress : callable, optional
        Called with a line of text after each candidate.

    Returns
    -------
    SearchResult
        Of the candidates that together lose at most `max_loss`; with none of them if all lose more.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, and if there is no convolution to look at.
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
    search = _Search(model, example, quality, statistics, goal, _Kept(folder))
    say = progress or (lambda line: None)
    rows: dict[tuple[str, str], SearchRow] = {}
    for name, layer in layers.items():
        x = search.inputs_of(layer)
        for method in methods[name] if x is not None else ():
            row = search.measured(name, layer, method, x)
            if row is not None:
                rows[name, row.method] = row
                say(f"{name}: {row.method}: {_said(row)}")
    return _chosen(search, rows, methods, max_loss)


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
    return [replace(each, groups=layer.groups).for_tensor(shape) for each in given]


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


class _Search:
    """The network, and what is measured of candidates."""

    def __init__(
        self,
        model: nn.Module,
        example: torch.Tensor,
        quality: Callable[[nn.Module], float],
        statistics: Statistics | None,
        goal: str,
        kept: _Kept,
    ) -> None:
        self.model, self.example, self.statistics, self.goal = model, example, statistics, goal
        self._quality, self._kept = quality, kept
        self._factors: dict[tuple[str, str], Factors] = {}
        kept.check(_fingerprint(model, example))
        dense = self._known("dense", lambda: {"quality": self._value(model)})
        self.quality_dense: float = dense["quality"]

    def inputs_of(self, layer: nn.Module) -> torch.Tensor | None:
        """Return what a layer is called with for the example; None if it is not called."""
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                self.model(self.example)
        finally:
            handle.remove()
        return seen[0] if seen else None

    def measured(
        self, name: str, layer: nn.Conv2d, method: ConvMethod, x: torch.Tensor
    ) -> SearchRow | None:
        """Return the row of a candidate; None if the method refuses the weight."""

        def measure() -> dict[str, Any]:
            try:
                factors = self.factors(name, layer, method)
            except ValueError:
                return {}
            factored = insert_factors(
                nn.ModuleDict({"x": copy.deepcopy(layer)}), {"x.weight": factors}
            )
            with torch.inference_mode():
                dense, other = seconds_of(
                    [lambda: layer(x), lambda: factored.get_submodule("x")(x)], N_ROUNDS
                )
            weight = layer.weight
            row = SearchRow(name, _text(method), weight.nbytes, factors.nbytes, dense, other, None)
            if self.gain(row) > 0:
                row = replace(row, quality=self.quality({name: factors}))
            return asdict(row)

        found = self._known(f"{name} {_text(method)}", measure)
        return SearchRow(**found) if found else None

    def gain(self, row: SearchRow) -> float:
        """Return what a candidate saves of the goal, or 0 if that is less than noise."""
        if self.goal == "bytes":
            return max(row.bytes_dense - row.bytes_factors, 0)
        if row.seconds_factors > LEAST_GAIN * row.seconds_dense:
            return 0.0
        return row.seconds_dense - row.seconds_factors

    def factors(self, name: str, layer: nn.Conv2d, method: ConvMethod) -> Factors:
        """Return the factors of a layer, which are found once."""
        key = name, _text(method)
        if key not in self._factors:
            weight = as_array(layer.weight.detach().cpu(), name)
            metric: dict[str, Any] = {}
            if self.statistics is not None:
                covariance = self.statistics.input_covariance.get(name)
                importance = self.statistics.importance.get(name)
                if covariance is not None:
                    metric = {"input_covariance": covariance}
                elif importance is not None:
                    metric = {"importance": importance}
            self._factors[key] = method.compress(weight, **metric)
        return self._factors[key]

    def quality(self, factors: Mapping[str, Factors]) -> float:
        """Return the quality of the network with these factors."""
        return self._value(self.with_factors(factors))

    def with_factors(self, factors: Mapping[str, Factors]) -> nn.Module:
        return insert_factors(copy.deepcopy(self.model), factors).eval()

    def _value(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float(self._quality(model))

    def _known(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = self._kept.get(key)
        if found is None:
            found = measure()
            self._kept.add(key, found)
        return found


class _Kept:
    """Measurements in a file, or only in memory."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._path = None if folder is None else Path(folder) / RESULTS
        self._found: dict[str, dict[str, Any]] = {}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._found = _read(self._path)

    def check(self, fingerprint: str) -> None:
        """Refuse measurements of another model or example."""
        found = self._found.setdefault(OF, {"fingerprint": fingerprint})
        if found.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{self._path} must hold the measurements of this model and example, got others'; "
                "give another folder"
            )

    def get(self, key: str) -> dict[str, Any] | None:
        return self._found.get(key)

    def add(self, key: str, found: dict[str, Any]) -> None:
        self._found[key] = found
        if self._path is not None:
            with atomic_write(self._path) as file:
                file.write(json.dumps(self._found, indent=1).encode())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold the measurements of a search: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ValueError(f"{path} must hold the measurements of a search, got something else")
    return found


def _fingerprint(model: nn.Module, example: torch.Tensor) -> str:
    """Return a hash of a model's numbers and of the shape of an example."""
    digest = hashlib.sha256(str((tuple(example.shape), example.dtype)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            array = np.ascontiguousarray(as_array(tensor.detach().cpu(), name))
            digest.update(array.tobytes())
    return digest.hexdigest()


def _text(method: ConvMethod) -> str:
    """Return the settings that differ from the defaults, without those of the layer."""
    plain = type(method).__dataclass_fields__
    own = {
        name: getattr(method, name)
        for name, each in plain.items()
        if name not in ("kernel_size", "groups") and getattr(method, name) != each.default
    }
    return f"{type(method).__name__}({', '.join(f'{k}={v!r}' for k, v in own.items())})"


def _chosen(
    search: _Search,
    rows: dict[tuple[str, str], SearchRow],
    methods: Mapping[str, Sequence[ConvMethod]],
    max_loss: float,
) -> SearchResult:
    """Change one layer at a time, as long as the whole network loses no more than allowed."""
    by_text = {(name, _text(m)): m for name, own in methods.items() for m in own}
    useful = {key: row for key, row in rows.items() if row.quality is not None}
    chosen: dict[str, tuple[str, str]] = {}
    quality = search.quality_dense

    def factors_of(keys: Iterable[tuple[str, str]]) -> dict[str, Factors]:
        layers = dict(search.model.named_modules())
        return {
            key[0]: search.factors(key[0], layers[key[0].rpartition(".")[0]], by_text[key])
            for key in keys
        }

    while useful:
        key = max(useful, key=lambda each: _worth(search, rows, chosen, each))
        row = useful.pop(key)
        if _more(search, rows, chosen, row) <= 0:
            continue
        tried = {**chosen, row.name: key}
        found = search.quality(factors_of(tried.values()))
        if found >= search.quality_dense - max_loss:
            chosen, quality = tried, found
    model = search.with_factors(factors_of(chosen.values()))
    with torch.inference_mode():
        dense, seconds = seconds_of(
            [lambda: search.model(search.example), lambda: model(search.example)], N_ROUNDS
        )
    marked = (replace(row, chosen=key in chosen.values()) for key, row in rows.items())
    compressors = {name: by_text[key] for name, key in chosen.items()}
    return SearchResult(
        model, compressors, search.quality_dense, quality, dense, seconds, tuple(marked)
    )


def _more(
    search: _Search,
    rows: Mapping[tuple[str, str], SearchRow],
    chosen: Mapping[str, tuple[str, str]],
    row: SearchRow,
) -> float:
    """Return what a candidate saves beyond the one that is chosen for its layer."""
    now = chosen.get(row.name)
    return search.gain(row) - (search.gain(rows[now]) if now else 0.0)


def _worth(
    search: _Search,
    rows: Mapping[tuple[str, str], SearchRow],
    chosen: Mapping[str, tuple[str, str]],
    key: tuple[str, str],
) -> float:
    """Return what a candidate saves for the quality that it loses more than the chosen one."""
    row, now = rows[key], chosen.get(key[0])
    assert row.quality is not None
    before = search.quality_dense if now is None else rows[now].quality
    assert before is not None
    more = _more(search, rows, chosen, row)
    return more / max(before - row.quality, 1e-6) if more > 0 else -1.0

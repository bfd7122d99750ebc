"""Times, bytes and qualities of a network's candidates, kept in a file as they are measured."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .._arrays import as_array
from ..files.disk import atomic_write
from ..methods.convolution.base import ConvMethod
from ..methods.factors import Factors
from .measuring import seconds_of
from .saving import insert_factors
from .search_report import SearchRow
from .statistics import Statistics

N_ROUNDS = 7  # of measured times
LEAST_GAIN = 0.97  # of the dense layer's seconds: candidates that gain less are left out
RESULTS = "search.json"
OF = "of"  # the entry that says what the measurements are of


Key = tuple[str, str]  # a weight's name, and the text of settings


class Measurements:
    """What is measured of candidates, each once.

    Attributes
    ----------
    quality_dense : float
        The quality of the network as it was given.
    """

    def __init__(
        self,
        model: nn.Module,
        example: torch.Tensor,
        quality: Callable[[nn.Module], float],
        statistics: Statistics | None,
        goal: str,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self._model, self._example, self._statistics = model, example, statistics
        self._quality, self._goal = quality, goal
        self._kept = _Kept(folder)
        self._kept.check(_fingerprint(model, example, statistics, goal))
        self._factors: dict[Key, Factors] = {}
        self.quality_dense = self.quality({})

    def inputs_of(self, layer: nn.Module) -> torch.Tensor | None:
        """Return what a layer is called with for the example; None if it is not called."""
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                self._model(self._example)
        finally:
            handle.remove()
        return seen[0] if seen else None

    def row(self, name: str, layer: nn.Conv2d, method: ConvMethod, x: torch.Tensor) -> SearchRow:
        """Return what a candidate for a layer takes for the inputs x, and what the network loses.

        Its quality is measured only if it gains something.
        """
        key = name, settings_text(method)

        def measure() -> dict[str, Any]:
            factors = self._factors_of(key, method)
            factored = insert_factors(
                nn.ModuleDict({"x": copy.deepcopy(layer)}), {"x.weight": factors}
            ).get_submodule("x")
            with torch.inference_mode():
                dense, other = seconds_of([lambda: layer(x), lambda: factored(x)], N_ROUNDS)
            row = SearchRow(*key, layer.weight.nbytes, factors.nbytes, dense, other, None)
            if self.gain(row) > 0:
                row = replace(row, quality=self._quality_of({key: method}))
            return asdict(row)

        return SearchRow(**self._kept.value(" ".join(key), measure))

    def gain(self, row: SearchRow) -> float:
        """Return what a candidate saves of the goal, or 0 if that is less than noise."""
        if self._goal == "bytes":
            return max(row.bytes_dense - row.bytes_factors, 0)
        if row.seconds_factors > LEAST_GAIN * row.seconds_dense:
            return 0.0
        return row.seconds_dense - row.seconds_factors

    def quality(self, chosen: Mapping[Key, ConvMethod]) -> float:
        """Return the quality of the network with these candidates."""
        together = " + ".join(sorted(" ".join(key) for key in chosen))

        def measure() -> dict[str, Any]:
            return {"quality": self._quality_of(chosen)}

        return float(self._kept.value(f"together: {together}", measure)["quality"])

    def factored(self, chosen: Mapping[Key, ConvMethod]) -> nn.Module:
        """Return a copy of the network with these candidates."""
        factors = {key[0]: self._factors_of(key, method) for key, method in chosen.items()}
        return insert_factors(copy.deepcopy(self._model), factors).eval()

    def seconds(self, model: nn.Module) -> tuple[float, float]:
        """Return the times that the network as it was given and another take for the example."""
        with torch.inference_mode():
            dense, other = seconds_of(
                [lambda: self._model(self._example), lambda: model(self._example)], N_ROUNDS
            )
        return dense, other

    def _quality_of(self, chosen: Mapping[Key, ConvMethod]) -> float:
        with torch.no_grad():
            return float(self._quality(self.factored(chosen)))

    def _factors_of(self, key: Key, method: ConvMethod) -> Factors:
        if key not in self._factors:
            weight = as_array(self._model.get_parameter(key[0]).detach().cpu(), key[0])
            self._factors[key] = method.compress(weight, **_metric(self._statistics, key[0]))
        return self._factors[key]


def settings_text(method: ConvMethod) -> str:
    """Return the settings that differ from the defaults, without those of the layer."""
    plain = type(method).__dataclass_fields__
    own = {
        name: getattr(method, name)
        for name, each in plain.items()
        if name not in ("kernel_size", "groups") and getattr(method, name) != each.default
    }
    return f"{type(method).__name__}({', '.join(f'{k}={v!r}' for k, v in own.items())})"


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
        """Refuse measurements of something else."""
        found = self._found.setdefault(OF, {"fingerprint": fingerprint})
        if found.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{self._path} must hold the measurements of this model, example, goal, number of "
                "threads and statistics, got others'; give another folder"
            )

    def value(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured before, or measure it now and keep it."""
        if key not in self._found:
            self._found[key] = measure()
            if self._path is not None:
                with atomic_write(self._path) as file:
                    file.write(json.dumps(self._found, indent=1).encode())
        return self._found[key]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold the measurements of a search: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ValueError(f"{path} must hold the measurements of a search, got something else")
    return found


def _metric(statistics: Statistics | None, name: str) -> dict[str, Any]:
    """Return what the errors of a weight count by, as `compress` takes it."""
    if statistics is None:
        return {}
    if name in statistics.input_covariance:
        return {"input_covariance": statistics.input_covariance[name]}
    if name in statistics.importance:
        return {"importance": statistics.importance[name]}
    return {}


def _fingerprint(
    model: nn.Module, example: torch.Tensor, statistics: Statistics | None, goal: str
) -> str:
    """Return a hash of all that measurements depend on, but for the machine and the quality."""
    settings = (tuple(example.shape), example.dtype, goal, torch.get_num_threads())
    digest = hashlib.sha256(str(settings).encode())
    arrays: dict[str, Any] = {
        name: as_array(tensor.detach().cpu(), name)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    for name in arrays.copy():
        for kind, value in _metric(statistics, name).items():
            arrays[f"{name} {kind}"] = value
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

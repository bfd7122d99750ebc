"""Second moments of the inputs that layers get while their model runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .. import _checks
from .._arrays import Array
from .wide import wide

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
AT_ONCE = 1 << 22  # numbers in the rows that are made at once: 32 MiB in float64


class InputCovariances:
    """The mean of x xᵀ over the inputs of each layer of some weights, for as long as it is entered.

    Layers are watched by hooks, which are there between entering and leaving, and count while
    `listening`.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[tuple[str, ...], nn.Parameter], max_columns: int
    ) -> None:
        self._layers: list[tuple[nn.Module, _SecondMoment]] = []
        self._moments: dict[tuple[str, ...], _SecondMoment] = {}
        self._handles: list[Any] = []
        self._listens = False
        names = {weight: group for group, weight in weights.items()}
        for module in model.modules():
            weight = module._parameters.get("weight")
            if not isinstance(module, KINDS) or weight is None or weight not in names:
                continue
            group, columns = names[weight], weight[0].numel()
            if columns > max_columns:
                warnings.warn(
                    f"{group[0]!r} gets no input covariance: its inputs have {columns} columns, "
                    f"more than max_columns={max_columns}",
                    stacklevel=3,
                )
                continue
            moment = self._moments.setdefault(group, _SecondMoment(columns))
            self._layers.append((module, moment))

    def __enter__(self) -> InputCovariances:
        for module, moment in self._layers:

            def hook(
                module: nn.Module, inputs: tuple[Any, ...], moment: _SecondMoment = moment
            ) -> None:
                if self._listens:
                    for rows in _rows(module, inputs[0].detach()):
                        moment.add(rows)

            self._handles.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count the inputs of a forward pass; the backward pass may compute some of it again."""
        self._listens = True
        try:
            yield
        finally:
            self._listens = False

    def covariances(self) -> dict[tuple[str, ...], Array]:
        """Return the means by the names of weights, of layers that had inputs.

        Raises
        ------
        ValueError
            If one is not finite.
        """
        found = {names: moment.mean() for names, moment in self._moments.items() if moment.n}
        for names, mean in found.items():
            _checks.finite(mean, f"inputs of {names[0]!r}")
        return found

    def counts(self) -> dict[tuple[str, ...], int]:
        """Return the numbers of inputs by the names of weights, of layers that had some."""
        return {names: moment.n for names, moment in self._moments.items() if moment.n}


class _SecondMoment:
    """The sum of x xᵀ in float64.

    Rows wait until there are as many as columns: adding one at a time would read and write the
    whole sum for each.
    """

    def __init__(self, columns: int) -> None:
        self.n = 0
        self._columns = columns
        self._sum: torch.Tensor | None = None
        self._waiting: list[torch.Tensor] = []
        self._n_waiting = 0

    def add(self, rows: torch.Tensor) -> None:
        self._waiting.append(rows)
        self._n_waiting += len(rows)
        self.n += len(rows)
        if self._n_waiting >= self._columns:
            self._add_waiting()

    def mean(self) -> Array:
        if self._waiting:
            self._add_waiting()
        assert self._sum is not None
        mean: Array = ((self._sum + self._sum.T) / (2 * self.n)).cpu().numpy()
        return mean

    def _add_waiting(self) -> None:
        rows = torch.cat(self._waiting)
        self._waiting, self._n_waiting = [], 0
        if self._sum is None:
            self._sum = rows.T @ rows
        else:
            self._sum.addmm_(rows.T, rows)


def _rows(module: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Iterate over a layer's inputs as rows that its weight is multiplied by, some at a time."""
    if isinstance(module, nn.Linear):
        x = x.reshape(-1, x.shape[-1])
        for part in x.split(max(AT_ONCE // max(x.shape[1], 1), 1)):
            yield wide(part)
        return
    x = x if x.ndim == 2 + len(module.kernel_size) else x.unsqueeze(0)
    patches = max(x[:1].numel() * math.prod(module.kernel_size), 1)  # numbers, for one image
    for images in x.split(max(AT_ONCE // patches, 1)):
        yield _patches(module, wide(images))


def _patches(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the patches of images as rows, in the order of the columns of the weight.

    Those of all groups of channels, one after the other.
    """
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    sizes = {name: getattr(module, name) for name in ("kernel_size", "dilation", "stride")}
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(-2)
        sizes = {name: (1, *size) for name, size in sizes.items()}
    patches = functional.unfold(x, **sizes)
    patches = patches.reshape(len(x) * module.groups, -1, patches.shape[2])
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])

"""Chains of convolutions by this package's kernel, in layers that do not train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..kernels.convolution import ConvChain, conv_chain
from .chains import Chain, Order
from .operands import is_plain
from .trained_numbers import TrainedNumbers


class NativeChain:
    """A chain as the kernel reads it, packed again when its numbers change.

    PyTorch's convolutions write what is between them to memory, and those of many small groups
    take long.

    Parameters
    ----------
    chain : tuple of Step and Order
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._packed: tuple[TrainedNumbers, ConvChain] | None = None

    def serves(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Return whether the kernel takes these images, and nothing looks on that it is unknown to.

        Images that have their channels last are left to PyTorch, whose next layers expect them so.
        """
        return (
            x.is_cpu
            and x.ndim == 4
            and x.dtype == torch.float32
            and x.numel() > 0
            and is_plain(x)
            and x.is_contiguous()
            and not torch.is_autocast_enabled("cpu")
            and all(t.is_cpu and t.dtype == torch.float32 for t in tensors.values())
        )

    def run(
        self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], bias: Any, **sides: Any
    ) -> torch.Tensor:
        """Return the result of the chain, with the stride, padding and dilation of the layer."""
        now = list(tensors.values())
        if self._packed is None or not self._packed[0].are_those_of(now):
            self._packed = TrainedNumbers(now), self._pack(tensors)
        y = conv_chain(
            x.detach().numpy(),
            self._packed[1],
            **{name: tuple(values) for name, values in sides.items()},
            bias=None if bias is None else bias.detach().numpy(),
            n_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(y)

    def _pack(self, tensors: Mapping[str, torch.Tensor]) -> ConvChain:
        stages: list[Any] = []
        order = None
        for step in self._chain:
            if isinstance(step, Order):
                order = step.channels.cpu().numpy()
                continue
            weight = tensors[step.tensor].detach().numpy().reshape(step.shape)
            stages.append((order, np.concatenate([weight] * step.n_copies), step.groups))
            order = None
        return ConvChain(tuple(stages), order)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

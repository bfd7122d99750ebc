"""Convolutions whose weight is compressed."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from ..methods.low_rank import LowRankFactors
from ..training import State
from .compressed_layer import CompressedLayer


class _CompressedConv(CompressedLayer):
    """A convolution that blends its weight with factors, or has factors alone.

    Low rank runs as two convolutions: C with a filter for each of its rows, then B at single
    points. Other kinds rebuild W in each call, which is small beside the inputs.
    """

    one_by_one: ClassVar[str]  # the function for the second convolution

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        stage = self.stage_of("weight")
        if stage is State.DENSE or not self._is_cheaper_in_two():
            return self._conv_forward(input, self.full("weight"), self.bias)
        y = self._in_two(input)
        if stage is State.BLENDED:
            alpha = self.alpha_of("weight")
            y = alpha * self._conv_forward(input, self.dense("weight"), None) + (1 - alpha) * y
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(self.kernel_size))

    def _is_cheaper_in_two(self) -> bool:
        shared = self.compressed["weight"]
        if not isinstance(shared.matrix.factors, LowRankFactors):
            return False
        rows, columns = shared.matrix.factors.shape
        rank = shared.matrix.factors.B.shape[1]
        return 0 < rank * (self.groups * columns + rows) < rows * columns

    def _in_two(self, input: torch.Tensor) -> torch.Tensor:
        factors = self.factors_of("weight")
        B, C = factors["B"], factors["C"]
        filters = C.reshape(C.shape[0], -1, *self.kernel_size).repeat(
            self.groups, 1, *[1] * len(self.kernel_size)
        )
        inner = self._conv_forward(input, filters, None)
        points = B.reshape(*B.shape, *[1] * len(self.kernel_size))
        return getattr(functional, self.one_by_one)(inner, points, groups=self.groups)


class CompressedConv1d(_CompressedConv, nn.Conv1d):
    """A convolution over one axis."""

    one_by_one = "conv1d"


class CompressedConv2d(_CompressedConv, nn.Conv2d):
    """A convolution over two axes."""

    one_by_one = "conv2d"


class CompressedConv3d(_CompressedConv, nn.Conv3d):
    """A convolution over three axes."""

    one_by_one = "conv3d"

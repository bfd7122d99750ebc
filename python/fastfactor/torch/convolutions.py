"""Convolutions whose weight is compressed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..methods.convolution.factors import ConvFactors
from ..training import State
from .chains import Chain, chain_of, padded, run
from .compressed_layer import CompressedLayer
from .native_chains import NativeChain


class _CompressedConv(CompressedLayer):
    """A convolution that blends its weight with factors, or has factors alone.

    Factors of convolutions run as chains of smaller ones, and so does low rank where that takes
    fewer operations. Other kinds rebuild W in each call, which is small beside the inputs.
    """

    _chain: Chain = ()  # as which the factors run; empty where W is to be rebuilt
    _native: NativeChain | None = None  # the same by this package's kernel

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        stage = self.stage_of("weight")
        if stage is State.DENSE or not self._chain:
            return self._conv_forward(input, self.full("weight"), self.bias)
        x, padding = padded(self, input)
        if self._native is not None and not self.training and stage is State.FACTORS:
            factors = self.factors_of("weight")
            if self._native.serves(input, factors):
                sides = {"stride": self.stride, "padding": padding, "dilation": self.dilation}
                return self._native.run(x, factors, self.bias, **sides)
        y = run(self._chain, x, self.factors_of("weight"), self.stride, padding, self.dilation)
        if stage is State.BLENDED:
            alpha = self.alpha_of("weight")
            y = alpha * self._conv_forward(input, self.dense("weight"), None) + (1 - alpha) * y
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(self.kernel_size))

    def register_factors(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        super().register_factors(name, parameters)
        shared = self.compressed[name]
        factors = shared.matrix.factors
        self._chain = chain_of(factors, shared.shape, self.groups)
        has_kernel = isinstance(factors, ConvFactors) and len(self.kernel_size) == 2
        self._native = NativeChain(self._chain) if self._chain and has_kernel else None

    def forget_factors(self, name: str) -> None:
        super().forget_factors(name)
        self._chain, self._native = (), None


class CompressedConv1d(_CompressedConv, nn.Conv1d):
    """A convolution over one axis."""


class CompressedConv2d(_CompressedConv, nn.Conv2d):
    """A convolution over two axes."""


class CompressedConv3d(_CompressedConv, nn.Conv3d):
    """A convolution over three axes."""

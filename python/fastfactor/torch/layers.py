"""Layers of PyTorch whose weight is compressed: the same classes, with another product."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..training import State
from .shared_weight import CompressedLayer, SharedWeight


class CompressedLinear(CompressedLayer, nn.Linear):
    """A linear layer that blends its weight with factors, or has factors alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.stage is State.DENSE:
            return functional.linear(input, self.weight, self.bias)
        y = self.shared_weight.product(self.factor_parameters(), input)
        if self.stage is State.BLENDED:
            y = self.alpha * functional.linear(input, self.weight) + (1 - self.alpha) * y
        return y if self.bias is None else y + self.bias


class CompressedEmbedding(CompressedLayer, nn.Embedding):
    """A table of rows that blends its weight with factors, or has factors alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.stage is State.DENSE:
            return self._look_up(input)
        rows = self.shared_weight.rows(self.factor_parameters(), input)
        if self.padding_idx is not None:
            # As the table's row for padding, which gets no gradient.
            rows = torch.where((input == self.padding_idx).unsqueeze(-1), rows.detach(), rows)
        if self.stage is State.BLENDED:
            rows = self.alpha * self._look_up(input) + (1 - self.alpha) * rows
        return rows

    def _look_up(self, input: torch.Tensor) -> torch.Tensor:
        return functional.embedding(
            input, self.weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse
        )


class _CompressedConv(CompressedLayer):
    """A convolution. W is rebuilt in each call: it is small beside the inputs."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.stage is State.DENSE:
            return self._conv_forward(input, self.weight, self.bias)
        W = self.shared_weight.dense(self.factor_parameters())
        if self.stage is State.BLENDED:
            W = self.alpha * self.weight + (1 - self.alpha) * W
        return self._conv_forward(input, W, self.bias)


class CompressedConv1d(_CompressedConv, nn.Conv1d):
    """A convolution over one axis."""


class CompressedConv2d(_CompressedConv, nn.Conv2d):
    """A convolution over two axes."""


CLASSES: dict[type[nn.Module], type[CompressedLayer]] = {
    nn.Linear: CompressedLinear,
    nn.Embedding: CompressedEmbedding,
    nn.Conv1d: CompressedConv1d,
    nn.Conv2d: CompressedConv2d,
}


def refusal(module: nn.Module) -> str:
    """Return why the weight of a layer cannot be compressed; "" if it can."""
    kind = type(module)
    if kind not in CLASSES:
        known = ", ".join(sorted(each.__name__ for each in CLASSES))
        return f"must be one of {known}, got {kind.__name__}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "must have max_norm None, which changes the table when it is read, got a number"
    if nn.utils.parametrize.is_parametrized(module):
        return "must have no parametrization, got one"
    if "weight" not in module._parameters or not isinstance(module.weight, nn.Parameter):
        return "must have a parameter weight, got none"
    if not module.weight.is_floating_point():
        return f"must have a weight of floats, got {module.weight.dtype}"
    return ""


def make_compressed(module: nn.Module, shared: SharedWeight) -> CompressedLayer:
    """Turn a layer into its compressed class, in place: hooks, names and references stay."""
    weight = module.weight
    module.__class__ = CLASSES[type(module)]
    assert isinstance(module, CompressedLayer)
    assert isinstance(weight, nn.Parameter)
    module.shared_weight = shared
    shared.layers.append(module)
    module.register_buffer("alpha", torch.ones((), dtype=weight.dtype, device=weight.device))
    return module

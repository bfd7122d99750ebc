"""Factors of convolutions as chains of smaller ones, in layers and as modules of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .._checks import Array, shown
from ..methods.convolution.chain import Link, owners
from ..methods.convolution.factors import ConvFactors
from ..methods.low_rank import LowRankFactors

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Step(NamedTuple):
    """One convolution of a chain.

    Attributes
    ----------
    tensor : str
        The name of the tensor of factors that is its weight.
    shape : tuple of int
        The shape of the weight, into which the tensor is reshaped.
    groups : int
    owns : tuple of bool
        Whether it has the layer's stride, padding and dilation, for each axis.
    n_copies : int
        How many times the weight is repeated along its first axis.
    """

    tensor: str
    shape: tuple[int, ...]
    groups: int
    owns: tuple[bool, ...]
    n_copies: int = 1


class Order(NamedTuple):
    """Channels in another order: channel i of the result is channel ``channels[i]``."""

    channels: torch.Tensor


Chain = tuple[Step | Order, ...]


def chain_of(factors: Any, weight_shape: Sequence[int], groups: int) -> Chain:
    """Return the chain of a layer whose weight has these factors.

    Parameters
    ----------
    factors : Factors
    weight_shape : sequence of int
        Of the layer's weight: filters, channels of a group, and the kernel's axes.
    groups : int
        Those of the layer.

    Returns
    -------
    tuple of Step and Order
        Empty for factors that do not run as a chain, or that would take more operations.
    """
    shape = tuple(weight_shape)
    if isinstance(factors, LowRankFactors):
        return _low_rank_chain(factors, shape, groups)
    if not isinstance(factors, ConvFactors) or factors.groups != groups:
        return ()
    if factors.weight_shape != (*shape[:2], *[1] * (4 - len(shape)), *shape[2:]):
        return ()
    links = [link for link in factors.links if isinstance(link, Link)]
    at = owners([link.shape[2:] for link in links])
    one_axis = len(shape) == 3  # seen as images of height 1
    places = iter(range(len(links)))

    def step(link: Link) -> Step:
        place = next(places)
        owns = tuple(owner == place for owner in at)
        if one_axis:
            return Step(link.tensor, (*link.shape[:2], link.shape[3]), link.groups, owns[1:])
        return Step(link.tensor, link.shape, link.groups, owns)

    return tuple(
        step(link) if isinstance(link, Link) else Order(torch.from_numpy(link.channels.copy()))
        for link in factors.links
    )


def _low_rank_chain(factors: LowRankFactors, shape: tuple[int, ...], groups: int) -> Chain:
    """Return C as filters for each group, then B at single points, if that is cheaper than W."""
    rows, columns = factors.shape
    rank, kernel = factors.B.shape[1], shape[2:]
    if not 0 < rank * (groups * columns + rows) < rows * columns:
        return ()
    ones = (1,) * len(kernel)
    return (
        Step("C", (rank, shape[1], *kernel), groups, (True,) * len(kernel), groups),
        Step("B", (rows, rank, *ones), groups, (False,) * len(kernel)),
    )


def run(
    chain: Chain,
    x: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return the result of a chain, with the weights that the tensors of factors are."""
    n_axes = len(stride)
    for each in chain:
        if isinstance(each, Order):
            x = x.index_select(x.dim() - n_axes - 1, each.channels.to(x.device))
            continue
        weight = tensors[each.tensor].reshape(each.shape)
        if each.n_copies > 1:
            weight = weight.repeat(each.n_copies, *[1] * (weight.dim() - 1))
        sides = [
            tuple(v if own else plain for v, own in zip(values, each.owns, strict=True))
            for values, plain in ((stride, 1), (padding, 0), (dilation, 1))
        ]
        x = CONVOLVE[n_axes](x, weight, None, *sides, each.groups)
    return x


class ChannelOrder(nn.Module):
    """Channels of images in another order.

    Parameters
    ----------
    channels : int array of shape (n_channels,)
        Channel i of the result is channel ``channels[i]`` of the input.

    Raises
    ------
    ValueError
        If they are not a permutation.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.torch import ChannelOrder
    >>> ChannelOrder([2, 0, 1])(torch.arange(3.0).reshape(3, 1, 1)).flatten()
    tensor([2., 0., 1.])
    """

    channels: torch.Tensor

    def __init__(self, channels: Any) -> None:
        super().__init__()
        order = torch.as_tensor(np.asarray(channels).astype(np.int64))
        if order.dim() != 1 or not torch.equal(order.sort()[0], torch.arange(len(order))):
            raise ValueError(f"channels must be a permutation, got {shown(channels)}")
        self.register_buffer("channels", order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(x.dim() - 3, self.channels)


def to_convolutions(
    factors: ConvFactors,
    *,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | str | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
) -> nn.Sequential:
    """Return plain layers that compute what a convolution with these factors does.

    Parameters
    ----------
    factors : ConvFactors
        Of a method for convolutions.
    bias : array or Tensor of shape (F,), optional
        Of the layer that they replace.
    stride, padding, dilation : int or (int, int)
        As of :class:`torch.nn.Conv2d`; padding may be "same" or "valid".
    padding_mode : str
        As of :class:`torch.nn.Conv2d`.

    Returns
    -------
    Sequential
        Of :class:`torch.nn.Conv2d` and :class:`ChannelOrder`, in float32 or float64 as products
        of the factors are.

    Raises
    ------
    TypeError, ValueError
        For other factors, a bias of another shape, and what ``Conv2d`` refuses.

    Notes
    -----
    The layers hold copies of the factors. They can be trained, exported and compiled as any others.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fastfactor.methods import ConvSVD
    >>> from fastfactor.torch import to_convolutions
    >>> W = np.random.default_rng(0).standard_normal((32, 16, 5, 5)).astype(np.float32)
    >>> to_convolutions(ConvSVD(ranks=(8, 12)).compress(W), stride=2, padding=2)
    Sequential(
      (0): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): Conv2d(8, 12, kernel_size=(5, 5), stride=(2, 2), padding=(2, 2), bias=False)
      (2): Conv2d(12, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)
    )
    """
    if not isinstance(factors, ConvFactors):
        raise TypeError(f"factors must be those of a convolution, got {type(factors).__name__}")
    F, C, *kernel = factors.weight_shape
    like = nn.Conv2d(
        C * factors.groups,
        F,
        (kernel[0], kernel[1]),
        stride,
        padding,
        dilation,
        factors.groups,
        bias=False,
        padding_mode=padding_mode,
        device="meta",
    )
    before = _padding_layer(like)
    layers: list[nn.Module] = [] if before is None else [before]
    around = like._reversed_padding_repeated_twice
    sides = (0, 0) if before else (around[2], around[0])
    tensors = {name: _as_tensor(factors.tensors()[name]) for name in factors.trainable}
    chain = chain_of(factors, factors.weight_shape, factors.groups)
    for step in chain:
        if isinstance(step, Order):
            layers.append(ChannelOrder(step.channels))
            continue
        own = {
            name: tuple(v if o else plain for v, o in zip(values, step.owns, strict=True))
            for name, values, plain in (
                ("stride", like.stride, 1),
                ("padding", sides, 0),
                ("dilation", like.dilation, 1),
            )
        }
        mode = padding_mode if any(own["padding"]) else "zeros"
        out, inner, *size = step.shape
        conv = nn.Conv2d(
            inner * step.groups,
            out,
            (size[0], size[1]),
            groups=step.groups,
            bias=False,
            padding_mode=mode,
            device="meta",
            **own,
        )
        conv.weight = nn.Parameter(tensors[step.tensor].reshape(step.shape).clone())
        layers.append(conv)
    if bias is not None:
        _add_bias(layers, bias, F)
    return nn.Sequential(*layers)


def padded(conv: Any, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return the inputs of a convolution, padded as far as zeros on both sides will not do.

    The other result is the padding that is left to the convolution.
    """
    zeros = conv.padding_mode == "zeros"
    if zeros and not isinstance(conv.padding, str):
        return x, tuple(conv.padding)
    sides = conv._reversed_padding_repeated_twice
    if zeros and sides[::2] == sides[1::2]:
        return x, tuple(sides[::2])[::-1]
    x = functional.pad(x, sides, mode="constant" if zeros else conv.padding_mode)
    return x, (0,) * len(conv.kernel_size)


def _padding_layer(conv: Any) -> nn.Module | None:
    """Return the layer that pads unequal sides, which a convolution behind others cannot."""
    sides = tuple(conv._reversed_padding_repeated_twice)
    if sides[::2] == sides[1::2]:
        return None
    kinds = {
        "zeros": nn.ZeroPad2d,
        "reflect": nn.ReflectionPad2d,
        "replicate": nn.ReplicationPad2d,
        "circular": nn.CircularPad2d,
    }
    return kinds[conv.padding_mode](sides)


def _as_tensor(array: Array) -> torch.Tensor:
    wide = np.float64 if array.dtype == np.float64 else np.float32
    return torch.from_numpy(np.array(array, wide))


def _add_bias(layers: list[nn.Module], bias: Any, n_filters: int) -> None:
    """Give the last convolution a bias, in the order in which it has the filters."""
    array = torch.as_tensor(np.asarray(torch.as_tensor(bias).detach().cpu()))
    if array.shape != (n_filters,):
        raise ValueError(f"bias must have shape {(n_filters,)}, got {tuple(array.shape)}")
    last = next(layer for layer in reversed(layers) if isinstance(layer, nn.Conv2d))
    if isinstance(layers[-1], ChannelOrder):
        array = array[layers[-1].channels.argsort()]
    last.bias = nn.Parameter(array.to(last.weight.dtype).clone())

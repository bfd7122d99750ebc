"""Chains of standard convolutions, as which every kind of convolution factors can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..._checks import Array
from ..._records import ArrayRecord
from ..forward import ArrayNamespace, constant, length


@dataclass(frozen=True, eq=False, repr=False)
class Convolve(ArrayRecord):
    """A convolution without bias.

    Attributes
    ----------
    weight : array of shape (out_channels, in_channels / groups, height, width)
        Of any array library.
    groups : int
        As of a convolution layer: each group of outputs sees only its group of inputs.
    """

    weight: Any
    groups: int = 1


class Link(NamedTuple):
    """A convolution of a chain whose weight is a tensor of factors.

    Attributes
    ----------
    tensor : str
        The name of the tensor.
    shape : (int, int, int, int)
        The shape of the weight, into which the tensor is reshaped.
    groups : int
        As for `Convolve`.
    """

    tensor: str
    shape: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False, repr=False)
class Reorder(ArrayRecord):
    """Channels in another order.

    Attributes
    ----------
    channels : int array of shape (n_channels,)
        A permutation: channel i of the result is channel ``channels[i]`` of the input.
    """

    channels: Array

    @cached_property
    def inverse(self) -> Array:
        """The order that undoes this one."""
        return np.argsort(self.channels)


Chain = tuple[Convolve | Reorder, ...]
Pair = tuple[int, int]


class Placement(NamedTuple):
    """Stride, padding and dilation of one convolution, each for height and width."""

    stride: Pair
    padding: Pair
    dilation: Pair


def placements(chain: Chain, stride: Pair, padding: Pair, dilation: Pair) -> list[Placement]:
    """Return what each convolution of a chain has of a layer's stride, padding and dilation.

    Along each axis they belong to the convolution whose kernel is longer than 1, or to the first
    one. Convolutions of single points come before the padding: zeros stay zeros.

    Parameters
    ----------
    chain : tuple of Convolve and Reorder
        At most one convolution has a kernel longer than 1 along an axis.
    stride, padding, dilation : (int, int)
        Those of the layer, for height and width.

    Returns
    -------
    list of Placement
        One for each `Convolve`, in their order.
    """
    kernels = [stage.weight.shape[2:] for stage in chain if isinstance(stage, Convolve)]
    at = owners(kernels)

    def pair(values: Pair, otherwise: int, place: int) -> Pair:
        own = [owner == place for owner in at]
        return values[0] if own[0] else otherwise, values[1] if own[1] else otherwise

    return [
        Placement(pair(stride, 1, place), pair(padding, 0, place), pair(dilation, 1, place))
        for place in range(len(kernels))
    ]


def owners(kernels: Sequence[Sequence[int]]) -> list[int]:
    """Return for each axis which of several kernels has the layer's stride, padding and dilation.

    Parameters
    ----------
    kernels : sequence of sequences of int
        The lengths of each kernel along all axes.

    Returns
    -------
    list of int
        The number of the kernel that is longer than 1 along the axis, or 0.
    """
    return [
        next((number for number, kernel in enumerate(kernels) if kernel[axis] > 1), 0)
        for axis in range(len(kernels[0]))
    ]


def output_size(size: Pair, kernel: Pair, placement: Placement) -> Pair:
    """Return height and width of a convolution's result; refuse inputs that are too small."""
    result = tuple(
        (n + 2 * pad - spread * (k - 1) - 1) // step + 1
        for n, k, step, pad, spread in zip(size, kernel, *placement, strict=True)
    )
    if min(result) < 1:
        raise ValueError(
            f"x must be at least as large as the kernel, {kernel} with dilation "
            f"{placement.dilation} and padding {placement.padding}, got {size}"
        )
    return result[0], result[1]


def multiply_adds(chain: Chain, size: Pair, placed: Sequence[Placement]) -> int:
    """Return how many multiplications a chain takes for one image of this height and width."""
    total = 0
    convolutions = (stage for stage in chain if isinstance(stage, Convolve))
    for stage, placement in zip(convolutions, placed, strict=True):
        size = output_size(size, stage.weight.shape[2:], placement)
        total += prod(stage.weight.shape) * prod(size)
    return total


def convolved(chain: Chain, x: Array, placed: Sequence[Placement]) -> Array:
    """Return the result of a chain for x of shape (batch, channels, height, width)."""
    places = iter(placed)
    for stage in chain:
        x = x[:, stage.channels] if isinstance(stage, Reorder) else _one(stage, x, next(places))
    return x


def _one(stage: Convolve, x: Array, placement: Placement) -> Array:
    """Return one convolution, image by image."""
    out, _, *kernel = stage.weight.shape
    stride, padding, dilation = placement
    height, width = output_size(x.shape[2:], (kernel[0], kernel[1]), placement)
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    spans = [spread * (k - 1) + 1 for k, spread in zip(kernel, dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    views = views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    weight = stage.weight.reshape(stage.groups, out // stage.groups, -1)
    result = np.empty((len(x), out, height, width), x.dtype)
    for image, view in enumerate(views):
        columns = view.transpose(0, 3, 4, 1, 2).reshape(stage.groups, -1, height * width)
        result[image] = (weight @ columns).reshape(out, height, width)
    return result


def product(
    xp: ArrayNamespace, chain: Chain, x: Any, in_channels: int, kernel_size: Pair, groups: int
) -> Any:
    """Return ``x @ W.T`` for x of shape (batch, in_channels / groups · height · width).

    It is the chain's result for an image as large as the kernel, which each group of input
    channels sees.
    """
    batch = x.shape[0]  # None where it is not known yet
    x = xp.reshape(x, (length(batch), in_channels // groups, *kernel_size))
    if groups > 1:
        x = xp.concat([x] * groups, axis=1)
    for stage in chain:
        if isinstance(stage, Reorder):
            x = xp.take(x, constant(xp, stage.channels, x), axis=1)
        else:
            x = _on_one_window(xp, stage, x, batch)
    return xp.reshape(x, (length(batch), x.shape[1]))


def _on_one_window(xp: ArrayNamespace, stage: Convolve, x: Any, batch: Any) -> Any:
    """Return a convolution whose kernel is 1 or as long as x along both of its last axes."""
    out, inner, *kernel = stage.weight.shape
    rest = [n // k for n, k in zip(x.shape[2:], kernel, strict=True)]
    x = xp.reshape(x, (length(batch), stage.groups, inner, rest[0], kernel[0], rest[1], kernel[1]))
    x = xp.permute_dims(x, (1, 0, 3, 5, 2, 4, 6))
    terms = inner * kernel[0] * kernel[1]
    x = xp.reshape(x, (stage.groups, length(batch, *rest), terms))
    weight = xp.reshape(stage.weight, (stage.groups, out // stage.groups, terms))
    y = xp.matmul(x, xp.permute_dims(weight, (0, 2, 1)))
    y = xp.reshape(y, (stage.groups, length(batch), rest[0], rest[1], out // stage.groups))
    return xp.reshape(xp.permute_dims(y, (1, 0, 4, 2, 3)), (length(batch), out, rest[0], rest[1]))


def rows(xp: ArrayNamespace, chain: Chain, chosen: Any, groups: int) -> Any:
    """Return rows of W, given as rows (n, out_channels) of the identity.

    W's rows are the gradients of outputs by an input as large as the kernel: the chain is followed
    from its end.
    """
    n = chosen.shape[0]
    x = xp.reshape(chosen, (length(n), chosen.shape[1], 1, 1))
    for stage in reversed(chain):
        if isinstance(stage, Reorder):
            x = xp.take(x, constant(xp, stage.inverse, x), axis=1)
        else:
            x = _back(xp, stage, x, n)
    # Rows of a group are zero for the channels of all others.
    per_group = x.shape[1] // groups
    return xp.reshape(
        sum(
            (x[:, g * per_group : (g + 1) * per_group, :, :] for g in range(1, groups)),
            x[:, :per_group, :, :],
        ),
        (length(n), per_group * x.shape[2] * x.shape[3]),
    )


def _back(xp: ArrayNamespace, stage: Convolve, x: Any, n: Any) -> Any:
    """Return the gradient of a convolution's inputs, which are as large as its kernel."""
    out, inner, *kernel = stage.weight.shape
    rest = list(x.shape[2:])
    x = xp.reshape(x, (length(n), stage.groups, out // stage.groups, rest[0], rest[1]))
    x = xp.permute_dims(x, (1, 0, 3, 4, 2))
    x = xp.reshape(x, (stage.groups, length(n, *rest), out // stage.groups))
    terms = inner * kernel[0] * kernel[1]
    y = xp.matmul(x, xp.reshape(stage.weight, (stage.groups, out // stage.groups, terms)))
    y = xp.reshape(y, (stage.groups, length(n), rest[0], rest[1], inner, kernel[0], kernel[1]))
    y = xp.permute_dims(y, (1, 0, 4, 2, 5, 3, 6))
    channels = stage.groups * inner
    return xp.reshape(y, (length(n), channels, rest[0] * kernel[0], rest[1] * kernel[1]))

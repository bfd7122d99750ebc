"""Chains of convolutions, run in one pass over the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from .._records import short_repr
from ._output import output
from .runtime import thread_count

MOST = 2**20  # of a stride, padding or dilation: sizes of planes are then within 64 bits


class ConvStage(NamedTuple):
    """One convolution of a chain, and the order in which it takes its input channels.

    Attributes
    ----------
    order : int array of shape (channels,), or None
        Input channel ``i`` is channel ``order[i]`` of what comes before; a permutation. None keeps
        their order.
    weight : float32 array of shape (filters, channels // groups, rows, columns)
    groups : int
    """

    order: Array | None
    weight: Array
    groups: int


@dataclass(frozen=True, eq=False, repr=False)
class ConvChain:
    """Convolutions that run one after the other, checked and packed once for :func:`conv_chain`.

    Parameters
    ----------
    stages : sequence of (order, weight, groups)
        As in :class:`ConvStage`. Weights of float16, bfloat16, float32 or float64 are copied as
        float32. Along each axis at most one stage has a window, that is more than one row or
        column. Stride, padding and dilation along the axis belong to that stage.
    order : int array of shape (filters of the last stage,), optional
        Result channel ``i`` is filter ``order[i]`` of the last stage; a permutation.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, for stages that do not fit each other, for an order that is not a
        permutation, and for two windows along one axis.

    Notes
    -----
    Construction copies the weights twice: as they are, and packed as the kernel reads them.
    ``==`` and ``hash`` go by identity. Copies and pickles are checked and packed again.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.convolution import ConvChain
    >>> mix, window = np.ones((2, 3, 1, 1), np.float32), np.ones((4, 1, 5, 5), np.float32)
    >>> ConvChain([(None, mix, 1), (None, window, 2)])
    ConvChain(channels=3, filters=4, kernel=(5, 5), stages=2)
    """

    stages: tuple[ConvStage, ...]
    order: Array | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stages, str | bytes) or not isinstance(self.stages, Sequence):
            raise TypeError(
                "stages must be a sequence of (order, weight, groups), "
                f"got {type(self.stages).__name__}"
            )
        stages = tuple(_stage(stage, f"stages[{i}]") for i, stage in enumerate(self.stages))
        if not stages:
            raise ValueError("stages must hold at least one convolution, got none")
        _check_fit(stages)
        order = _order(self.order, len(stages[-1].weight), "order")
        packed, packed_nbytes = kernels.conv_prepare(
            [(_indices(s.order, _channels(s)), s.weight, s.groups) for s in stages],
            _indices(order, len(stages[-1].weight)),
        )
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "_packed", (packed, packed_nbytes))

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return _channels(self.stages[0])

    @property
    def filters(self) -> int:
        """The number of result channels."""
        return len(self.stages[-1].weight)

    @property
    def kernel(self) -> tuple[int, int]:
        """Rows and columns of the window of the whole chain."""
        sizes = [stage.weight.shape[2:] for stage in self.stages]
        return max(rows for rows, _ in sizes), max(columns for _, columns in sizes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: the weights, and their packed copy."""
        orders = (*(stage.order for stage in self.stages), self.order)
        kept = sum(stage.weight.nbytes for stage in self.stages)
        kept += sum(order.nbytes for order in orders if order is not None)
        return kept + int(self.__dict__["_packed"][1])

    @property
    def _execution(self) -> object:
        """The packed weights, which only the kernel can read."""
        return self.__dict__["_packed"][0]

    def __repr__(self) -> str:
        parts = {"channels": self.channels, "filters": self.filters, "kernel": self.kernel}
        return short_repr(self, parts | {"stages": len(self.stages)})

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvChain, (self.stages, self.order)


def conv_chain(
    x: Any,
    chain: ConvChain,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    bias: Any = None,
    out: Any = None,
    n_threads: int | None = None,
) -> Array:
    """Convolve images with a chain of convolutions, without writing what is between them to memory.

    Parameters
    ----------
    x : array of shape (images, channels, height, width)
        float16, bfloat16, float32 or float64, any strides. float64 is rounded to float32.
    chain : ConvChain
    stride, padding, dilation : int or (int, int)
        Along height and width, as of one convolution with the chain's window: for the stage that
        has the window along that axis.
    bias : array of shape (filters,), optional
        Floats, added to the result.
    out : float32 array of shape (images, filters, rows, columns), optional
        Where to write the result: C-contiguous and writeable, without overlap with ``x``.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (images, filters, rows, columns)
        ``out`` if it was given. ``rows`` is
        ``(height + 2 padding - dilation (kernel - 1) - 1) // stride + 1``, and so for columns.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and if the window is larger than the padded image. Nothing is
        written then.

    Notes
    -----
    Equals the convolutions done one by one, up to the rounding of float32 sums. Images are cut into
    blocks of rows by their size, and a block passes through all stages in a core's own cache.
    Orders of channels cost nothing. Work is that of the stages together; rows that the windows of
    two blocks share pass twice through the stages before the window. The same bits for any number
    of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.convolution import ConvChain, conv_chain
    >>> mix, window = np.ones((2, 3, 1, 1), np.float32), np.ones((4, 1, 5, 5), np.float32)
    >>> chain = ConvChain([(None, mix, 1), (None, window, 2)])
    >>> conv_chain(np.ones((1, 3, 6, 6), np.float32), chain, padding=2, stride=3)[0, 0]
    array([[27., 45.],
           [45., 75.]], dtype=float32)
    """
    if not isinstance(chain, ConvChain):
        raise TypeError(f"chain must be a ConvChain, got {type(chain).__name__}")
    x = _checks.float_array(x, "x", ndim=(4,))
    if x.shape[1] != chain.channels:
        raise ValueError(f"x must have {chain.channels} channels, got shape {x.shape}")
    steps = {
        "stride": _pair(stride, "stride", 1),
        "padding": _pair(padding, "padding", 0),
        "dilation": _pair(dilation, "dilation", 1),
    }
    sizes = tuple(
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            x.shape[2:], chain.kernel, *steps.values(), strict=True
        )
    )
    if min(sizes) < 1:
        raise ValueError(
            f"x must be at least as large as the window of {chain.kernel} at dilation "
            f"{steps['dilation']} less twice the padding of {steps['padding']}, "
            f"got shape {x.shape}"
        )
    result = output(out, (len(x), chain.filters, *sizes), np.dtype(np.float32), {"x": x})
    kernels.conv_chain(
        x,
        chain._execution,
        **steps,
        bias=_bias(bias, chain.filters),
        out=result,
        n_threads=thread_count(n_threads),
    )
    return result


def _stage(stage: Any, name: str) -> ConvStage:
    if not isinstance(stage, tuple | list) or len(stage) != 3:
        raise TypeError(f"{name} must be (order, weight, groups), got {_checks.shown(stage)}")
    order, weight, groups = stage
    weight = _checks.float_array(weight, f"weight of {name}", ndim=(4,))
    if weight.size == 0:
        raise ValueError(f"weight of {name} must not be empty, got shape {weight.shape}")
    groups = _checks.integer(groups, f"groups of {name}", 1)
    if len(weight) % groups:
        raise ValueError(
            f"groups of {name} must divide the {len(weight)} filters of its weight, got {groups}"
        )
    order = _order(order, weight.shape[1] * groups, f"order of {name}")
    weight = np.array(weight, np.float32, order="C", copy=True)
    weight.setflags(write=False)
    return ConvStage(order, weight, groups)


def _order(order: Any, n: int, name: str) -> Array | None:
    """Return a permutation of n channels as a read-only array of int32."""
    if order is None:
        return None
    array = _checks.integers(order, name)
    if array.shape != (n,) or not np.array_equal(np.sort(array), np.arange(n)):
        raise ValueError(
            f"{name} must be a permutation of the {n} channels, got {_checks.shown(order)}"
        )
    array = np.array(array, np.int32)
    array.setflags(write=False)
    return array


def _indices(order: Array | None, n: int) -> Array:
    return np.arange(n, dtype=np.int32) if order is None else order


def _channels(stage: ConvStage) -> int:
    return int(stage.weight.shape[1]) * stage.groups


def _check_fit(stages: tuple[ConvStage, ...]) -> None:
    for i, (before, stage) in enumerate(pairwise(stages), 1):
        if _channels(stage) != len(before.weight):
            raise ValueError(
                f"stages[{i}] must take the {len(before.weight)} channels of the stage before it, "
                f"got weight of shape {stage.weight.shape} in {stage.groups} groups"
            )
    for axis, name in ((2, "rows"), (3, "columns")):
        windowed = [i for i, stage in enumerate(stages) if stage.weight.shape[axis] > 1]
        if len(windowed) > 1:
            raise ValueError(
                f"one stage at most must have a window of several {name}, got stages {windowed}"
            )


def _pair(value: Any, name: str, low: int) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair, got {_checks.shown(value)}")
        rows, columns = (_checks.integer(v, f"{name}[{i}]", low, MOST) for i, v in enumerate(value))
        return rows, columns
    number = _checks.integer(value, name, low, MOST)
    return number, number


def _bias(bias: Any, n: int) -> Array | None:
    if bias is None:
        return None
    array = _checks.float_array(bias, "bias", ndim=(1,))
    if array.shape != (n,):
        raise ValueError(f"bias must have shape ({n},), got {array.shape}")
    return np.ascontiguousarray(array, np.float32)

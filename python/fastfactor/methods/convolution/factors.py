"""What all factors of a convolution have in common: they run as a chain of convolutions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ... import _checks
from ..._arrays import as_array
from ..._checks import Array
from ...errors import CorruptDataError
from ...kernels.convolution import MOST, ConvChain, conv_chain
from ..factors import Factors, check_ids, into
from ..forward import NUMPY, ArrayNamespace, as_batch, constant, with_lead
from ..narrow import narrowed
from .chain import (
    Chain,
    Convolve,
    Link,
    Reorder,
    convolved,
    multiply_adds,
    placements,
    product,
    rows,
)

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConvFactors(Factors):
    """The weight of a convolution, (F, C, X, Y), as a chain of smaller convolutions.

    As a matrix W it has the shape (F, C·X·Y), and `linear`, `rows` and `to_dense` are those of that
    matrix. C is the number of input channels of a filter; a layer with ``groups`` has C · groups.

    Attributes
    ----------
    groups : int
        Those of the layer.
    """

    groups: int

    # --- what a subclass must define

    @property
    @abstractmethod
    def links(self) -> tuple[Link | Reorder, ...]:
        """The convolutions and orders of channels, with the names of their tensors.

        The same objects each time, so that a library may remember what it made of orders.
        """

    @property
    @abstractmethod
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""

    # --- what every subclass inherits

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the layer's weight, (F, C, X, Y)."""
        height, width = self.kernel_size
        return self.shape[0], self.shape[1] // max(height * width, 1), height, width

    @property
    def n_parameters(self) -> int:
        """How many numbers are stored, without those that say which channel is where."""
        return sum(tensor.size for name, tensor in self.tensors().items() if name in self.trainable)

    def _chain(self, xp: ArrayNamespace, tensors: Mapping[str, Any]) -> Chain:
        """Return the convolutions, of trained tensors of an array library."""
        return tuple(
            Convolve(xp.reshape(tensors[link.tensor], link.shape), link.groups)
            if isinstance(link, Link)
            else link
            for link in self.links
        )

    def chain(self) -> Chain:
        """Return the convolutions and orders of channels that give the same as the layer.

        Returns
        -------
        tuple of Convolve and Reorder
            Views of the stored tensors where that can be; they must not be changed.
        """
        return self._chain(NUMPY, self.tensors())

    def conv(
        self,
        x: Any,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        out: Any = None,
        n_threads: int | None = None,
    ) -> Array:
        """Return the convolution of images with the weight, without rebuilding it.

        Parameters
        ----------
        x : array of shape (batch, channels, height, width) or (channels, height, width)
            ``channels`` is C · groups.
        stride, padding, dilation : int or (int, int)
            As of a convolution layer; images are padded with zeros.
        out : array of the result's shape and dtype, optional
            Where to write the result.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape (batch, F, height', width') or (F, height', width')
            In float64 if x or a factor is, else in float32.

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, and for images smaller than the kernel.

        Notes
        -----
        As in the layers of neural networks this is a correlation: the kernel is not turned over. In
        float32 the chain runs in one pass, a block of rows at a time, so that what is between the
        convolutions stays in the processor's cache; in float64 they run one after the other.
        """
        x = _checks.float_array(x, "x", ndim=(3, 4))
        n_channels = self.weight_shape[1] * self.groups
        if x.shape[-3] != n_channels:
            raise ValueError(f"x must have {n_channels} channels, got shape {x.shape}")
        steps = {
            "stride": pair_of(stride, "stride", 1),
            "padding": pair_of(padding, "padding", 0),
            "dilation": pair_of(dilation, "dilation", 1),
        }
        images = x if x.ndim == 4 else x[None]
        dtype = _checks.result_dtype(x, *self._trained().values())
        if dtype == np.float32:
            result = conv_chain(
                images,
                self._packed,
                stride=steps["stride"],
                padding=steps["padding"],
                dilation=steps["dilation"],
                n_threads=n_threads,
            )
        else:
            chain = self._wide_chain
            images = images.astype(dtype, copy=False)
            result = convolved(chain, images, placements(chain, **steps))
        return into(out, result.reshape(*x.shape[:-3], *result.shape[1:]))

    def multiply_adds(
        self,
        size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
    ) -> int:
        """Return the multiplications of `conv` for one image.

        Parameters
        ----------
        size : int or (int, int)
            Height and width of the image.
        stride, padding, dilation : int or (int, int)
            As for `conv`.

        Returns
        -------
        int
            The sum over the chain's convolutions.

        Raises
        ------
        TypeError, ValueError
            For numbers out of range, and for an image smaller than the kernel.
        """
        chain = self.chain()
        sides = (pair_of(stride, "stride", 1), pair_of(padding, "padding", 0))
        placed = placements(chain, *sides, pair_of(dilation, "dilation", 1))
        return multiply_adds(chain, pair_of(size, "size", 1), placed)

    def rows(self, ids: Any, *, n_threads: int | None = None) -> Array:
        ids = check_ids(ids, self.shape[0])
        chosen = np.zeros((ids.size, self.shape[0]), self._dtype_of_products)
        chosen[np.arange(ids.size), ids.reshape(-1)] = 1
        found = rows(NUMPY, self._wide_chain, chosen, self.groups)
        return narrowed(found, self.dtype).reshape(*ids.shape, self.shape[1])

    def _linear(self, x: Array, n_threads: int | None) -> Array:
        x = x.astype(_checks.result_dtype(x, *self._trained().values()), copy=False)
        result: Array = self._product(NUMPY, self._wide_chain, x)
        return result

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        y = self._product(xp, self._chain(xp, tensors), as_batch(xp, x))
        return with_lead(xp, y, x.shape[:-1])

    def _product(self, xp: ArrayNamespace, chain: Chain, x: Any) -> Any:
        in_channels = self.weight_shape[1] * self.groups
        return product(xp, chain, x, in_channels, self.kernel_size, self.groups)

    def _forward_rows(self, xp: ArrayNamespace, tensors: Mapping[str, Any], ids: Any) -> Any:
        identity = constant(xp, self._filters_identity, tensors[self.trainable[0]])
        chosen = xp.take(identity, ids, axis=0)
        return rows(xp, self._chain(xp, tensors), chosen, self.groups)

    def _trained(self) -> dict[str, Array]:
        return {name: tensor for name, tensor in self.tensors().items() if name in self.trainable}

    @cached_property
    def _filters_identity(self) -> Array:
        return np.eye(self.shape[0], dtype=np.float32)

    @property
    def _dtype_of_products(self) -> type[np.floating[Any]]:
        return _checks.result_dtype(*self._trained().values())

    @cached_property
    def _packed(self) -> ConvChain:
        """The chain as the kernel reads it."""
        stages: list[Any] = []
        order = None
        for stage in self._wide_chain:
            if isinstance(stage, Reorder):
                order = stage.channels
            else:
                stages.append((order, stage.weight, stage.groups))
                order = None
        return ConvChain(tuple(stages), order)

    @cached_property
    def _wide_chain(self) -> Chain:
        """The chain in the dtype in which products are computed."""
        dtype = self._dtype_of_products
        wide = {name: tensor.astype(dtype, copy=False) for name, tensor in self._trained().items()}
        return self._chain(NUMPY, wide)


def pair_of(value: Any, name: str, least: int) -> Pair:
    """Return an integer twice, or two integers."""
    values = value if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be an integer or two, got {_checks.shown(value)}")
    first, second = (_checks.integer(each, name, least, MOST) for each in values)
    return first, second


def stored_order(tensors: Mapping[str, Any], name: str, n: int, groups: int) -> Array:
    """Return an order of channels from a file: a permutation that keeps each group's together."""
    if name not in tensors:
        raise CorruptDataError(f"tensor {name!r} is missing")
    order = as_array(tensors[name], f"tensor {name!r}")
    if order.dtype != order_dtype(n):
        raise CorruptDataError(
            f"tensor {name!r} must have dtype {order_dtype(n)}, got {order.dtype}"
        )
    if order.shape != (n,):
        raise CorruptDataError(f"tensor {name!r} must have shape {(n,)}, got {order.shape}")
    per_group = max(n // groups, 1)
    if not np.array_equal(np.sort(order.reshape(groups, -1), axis=1).reshape(-1), np.arange(n)):
        raise CorruptDataError(
            f"tensor {name!r} must hold each number below {n} once, "
            f"those of each {per_group} together"
        )
    return order


def order_dtype(n: int) -> np.dtype[Any]:
    """Return the dtype in which orders of n channels are stored."""
    return np.dtype(np.uint8 if n <= 1 << 8 else np.uint16 if n <= 1 << 16 else np.uint32)


def stored_groups(config: Mapping[str, Any], shape: tuple[int, int]) -> int:
    """Return the number of groups from a file; refuse one that does not divide the filters."""
    groups = config.get("groups")
    if type(groups) is not int or groups < 1 or shape[0] % groups or groups > max(shape[0], 1):
        raise CorruptDataError(f"'groups' must divide the {shape[0]} filters, got {groups!r}")
    return groups

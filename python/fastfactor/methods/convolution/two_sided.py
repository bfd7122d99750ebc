"""Factors of a convolution with a window between two convolutions of single points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..._checks import Array
from ...errors import CorruptDataError
from ..factors import FLOAT_NAMES
from ..stored import stored_number, stored_tensor
from .chain import Link, Reorder
from .factors import ConvFactors, stored_groups, stored_order


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TwoSidedFactors(ConvFactors):
    """What decompositions along filters and along channels have in common.

    In each of the layer's groups there are G clusters of channels and H of filters, one each where
    nothing is clustered, and a block for each pair of them. Weights are those of the convolutions
    that run one after the other: `channels` of single points, the window, and `filters` of single
    points, each with its own groups.
    """

    trainable: ClassVar[tuple[str, ...]] = ("filters", "core", "channels")
    is_depthwise: ClassVar[bool]  # whether each block's window has as many channels as filters

    filters: Array
    core: Array
    channels: Array

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.core.shape[2], self.core.shape[3]

    @property
    def ranks(self) -> tuple[int, int]:
        """How many channels and filters the window of a block has: K₁ and K₂."""
        return self._ranks_and_counts()[0]

    @property
    def counts(self) -> tuple[int, int]:
        """How many clusters channels and filters have: G and H."""
        return self._ranks_and_counts()[1]

    @property
    def _channel_clusters(self) -> int:
        return 1

    def _ranks_and_counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        g = self._channel_clusters
        second = self.filters.shape[1] // g
        first = second if self.is_depthwise else self.core.shape[1]
        return (first, second), (g, self.core.shape[0] // (second * self.groups * g))

    @cached_property
    def links(self) -> tuple[Link | Reorder, ...]:
        (_, second), (g, h) = self._ranks_and_counts()
        blocks = self.groups * g * h
        before, between, after = self._reorders()
        return (
            *before,
            Link("channels", (*self.channels.shape, 1, 1), self.groups * g),
            Link("core", self.core.shape, blocks * second if self.is_depthwise else blocks),
            *between,
            Link("filters", (*self.filters.shape, 1, 1), self.groups * h),
            *after,
        )

    def _reorders(self) -> tuple[tuple[Reorder, ...], ...]:
        """Return the orders before, within and after the convolutions, where they change."""
        return (), (), ()

    @classmethod
    def _checked(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        g: int,
    ) -> dict[str, Any]:
        """Return the fields of factors from a file, if they fit each other."""
        groups = stored_groups(config, shape)
        core = stored_tensor(tensors, "core", FLOAT_NAMES, (None, None, None, None))
        channels = stored_tensor(tensors, "channels", FLOAT_NAMES, (None, None))
        filters = stored_tensor(tensors, "filters", FLOAT_NAMES, (shape[0], None))
        found = {"core": core, "channels": channels, "filters": filters}
        second = filters.shape[1] // g
        first = second if cls.is_depthwise else core.shape[1]
        area = core.shape[2] * core.shape[3]
        in_group = shape[1] // max(area, 1)
        h = core.shape[0] // max(groups * g * second, 1)
        expected = {
            "core": (groups * g * h * second, 1 if cls.is_depthwise else first, *core.shape[2:]),
            "channels": (groups * g * h * first, in_group // g),
            "filters": (shape[0], g * second),
        }
        sides = (
            in_group * area == shape[1],
            in_group % g == 0,
            shape[0] % (groups * max(h, 1)) == 0,
        )
        shapes = {name: tensor.shape for name, tensor in found.items()}
        if not all(sides) or min(h, first, second, area) < 1 or shapes != expected:
            raise CorruptDataError(
                "tensors 'core', 'channels' and 'filters' must fit a matrix of shape "
                f"{tuple(shape)} in {groups} groups, got {core.shape}, {channels.shape} and "
                f"{filters.shape}"
            )
        return found | {"groups": groups}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> TwoSidedFactors:
        found = cls(**cls._checked(tensors, config, shape, 1), shape=shape, dtype=dtype)
        if found.counts != (1, 1):
            raise CorruptDataError(
                f"tensor 'core' must have {found.groups * found.ranks[1]} windows, "
                f"got {found.core.shape[0]}"
            )
        return found


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Clustered(TwoSidedFactors):
    """Those of a convolution whose filters and channels are clustered.

    Attributes
    ----------
    channel_clusters : int
        G, the number of clusters of channels in a group.
    filter_order : array of shape (F,)
        The filters, cluster by cluster: unsigned integers.
    channel_order : array of shape (C · groups,)
        The channels, cluster by cluster.
    """

    channel_clusters: int
    filter_order: Array
    channel_order: Array

    @property
    def _channel_clusters(self) -> int:
        return self.channel_clusters

    def _reorders(self) -> tuple[tuple[Reorder, ...], ...]:
        (_, second), (g, h) = self._ranks_and_counts()
        # What comes by groups, G, H goes on by groups, H, G.
        places = np.arange(self.core.shape[0]).reshape(self.groups, g, h, second).swapaxes(1, 2)
        before = Reorder(self.channel_order.astype(np.int64))
        after = Reorder(np.argsort(self.filter_order))
        between = Reorder(places.reshape(-1))
        return (
            (before,) if g > 1 else (),
            (between,) if g > 1 and h > 1 else (),
            (after,) if h > 1 else (),
        )

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        config: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> Clustered:
        g = stored_number(config, "channel_clusters", 1, max(shape[1], 1))
        fields = cls._checked(tensors, config, shape, g)
        groups, core = fields["groups"], fields["core"]
        fields["channel_clusters"] = g
        n_channels = groups * (shape[1] // (core.shape[2] * core.shape[3]))
        fields["filter_order"] = stored_order(tensors, "filter_order", shape[0], groups)
        fields["channel_order"] = stored_order(tensors, "channel_order", n_channels, groups)
        return cls(**fields, shape=shape, dtype=dtype)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConvSVDFactors(TwoSidedFactors):
    """A window of few channels and filters between two convolutions of single points.

    Attributes
    ----------
    channels : array of shape (groups · K₁, C)
        From the layer's channels to those of the window.
    core : array of shape (groups · K₂, K₁, X, Y)
    filters : array of shape (F, K₂)
        From the filters of the window to those of the layer.
    """

    kind: ClassVar[str] = "conv_svd"
    is_depthwise: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConvCPFactors(TwoSidedFactors):
    """A sum of outer products: a window for each channel between two convolutions of points.

    Attributes
    ----------
    channels : array of shape (groups · K, C)
    core : array of shape (groups · K, 1, X, Y)
        A window for each of the K outer products.
    filters : array of shape (F, K)
    """

    kind: ClassVar[str] = "conv_cp"
    is_depthwise: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BiclusterSVDFactors(Clustered):
    """A tensor SVD for each pair of a cluster of channels and one of filters.

    Attributes
    ----------
    channels : array of shape (groups · G · H · K₁, C / G)
    core : array of shape (groups · G · H · K₂, K₁, X, Y)
    filters : array of shape (F, G · K₂)
        Cluster by cluster, as `filter_order` says.
    """

    kind: ClassVar[str] = "conv_bicluster_svd"
    is_depthwise: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BiclusterCPFactors(Clustered):
    """A sum of outer products for each pair of a cluster of channels and one of filters.

    Attributes
    ----------
    channels : array of shape (groups · G · H · K, C / G)
    core : array of shape (groups · G · H · K, 1, X, Y)
    filters : array of shape (F, G · K)
        Cluster by cluster, as `filter_order` says.
    """

    kind: ClassVar[str] = "conv_bicluster_cp"
    is_depthwise: ClassVar[bool] = True

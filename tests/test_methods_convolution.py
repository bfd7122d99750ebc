from __future__ import annotations

from contract import MethodContract
from fastfactor.methods import ConvBicluster, ConvCP, ConvMonochromatic, ConvSeparable, ConvSVD

KERNEL = (2, 2)  # of matrices (24, 32): 8 channels


class TestConvSVD(MethodContract):
    METHODS = (
        ConvSVD(ranks=(3, 5), kernel_size=KERNEL),
        ConvSVD(ranks=(2, 2), kernel_size=(1, 4), groups=2),
    )
    EXACT_BITS = False


class TestConvSeparable(MethodContract):
    METHODS = (
        ConvSeparable(rank=3, kernel_size=KERNEL),
        ConvSeparable(rank=2, kernel_size=(4, 2), groups=3),
    )
    EXACT_BITS = False


class TestConvCP(MethodContract):
    METHODS = (ConvCP(rank=4, kernel_size=KERNEL), ConvCP(rank=2, kernel_size=(4, 1), groups=2))
    EXACT_BITS = False


class TestConvMonochromatic(MethodContract):
    METHODS = (
        ConvMonochromatic(n_colors=4, kernel_size=KERNEL),
        ConvMonochromatic(n_colors=2, kernel_size=(4, 2), groups=2),
    )
    EXACT_BITS = False


class TestConvBicluster(MethodContract):
    METHODS = (
        ConvBicluster(ranks=(2, 3), kernel_size=KERNEL),
        ConvBicluster(ranks=2, inside="cp", n_clusters=(4, 2), kernel_size=KERNEL),
        ConvBicluster(ranks=(2, 2), n_clusters=(2, 3), clustering="flats", kernel_size=KERNEL),
        ConvBicluster(ranks=(1, 2), n_clusters=(2, 2), kernel_size=KERNEL, groups=2),
    )
    EXACT_BITS = False

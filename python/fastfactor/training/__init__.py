"""Compress matrices while their model trains, without any framework.

A matrix A trains for a while. At a chosen step a compressor factors it, and from then on the layer
computes with a blend, ``α·A + (1 − α)·(B ∘ C)``, whose α falls to 0 by a :class:`Schedule`. Then A
is dropped, and training goes on in the factors. :class:`CompressedMatrix` says when each of these
happens to one matrix; adapters to frameworks do it to their layers. The scheme is that of the
matrix compression operator of Panigrahi and others, 2020.
"""

from .compressors import Compressor, OwnFactors, compress
from .from_scratch import FromScratch
from .gradual import GradualPrune
from .matrix import Change, CompressedMatrix
from .ramp import SparsityRamp
from .saved_state import State
from .schedule import Schedule

__all__ = [
    "Change",
    "CompressedMatrix",
    "Compressor",
    "FromScratch",
    "GradualPrune",
    "OwnFactors",
    "Schedule",
    "SparsityRamp",
    "State",
    "compress",
]

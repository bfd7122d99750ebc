"""Deep Compression: prune, share weights, code what is left; each stage usable alone.

S. Han, H. Mao, W. Dally, Deep Compression, 2016. The network is trained on between the stages, by
whoever trains it: `prune` gives the mask to hold, `SharedWeights.gradient` what moves the shared
values.

>>> import numpy as np
>>> from fastfactor import deep_compression
>>> W = np.random.default_rng(0).standard_normal((300, 784)).astype(np.float32)
>>> mask = deep_compression.prune(W, sparsity=0.92)
>>> shared = deep_compression.share(W, mask, n_bits=6)
>>> data = deep_compression.encode(shared)
>>> layer = deep_compression.decode(data)
>>> len(data) < W.nbytes / 25, np.array_equal(layer.to_dense(), shared.to_dense())
(True, True)
>>> layer.linear(np.ones(784, np.float32)).shape
(300,)
"""

from .coding import decode, encode
from .layer import CodedLayer, LayerSizes
from .network import CodedNetwork
from .settings import DeepCompression, compress_network
from .stages import SharedWeights, prune, share

__all__ = [
    "CodedLayer",
    "CodedNetwork",
    "DeepCompression",
    "LayerSizes",
    "SharedWeights",
    "compress_network",
    "decode",
    "encode",
    "prune",
    "share",
]

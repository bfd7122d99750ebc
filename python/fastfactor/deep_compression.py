"""Deep Compression: prune, share weights, code what is left; each stage usable alone.

S. Han, H. Mao, W. Dally, Deep Compression, 2016. The network is trained on between the stages, by
whoever trains it: `prune` gives the mask to hold, `SharedWeights.gradient` what moves the shared
values. Without training in between, :class:`fastfactor.methods.DeepCompression` does all three.

>>> import numpy as np
>>> from fastfactor import deep_compression
>>> W = np.random.default_rng(0).standard_normal((300, 784)).astype(np.float32)
>>> mask = deep_compression.prune(W, sparsity=0.92)
>>> shared = deep_compression.share(W, mask, n_bits=6)
>>> factors = deep_compression.encode(shared)
>>> factors.nbytes < W.nbytes / 25, np.array_equal(factors.to_dense(), shared.to_dense())
(True, True)
>>> factors.linear(np.ones(784, np.float32)).shape
(300,)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._checks import Array
from .methods.deep_compression.coding import decode, encode
from .methods.deep_compression.factors import DeepCompressionFactors, LayerSizes
from .methods.deep_compression.method import DeepCompression
from .methods.deep_compression.stages import SharedWeights, prune, share
from .methods.factors import Factors, matrix_shape

__all__ = [
    "DeepCompression",
    "DeepCompressionFactors",
    "LayerSizes",
    "SharedWeights",
    "compress_network",
    "decode",
    "encode",
    "prune",
    "share",
]


def compress_network(
    weights: Mapping[str, Any],
    settings: DeepCompression | Mapping[str, DeepCompression],
    *,
    plain: Mapping[str, Array] | None = None,
    n_threads: int | None = None,
) -> dict[str, Factors | Array]:
    """Compress all layers of a network in memory.

    Parameters
    ----------
    weights : mapping of names to arrays
        Of more than two dimensions as matrices of (shape[0], all else).
    settings : DeepCompression, or a mapping of the same names to one each
    plain : mapping of names to arrays, optional
        What is not compressed, biases say.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    dict
        DeepCompressionFactors by the names of weights, then what is plain: the entries for
        :func:`fastfactor.store.save`. Its ``shapes`` says what shape weights had that are no
        matrices; ``compact=True`` keeps files of small networks small.

    Raises
    ------
    TypeError, ValueError
        For a layer without settings, settings without a layer, a name that is given twice, and what
        a stage refuses.

    Notes
    -----
    The cost of the stages, :func:`share` above all. The same bytes for any number of threads.

    Source: S. Han, H. Mao, W. Dally, Deep Compression, 2016.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastfactor import store
    >>> from fastfactor.deep_compression import DeepCompression, compress_network
    >>> W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> entries = compress_network(
    ...     {"fc.weight": W},
    ...     DeepCompression(sparsity=0.9, n_bits=4),
    ...     plain={"fc.bias": np.zeros(64, np.float32)},
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store.save(folder + "/small.safetensors", entries, compact=True)
    ...     with store.open_store(folder + "/small.safetensors") as saved:
    ...         y = saved["fc.weight"].linear(np.ones((2, 64), np.float32)) + saved["fc.bias"]
    >>> y.shape
    (2, 64)
    """
    if isinstance(settings, DeepCompression):
        settings = dict.fromkeys(weights, settings)
    if settings.keys() != weights.keys():
        unmatched = ", ".join(sorted(map(repr, settings.keys() ^ weights.keys())))
        raise ValueError(f"settings must be given for each of weights, got one only of {unmatched}")
    plain = plain or {}
    twice = weights.keys() & plain.keys()
    if twice:
        raise ValueError(f"names must differ, got {min(twice)!r} in weights and in plain")
    layers: dict[str, Factors | Array] = {
        name: settings[name].compress(_as_matrix(W), n_threads=n_threads)
        for name, W in weights.items()
    }
    return {**layers, **plain}


def _as_matrix(W: Any) -> Array:
    array = np.asarray(W)
    return array.reshape(matrix_shape(array.shape)) if array.ndim > 2 else array

"""Deep Compression in three stages: prune, share weights, code; each can be used alone.

The method is that of S. Han, H. Mao, W. Dally, Deep Compression, 2016. A training loop of your own
may retrain the network between the stages: `prune` returns the mask of weights to keep,
`SharedWeights.gradient` the gradient by the shared values. Without retraining,
:class:`fastfactor.methods.DeepCompression` does all three stages.

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

from . import _checks
from ._arrays import Array, as_array
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
        Weights of the layers. Those of more than two dimensions are compressed as matrices of shape
        (shape[0], product of the rest).
    settings : DeepCompression, or mapping of names to DeepCompression
        The settings of all layers, or of each layer.
    plain : mapping of names to arrays, optional
        Arrays that are not compressed, such as biases.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    dict
        DeepCompressionFactors by the names of weights, then the plain arrays: the entries for
        :func:`fastfactor.store.save`. Pass it ``shapes`` to record the shapes of weights that are
        not matrices, and ``compact=True`` to make files of small networks smaller.

    Raises
    ------
    TypeError, ValueError
        For a layer without settings, settings without a layer, a name in both weights and plain,
        and for weights or settings that a stage refuses.

    Notes
    -----
    The cost is that of the stages, mostly of :func:`share`. The same bytes for any number of
    threads.

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
        raise ValueError(
            f"settings and weights must have the same names, got only in one: {unmatched}"
        )
    plain = plain or {}
    twice = weights.keys() & plain.keys()
    if twice:
        raise ValueError(f"names must differ, got {min(twice)!r} in weights and in plain")
    layers: dict[str, Factors | Array] = {
        name: settings[name].compress(_as_matrix(W, name), n_threads=n_threads)
        for name, W in weights.items()
    }
    return {**layers, **{name: as_array(a, f"plain[{name!r}]") for name, a in plain.items()}}


def _as_matrix(W: Any, name: str) -> Array:
    """Return weights of more than two dimensions as a matrix, and others as they are."""
    array = _checks.float_array(W, f"weights[{name!r}]")
    return array.reshape(matrix_shape(array.shape)) if array.ndim > 2 else array

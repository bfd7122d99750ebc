"""The two lossy stages: choose the weights that are kept, and the values that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _checks
from ..._arrays import as_array
from ..._checks import Array
from ..._records import ArrayRecord
from ...kernels.scalar_clustering import kmeans1d
from ...metrics import Diagonal, Frobenius, Metric
from ..codebook.method import check_range
from ..factors import matrix_shape
from ..pruning.prune import Prune
from ..search import Problem

INITS = ("linear", "density", "random", "exact")
CODEBOOK_DTYPES = ("float16", "bfloat16", "float32")
MAX_BITS = 8  # of a code


def prune(
    W: Any,
    *,
    sparsity: float | None = None,
    std_multiple: float | None = None,
    importance: Any = None,
    n_threads: int | None = None,
) -> Array:
    """Return which weights are kept: the first stage.

    Parameters
    ----------
    W : array of any shape
        Finite floats.
    sparsity : float, optional
        The share of weights to drop, in [0, 1]: an exact number, those of least magnitude.
    std_multiple : float, optional
        Drop weights of magnitude below this many standard deviations of the layer's weights. Give
        either this or ``sparsity``.
    importance : array of W's shape, optional
        A factor of each squared error, for example squared gradients. Weights are then ranked by
        ``|w| √importance``, in float64: by how much dropping them would change the loss.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        True for weights that are kept.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, values out of range, and both or neither of ``sparsity`` and
        ``std_multiple``.

    Notes
    -----
    Linear in the number of weights. The same mask for any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> W = np.array([[0.1, -3.0, 0.5, 2.0], [4.0, 0.2, -0.3, 1.0]], np.float32)
    >>> deep_compression.prune(W, std_multiple=0.5).astype(int)
    array([[0, 1, 0, 1],
           [1, 0, 0, 1]])
    """
    if (sparsity is None) == (std_multiple is None):
        raise ValueError(
            f"one of sparsity and std_multiple must be given, got {sparsity!r} and {std_multiple!r}"
        )
    W = _checked(W)
    matrix = W.reshape(matrix_shape(W.shape))
    metric: Metric = Frobenius()
    if importance is not None:
        # In float64, so that the roots of small importances do not become zero.
        weights = _importance(importance, W)
        metric = Diagonal(weights.reshape(matrix.shape)) if weights.any() else metric
    settings = Prune(sparsity=sparsity, std_multiple=std_multiple)
    return settings.mask_of(Problem(matrix, metric, n_threads)).reshape(W.shape)


@dataclass(frozen=True, eq=False, repr=False)
class SharedWeights(ArrayRecord):
    """The result of the second stage: every kept weight has one of a few values.

    Attributes
    ----------
    labels : uint8 array of W's shape
        The index in the codebook of each weight's value; that of zero for pruned weights.
    codebook : array of shape (K,)
        The values. The first is zero if any weight is pruned.
    mask : bool array of W's shape
        True for weights that are kept.

    Raises
    ------
    TypeError, ValueError
        For wrong types and shapes, labels beyond the codebook, and a first value that is not zero
        if any weight is pruned.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.deep_compression import SharedWeights
    >>> labels = np.array([[1, 0], [0, 2]], np.uint8)
    >>> shared = SharedWeights(labels, np.array([0, 0.5, -1], np.float32), labels > 0)
    >>> shared.to_dense()
    array([[ 0.5,  0. ],
           [ 0. , -1. ]], dtype=float32)
    """

    labels: Array
    codebook: Array
    mask: Array

    def __post_init__(self) -> None:
        labels = as_array(self.labels, "labels")
        if labels.dtype != np.uint8:
            raise TypeError(f"labels must be a uint8 array, got dtype {labels.dtype}")
        codebook = _checks.float_array(self.codebook, "codebook", ndim=(1,))
        mask = _mask(self.mask, labels, "labels")
        if labels.size and int(labels.max()) >= codebook.size:
            raise ValueError(f"labels must be in [0, {codebook.size}), got {int(labels.max())}")
        if not mask.all() and codebook[0] != 0:
            raise ValueError(
                f"codebook must begin with zero, for pruned weights, got {codebook[0]}"
            )
        for name, array in (("labels", labels), ("codebook", codebook), ("mask", mask)):
            object.__setattr__(self, name, array)

    def to_dense(self) -> Array:
        """Return the weights, each with its shared value.

        Returns
        -------
        array of the labels' shape
            In the codebook's dtype; zero where nothing is kept.
        """
        dense: Array = np.where(self.mask, self.codebook[self.labels], self.codebook.dtype.type(0))
        return dense

    def gradient(self, gradient: Any) -> Array:
        """Return the gradient of the loss by each shared value: the sum over its weights.

        Parameters
        ----------
        gradient : array of W's shape
            The gradient of the loss by each weight.

        Returns
        -------
        float64 array of shape (K,)
            Zero for the value of pruned weights. Values of many weights have large sums, so the
            step of the training must be small enough for them.
        """
        values = _checks.float_array(gradient, "gradient", ndim=(self.labels.ndim,))
        if values.shape != self.labels.shape:
            raise ValueError(f"gradient must have shape {self.labels.shape}, got {values.shape}")
        kept = values[self.mask].astype(np.float64)
        return np.bincount(self.labels[self.mask], kept, minlength=self.codebook.size)


def share(
    W: Any,
    mask: Any = None,
    *,
    n_bits: int,
    init: str = "linear",
    codebook_dtype: str | None = None,
    importance: Any = None,
    random_state: Any = 0,
    n_threads: int | None = None,
) -> SharedWeights:
    """Cluster the kept weights of a layer, which then share their centroids: the second stage.

    Parameters
    ----------
    W : array of any shape
        Finite floats.
    mask : bool array of W's shape, optional
        True for weights that are kept. Default: those that are not zero.
    n_bits : int
        Bits of a code, 1 to 8. One of the 2**n_bits values is zero if any weight is pruned.
    init : {"linear", "density", "random", "exact"}
        The values from which Lloyd's iterations start. ``"linear"`` spaces them evenly from the
        smallest to the largest kept weight, which separates large weights and was best in the
        paper after retraining; ``"density"`` takes evenly spaced quantiles, ``"random"`` random
        weights. ``"exact"`` finds the values of least squared error instead of iterating.
    codebook_dtype : {"float16", "bfloat16", "float32"}, optional
        The dtype of the values. Default: W's, or float32 if W is float64.
    importance : array of W's shape, optional
        A factor of each squared error. If it is zero for all kept weights, it counts as none.
    random_state : int, Generator, RandomState or None
        Seed of ``"random"``.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    SharedWeights
        Values that no weight has are left out.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, and values out of range.

    Notes
    -----
    The cost is that of :func:`kmeans1d` on the kept weights. The same bits for any number of
    threads. 16-bit values are optimised as such, not rounded afterwards.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor import deep_compression
    >>> W = np.array([[0, 1.1, 0, 0.9], [5, 0, 0, 5]], np.float32)
    >>> shared = deep_compression.share(W, n_bits=2)
    >>> shared.to_dense()
    array([[0., 1., 0., 1.],
           [5., 0., 0., 5.]], dtype=float32)
    >>> shared.gradient(np.ones((2, 4), np.float32))
    array([0., 2., 2.])
    """
    W = _checked(W)
    n_bits = _checks.integer(n_bits, "n_bits", 1, MAX_BITS)
    _checks.choice(init, "init", INITS)
    kept = W != 0 if mask is None else _mask(mask, W)
    name = codebook_dtype or ("float32" if W.dtype == np.float64 else W.dtype.name)
    _checks.choice(name, "codebook_dtype", CODEBOOK_DTYPES)
    check_range(W, _checks.dtype_named(name))
    weight = None if importance is None else _importance(importance, W)[kept]
    values = W[kept]
    pruned = values.size < W.size or not values.size
    labels = np.zeros(W.shape, np.uint8)
    codebook = np.zeros(int(pruned), np.float32)
    if values.size:
        if weight is not None and not weight.any():
            weight = None
        result = kmeans1d(
            values,
            2**n_bits - pruned,
            sample_weight=weight,
            method="exact" if init == "exact" else "lloyd",
            init=_starts(values, 2**n_bits - pruned, init, random_state),
            centroid_dtype=None if name == "float32" else name,
            n_threads=n_threads,
        )
        used, places = np.unique(result.labels, return_inverse=True)
        labels[kept] = places.reshape(-1) + pruned
        codebook = np.concatenate([codebook, result.centroids[used, 0].astype(np.float32)])
    return SharedWeights(labels, codebook.astype(_checks.dtype_named(name)), kept)


def _starts(values: Array, n: int, init: str, random_state: Any) -> Any:
    """Return the ``init`` of kmeans1d: n random values, or a name."""
    if init == "random":
        rng = np.random.default_rng(_checks.seed(random_state))
        wide = values.astype(_checks.result_dtype(values))
        return np.sort(rng.choice(wide, n, replace=values.size < n))
    return "linear" if init == "exact" else init


def _checked(W: Any) -> Array:
    """Check that W is a finite array of floats, and return it."""
    array = _checks.float_array(W, "W")
    if array.ndim == 0:
        raise ValueError("W must have at least one dimension, got shape ()")
    _checks.finite(array, "W")
    return array


def _mask(mask: Any, W: Array, name: str = "W") -> Array:
    """Check that a mask is bool and has the shape of W, and return it."""
    array = as_array(mask, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"mask must have dtype bool, got {array.dtype}")
    if array.shape != W.shape:
        raise ValueError(f"mask must have the shape of {name}, {W.shape}, got {array.shape}")
    return array


def _importance(importance: Any, W: Array) -> Array:
    """Check an importance of W's shape, and return it in float64."""
    array = _checks.float_array(importance, "importance", ndim=(W.ndim,))
    if array.shape != W.shape:
        raise ValueError(f"importance must have the shape of W, {W.shape}, got {array.shape}")
    wide = array.astype(np.float64)
    _checks.finite(wide, "importance")
    if (wide < 0).any():
        raise ValueError(f"importance must not be negative, got {wide.min()}")
    return wide

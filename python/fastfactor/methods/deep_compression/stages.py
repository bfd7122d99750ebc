"""The stages that lose something: which weights stay, and which values they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _checks
from ..._checks import Array
from ..._records import ArrayRecord
from ...kernels.scalar_clustering import kmeans1d
from ...metrics import Diagonal, Frobenius, Metric
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
    """The first stage: which weights stay.

    Parameters
    ----------
    W : array of any shape
        Finite floats.
    sparsity : float, optional
        The share to drop, in [0, 1]: of least magnitude, an exact number of them.
    std_multiple : float, optional
        Drop what is smaller than this many standard deviations of the layer's weights. One of the
        two is given.
    importance : array of W's shape, optional
        What the squared error of each weight counts, squared gradients say. ``|w| √importance`` is
        judged then, in float64, which ranks by how much the loss would move.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    bool array of W's shape
        True for what stays.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape, values out of range, both or neither of the two.

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
        # In float64: the roots of small importances count too.
        metric = Diagonal(_importance(importance, W).reshape(matrix.shape))
    settings = Prune(sparsity=sparsity, std_multiple=std_multiple)
    return settings.mask_of(Problem(matrix, metric, n_threads)).reshape(W.shape)


@dataclass(frozen=True, eq=False, repr=False)
class SharedWeights(ArrayRecord):
    """What the second stage gives: every kept weight has one of few values.

    Attributes
    ----------
    labels : uint8 array of W's shape
        Which value each weight has; where nothing is kept, that of zero.
    codebook : array of shape (K,)
        The values. The first is zero where something was pruned.
    mask : bool array of W's shape
        True for what is kept.

    Raises
    ------
    TypeError, ValueError
        For wrong types and shapes, labels of no value, and a first value that is not zero where
        something is pruned.

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
        if not isinstance(self.labels, np.ndarray) or self.labels.dtype != np.uint8:
            raise TypeError(f"labels must be a uint8 array, got {self.labels!r:.200}")
        codebook = _checks.float_array(self.codebook, "codebook", ndim=(1,))
        mask = _mask(self.mask, self.labels, "labels")
        if self.labels.size and int(self.labels.max()) >= codebook.size:
            raise ValueError(
                f"labels must be in [0, {codebook.size}), got {int(self.labels.max())}"
            )
        if not mask.all() and codebook[0] != 0:
            raise ValueError(
                f"codebook must begin with the zero of what is pruned, got {codebook[0]}"
            )

    def to_dense(self) -> Array:
        """The weights, each with its shared value, in the codebook's dtype."""
        dense: Array = np.where(self.mask, self.codebook[self.labels], self.codebook.dtype.type(0))
        return dense

    def gradient(self, gradient: Any) -> Array:
        """Of the loss by each shared value: the sum over the weights that have it.

        Parameters
        ----------
        gradient : array of W's shape
            Of the loss by each weight.

        Returns
        -------
        float64 array of shape (K,)
            Zero for the value that stands for what is pruned. Large clusters have large sums: the
            step must be small enough for them.
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
    """The second stage: the kept weights of a layer are clustered, and share their centroids.

    Parameters
    ----------
    W : array of any shape
        Finite floats.
    mask : bool array of W's shape, optional
        What is kept. Unless given, what is not zero.
    n_bits : int
        Bits of a code, 1 to 8: 2**n_bits values, of which one is zero if anything is pruned.
    init : {"linear", "density", "random", "exact"}
        Where Lloyd's iterations begin: even between the least and the largest kept weight, which
        keeps large weights apart and was best in the paper, once trained on; even in quantiles; or
        at random weights. ``"exact"`` has the least squared error that there is.
    codebook_dtype : {"float16", "bfloat16", "float32"}, optional
        Of the values. Unless given, W's, float32 where W is float64.
    importance : array of W's shape, optional
        What the squared error of each weight counts.
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
    The cost of :func:`kmeans1d` on the kept weights. The same bits for any number of threads.
    16-bit values are chosen, not rounded to.

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
    weight = None if importance is None else _importance(importance, W)[kept]
    values = W[kept]
    pruned = values.size < W.size or not values.size
    labels = np.zeros(W.shape, np.uint8)
    codebook = np.zeros(int(pruned), np.float32)
    if values.size:
        if weight is not None and not weight.any():
            raise ValueError("importance must not be zero for all that is kept, got zeros")
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
    """What kmeans1d calls init."""
    if init == "random":
        rng = np.random.default_rng(_checks.seed(random_state))
        wide = values.astype(_checks.result_dtype(values))
        return np.sort(rng.choice(wide, n, replace=values.size < n))
    return "linear" if init == "exact" else init


def _checked(W: Any) -> Array:
    array = W if isinstance(W, np.ndarray) else np.asarray(W)
    array = _checks.float_array(array, "W", ndim=tuple(range(1, 33)))
    _checks.finite(array, "W")
    return array


def _mask(mask: Any, W: Array, name: str = "W") -> Array:
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must have dtype bool, got {array.dtype}")
    if array.shape != W.shape:
        raise ValueError(f"mask must have the shape of {name}, {W.shape}, got {array.shape}")
    return array


def _importance(importance: Any, W: Array) -> Array:
    array = _checks.float_array(importance, "importance", ndim=(W.ndim,))
    if array.shape != W.shape:
        raise ValueError(f"importance must have the shape of W, {W.shape}, got {array.shape}")
    wide = array.astype(np.float64)
    _checks.finite(wide, "importance")
    if (wide < 0).any():
        raise ValueError(f"importance must not be negative, got {wide.min()}")
    return wide

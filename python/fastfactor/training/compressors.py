"""What may factor a matrix while its model trains: any method, or an object with `compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import _checks
from .._arrays import Array, as_array
from ..methods.factors import Factors, check_matrix
from ..methods.forward import ArrayNamespace
from ..methods.low_rank import LowRankFactors


class Compressor(Protocol):
    """Anything that turns a matrix into factors: a method, or an object of your own.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.training import compress
    >>> class FirstColumns:
    ...     def compress(self, W):
    ...         return W[:, :2], np.eye(2, W.shape[1], dtype=W.dtype)
    >>> compress(FirstColumns(), np.ones((4, 3), np.float32))
    LowRankFactors(shape=(4, 3), dtype=float32, bits_per_weight=37.33, nbytes=56)
    """

    def compress(self, W: Array, /) -> Any:
        """Return the factors of a matrix.

        Parameters
        ----------
        W : array of shape (out_features, in_features)
            Finite floats, which must not be changed.

        Returns
        -------
        Factors, pair of arrays or OwnFactors
            A pair (B, C) stands for ``W ≈ B @ C``. OwnFactors bring their own product.
        """


@runtime_checkable
class OwnFactors(Protocol):
    """Factors that bring their own product, for compressors of your own.

    All their tensors of floats are trained, unless an attribute ``trainable`` names some of them.
    """

    def tensors(self) -> Mapping[str, Array]:
        """Return the factors.

        Returns
        -------
        mapping of str to array
            NumPy arrays by name.
        """

    def forward(self, xp: ArrayNamespace, tensors: Mapping[str, Any], x: Any) -> Any:
        """Return ``x @ W.T``, as :meth:`fastfactor.methods.Factors.forward` does.

        Parameters
        ----------
        xp : ArrayNamespace
            An array library.
        tensors : mapping of str to array
            The trained tensors, as arrays of that library.
        x : array of shape (batch, in_features)
            An array of that library.

        Returns
        -------
        array of shape (batch, out_features)
            An array of that library.
        """


class NotKnown:
    """The compressor of a matrix that was loaded with its layer, whose file does not say it."""

    def compress(self, W: Array, /) -> Any:
        raise ValueError(
            "a model that was saved before it was compressed must be given to apply_compression "
            "again, got none of its settings"
        )


def compress(compressor: Compressor, W: Any) -> Factors | OwnFactors:
    """Factor a matrix by a compressor, and check what it returns.

    Parameters
    ----------
    compressor : Compressor
        A method's settings, or an object of your own.
    W : array of shape (out_features, in_features)
        float16, bfloat16, float32 or float64, finite. A compressor must not change it: it gets a
        view that cannot be written to.

    Returns
    -------
    Factors or OwnFactors
        LowRankFactors if the compressor returned a pair of arrays.

    Raises
    ------
    TypeError, ValueError
        For a W that is no matrix of finite floats, for what the compressor refuses, and for a
        result of the wrong type or shape, or with numbers that are not finite.

    Notes
    -----
    Takes what the compressor takes, and a pass over W and the factors.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.training import compress
    >>> compress(LowRank(rank=1), np.outer([1.0, 2.0], [1.0, 1.0, 0.0])).nbytes
    40
    """
    check_compressor(compressor)
    W = check_matrix(W).view()
    _checks.finite(W, "W")
    W.setflags(write=False)
    found = compressor.compress(W)
    factors = _product_of_pair(found, W) if isinstance(found, tuple) else found
    if isinstance(factors, Factors) and factors.shape != W.shape:
        raise ValueError(
            f"compress must return factors of a matrix of shape {W.shape}, got {factors.shape}"
        )
    if not isinstance(factors, Factors | OwnFactors):
        raise TypeError(
            "compress must return Factors, a pair of arrays (B, C), or an object with tensors() "
            f"and forward(), got {type(found).__name__}"
        )
    for name, tensor in factors.tensors().items():
        if _checks.is_float(tensor.dtype):
            _checks.finite(tensor, f"tensor {name!r} of the factors")
    return factors


def check_compressor(compressor: Any) -> None:
    """Check that an object can compress.

    Raises
    ------
    TypeError
        If it has no method `compress`.
    """
    if not callable(getattr(compressor, "compress", None)) or isinstance(compressor, type):
        raise TypeError(
            "compressor must be a method's settings or an object with a method compress(W), got "
            f"{_checks.shown(compressor)}"
        )


def trainable_tensors(factors: Factors | OwnFactors) -> tuple[str, ...]:
    """Return the names of the tensors that go on training.

    Raises
    ------
    ValueError
        For a name in ``trainable`` that is no tensor of floats.
    """
    tensors = factors.tensors()
    floats = [name for name, tensor in tensors.items() if _checks.is_float(tensor.dtype)]
    names = tuple(getattr(factors, "trainable", floats))
    if isinstance(factors, Factors):  # a kind names tensors that only some matrices have
        return tuple(name for name in names if name in tensors)
    for name in names:
        if name not in floats:
            raise ValueError(
                f"trainable must only name tensors of floats ({', '.join(floats)}), got {name!r}"
            )
    return names


def _product_of_pair(pair: tuple[Any, ...], W: Array) -> LowRankFactors:
    if len(pair) != 2:
        raise ValueError(f"compress must return a pair of arrays (B, C), got {len(pair)} values")
    B, C = (np.array(as_array(value, name)) for value, name in zip(pair, "BC", strict=True))
    for array, name in ((B, "B"), (C, "C")):
        if not _checks.is_float(array.dtype):
            raise TypeError(f"{name} must be an array of floats, got {array.dtype}")
    wanted = (W.shape[0], B.shape[-1] if B.ndim else 0), (B.shape[-1] if B.ndim else 0, W.shape[1])
    if (B.shape, C.shape) != wanted:
        raise ValueError(
            f"B and C must have shapes (out, k) and (k, in) for W of shape {W.shape}, "
            f"got {B.shape} and {C.shape}"
        )
    return LowRankFactors(shape=W.shape, dtype=W.dtype, B=B, C=C)

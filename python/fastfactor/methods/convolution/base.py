"""What the settings of all methods for convolutions have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from ... import _checks
from ..._checks import Array
from ...metrics import Covariance, Diagonal, Frobenius
from ..base import Method
from ..factors import Factors
from ..narrow import as_factors
from ..search import Problem
from .fit import Kernel


@dataclass(frozen=True, kw_only=True)
class ConvMethod(Method):
    """Settings that compress the weight of a convolution.

    Parameters
    ----------
    kernel_size : (int, int), optional
        Height and width of the kernel. Needed where the weight is given as a matrix (F, C·X·Y);
        a weight (F, C, X, Y) has its own.
    groups : int
        Those of the layer, so that its weight has the filters of all groups, and the channels of
        one. Each group has factors of its own.
    ratio, max_error : float, optional
        As in :class:`Method`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvMethod, ConvSVD
    >>> settings = ConvSVD(ranks=(2, 3), kernel_size=(3, 3))
    >>> isinstance(settings, ConvMethod)
    True
    >>> settings.compress(np.ones((8, 36), np.float32)).weight_shape
    (8, 4, 3, 3)
    """

    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    kernel_size: tuple[int, int] | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.integer(self.groups, "groups", 1)
        if self.kernel_size is not None:
            object.__setattr__(self, "kernel_size", two(self.kernel_size, "kernel_size"))

    def compress(
        self,
        W: Any,
        *,
        importance: Any = None,
        input_covariance: Any = None,
        n_threads: int | None = None,
    ) -> Factors:
        """Compress the weight of a convolution and return its factors.

        Parameters
        ----------
        W : array of shape (F, C, X, Y), or (F, C·X·Y) if `kernel_size` is set
            float16, bfloat16, float32 or float64, finite. It is not changed.
        importance : array of W's shape, optional
            The weight of each entry's squared error: squared gradients, Fisher information.
        input_covariance : array of shape (C·X·Y, C·X·Y), optional
            Mean of x xᵀ over the patches x of the layer's inputs, to minimise the error of the
            layer's outputs.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        ConvFactors
            Of the kind that belongs to these settings. Its `shape` is that of the matrix.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`Method.compress`, and for a weight that does not have this kernel.
        """
        settings, W = self, _checks.float_array(W, "W")
        if W.ndim == 4:
            settings = self.for_tensor(W.shape)
            if importance is not None:
                importance = _matrix(importance, "importance", W.shape)
            W = W.reshape(len(W), -1) if W.size else W.reshape(len(W), int(np.prod(W.shape[1:])))
        return super(ConvMethod, settings).compress(
            W, importance=importance, input_covariance=input_covariance, n_threads=n_threads
        )

    def for_tensor(self, shape: tuple[int, ...]) -> Self:
        """Return these settings with the kernel of a weight (F, C, X, Y).

        Parameters
        ----------
        shape : tuple of int
            Shape of the weight.

        Returns
        -------
        ConvMethod
            With `kernel_size` set.

        Raises
        ------
        ValueError
            If the weight has no such kernel.
        """
        if len(shape) != 4:
            if self.kernel_size is not None:
                return self
            raise ValueError(f"W must have 4 axes, (F, C, height, width), got shape {shape}")
        found = (shape[2], shape[3])
        if self.kernel_size not in (None, found):
            raise ValueError(f"kernel_size must be that of W, {found}, got {self.kernel_size}")
        return replace(self, kernel_size=found)

    def _kernel(self, problem: Problem) -> Kernel:
        """Return the shape of the weight, or refuse a matrix that has no such kernel."""
        filters, columns = problem.W.shape
        if self.kernel_size is None:
            raise ValueError(
                "W must have 4 axes, (F, C, height, width), unless kernel_size is given, "
                f"got shape {problem.W.shape}"
            )
        height, width = self.kernel_size
        if not problem.W.size:
            raise ValueError(f"W must not be empty, got shape {problem.W.shape}")
        if columns % (height * width):
            raise ValueError(
                f"kernel_size must divide the {columns} columns of W, got {height} × {width}"
            )
        if filters % self.groups:
            raise ValueError(f"groups must divide the {filters} filters of W, got {self.groups}")
        return Kernel(filters, columns // (height * width), height, width, self.groups)


def two(value: Any, name: str, least: int = 1) -> tuple[int, int]:
    """Return two integers; refuse anything else."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two integers, got {_checks.shown(value)}")
    first, second = (_checks.integer(each, name, least) for each in value)
    return first, second


def narrow_all(tensors: dict[str, Array], dtype: np.dtype[Any], exponent: int) -> dict[str, Array]:
    """Return tensors whose product is W · 2**−exponent in W's dtype, none much larger than others.

    Each comes scaled so that all have the same mean square.
    """
    sizes = {name: float(np.sqrt(np.mean(np.square(t)))) for name, t in tensors.items()}
    used = all(sizes.values())
    mean = float(np.prod(list(sizes.values()))) ** (1 / len(sizes)) if used else 1.0
    shares = _shares(exponent, len(tensors))
    return {
        name: as_factors(t * (mean / sizes[name] if used else 1.0), dtype, share)
        for (name, t), share in zip(tensors.items(), shares, strict=True)
    }


def _shares(exponent: int, n: int) -> list[int]:
    """Return n integers, as equal as can be, whose sum is the exponent."""
    return [(exponent * (k + 1)) // n - (exponent * k) // n for k in range(n)]


def _matrix(importance: Any, name: str, shape: tuple[int, ...]) -> Array:
    """Return weights of the entries of a weight (F, C, X, Y) as a matrix, which they may be."""
    array = _checks.float_array(importance, name)
    if array.ndim == 2:
        return array
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape of W, {shape}, got {array.shape}")
    return array.reshape(len(array), -1)

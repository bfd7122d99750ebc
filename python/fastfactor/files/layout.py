"""How a tensor of any rank is seen as the matrix that methods compress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._checks import Array
from ..methods.factors import matrix_shape


@dataclass(frozen=True)
class Layout:
    """A tensor's view as a matrix: its axes in another order, then reshaped in C order.

    Attributes
    ----------
    shape : tuple of int
        Shape of the tensor.
    axes : tuple of int
        The tensor's axes in the order in which the matrix has them, as for ``numpy.transpose``.
    matrix : (int, int)
        Shape of the matrix, which has as many entries as the tensor.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.files.layout import Layout
    >>> kernel = np.arange(24).reshape(2, 2, 2, 3)  # height, width, in, out
    >>> layout = Layout((2, 2, 2, 3), (3, 0, 1, 2), (3, 8))
    >>> layout.to_matrix(kernel)[0].tolist()
    [0, 3, 6, 9, 12, 15, 18, 21]
    >>> np.array_equal(layout.to_tensor(layout.to_matrix(kernel)), kernel)
    True
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    matrix: tuple[int, int]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Layout:
        """Return the usual layout of a shape: the first axis by the product of the others.

        Parameters
        ----------
        shape : sequence of int
            The shape of a tensor.

        Returns
        -------
        Layout
            That of files which do not mention one.
        """
        return cls(tuple(shape), tuple(range(len(shape))), matrix_shape(shape))

    @property
    def is_usual(self) -> bool:
        """Whether this is the layout of :meth:`of`, which files do not mention."""
        return self == Layout.of(self.shape)

    def fault(self) -> str | None:
        """Return what contradicts itself, or None.

        Returns
        -------
        str or None
            A sentence for a message.
        """
        if sorted(self.axes) != list(range(len(self.shape))):
            return f"axes must be an order of the {len(self.shape)} axes, got {self.axes}"
        size = math.prod(self.shape)
        if len(self.matrix) != 2 or math.prod(self.matrix) != size:
            return f"matrix must have two sides and {size} entries, got {self.matrix}"
        return None

    def to_matrix(self, tensor: Array) -> Array:
        """Return a tensor as the matrix; a copy only if axes change their order.

        Parameters
        ----------
        tensor : array of shape ``self.shape``
            The tensor.

        Returns
        -------
        array of shape ``self.matrix``
            A view of the tensor where that can be.
        """
        return tensor.transpose(self.axes).reshape(self.matrix)

    def to_tensor(self, matrix: Array) -> Array:
        """Return the matrix as the tensor, in C order.

        Parameters
        ----------
        matrix : array of shape ``self.matrix``
            The matrix.

        Returns
        -------
        array of shape ``self.shape``
            A view of the matrix where that can be.
        """
        permuted = matrix.reshape([self.shape[axis] for axis in self.axes])
        return np.ascontiguousarray(permuted.transpose(np.argsort(self.axes)))

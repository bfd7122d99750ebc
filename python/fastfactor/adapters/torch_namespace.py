"""PyTorch's functions under the names that factors' products use."""

from __future__ import annotations

import weakref
from typing import Any

from .._checks import Array
from .frameworks import import_framework


class TorchNamespace:
    """PyTorch as the ``xp`` of `Factors.forward` and `Factors.forward_rows`.

    Raises
    ------
    ImportError
        If PyTorch is not installed.

    Notes
    -----
    An instance remembers the tensors that it made of codes, signs and positions, so that they are
    copied once and not in every call. It forgets them when the factors are deleted. Copies and
    pickles of it remember nothing.

    Tensors keep the device and the dtype of those that are trained. Products can be differentiated,
    and their speed is that of PyTorch's operations; for products without gradients on a CPU,
    `Factors.linear` and `Factors.rows` are faster.

    Examples
    --------
    ::

        factors = LowRank(rank=8).compress(W)
        trained = {
            name: torch.nn.Parameter(torch.tensor(factors.tensors()[name]))
            for name in factors.trainable
        }
        y = factors.forward(TorchNamespace(), trained, x)  # x @ W.T
        y.sum().backward()  # gradients of B and C
    """

    def __init__(self) -> None:
        self._torch = import_framework("torch", "TorchNamespace", "PyTorch")
        self._made: dict[tuple[int, Any, Any], tuple[weakref.ref[Array], Any]] = {}

    def __reduce__(self) -> tuple[type[TorchNamespace], tuple[()]]:
        return TorchNamespace, ()

    def asarray(self, obj: Any, /, *, dtype: Any, device: Any) -> Any:
        """Return a NumPy array as a tensor, the same one in each call.

        Parameters
        ----------
        obj : array
            Must not be changed afterwards.
        dtype, device : torch.dtype, torch.device or None
            None keeps the array's dtype, and stands for the CPU.

        Returns
        -------
        torch.Tensor
            A copy of the values.
        """
        key = (id(obj), dtype, device)
        if key not in self._made:
            # A tensor made in inference mode could not be used for gradients later.
            with self._torch.inference_mode(False):
                tensor = self._torch.tensor(obj, dtype=dtype, device=device)
            forget = self._made.pop
            # When the array is gone, another one may get its id.
            self._made[key] = weakref.ref(obj, lambda _: forget(key, None)), tensor
        return self._made[key][1]

    def concat(self, arrays: Any, /, *, axis: int) -> Any:
        return self._torch.cat(arrays, dim=axis)

    def matmul(self, x1: Any, x2: Any, /) -> Any:
        return self._torch.matmul(x1, x2)

    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any:
        return self._torch.permute(x, axes)

    def reshape(self, x: Any, /, shape: tuple[int, ...]) -> Any:
        return self._torch.reshape(x, shape)

    def take(self, x: Any, indices: Any, /, *, axis: int) -> Any:
        return self._torch.index_select(x, axis, indices)

    def zeros_like(self, x: Any, /) -> Any:
        return self._torch.zeros_like(x)

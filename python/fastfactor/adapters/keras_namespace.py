"""The functions of Keras under the names that factors' products use."""

from __future__ import annotations

from typing import Any

from .frameworks import import_framework


class KerasNamespace:
    """Keras 3, on any of its backends, as the ``xp`` of `Factors.forward` and `forward_rows`.

    Raises
    ------
    ImportError
        If Keras or its backend is not installed.

    Notes
    -----
    Lengths may be unknown while a model is built, one of those before ``in_features`` in x, and one
    in ids. Where more are unknown, reshape x to (-1, in_features) first and the result back, by
    ``keras.ops.shape``. The backend places arrays on its default device.

    Examples
    --------
    ::

        factors = Codebook(n_bits=4).compress(W)
        trained = {"codebook": keras.Variable(factors.codebook)}
        y = factors.forward(KerasNamespace(), trained, x)  # x @ W.T
    """

    def __init__(self) -> None:
        self._ops = import_framework("keras", "KerasNamespace", "Keras").ops

    def __reduce__(self) -> tuple[type[KerasNamespace], tuple[()]]:
        return KerasNamespace, ()

    def asarray(self, obj: Any, /, *, dtype: Any, device: Any) -> Any:
        return self._ops.convert_to_tensor(obj, dtype=dtype)

    def concat(self, arrays: Any, /, *, axis: int) -> Any:
        return self._ops.concatenate(arrays, axis=axis)

    def matmul(self, x1: Any, x2: Any, /) -> Any:
        return self._ops.matmul(x1, x2)

    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any:
        return self._ops.transpose(x, axes)

    def reshape(self, x: Any, /, shape: tuple[int, ...]) -> Any:
        return self._ops.reshape(x, shape)

    def take(self, x: Any, indices: Any, /, *, axis: int) -> Any:
        return self._ops.take(x, indices, axis=axis)

    def zeros_like(self, x: Any, /) -> Any:
        # JAX does not take a variable here.
        return self._ops.zeros_like(self._ops.convert_to_tensor(x))

"""What a weight has beside its parameter while it is pruned step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._arrays import Array, as_array
from .._checks import shown
from ..errors import CorruptDataError
from ..methods.factors import matrix_shape
from ..training import GradualPrune


class GradualMask:
    """Which entries of a weight are pruned so far, and the numbers that their ranks depend on.

    The parameter itself has zeros in their place, so that layers need not know of the mask, and
    its gradient is that by the weights that the layer computes with, pruned ones included.

    Attributes
    ----------
    kept : bool tensor or None
        False for pruned entries; None before the first mask.
    values : tensor or None
        The numbers that these had when they were pruned, in their places, and zeros elsewhere.
    mean : tensor or None
        The running mean that the score needs, in float32 or wider.
    """

    def __init__(self, compressor: GradualPrune) -> None:
        self._compressor = compressor
        self.kept: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.mean: torch.Tensor | None = None

    def forget(self) -> None:
        """Free all tensors."""
        self.kept = self.values = self.mean = None

    def full(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with the kept numbers of pruned entries; not to be changed."""
        weight = weight.detach()
        if self.kept is None or self.values is None:
            return weight
        self._move(weight)
        # A selection by a mask takes four times as long as this product, on CPUs.
        return torch.addcmul(self.values.to(weight.dtype), weight, self.kept)

    def follow(self, weight: torch.Tensor, mask: Array | None, *, chosen: bool) -> None:
        """Put zeros where a mask has them; momentum may have moved pruned entries.

        Parameters
        ----------
        weight : Tensor
            The parameter.
        mask : bool array or None
            That of its matrix, which may be None before the first.
        chosen : bool
            Whether it is another one than before. Entries that return get back the numbers that
            they had.
        """
        if chosen and mask is not None:
            full = self.full(weight)
            self.kept = torch.from_numpy(mask).reshape(weight.shape).to(weight.device)
            self.values = full * ~self.kept
            with torch.no_grad():
                weight.copy_(full)
        if self.kept is not None:
            self._move(weight)
            with torch.no_grad():
                weight.mul_(self.kept)

    def see_gradient(self, weight: torch.Tensor) -> None:
        """Take the weight's gradient into the running mean, if it has one."""
        if weight.grad is None:
            return
        self._move(weight)
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        W = self.full(weight).to(dtype) if self._compressor.score == "taylor" else None
        new = self._compressor.measure(W, weight.grad.detach().to_dense().to(dtype))
        if self.mean is None:
            self.mean = torch.zeros_like(new)
        self.mean.lerp_(new, 1 - self._compressor.decay)

    def mean_matrix(self) -> Array | None:
        """Return the running mean as a matrix."""
        if self.mean is None:
            return None
        array = as_array(self.mean.cpu(), "mean")
        return array.reshape(matrix_shape(array.shape))

    def saved(self) -> dict[str, torch.Tensor | None]:
        """Return the tensors that a resumed training needs beside the mask."""
        if self.values is None or self.kept is None:
            return {"values": None, "mean": self.mean}
        return {"values": self.values[~self.kept], "mean": self.mean}

    def restore(self, saved: Any, mask: Array | None, like: torch.Tensor, shape: Any) -> None:
        """Go on with saved tensors and the mask that they belong to.

        Raises
        ------
        CorruptDataError
            If they do not fit. Nothing changes then.
        """
        if not isinstance(saved, Mapping) or saved.keys() != {"values", "mean"}:
            raise CorruptDataError(
                f"the state of a pruned weight must have mean, values, got {shown(saved)}"
            )
        n_dropped = None if mask is None else (int(mask.size - mask.sum()),)
        _check(saved["values"], "values", n_dropped, required=mask is not None)
        has_mean = self._compressor.first_gradient is not None
        _check(saved["mean"], "mean", shape if has_mean else None, required=False)
        self.forget()
        if saved["mean"] is not None:
            self.mean = saved["mean"].detach().clone().to(like.device)
        if mask is not None:
            self.kept = torch.from_numpy(mask).reshape(shape).to(like.device)
            self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self.values[~self.kept] = saved["values"].detach().to(like.device, like.dtype)

    def _move(self, weight: torch.Tensor) -> None:
        """Move the tensors to the device of the weight, which may have moved."""
        for name in ("kept", "values", "mean"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.to(weight.device))


def _check(tensor: Any, name: str, shape: Any, *, required: bool) -> None:
    """Refuse what is no tensor of finite floats of this shape; None must not be required."""
    if tensor is None and not required:
        return
    is_tensor = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    if shape is None or not is_tensor or tuple(tensor.shape) != tuple(shape):
        got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else shown(tensor)
        wanted = "left out" if shape is None else f"floats of shape {tuple(shape)}"
        raise CorruptDataError(f"{name} of a pruned weight must be {wanted}, got {got}")
    if not torch.isfinite(tensor).all():
        raise CorruptDataError(f"{name} of a pruned weight must be finite, got others")

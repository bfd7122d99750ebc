"""Trained tensors as they were when something was made of them, which is kept while they stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._checks import Array


class TrainedNumbers:
    """Where tensors lie in memory, and a copy of their numbers.

    A change is noticed however it was made: by an optimizer, by `load_state_dict` or through
    ``.data``, which PyTorch does not count among a tensor's versions.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        On the CPU. Views of them hold their memory, so that no other tensor can have the same
        place.
    copied : bool
        False for what reads the numbers where they are in each call: then only the places count.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], *, copied: bool = True) -> None:
        self._places = _places(tensors)
        self._views = [_as_array(tensor) for tensor in tensors]
        self._copies = [view.tobytes() for view in self._views] if copied else []

    def are_those_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether these tensors are the same ones with the same numbers."""
        if self._places != _places(tensors):
            return False
        return all(map(_is_copy, self._copies, self._views))


def _places(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]


def _is_copy(numbers: bytes, view: Array) -> bool:
    """Return whether an array of as many bytes has these numbers."""
    # `startswith` reads any buffer where it is. To copy 32 KB first takes longer than to compare.
    return numbers.startswith(view.data if view.flags.c_contiguous else view.tobytes())


def _as_array(tensor: torch.Tensor) -> Array:
    plain = tensor.detach()
    array: Array = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
    return array

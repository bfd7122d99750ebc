"""Batches of any form: calling a model with one, and cutting one into its examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: one tensor, all arguments in order, or arguments by name."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def examples(batch: Any) -> Iterator[Any]:
    """Iterate over the examples of a batch: slices of length 1 along the first axis of its tensors.

    Tensors may be in tuples, lists and mappings. What is none is the same in each example.

    Raises
    ------
    ValueError
        If there are no tensors, or their first axes have different lengths.
    """
    lengths = [tensor.shape[0] if tensor.ndim else None for tensor in _tensors(batch)]
    if not lengths or None in lengths or len(set(lengths)) > 1:
        raise ValueError(
            "a batch must have tensors whose first axis counts its examples, got the lengths "
            f"{lengths}; give batches of one example each, and per_example=False"
        )
    for i in range(lengths[0] or 0):
        yield _sliced(batch, i)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _tensors(value)


def _sliced(batch: Any, i: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[i : i + 1]
    if isinstance(batch, Mapping):
        return {name: _sliced(value, i) for name, value in batch.items()}
    if not isinstance(batch, tuple | list):
        return batch
    parts = [_sliced(value, i) for value in batch]
    if isinstance(batch, list):
        return parts
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)

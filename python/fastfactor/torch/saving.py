"""Finished models in compressed files: factors of weights, and all other tensors as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from .._arrays import as_array
from ..files.layout import Layout
from ..files.store import open_store
from ..files.writer import Writer
from ..methods.factors import Factors, matrix_shape
from ..training import CompressedMatrix
from .compressed_layer import CompressedLayer
from .kinds import make_compressed, refusal
from .shared_weight import SharedWeight, from_numpy


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a finished model; tied weights are written once."""
    written: dict[SharedWeight, str] = {}
    own: set[str] = set()
    with Writer(path, metadata={"format": "pt"}) as writer:
        for prefix, layer in _compressed_layers(model):
            own.add(f"{prefix}_extra_state")
            for part, shared in layer.compressed.items():
                name = f"{prefix}{part}"
                own.update((name, *(f"{name}_{each}" for each in shared.names)))
                if shared in written:
                    writer.add_same(name, written[shared])
                    continue
                written[shared] = name
                writer.add(name, shared.trained_factors(), shape=Layout.of(shared.shape))
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor) and name not in own:
                writer.add(name, as_array(tensor.detach().cpu(), name))


def _compressed_layers(model: nn.Module) -> Iterator[tuple[str, CompressedLayer]]:
    """Iterate over the compressed layers and the prefixes of their names, under all their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CompressedLayer):
            yield f"{name}." if name else "", module


def load_compressed(
    model: nn.Module, path: str | os.PathLike[str], *, max_dense_nbytes: int | None = None
) -> nn.Module:
    """Load a model from a compressed file; its layers then hold factors in place of weights.

    Parameters
    ----------
    model : Module
        A fresh model of the same layers. It is changed in place.
    path : path
        From :meth:`Compression.to_store` or :func:`fastfactor.compress_file`, whose names are those
        of the model's `state_dict`.
    max_dense_nbytes : int, optional
        As for :func:`fastfactor.store.open_store`.

    Returns
    -------
    Module
        The model.

    Raises
    ------
    TypeError, ValueError
        If names or shapes in the file are not the model's, and for factors of a layer of another
        kind than `apply_compression` takes. The model is unchanged then.
    CorruptDataError
        If the file is damaged.
    OSError
        If it cannot be read.

    Notes
    -----
    Factors become parameters on the device of the weight that they replace, in its dtype. All of
    the file is read.

    Examples
    --------
    >>> import tempfile, torch
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.torch import apply_compression, load_compressed
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(3, 64)
    >>> compression = apply_compression(model, LowRank(rank=4))
    >>> changed = compression.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compression.to_store(folder + "/small.safetensors")
    ...     fresh = torch.nn.Sequential(torch.nn.Linear(64, 32))
    ...     loaded = load_compressed(fresh, folder + "/small.safetensors")
    >>> torch.equal(loaded(x), model(x))
    True
    """
    with open_store(path, max_dense_nbytes=max_dense_nbytes) as store:
        found = {name: store[name] for name in store}
        same = {name: store.info(name).same_as for name in store}
        shapes = {name: store.info(name).shape for name in store}
    expected = model.state_dict()
    _check_names(expected, found)
    for name, tensor in expected.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"tensor {name!r} must have the model's shape {tuple(tensor.shape)}, "
                f"got {shapes[name]}"
            )
    factors = {n: value for n, value in found.items() if isinstance(value, Factors)}
    plain = {n: from_numpy(value) for n, value in found.items() if not isinstance(value, Factors)}
    _insert(model, factors, same)
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in plain.items():
            own[name].copy_(tensor)
    return model


def insert_factors(model: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """Put factors in the place of a model's weights, as the layers of a finished model hold them.

    Parameters
    ----------
    model : Module
        It is changed in place.
    factors : mapping of str to Factors
        By the names of weights in the model's `state_dict`: each of a matrix of the weight's first
        axis by all others.

    Returns
    -------
    Module
        The model.

    Raises
    ------
    TypeError, ValueError
        For other values, shapes that are not those of the weights, and weights of layers of
        another kind than `apply_compression` takes, or that are parameters under another name too.
        The model is unchanged then.

    Notes
    -----
    For factors that were found with weights of errors, or by search. Factors become parameters on
    the device of the weight that they replace, in its dtype, and can be trained.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.methods import LowRank
    >>> from fastfactor.torch import insert_factors
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> factors = LowRank(rank=4).compress(model[0].weight.detach().numpy())
    >>> [name for name, _ in insert_factors(model, {"0.weight": factors}).named_parameters()]
    ['0.weight_B', '0.weight_C', '0.bias']
    """
    for name, value in factors.items():
        if not isinstance(value, Factors):
            raise TypeError(f"factors of {name!r} must be Factors, got {type(value).__name__}")
        weight = _weight(model, name)
        shape = matrix_shape(tuple(weight.shape))
        if value.shape != shape:
            raise ValueError(
                f"factors of {name!r} must be of a matrix of shape {shape}, got {value.shape}"
            )
        others = [
            other
            for other, p in model.named_parameters(remove_duplicate=False)
            if p is weight and other != name
        ]
        if others:
            raise ValueError(
                f"{name!r} must not be a parameter under another name, got {others[0]!r}"
            )
    _insert(model, factors, {})
    return model


def _insert(
    model: nn.Module, factors: Mapping[str, Factors], same: Mapping[str, str | None]
) -> None:
    """Give layers factors in place of weights; ``same`` says which weights are tied."""
    weights = {name: _weight(model, name) for name in factors}
    shared: dict[str, SharedWeight] = {}
    for name in factors:
        of = same.get(name) or name
        if of not in shared:
            matrix = CompressedMatrix.finished(factors[of], name=of)
            shared[of] = SharedWeight(matrix, weights[name])
    make_compressed(model, {name: shared[same.get(name) or name] for name in factors})
    for each in shared.values():
        if not each.uses:  # of a layer with two names, for which the file has two weights
            continue
        like = each.weight
        assert like is not None
        each.add_factors(like=like)
        each.drop_weight()
        each.set_alpha()


def _check_names(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    if missing or more:
        raise ValueError(
            f"names in the file must be those of the model, got {_some(missing)} missing and "
            f"{_some(more)} too many"
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "") if names else "none"


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    """Return the parameter of this name; refuse one that cannot be compressed."""
    layer, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        raise ValueError(f"names must be those of the model's weights, got {name!r}") from error
    why = refusal(module, own)
    if why:
        raise TypeError(f"the layer of {name!r} {why}")
    return cast(nn.Parameter, module._parameters[own])

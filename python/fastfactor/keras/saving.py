"""Finished Keras models in compressed files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..files.layout import Layout
from ..files.store import open_store
from ..files.writer import Writer
from ..methods.factors import Factors
from ..training import CompressedMatrix, State
from .compressed_weight import CompressedWeight
from .kinds import candidates, compressed_weights, holder, turn, weights_of
from .variables import as_numpy

NUMBER = r"_\d+(?=/|$)"  # at the end of a part of a path


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a finished model."""
    weights = compressed_weights(model)
    own = {
        id(variable)
        for weight in weights
        for variable in (weight.alpha, *weight.variables.values())
    }
    with Writer(path) as writer:
        for weight in weights:
            writer.add(weight.matrix.name, weight.trained_factors(), shape=weight.layout)
        for variable in model.weights:
            if id(variable) not in own:
                writer.add(variable.path, as_numpy(variable))


def load_compressed(
    model: Any, path: str | os.PathLike[str], *, max_dense_nbytes: int | None = None
) -> Any:
    """Load a Keras model from a compressed file; its layers then hold factors in place of weights.

    Parameters
    ----------
    model : Model
        A fresh model of the same layers, built and not yet compiled. It is changed in place.
    path : path
        From :meth:`Compression.to_store`; its names are the paths of variables.
    max_dense_nbytes : int, optional
        As for :func:`fastfactor.store.open_store`.

    Returns
    -------
    Model
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
    Keras numbers models and layers that get no name, in the order in which a process makes them.
    Where the file has other paths than the model, paths that are equal but for such numbers are
    matched in the order of the numbers. All of the file is read.

    Examples
    --------
    >>> import keras, numpy as np, tempfile
    >>> from fastfactor.keras import apply_compression, load_compressed
    >>> from fastfactor.methods import LowRank
    >>> def new_model():
    ...     return keras.Sequential(
    ...         [keras.Input((8,)), keras.layers.Dense(6, name="only")], name="net"
    ...     )
    >>> model, x = new_model(), np.ones((1, 8))
    >>> compression = apply_compression(model, LowRank(rank=2))
    >>> changed = compression.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compression.to_store(folder + "/small.safetensors")
    ...     loaded = load_compressed(new_model(), folder + "/small.safetensors")
    >>> bool(keras.ops.all(keras.ops.isclose(loaded(x), model(x))))
    True
    """
    with open_store(path, max_dense_nbytes=max_dense_nbytes) as store:
        found = {name: store[name] for name in store}
        shapes = {name: store.info(name).shape for name in store}
    variables = {variable.path: variable for variable in model.weights}
    if variables.keys() != found.keys():
        named = _by_number(variables, found)
        found = {path: found[name] for path, name in named.items()}
        shapes = {path: shapes[name] for path, name in named.items()}
    for name, variable in variables.items():
        if tuple(variable.shape) != shapes[name]:
            raise ValueError(
                f"{name!r} must have the model's shape {tuple(variable.shape)}, got {shapes[name]}"
            )
    places = {each.name: (each, layer, own) for each, layer, own in candidates(model)}
    factors = {name: value for name, value in found.items() if isinstance(value, Factors)}
    layouts: dict[str, Layout] = {}
    for name, value in factors.items():
        if name not in places or places[name][0].refusal:
            raise TypeError(f"the layer of {name!r} must be one that can be compressed")
        _, layer, attribute = places[name]
        layouts[name] = weights_of(holder(layer))[attribute]
        if layouts[name].matrix != value.shape:
            raise ValueError(
                f"factors of {name!r} must be of a matrix of shape {layouts[name].matrix}, "
                f"got {value.shape}"
            )
    for name, value in factors.items():
        _, layer, attribute = places[name]
        turn(layer)
        inner = holder(layer)
        matrix = CompressedMatrix.finished(value, name=name)
        weight = CompressedWeight(inner, attribute, layouts[name], matrix)
        inner.compressed[attribute] = weight
        weight.fit_layer()
        assert weight.state is State.FACTORS
    for name, variable in variables.items():
        if name not in factors:
            variable.assign(np.asarray(found[name]))
    return model


def _by_number(paths: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return the name in a file for each path, whatever numbers Keras gave to its own names.

    Keras calls the layers that get no name ``dense``, ``dense_1`` and so on, and never starts again
    in a process. Paths that are equal but for numbers go by the order of these.
    """
    ours, theirs = _grouped(paths), _grouped(names)
    missing, more = (
        [each for key in one for each in one[key][len(other.get(key, ())) :]]
        for one, other in ((ours, theirs), (theirs, ours))
    )
    if missing or more:
        raise ValueError(
            f"names in the file must be the paths of the model's weights, got "
            f"{_some(missing)} missing and {_some(more)} too many"
        )
    return {path: name for key in ours for path, name in zip(ours[key], theirs[key], strict=True)}


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by what is left without numbers, each list in the order of the numbers."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(re.sub(NUMBER, "", name), []).append(name)
    for each in grouped.values():
        each.sort(key=lambda name: [int(n or 0) for n in re.findall(r"(?:_(\d+))?(?:/|$)", name)])
    return grouped


def _some(names: Any) -> str:
    listed = sorted(names)
    return (
        ", ".join(map(repr, listed[:3])) + (", …" if len(listed) > 3 else "") if listed else "none"
    )

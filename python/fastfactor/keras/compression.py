"""Compress the weights of a Keras model's layers while it trains, all by one call a step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import keras
import numpy as np

from ..files.layout import Layout
from ..methods.factors import Factors
from ..training import Change, CompressedMatrix, Compressor, GradualPrune
from ..training.matrix import AlphaByStep
from ..training.model_compression import (
    ModelCompression,
    change_of,
    check_fits,
    check_schedule,
    matrix_for,
)
from ..training.report import LayerReport
from ..training.selection import choose
from .compressed_weight import CompressedWeight
from .kinds import candidates, compressed_weights, holder, turn, weights_of
from .optimizers import refit
from .saving import save_model
from .variables import as_numpy


def apply_compression(
    model: Any,
    compressor: Compressor | Mapping[str, Compressor],
    schedule: AlphaByStep | None = None,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
) -> Compression:
    """Prepare a Keras model so that the weights of its layers are compressed while it trains.

    Parameters
    ----------
    model : Model
        A model whose layers are built. They are changed in place and keep their names.
    compressor : Compressor, or mapping of patterns to Compressors
        A method of :mod:`fastfactor.methods` or any object with ``compress(W)``. Patterns may have
        ``*``, ``?`` and ``[abc]`` and match whole names of layers or paths of weights, such as
        ``dense_1`` and ``lstm/*/recurrent_kernel``; the last that matches decides.
    schedule : Schedule, optional
        Default: all is factored at the first step, and the dense weights dropped at once. It does
        not count for weights that a :class:`fastfactor.training.GradualPrune` prunes, which go by
        their ramp.
    targets : pattern or patterns, optional
        Names of layers or paths of weights to compress. Default: every Dense, EinsumDense,
        Embedding, Conv1D, Conv2D, LSTM and GRU.
    ignore : pattern or patterns, optional
        Names of layers or paths of weights to leave as they are.

    Returns
    -------
    Compression
        Give ``fit`` a `CompressionCallback` of it, or call its `step` after each training step.

    Raises
    ------
    TypeError, ValueError
        For a layer that cannot be compressed, by its name (patterns with ``*`` pass over such
        layers); for a pattern that matches none; for two weights of one path or one weight of two
        layers; for a score of :class:`fastfactor.training.GradualPrune` other than
        ``"magnitude"``, because Keras does not show gradients. The model is unchanged then.

    Notes
    -----
    A model that was loaded in the middle of its compression goes on where it was, if it is given
    the same compressor and schedule. W is rebuilt from its factors in convolutions, in each call,
    and in recurrent layers, once for all steps of a call. Kernels are matrices of (out, in), those
    of convolutions of (out, in · window), as in PyTorch.

    Examples
    --------
    >>> import keras
    >>> from fastfactor.keras import apply_compression
    >>> from fastfactor.methods import LowRank
    >>> dense = keras.layers.Dense(6, name="only")
    >>> model = keras.Sequential([keras.Input((8,)), dense], name="net")
    >>> compression = apply_compression(model, LowRank(rank=2))
    >>> compression.step().finished
    True
    >>> [(row.name, row.bytes_dense, row.bytes_factors) for row in compression.report()]
    [('net/only/kernel', 192, 112)]
    """
    listed = list(candidates(model))
    found = {candidate.name: (layer, attribute) for candidate, layer, attribute in listed}
    every = [candidate for candidate, _, _ in listed]
    if len(found) < len(every):
        raise ValueError("weights must have different paths, got two layers of one name")
    chosen = choose(every, compressor, targets, ignore)
    check_schedule(schedule, chosen.values())
    prepared = []
    owners: dict[int, str] = {}
    for name, own in chosen.items():
        layer, attribute = found[name]
        _check_score(name, own)
        layout = weights_of(holder(layer))[attribute]
        check_fits(name, layout.matrix, "float32", own)
        variable = holder(layer).__dict__[attribute]
        if variable is not None and owners.setdefault(id(variable), name) != name:
            raise ValueError(f"{name!r} and {owners[id(variable)]!r} must be two weights, got one")
        prepared.append((layer, attribute, layout, matrix_for(own, schedule, name)))
    return Compression(model, [_turned(*each) for each in prepared])


class Compression(ModelCompression):
    """The compression of a Keras model, made by `apply_compression`.

    Attributes
    ----------
    model : Model
    names : tuple of str
        Paths of the compressed weights.
    """

    def __init__(self, model: Any, weights: list[CompressedWeight]) -> None:
        super().__init__(model, (weight.matrix.name for weight in weights))
        self._weights = weights
        for weight in weights:
            weight.on_load = self._fit_loaded

    def step(self, step: int | None = None, *, optimizer: Any = None) -> Change:
        """Go on to the next training step, after the optimizer has made its own.

        Parameters
        ----------
        step : int, optional
            The number of the step, from 0, if some are left out. Default: one more than the last.
        optimizer : Optimizer, optional
            That of a training loop of your own, for the model's trainable variables. Default: the
            one that the model was compiled with, if there is one.

        Returns
        -------
        Change
            What has changed in any of the weights.

        Raises
        ------
        TypeError, ValueError
            For a step before the last, weights that are not finite, and what a compressor refuses;
            the message has the path of the weight.

        Notes
        -----
        Where a weight is factored or dropped, the model has other variables than before. Its
        compiled functions are then made anew. The optimizer stays the same object; it keeps the
        count of steps, the learning rate and the running means of the variables that stay. It works
        in the middle of an epoch of ``fit``.
        """
        if step is None:
            step = self.last_step + 1
        if any(weight.matrix.changes_at(step) for weight in self._weights):
            _read_state_back(self.model)
        change = change_of([weight.advance(step) for weight in self._weights])
        if change.factored or change.finished:
            _fit_model(self.model, optimizer)
        return change

    def _fit_loaded(self) -> None:
        _fit_model(self.model)

    def report(self) -> list[LayerReport]:
        _read_state_back(self.model)
        return [_report(weight) for weight in self._weights]

    def _save(self, path: str | os.PathLike[str]) -> None:
        save_model(self.model, path)

    def _matrices(self) -> list[CompressedMatrix]:
        return [weight.matrix for weight in self._weights]

    def _all_matrices(self) -> list[CompressedMatrix]:
        return [weight.matrix for weight in compressed_weights(self.model)]


def _turned(
    layer: Any, attribute: str, layout: Layout, matrix: CompressedMatrix
) -> CompressedWeight:
    """Return a weight of a layer of the compressed class; one that was loaded goes on."""
    turn(layer)
    inner = holder(layer)
    known: CompressedWeight | None = inner.compressed.get(attribute)
    if known is None:
        known = inner.compressed[attribute] = CompressedWeight(inner, attribute, layout, matrix)
    else:
        matrix.load_state_dict(known.matrix.state_dict())
        known.matrix = matrix
    return known


def _check_score(name: str, compressor: Compressor) -> None:
    """Refuse, before any work, scores by gradients."""
    if isinstance(compressor, GradualPrune) and compressor.first_gradient is not None:
        raise ValueError(
            f"{name}: score must be 'magnitude' in Keras, whose trainers do not show gradients, "
            f"got {compressor.score!r}, which fastfactor.torch has"
        )


def _read_state_back(model: Any) -> None:
    """Let JAX's trainer, which keeps the numbers of variables to itself, give them back."""
    if keras.backend.backend() == "jax" and hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _fit_model(model: Any, own_optimizer: Any = None) -> None:
    """Make a model's optimizer and its compiled functions fit its variables."""
    for layer in model._flatten_layers():
        if hasattr(layer, "_torch_params"):  # PyTorch's list of them, of which gradients are zeroed
            layer._track_variables()
    for optimizer in (getattr(model, "optimizer", None), own_optimizer):
        if optimizer is not None and optimizer.built:
            refit(optimizer, model.trainable_variables)
    if not isinstance(model, keras.Model):
        return
    for which in ("train", "test", "predict"):
        if getattr(model, f"{which}_function", None) is not None:
            getattr(model, f"make_{which}_function")(force=True)
    if keras.backend.backend() == "jax" and hasattr(model, "_record_training_state_sharding_spec"):
        model._record_training_state_sharding_spec()


def _report(weight: CompressedWeight) -> LayerReport:
    factors, error = weight.matrix.factors, None
    like = weight.dense if weight.dense is not None else next(iter(weight.variables.values()))
    itemsize = as_numpy(like).dtype.itemsize
    bytes_factors = None
    if isinstance(factors, Factors):
        bytes_factors = factors.nbytes
        if weight.dense is not None:
            W = weight.layout.to_matrix(np.asarray(as_numpy(weight.dense), np.float64))
            error = float(weight.trained_factors().error(W))
    elif factors is not None:
        bytes_factors = sum(array.nbytes for array in factors.tensors().values())
    return LayerReport(
        name=weight.matrix.name,
        tied=(),
        stage=weight.state,
        alpha=weight.matrix.alpha,
        bytes_dense=itemsize * prod(weight.layout.shape),
        bytes_factors=bytes_factors,
        relative_error=error,
        sparsity=weight.matrix.sparsity,
    )

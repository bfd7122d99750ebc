"""One weight of a Keras layer that is compressed while its model trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from .._arrays import Array, as_array
from .._checks import choice, dtype_named, shown
from ..adapters import KerasNamespace
from ..errors import CorruptDataError
from ..files.layout import Layout
from ..methods.factors import FLOAT_NAMES, Factors
from ..training import Change, CompressedMatrix, State
from .gradual_mask import GradualMask, saved_pruned
from .variables import as_numpy, saved_array

STATE = "fastfactor"  # the entry of a layer's saved numbers that holds the stages
MOST_STATE_BYTES = 1 << 24


class CompressedWeight:
    """A weight, its stage and its factors.

    Attributes
    ----------
    layer : Layer
        That holds the weight.
    attribute : str
        Of the layer, which is the variable of the dense weight; None once it is dropped.
    name : str
        Of the weight in the layer, such as ``kernel``.
    layout : Layout
        How the weight is seen as a matrix.
    matrix : CompressedMatrix
    variables : dict of Variable
        Those of the factors, by the names of their tensors.
    alpha : Variable or None
        The share of the dense weight, once the weight is factored.
    on_load : callable or None
        Called when numbers that are loaded give the layer other variables.
    """

    def __init__(
        self, layer: Any, attribute: str, layout: Layout, matrix: CompressedMatrix
    ) -> None:
        self.layer = layer
        self.attribute = attribute
        self.name = attribute.removeprefix("_")
        self.layout = layout
        self.matrix = matrix
        self.variables: dict[str, Any] = {}
        self.alpha: Any = None
        self.on_load: Callable[[], None] | None = None
        self.rebuilt: Any = None  # the weight, while a recurrent layer goes through its steps
        self.mask = GradualMask()
        self.xp = KerasNamespace()

    @property
    def dense(self) -> Any:
        """The variable of the dense weight; None once it is dropped."""
        return self.layer.__dict__[self.attribute]

    @property
    def state(self) -> State:
        """Whether the weight is dense, masked, blended or gone."""
        return self.matrix.state

    def advance(self, step: int) -> Change:
        """Go on to a training step; give the layer its factors, or take the weight from it."""
        change = self.matrix.advance(step, self._read)
        if self.state is State.MASKED:
            self.mask.follow(self.dense, self._kept(), chosen=change.mask_changed)
        if change.factored:
            self.add_factors()
        if change.finished:
            self.drop_dense()
        if change and self.alpha is not None:
            self.alpha.assign(self.matrix.alpha)
        return change

    def add_factors(self) -> None:
        """Give the layer variables that begin as the trained tensors of the factors."""
        assert self.matrix.factors is not None
        tensors = self.matrix.factors.tensors()
        self._add({name: np.asarray(tensors[name]) for name in self.matrix.trainable})

    def _add(self, arrays: Mapping[str, Array]) -> None:
        tracker = self.layer._tracker  # as Keras's own layers do that get variables after `build`
        was_locked = tracker.locked
        tracker.unlock()
        trains = self.layer.trainable and (self.dense is None or self.dense.trainable)
        for name, array in arrays.items():
            self.variables[name] = self.layer.add_weight(
                name=f"{self.name}_{name}",
                shape=array.shape,
                initializer=keras.initializers.Zeros(),
            )
            self.variables[name].trainable = trains  # as Keras freezes: it may be undone
            self.variables[name].assign(np.asarray(array, np.float64))
        self.alpha = self.layer.add_weight(
            name=f"{self.name}_alpha", shape=(), initializer="zeros", trainable=False
        )
        if was_locked:
            tracker.lock()

    def drop_dense(self) -> None:
        """Take the dense weight from the layer, and what stands beside it."""
        self.mask.forget()
        self.layer._untrack_variable(self.dense)
        if hasattr(self.layer, "_delete_tracking"):  # TensorFlow's own list of what a layer holds
            self.layer._delete_tracking(self.attribute)
        self.layer.__dict__[self.attribute] = None

    def forget(self) -> None:
        """Take the factors from the layer."""
        for variable in (*self.variables.values(), *([] if self.alpha is None else [self.alpha])):
            self.layer._untrack_variable(variable)
        self.variables, self.alpha = {}, None

    def _read(self) -> Array:
        return self.layout.to_matrix(as_array(self.mask.full(self.dense), self.matrix.name))

    def _kept(self) -> Array | None:
        """Return the mask in the weight's shape."""
        return None if self.matrix.mask is None else self.layout.to_tensor(self.matrix.mask)

    # --- products

    def product(self, x: Any) -> Any:
        """Return ``x @ W.T`` by the factors alone, for x of shape (..., in)."""
        factors = self._known_factors()
        return factors.forward(self.xp, self._tensors(), x)

    def rows(self, ids: Any) -> Any:
        """Return rows of W by the factors alone, of shape ids.shape + (in,)."""
        factors = self._known_factors()
        if not isinstance(factors, Factors):  # which need no product for rows
            return ops.take(self._matrix_by_factors(), ids, axis=0)
        return factors.forward_rows(self.xp, self._tensors(), ids)

    def blend(self, dense: Any, by_factors: Any) -> Any:
        """Return the blend of what the dense weight gives and what the factors give."""
        alpha = ops.cast(self.alpha, by_factors.dtype)
        return alpha * dense + (1 - alpha) * by_factors

    def full(self) -> Any:
        """Return the weight as it is now, rebuilt from its factors."""
        if self.rebuilt is not None:
            return self.rebuilt
        if self.state in (State.DENSE, State.MASKED):
            return self.dense
        shape = [self.layout.shape[axis] for axis in self.layout.axes]
        by_factors = ops.transpose(
            ops.reshape(self._matrix_by_factors(), shape),
            tuple(int(axis) for axis in np.argsort(self.layout.axes)),
        )
        if self.state is State.FACTORS:
            return by_factors
        return self.blend(ops.convert_to_tensor(self.dense), by_factors)

    def _matrix_by_factors(self) -> Any:
        factors = self._known_factors()
        rows, columns = self.layout.matrix
        if isinstance(factors, Factors):
            return factors.forward_rows(self.xp, self._tensors(), ops.arange(rows, dtype="int32"))
        like = next(iter(self._tensors().values()))
        eye = ops.eye(columns, dtype=like.dtype)
        return ops.transpose(factors.forward(self.xp, self._tensors(), eye))

    def _tensors(self) -> dict[str, Any]:
        return {name: ops.convert_to_tensor(variable) for name, variable in self.variables.items()}

    def _known_factors(self) -> Any:
        if self.matrix.factors is None:
            raise ValueError(
                f"{self.matrix.name} must have its codes, got a layer made from its configuration "
                "alone; load its weights"
            )
        return self.matrix.factors

    # --- factors as they are now

    def trained_factors(self) -> Any:
        """Return the factors with the trained numbers, in the dtypes in which they are stored."""
        own = self._known_factors().tensors()
        arrays = {
            name: np.asarray(as_numpy(variable), np.float64).astype(own[name].dtype)
            for name, variable in self.variables.items()
        }
        return self.matrix.trained(arrays)

    # --- saving

    def structure(self) -> dict[str, Any]:
        """Return what a configuration must say, for the layer to have the same variables."""
        return {
            "stage": self.state.value,
            "shapes": {name: list(v.shape) for name, v in self.variables.items()},
        }

    def take_structure(self, structure: Mapping[str, Any]) -> None:
        """Give a layer that was just built the variables of a saved one, without its numbers."""
        try:
            stage = State(structure["stage"])
            shapes = {
                str(name): tuple(int(size) for size in shape)
                for name, shape in structure["shapes"].items()
            }
            if any("/" in name or min(shape, default=0) < 0 for name, shape in shapes.items()):
                raise ValueError(structure)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptDataError(
                f"the configuration of a compressed weight must have stage and shapes, got "
                f"{shown(structure)}"
            ) from error
        if stage in (State.BLENDED, State.FACTORS):
            self._add({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        if stage is State.FACTORS:
            self.drop_dense()

    def save(self, store: Any) -> dict[str, Any]:
        """Write numbers to a store; return what else must be saved."""
        if self.dense is not None:
            store[self.name] = as_numpy(self.dense)
        for name, variable in self.variables.items():
            store[f"{self.name}.{name}"] = as_numpy(variable)
        state = self.matrix.state_dict()
        if "mask" in state:
            store[f"{self.name}.mask"] = state["mask"].pop("bits")
            self.mask.save(store, self.name)
        if state["factors"] is not None:
            tensors = state["factors"]["tensors"]
            for name in [name for name in tensors if name not in self.variables]:
                store[f"{self.name}.fixed.{name}"] = tensors[name]
            state["factors"]["tensors"] = {
                name: array.dtype.name for name, array in tensors.items()
            }
        return state

    def load(self, store: Any, state: Any) -> None:
        """Bring the layer to a saved stage, and read its numbers."""
        saved = _with_arrays(store, state, self.name)
        before = self.matrix.state_dict()
        self.matrix.load_state_dict(saved)
        try:
            self._check_shape()
            numbers, dense = self._saved_numbers(store)
            kept = self._kept()
            pruned = None if kept is None else saved_pruned(store, self.name, kept)
        except CorruptDataError:
            self.matrix.load_state_dict(before)
            raise
        self.fit_layer()
        if kept is not None and pruned is not None:
            self.mask.restore(pruned, kept)
        for name, variable in self.variables.items():
            variable.assign(numbers[name])
        if self.dense is not None:
            self.dense.assign(dense)

    def _check_shape(self) -> None:
        """Refuse factors and masks of another shape, which were read from a file."""
        shape, factors, mask = self.layout.matrix, self.matrix.factors, self.matrix.mask
        for what, found in (("factors", factors), ("mask", mask)):
            if isinstance(found, Factors | np.ndarray) and found.shape != shape:
                raise CorruptDataError(
                    f"{what} of {self.matrix.name} must be of a matrix of shape {shape}, "
                    f"got {found.shape}"
                )

    def _saved_numbers(self, store: Any) -> tuple[dict[str, Array], Array | None]:
        """Return the numbers of the factors and the dense weight that the present stage has."""
        factors, dense = self.matrix.factors, None
        tensors = {} if factors is None else factors.tensors()
        numbers = {
            name: saved_array(store, f"{self.name}.{name}", tensors[name].shape)
            for name in self.matrix.trainable
        }
        if self.state is not State.FACTORS:
            dense = saved_array(store, self.name, self.layout.shape)
        return numbers, dense

    def fit_layer(self) -> None:
        """Give the layer the variables of the present stage, if it has others."""
        before = self._held()
        self.mask.forget()
        factors = self.matrix.factors
        tensors = {} if factors is None else factors.tensors()
        wanted = {name: tuple(tensors[name].shape) for name in self.matrix.trainable}
        if wanted != {name: tuple(v.shape) for name, v in self.variables.items()}:
            self.forget()
            if wanted:
                self.add_factors()
        if self.state is State.FACTORS and self.dense is not None:
            self.drop_dense()
        elif self.state is not State.FACTORS and self.dense is None:
            self._add_dense()
        if self.alpha is not None:
            self.alpha.assign(self.matrix.alpha)
        if self.on_load is not None and self._held() != before:
            self.on_load()

    def _held(self) -> list[int]:
        """Return what tells the variables of the layer from others."""
        return [id(variable) for variable in (self.dense, *self.variables.values())]

    def _add_dense(self) -> None:
        tracker = self.layer._tracker
        was_locked = tracker.locked
        tracker.unlock()
        self.layer.__dict__[self.attribute] = self.layer.add_weight(
            name=self.name, shape=self.layout.shape, initializer="zeros"
        )
        # In the order in which Keras's layers make their variables, and their files have them.
        order = ("kernel", "recurrent_kernel")
        list.sort(
            self.layer._trainable_variables,
            key=lambda v: order.index(v.name) if v.name in order else len(order),
        )
        if was_locked:
            tracker.lock()


def encoded(states: Mapping[str, Any]) -> Array:
    """Return saved states as an array of bytes."""
    return np.frombuffer(json.dumps(states).encode(), np.uint8)


def decoded(saved: Any) -> dict[str, Any]:
    """Return saved states from an array of bytes."""
    array = np.asarray(saved)
    if array.dtype != np.uint8 or array.ndim != 1 or array.size > MOST_STATE_BYTES:
        raise CorruptDataError(
            f"the stages of a layer must be bytes, got {array.dtype} of shape {array.shape}"
        )
    try:
        states = json.loads(array.tobytes())
    except ValueError as error:
        raise CorruptDataError(f"the stages of a layer must be JSON: {error}") from error
    if not isinstance(states, dict):
        raise CorruptDataError(f"the stages of a layer must be by weight, got {shown(states)}")
    return states


def _with_arrays(store: Any, state: Any, name: str) -> Any:
    """Return a saved state with the arrays in place of their dtypes."""
    if isinstance(state, dict) and isinstance(state.get("mask"), dict):
        bits = np.asarray(store[f"{name}.mask"]) if f"{name}.mask" in set(store.keys()) else None
        state = {**state, "mask": {**state["mask"], "bits": bits}}
    factors = state.get("factors") if isinstance(state, dict) else None
    if not isinstance(factors, dict) or not isinstance(factors.get("tensors"), dict):
        return state
    arrays, saved = {}, set(store.keys())
    for tensor, dtype in factors["tensors"].items():
        fixed = f"{name}.fixed.{tensor}"
        if fixed in saved:
            arrays[tensor] = np.asarray(store[fixed])
        elif f"{name}.{tensor}" in saved:
            arrays[tensor] = _of_dtype(np.asarray(store[f"{name}.{tensor}"]), dtype)
        else:
            raise CorruptDataError(f"tensor {tensor!r} of {name} must be saved, got none")
    return {**state, "factors": {**factors, "tensors": arrays}}


def _of_dtype(array: Array, dtype: Any) -> Array:
    try:
        return array.astype(dtype_named(choice(dtype, "dtype", FLOAT_NAMES)))
    except (TypeError, ValueError) as error:
        raise CorruptDataError(f"the dtype of a tensor must be one of floats: {error}") from error

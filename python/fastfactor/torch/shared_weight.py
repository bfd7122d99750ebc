"""One weight that is compressed while its model trains, and the layers that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .._arrays import Array, as_array
from ..adapters import TorchNamespace
from ..methods.factors import Factors, matrix_shape
from ..training import Change, CompressedMatrix, State

PREFIX = "weight_"  # of the names of parameters that hold factors: weight_B, weight_C


def _uncompiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function that compiled programs call as it is."""
    called: Callable[..., torch.Tensor] = torch.compiler.disable(function)
    return called


class SharedWeight:
    """A weight, its stage and its factors, for all layers that are tied by it.

    Attributes
    ----------
    matrix : CompressedMatrix
    layers : list of CompressedLayer
        Those that use the weight: they hold the same parameters.
    """

    def __init__(self, matrix: CompressedMatrix, weight: torch.Tensor) -> None:
        self.matrix = matrix
        self.layers: list[CompressedLayer] = []
        self.shape = tuple(weight.shape)
        self.names: tuple[str, ...] = ()  # of the tensors that are trained, once there are factors
        self._n_fixed = 0
        self.xp = TorchNamespace()

    @property
    def weight(self) -> nn.Parameter | None:
        """The dense weight; None once it is dropped."""
        return self.layers[0].weight

    def advance(self, step: int) -> Change:
        """Go on to a training step; give the layers their factors, or take the weight from them."""
        change = self.matrix.advance(step, self._read)
        if change.factored:
            assert self.weight is not None
            self.add_factors(like=self.weight)
        if change.finished:
            self.drop_weight()
        if change:
            self.set_alpha()
        return change

    def add_factors(self, *, like: torch.Tensor) -> None:
        """Give all layers parameters that begin as the trained tensors of the factors.

        They are on the device of ``like`` and in its dtype, because training needs a wide one.
        """
        assert self.matrix.factors is not None
        tensors, self.names = self.matrix.factors.tensors(), self.matrix.trainable
        self._n_fixed = len(tensors) - len(self.names)
        parameters = {
            name: nn.Parameter(
                torch.from_numpy(np.array(tensors[name], np.float64)).to(like.device, like.dtype)
            )
            for name in self.names
        }
        for layer in self.layers:
            layer.register_factors(parameters)

    def drop_weight(self) -> None:
        """Take the dense weight from all layers."""
        for layer in self.layers:
            layer.weight = None

    def set_alpha(self) -> None:
        """Write the share of the dense weight where compiled graphs read it."""
        for layer in self.layers:
            layer.alpha.fill_(self.matrix.alpha)

    def restore(self, state: Any) -> None:
        """Bring all layers to the stage of a saved one, so that its parameters can be loaded."""
        like = next(self.layers[0].parameters_of_weight())
        self.matrix.load_state_dict(_with_arrays(state))
        self.names = ()
        for layer in self.layers:
            layer.forget_factors()
        if self.matrix.factors is not None:
            self.add_factors(like=like)
        if self.matrix.state is State.FACTORS:
            self.drop_weight()
        elif self.weight is None:
            weight = nn.Parameter(like.new_empty(self.shape))
            for layer in self.layers:
                layer.weight = weight
        self.set_alpha()

    def _read(self) -> Array:
        assert self.weight is not None
        array = as_array(self.weight.detach().cpu(), self.matrix.name)
        return array.reshape(matrix_shape(array.shape))

    def product(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ W.T`` by the factors, for x of shape (..., in)."""
        forward = self._forward if self._is_traceable else _uncompiled(self._forward)
        return forward(tensors, x)

    def rows(self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of W by the factors, of shape ids.shape + (in,)."""
        rows = self._rows if self._is_traceable else _uncompiled(self._rows)
        return rows(tensors, ids)

    @property
    def _is_traceable(self) -> bool:
        """Whether compiled programs can look into the product: it makes nothing of codes."""
        return self._n_fixed == 0

    def _forward(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        assert self.matrix.factors is not None
        y: torch.Tensor = self.matrix.factors.forward(self.xp, tensors, x)
        return y

    def _rows(self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.matrix.factors, Factors):  # which need no product for rows
            return self.dense(tensors)[ids]
        found: torch.Tensor = self.matrix.factors.forward_rows(self.xp, tensors, ids)
        return found

    def dense(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return W by the factors, in the weight's shape."""
        like = next(iter(tensors.values()))
        columns = int(np.prod(self.shape[1:]))
        eye = torch.eye(columns, dtype=like.dtype, device=like.device)
        return self.product(tensors, eye).T.reshape(self.shape)

    def trained_factors(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Return the factors with the trained numbers, in the dtypes in which they are stored."""
        assert self.matrix.factors is not None
        own = self.matrix.factors.tensors()
        arrays = {
            name: as_array(tensor.detach().cpu().double(), name).astype(own[name].dtype)
            for name, tensor in tensors.items()
        }
        return self.matrix.trained(arrays)


class CompressedLayer(nn.Module):
    """What layers with a compressed weight have in common; mixed into a class of PyTorch's."""

    weight: nn.Parameter | None
    shared_weight: SharedWeight
    alpha: torch.Tensor

    @property
    def stage(self) -> State:
        """Whether the weight is dense, blended or gone."""
        return self.shared_weight.matrix.state

    def factor_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the factors by the names of their tensors."""
        return {name: getattr(self, PREFIX + name) for name in self.shared_weight.names}

    def parameters_of_weight(self) -> Iterator[nn.Parameter]:
        """Iterate over the weight, while there is one, and its factors."""
        if self.weight is not None:
            yield self.weight
        yield from (self._parameters[n] for n in self._parameters if n.startswith(PREFIX))

    def register_factors(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Register parameters of factors behind the weight and before the other parameters."""
        behind = {name: p for name, p in self._parameters.items() if name != "weight"}
        for name in behind:
            del self._parameters[name]
        for name, parameter in parameters.items():
            self.register_parameter(PREFIX + name, parameter)
        self._parameters.update(behind)

    def forget_factors(self) -> None:
        """Remove the parameters of factors."""
        for name in [name for name in self._parameters if name.startswith(PREFIX)]:
            del self._parameters[name]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stage and what does not train, for `state_dict`."""
        state = self.shared_weight.matrix.state_dict()
        if state["factors"] is not None:
            tensors = state["factors"]["tensors"]
            state["factors"]["tensors"] = {n: from_numpy(array) for n, array in tensors.items()}
        return state

    def set_extra_state(self, state: Any) -> None:
        """Do nothing: `_load_from_state_dict` reads it before the parameters."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **keywords: Any
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self.shared_weight.restore(state)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **keywords)


def from_numpy(array: Array) -> torch.Tensor:
    """Return a copy of an array as a tensor."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _with_arrays(state: dict[str, Any]) -> dict[str, Any]:
    factors = state["factors"] if isinstance(state, dict) and "factors" in state else None
    if not isinstance(factors, dict) or not isinstance(factors.get("tensors"), dict):
        return state
    arrays = {n: as_array(tensor, n).copy() for n, tensor in factors["tensors"].items()}
    return {**state, "factors": {**factors, "tensors": arrays}}

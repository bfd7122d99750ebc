"""One weight that is compressed while its model trains, and the layers that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .._arrays import Array, as_array
from ..adapters import TorchNamespace
from ..errors import CorruptDataError
from ..methods.factors import Factors, matrix_shape
from ..training import Change, CompressedMatrix, GradualPrune, State
from .gradual_mask import GradualMask
from .operands import Operands

if TYPE_CHECKING:
    from .compressed_layer import CompressedLayer


def _uncompiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function that compiled programs call as it is."""
    called: Callable[..., torch.Tensor] = torch.compiler.disable(function)
    return called


class SharedWeight:
    """A weight, its stage and its factors, for all layers that are tied by it.

    Attributes
    ----------
    matrix : CompressedMatrix
    uses : list of (CompressedLayer, str)
        The layers that use the weight, which hold the same parameters, and its name in each.
    """

    def __init__(self, matrix: CompressedMatrix, weight: torch.Tensor) -> None:
        self.matrix = matrix
        self.uses: list[tuple[CompressedLayer, str]] = []
        self.shape = tuple(weight.shape)
        self.names: tuple[str, ...] = ()  # of the tensors that are trained, once there are factors
        self._n_fixed = 0
        self._operands: Operands | None = None  # of factors with tensors that do not train
        self.xp = TorchNamespace()
        compressor = matrix.compressor
        self._mask = GradualMask(compressor) if isinstance(compressor, GradualPrune) else None

    @property
    def weight(self) -> nn.Parameter | None:
        """The dense weight; None once it is dropped."""
        layer, name = self.uses[0]
        return layer.dense_weight(name)

    @property
    def state(self) -> State:
        """Whether the weight is dense, masked, blended or gone."""
        return self.matrix.state

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the factors, by the names of their tensors."""
        layer, name = self.uses[0]
        return layer.factors_of(name)

    @property
    def keeps_rebuilt(self) -> bool:
        """Whether W, rebuilt for a layer that does not train, is kept from call to call."""
        operands = self._operands
        return operands is not None and operands.keeps_rebuilt

    def advance(self, step: int) -> Change:
        """Go on to a training step; give the layers their factors, or take the weight from them."""
        change = self.matrix.advance(step, self._read, self._mean)
        if self._mask is not None and self.weight is not None:
            self._mask.follow(self.weight, self.matrix.mask, chosen=change.mask_changed)
        if change.factored:
            assert self.weight is not None
            self.add_factors(like=self.weight)
        if change.finished:
            self.drop_weight()
        if change:
            self.set_alpha()
        return change

    def see_gradient(self) -> None:
        """Take the gradient of the weight into the mean by which it is pruned, if there is one."""
        if self._mask is not None and self.weight is not None and self.matrix.wants_gradients:
            self._mask.see_gradient(self.weight)

    def add_factors(self, *, like: torch.Tensor) -> None:
        """Give all layers parameters that begin as the trained tensors of the factors.

        They are on the device of ``like`` and in its dtype, because training needs a wide one, and
        get gradients if it gets them.
        """
        assert self.matrix.factors is not None
        tensors, self.names = self.matrix.factors.tensors(), self.matrix.trainable
        self._n_fixed = len(tensors) - len(self.names)
        self._operands = None
        if self._n_fixed and self.names and isinstance(self.matrix.factors, Factors):
            self._operands = Operands(self.matrix.factors, self.names)
        parameters = {
            name: nn.Parameter(
                torch.from_numpy(np.array(tensors[name], np.float64)).to(like.device, like.dtype),
                requires_grad=like.requires_grad,
            )
            for name in self.names
        }
        for layer, name in self.uses:
            layer.register_factors(name, parameters)

    def drop_weight(self) -> None:
        """Take the dense weight from all layers, and what stands beside it."""
        if self._mask is not None:
            self._mask.forget()
        for layer, name in self.uses:
            layer.set_dense_weight(name, None)

    def set_alpha(self) -> None:
        """Write the share of the dense weight where compiled graphs read it."""
        for layer, name in self.uses:
            layer.alpha_of(name).fill_(self.matrix.alpha)

    def saved(self) -> dict[str, Any]:
        """Return the stage and what does not train, for `state_dict`."""
        state = self.matrix.state_dict()
        if state["factors"] is not None:
            state["factors"]["tensors"] = _tensors(state["factors"]["tensors"])
        if "mask" in state:
            state["mask"] = {**state["mask"], **_tensors({"bits": state["mask"]["bits"]})}
        if self._mask is not None:
            state["gradual"] = self._mask.saved()
        return state

    def restore(self, state: Any) -> None:
        """Bring all layers to the stage of a saved one, so that its parameters can be loaded."""
        before = self.matrix.state_dict()
        own = _with_arrays(state)
        has_mask = isinstance(own, dict) and self._mask is not None
        gradual = own.pop("gradual", None) if has_mask else None
        self.matrix.load_state_dict(own)
        try:
            self._check_shape()
            if self._mask is not None:
                like = next(self._parameters_now())
                self._mask.restore(gradual, self.matrix.mask, like, self.shape)
        except CorruptDataError:
            self.matrix.load_state_dict(before)
            raise
        self._fit_layers()

    def _check_shape(self) -> None:
        """Refuse factors and masks of another shape, which were read from a file."""
        shape, factors, mask = matrix_shape(self.shape), self.matrix.factors, self.matrix.mask
        for what, found in (("factors", factors), ("mask", mask)):
            if isinstance(found, Factors | np.ndarray) and found.shape != shape:
                raise CorruptDataError(
                    f"{what} of {self.matrix.name!r} must be of a matrix of shape {shape}, "
                    f"got {found.shape}"
                )

    def make_dense(self) -> None:
        """Bring all layers back to a dense weight, whose numbers are to be loaded."""
        if self._mask is not None:
            self._mask.forget()
        if self.state is not State.DENSE:
            self.matrix.restart()
            self._fit_layers()

    def _fit_layers(self) -> None:
        """Give all layers the parameters of the present stage, whatever they had before."""
        like = next(self._parameters_now())
        for layer, name in self.uses:
            layer.forget_factors(name)
        self.names = ()
        if self.matrix.factors is not None:
            self.add_factors(like=like)
        if self.state is State.FACTORS:
            self.drop_weight()
        elif self.weight is None:
            weight = nn.Parameter(like.new_empty(self.shape), requires_grad=like.requires_grad)
            for layer, name in self.uses:
                layer.set_dense_weight(name, weight)
        self.set_alpha()

    def _parameters_now(self) -> Iterator[nn.Parameter]:
        layer, name = self.uses[0]
        return layer.parameters_of(name)

    def _read(self) -> Array:
        assert self.weight is not None
        weight = self.weight.detach() if self._mask is None else self._mask.full(self.weight)
        array = as_array(weight.cpu(), self.matrix.name)
        return array.reshape(matrix_shape(array.shape))

    def _mean(self) -> Array | None:
        return None if self._mask is None else self._mask.mean_matrix()

    def product(
        self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, *, trains: bool = True
    ) -> torch.Tensor:
        """Return ``x @ W.T`` by the factors, for x of shape (..., in).

        In layers that do not train it runs this package's kernels, where there are any for x.
        """
        operands = self._operands
        if operands is not None and not trains and operands.serve(x):
            if operands.is_small:
                W = self.dense(tensors, trains=False)
                return functional.linear(x, W if W.dim() == 2 else W.flatten(1))
            return operands.linear(tensors, x)
        forward = _uncompiled(self._forward) if self._hides_from_programs else self._forward
        return forward(tensors, x)

    def rows(
        self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor, *, trains: bool = True
    ) -> torch.Tensor:
        """Return the rows of W by the factors, of shape ids.shape + (in,)."""
        operands = self._operands
        if operands is not None and not trains and operands.serve(ids):
            return operands.rows(tensors, ids)
        rows = _uncompiled(self._rows) if self._hides_from_programs else self._rows
        return rows(tensors, ids)

    def dense(self, tensors: Mapping[str, torch.Tensor], *, trains: bool = True) -> torch.Tensor:
        """Return W by the factors, in the weight's shape."""
        like = next(iter(tensors.values()))
        if isinstance(self.matrix.factors, Factors):

            def rebuild() -> torch.Tensor:
                ids = torch.arange(self.shape[0], device=like.device)
                return self.rows(tensors, ids, trains=trains).reshape(self.shape)

            if self._operands is None or trains:
                return rebuild()
            return self._operands.kept(tensors, rebuild)
        eye = torch.eye(int(np.prod(self.shape[1:])), dtype=like.dtype, device=like.device)
        return self.product(tensors, eye).T.reshape(self.shape)

    @property
    def _hides_from_programs(self) -> bool:
        """Whether a program that is being compiled is to call the product as it is.

        It cannot look into what the product makes of codes.
        """
        return self._n_fixed > 0 and torch.compiler.is_compiling()

    def _forward(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        assert self.matrix.factors is not None
        y: torch.Tensor = self.matrix.factors.forward(self.xp, tensors, x)
        return y

    def _rows(self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.matrix.factors, Factors):  # which need no product for rows
            return self.dense(tensors)[ids]
        found: torch.Tensor = self.matrix.factors.forward_rows(self.xp, tensors, ids)
        return found

    def trained_factors(self) -> Any:
        """Return the factors with the trained numbers, in the dtypes in which they are stored."""
        assert self.matrix.factors is not None
        own = self.matrix.factors.tensors()
        arrays = {
            name: as_array(tensor.detach().cpu().double(), name).astype(own[name].dtype)
            for name, tensor in self.parameters.items()
        }
        return self.matrix.trained(arrays)


def from_numpy(array: Array) -> torch.Tensor:
    """Return a copy of an array as a tensor."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: from_numpy(array) for name, array in arrays.items()}


def _with_arrays(state: Any) -> Any:
    """Return a copy of a saved state in which the tensors of factors and masks are arrays."""
    if not isinstance(state, Mapping):
        return state
    found = dict(state)
    factors, mask = found.get("factors"), found.get("mask")
    if isinstance(factors, Mapping) and isinstance(factors.get("tensors"), Mapping):
        found["factors"] = {**factors, "tensors": _arrays(factors["tensors"])}
    if isinstance(mask, Mapping):
        found["mask"] = _arrays(mask)
    return found


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: as_array(tensor, name).copy() if isinstance(tensor, torch.Tensor) else tensor
        for name, tensor in tensors.items()
    }

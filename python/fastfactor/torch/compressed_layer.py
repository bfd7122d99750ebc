"""What layers with compressed weights have in common; mixed into the classes of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .._checks import shown
from ..errors import CorruptDataError
from ..training import State
from .shared_weight import SharedWeight


class CompressedLayer(nn.Module):
    """A layer some of whose weights are compressed.

    Beside a weight ``name`` stand a buffer ``name_alpha`` and, once it is factored, the parameters
    of its factors, ``name_B`` and ``name_C`` for example. When it is dropped it becomes None.

    Attributes
    ----------
    compressed : dict of SharedWeight
        The weights that are compressed, by their names in the layer.
    """

    compressed: dict[str, SharedWeight]

    def compress_weight(self, name: str, shared: SharedWeight) -> None:
        """Begin to compress one of the layer's weights."""
        weight = self.dense_weight(name)
        assert weight is not None
        if "compressed" not in self.__dict__:
            self.compressed = {}
        self.compressed[name] = shared
        shared.uses.append((self, name))
        alpha = torch.ones((), dtype=weight.dtype, device=weight.device)
        self.register_buffer(f"{name}_alpha", alpha, persistent=False)

    def stage_of(self, name: str) -> State:
        """Return whether a weight is dense, blended or gone; masked ones have zeros themselves."""
        shared = self.compressed.get(name)
        return State.DENSE if shared is None or shared.state is State.MASKED else shared.state

    def is_dense(self) -> bool:
        """Return whether all weights are dense, or masked."""
        return all(self.stage_of(name) is State.DENSE for name in self.compressed)

    def dense_weight(self, name: str) -> nn.Parameter | None:
        """Return a weight; None once it is dropped."""
        return self._parameters[name]

    def set_dense_weight(self, name: str, weight: nn.Parameter | None) -> None:
        """Replace or drop a weight, which keeps its place among the parameters."""
        self._parameters[name] = weight

    def alpha_of(self, name: str) -> torch.Tensor:
        """Return the share of a dense weight, a buffer without axes."""
        alpha: torch.Tensor = getattr(self, f"{name}_alpha")
        return alpha

    def factors_of(self, name: str) -> dict[str, nn.Parameter]:
        """Return the parameters of a weight's factors, by the names of their tensors."""
        own = self._parameters
        found: dict[str, nn.Parameter] = {
            each: own[f"{name}_{each}"] for each in self.compressed[name].names
        }
        return found

    def parameters_of(self, name: str) -> Iterator[nn.Parameter]:
        """Iterate over a weight, while there is one, and its factors."""
        weight = self.dense_weight(name)
        if weight is not None:
            yield weight
        yield from self.factors_of(name).values()

    def product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ W.T`` of a weight as it is now, for x of shape (..., in)."""
        stage = self.stage_of(name)
        if stage is State.DENSE:
            return functional.linear(x, self.dense(name))
        y = self.compressed[name].product(self.factors_of(name), x, trains=self.training)
        if stage is State.BLENDED:
            alpha = self.alpha_of(name)
            y = alpha * functional.linear(x, self.dense(name)) + (1 - alpha) * y
        return y

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of a factored weight by its factors alone, of shape ids.shape + (in,)."""
        return self.compressed[name].rows(self.factors_of(name), ids, trains=self.training)

    def full(self, name: str) -> torch.Tensor:
        """Return a weight as it is now, rebuilt from its factors."""
        stage = self.stage_of(name)
        if stage is State.DENSE:
            return self.dense(name)
        W = self.compressed[name].dense(self.factors_of(name), trains=self.training)
        if stage is State.BLENDED:
            alpha = self.alpha_of(name)
            W = alpha * self.dense(name) + (1 - alpha) * W
        return W

    def dense(self, name: str) -> torch.Tensor:
        """Return a weight that is not yet dropped."""
        weight = self.dense_weight(name)
        assert weight is not None
        return weight

    def register_factors(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Register parameters of factors right behind their weight."""
        own = list(self._parameters)
        behind = {each: self._parameters[each] for each in own[own.index(name) + 1 :]}
        for each in behind:
            del self._parameters[each]
        for each, parameter in parameters.items():
            self.register_parameter(f"{name}_{each}", parameter)
        self._parameters.update(behind)

    def forget_factors(self, name: str) -> None:
        """Remove the parameters of a weight's factors."""
        for each in self.compressed[name].names:
            del self._parameters[f"{name}_{each}"]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stages and what does not train, for `state_dict`."""
        return {name: shared.saved() for name, shared in self.compressed.items()}

    def set_extra_state(self, state: Any) -> None:
        """Do nothing: `_load_from_state_dict` reads it before the parameters."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}_extra_state"
        # As it was before the model was prepared: all weights are there, and no stage is told.
        is_plain = key not in state_dict and all(
            f"{prefix}{name}" in state_dict for name in self.compressed
        )
        if is_plain:
            for shared in self.compressed.values():
                shared.make_dense()
        elif key in state_dict:
            states = _by_weight(state_dict[key], self.compressed)
            for name, shared in self.compressed.items():
                shared.restore(states[name])
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if is_plain and key in missing_keys:
            missing_keys.remove(key)


def _by_weight(state: Any, expected: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(state, Mapping) or state.keys() != expected.keys():
        raise CorruptDataError(
            f"the state of a layer must be that of its weights {', '.join(expected)}, "
            f"got {shown(state)}"
        )
    return state

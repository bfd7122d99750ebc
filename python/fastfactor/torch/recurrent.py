"""Recurrent layers and cells whose weights are compressed.

In training, for wide batches and for packed sequences the weights are rebuilt from their factors
once in a call, and PyTorch's own loop over the steps runs; so it does with small weights that stay
rebuilt from call to call, and for few steps PyTorch's cell. Otherwise nothing is rebuilt: all
inputs are multiplied by the factors at once, and the hidden state in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .compressed_layer import CompressedLayer

WIDE_BATCH = 16  # from here on, dense products in all steps cost less than products by factors
# Up to here PyTorch's cells, one after the other, take less time than its layer, whose call of
# oneDNN takes 0.13 ms before the first step. Measured with 128 and 400 features on one core.
FEW_STEPS = 2

Hidden: TypeAlias = tuple[torch.Tensor, ...]
Cell: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Hidden], Hidden]
Step: TypeAlias = Callable[[int, Hidden], Hidden]


def lstm_cell(from_input: torch.Tensor, from_hidden: torch.Tensor, hidden: Hidden) -> Hidden:
    """Return the next output and cell state, given both products with their biases."""
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = torch.sigmoid(f) * hidden[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(from_input: torch.Tensor, from_hidden: torch.Tensor, hidden: Hidden) -> Hidden:
    """Return the next state."""
    r_x, z_x, n_x = from_input.chunk(3, -1)
    r_h, z_h, n_h = from_hidden.chunk(3, -1)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (torch.lerp(n, hidden[0], torch.sigmoid(z_x + z_h)),)


def tanh_cell(from_input: torch.Tensor, from_hidden: torch.Tensor, hidden: Hidden) -> Hidden:
    """Return the next state."""
    return (torch.tanh(from_input + from_hidden),)


def relu_cell(from_input: torch.Tensor, from_hidden: torch.Tensor, hidden: Hidden) -> Hidden:
    """Return the next state."""
    return (torch.relu(from_input + from_hidden),)


CELLS: dict[str, Cell] = {
    "LSTM": lstm_cell,
    "GRU": gru_cell,
    "RNN_TANH": tanh_cell,
    "RNN_RELU": relu_cell,
}


FUSED_CELLS: dict[str, Callable[..., Any]] = {
    "LSTM": torch._VF.lstm_cell,
    "GRU": torch._VF.gru_cell,
    "RNN_TANH": torch._VF.rnn_tanh_cell,
    "RNN_RELU": torch._VF.rnn_relu_cell,
}


def with_bias(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a product with its bias, where there is one."""
    return y if bias is None else y + bias


class _CompressedRecurrent(CompressedLayer, nn.RNNBase):
    """Recurrent layers that blend their weights with factors, or have factors alone."""

    @property
    def _flat_weights(self) -> list[torch.Tensor]:  # type: ignore[override]
        """The weights that PyTorch's loops read, rebuilt where they are factored."""
        own, compressed = self._parameters, self.compressed
        weights: list[torch.Tensor] = [
            self.full(name) if name in compressed else own[name]
            for name in self._flat_weights_names
        ]
        return weights

    @_flat_weights.setter
    def _flat_weights(self, value: Any) -> None:
        """Do nothing: there is no list to keep."""

    def _init_flat_weights(self) -> None:
        """Do nothing, for the same reason."""

    def _update_flat_weights(self) -> None:
        """Do nothing, for the same reason."""

    def check_input(self, input: torch.Tensor, batch_sizes: torch.Tensor | None) -> None:
        """Check an input as PyTorch does, without rebuilding a weight to see its dtype."""
        dtype = next(p.dtype for p in self._parameters.values() if p is not None)
        n_axes = 3 if batch_sizes is None else 2
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"input must have the dtype of the weights, {dtype}, got {input.dtype}"
            )
        if input.dim() != n_axes:
            raise RuntimeError(f"input must have {n_axes} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(f"input must have {self.input_size} features, got {input.size(-1)}")

    def flatten_parameters(self) -> None:
        """Do nothing: weights that are rebuilt do not lie in one piece of memory."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._flat_weight_refs: list[Any] = []

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self._rebuilds(input) or self.is_dense():
            return super().forward(input, hx)
        return self._by_steps(input, hx)

    def _rebuilds(self, input: Any) -> bool:
        if self.training or isinstance(input, PackedSequence) or not input.is_cpu:
            return True
        is_batch = input.dim() == 3
        if self._keeps_rebuilt():
            if self.proj_size:  # which PyTorch's cells do not know
                return True
            return bool(input.shape[1 if self.batch_first and is_batch else 0] > FEW_STEPS)
        return bool(is_batch and input.shape[0 if self.batch_first else 1] >= WIDE_BATCH)

    def _keeps_rebuilt(self) -> bool:
        return all(shared.keeps_rebuilt for shared in self.compressed.values())

    def _by_steps(self, input: torch.Tensor, hx: Any) -> Any:
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have two or three axes, got {input.dim()}")
        is_batch = input.dim() == 3
        time_axis = 1 if self.batch_first and is_batch else 0
        data = input.transpose(0, time_axis) if is_batch else input.unsqueeze(1)
        hidden = self._first_hidden(data, hx, is_batch)
        last: list[Hidden] = []
        for layer in range(self.num_layers):
            parts = []
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                start = tuple(each[len(last)] for each in hidden)
                outputs, end = self._run(data, start, f"l{layer}{suffix}")
                parts.append(outputs)
                last.append(end)
            data = torch.cat(parts, -1)
        ends = tuple(torch.stack(each) for each in zip(*last, strict=True))
        if not is_batch:
            data, ends = data.squeeze(1), tuple(each.squeeze(1) for each in ends)
        return data.transpose(0, time_axis), ends if self.mode == "LSTM" else ends[0]

    def _first_hidden(self, data: torch.Tensor, hx: Any, is_batch: bool) -> Hidden:
        """Return the states before the first step, each of shape (layers, batch, features)."""
        n = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size] + [self.hidden_size] * (self.mode == "LSTM")
        shapes = [(n, data.shape[1], size) for size in sizes]
        if data.shape[-1] != self.input_size:
            raise ValueError(f"input must have {self.input_size} features, got {data.shape[-1]}")
        if hx is None:
            return tuple(data.new_zeros(shape) for shape in shapes)
        hidden = tuple(hx) if self.mode == "LSTM" else (hx,)
        if not is_batch:
            hidden = tuple(each.unsqueeze(1) for each in hidden)
        for each, shape in zip(hidden, shapes, strict=True):
            if each.shape != shape:
                raise ValueError(f"hx must have the shape {shape}, got {tuple(each.shape)}")
        return hidden

    def _run(self, data: torch.Tensor, hidden: Hidden, which: str) -> tuple[torch.Tensor, Hidden]:
        """Return the outputs of one layer in one direction, and its last state."""
        follow = self._fused_step if self._keeps_rebuilt() else self._step_by_products
        following = follow(data, which)
        steps = range(len(data))
        outputs: list[torch.Tensor] = []
        for step in reversed(steps) if which.endswith("_reverse") else steps:
            hidden = following(step, hidden)
            if self.proj_size:
                hidden = self.product(f"weight_hr_{which}", hidden[0]), *hidden[1:]
            outputs.append(hidden[0])
        if which.endswith("_reverse"):
            outputs.reverse()
        return torch.stack(outputs), hidden

    def _fused_step(self, data: torch.Tensor, which: str) -> Step:
        """Return what follows on a state, by a function of PyTorch and rebuilt weights."""
        weights = [self.full(f"weight_{each}_{which}") for each in ("ih", "hh")]
        biases = [self._bias(f"bias_{each}_{which}") for each in ("ih", "hh")]
        cell, is_lstm = FUSED_CELLS[self.mode], self.mode == "LSTM"

        def follow(step: int, hidden: Hidden) -> Hidden:
            found = cell(data[step], hidden if is_lstm else hidden[0], *weights, *biases)
            return tuple(found) if is_lstm else (found,)

        return follow

    def _step_by_products(self, data: torch.Tensor, which: str) -> Step:
        """Return what follows on a state, by products with factors."""
        from_input = with_bias(
            self.product(f"weight_ih_{which}", data), self._bias(f"bias_ih_{which}")
        )
        bias, cell = self._bias(f"bias_hh_{which}"), CELLS[self.mode]

        def follow(step: int, hidden: Hidden) -> Hidden:
            from_hidden = with_bias(self.product(f"weight_hh_{which}", hidden[0]), bias)
            return cell(from_input[step], from_hidden, hidden)

        return follow

    def _bias(self, name: str) -> torch.Tensor | None:
        return getattr(self, name) if self.bias else None


class CompressedLSTM(_CompressedRecurrent, nn.LSTM):
    """Long short-term memory."""


class CompressedGRU(_CompressedRecurrent, nn.GRU):
    """Gated recurrent units."""


class CompressedRNN(_CompressedRecurrent, nn.RNN):
    """Elman's recurrent layers."""


class _CompressedCell(CompressedLayer, nn.RNNCellBase):
    """One step of a recurrent layer."""

    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:
        if self.is_dense():
            return super().forward(input, hx)
        is_lstm = isinstance(self, nn.LSTMCell)
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zeros, zeros) if is_lstm else zeros
        hidden = tuple(hx) if is_lstm else (hx,)
        from_input = with_bias(self.product("weight_ih", input), self.bias_ih)
        from_hidden = with_bias(self.product("weight_hh", hidden[0]), self.bias_hh)
        following = self._cell()(from_input, from_hidden, hidden)
        return following if is_lstm else following[0]

    def _cell(self) -> Cell:
        if isinstance(self, nn.RNNCell):
            return CELLS[f"RNN_{self.nonlinearity.upper()}"]
        return lstm_cell if isinstance(self, nn.LSTMCell) else gru_cell


class CompressedLSTMCell(_CompressedCell, nn.LSTMCell):
    """One step of long short-term memory."""


class CompressedGRUCell(_CompressedCell, nn.GRUCell):
    """One step of gated recurrent units."""


class CompressedRNNCell(_CompressedCell, nn.RNNCell):
    """One step of Elman's recurrent layer."""

"""The operators of PyTorch in the namespace ``fastfactor``, by which finished layers run kernels.

======================================================= ==========================================
``linear(x, tensors, description)``                     ``x @ W.T``
``rows(ids, tensors, description)``                     ``W[ids]``
``linear_gradients(gradient, x, tensors, …, wanted)``   of x and the tensors, where ``wanted`` says
``rows_gradients(gradient, ids, tensors, …, wanted)``   of the tensors
======================================================= ==========================================

``tensors`` are those of the factors that train, and one of the bytes of all others. With the
``description``, a text, they are all that a saved program needs. Programs that have such calls run
where ``fastfactor.torch`` was imported, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import cpu_products
from .cpu_products import check_linear
from .description import read_description

LIBRARY = torch.library.Library("fastfactor", "DEF")
FACTORS = "Tensor[] tensors, str description"
LIBRARY.define(f"linear(Tensor x, {FACTORS}) -> Tensor")
LIBRARY.define(f"rows(Tensor ids, {FACTORS}) -> Tensor")
LIBRARY.define(f"linear_gradients(Tensor gradient, Tensor x, {FACTORS}, bool[] wanted) -> Tensor[]")
LIBRARY.define(f"rows_gradients(Tensor gradient, Tensor ids, {FACTORS}, bool[] wanted) -> Tensor[]")

linear = torch.ops.fastfactor.linear.default
rows = torch.ops.fastfactor.rows.default
linear_gradients = torch.ops.fastfactor.linear_gradients.default
rows_gradients = torch.ops.fastfactor.rows_gradients.default

for name in ("linear", "rows", "linear_gradients", "rows_gradients"):
    LIBRARY.impl(name, getattr(cpu_products, name), "CPU")


# --- shapes and dtypes of results


def _fake_linear(x: torch.Tensor, tensors: list[torch.Tensor], description: str) -> torch.Tensor:
    told = read_description(description)
    check_linear(x, tensors, told)
    return x.new_empty(*x.shape[:-1], told.shape[0])


def _fake_rows(ids: torch.Tensor, tensors: list[torch.Tensor], description: str) -> torch.Tensor:
    told = read_description(description)
    return tensors[0].new_empty(*ids.shape, told.shape[1])


def _fake_linear_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    description: str,
    wanted: list[bool],
) -> list[torch.Tensor]:
    return _like([x, *tensors], wanted)


def _fake_rows_gradients(
    gradient: torch.Tensor,
    ids: torch.Tensor,
    tensors: list[torch.Tensor],
    description: str,
    wanted: list[bool],
) -> list[torch.Tensor]:
    return _like(tensors, wanted)


def _like(tensors: list[torch.Tensor], wanted: list[bool]) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t, want in zip(tensors, wanted, strict=True) if want]


for name, fake in (
    ("linear", _fake_linear),
    ("rows", _fake_rows),
    ("linear_gradients", _fake_linear_gradients),
    ("rows_gradients", _fake_rows_gradients),
):
    torch.library.register_fake(f"fastfactor::{name}", fake, lib=LIBRARY)


# --- gradients


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        compute: Callable[..., torch.Tensor],
        description: str,
        x: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        return compute(x, list(tensors), description)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, ctx.description, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[2:])
        found = iter(linear_gradients(gradient, x, tensors, ctx.description, wanted))
        return None, None, *(next(found) if want else None for want in wanted)


class _Rows(torch.autograd.Function):
    forward = _Linear.forward
    setup_context = _Linear.setup_context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ids, *tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[3:])
        found = iter(rows_gradients(gradient, ids, tensors, ctx.description, wanted))
        return None, None, None, *(next(found) if want else None for want in wanted)


def _recording(operator: Any, kernel: Callable[..., torch.Tensor], function: Any) -> Any:
    """Return the implementation of an operator that records gradients if any are wanted.

    It calls the kernel itself unless a program is being traced: going through PyTorch's dispatcher
    a second time takes as long as a small product.
    """

    def below(x: torch.Tensor, tensors: list[torch.Tensor], description: str) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: torch.Tensor = operator(x, tensors, description)
        return result

    def call(
        keys: Any, x: torch.Tensor, tensors: list[torch.Tensor], description: str
    ) -> torch.Tensor:
        compute = below if keys.has(torch._C.DispatchKey.Python) else kernel
        if torch.is_grad_enabled() and (
            x.requires_grad or any(tensor.requires_grad for tensor in tensors)
        ):
            recorded: torch.Tensor = function.apply(compute, description, x, *tensors)
            return recorded
        return compute(x, tensors, description)

    return call


LIBRARY.impl(
    "linear", _recording(linear, cpu_products.linear, _Linear), "AutogradCPU", with_keyset=True
)
LIBRARY.impl("rows", _recording(rows, cpu_products.rows, _Rows), "AutogradCPU", with_keyset=True)


# --- vmap: the inputs of all calls are those of one


def _batched(operator: Any) -> Any:
    def call(
        info: Any, axes: Any, x: torch.Tensor, tensors: list[torch.Tensor], description: str
    ) -> tuple[torch.Tensor, int]:
        if any(axis is not None for axis in axes[1]):
            raise RuntimeError("factors must be the same for all inputs of vmap, got several")
        return operator(x.movedim(axes[0], 0), tensors, description), 0

    return call


if hasattr(torch.library, "register_vmap"):  # from PyTorch 2.5 on
    torch.library.register_vmap(linear, _batched(linear), lib=LIBRARY)
    torch.library.register_vmap(rows, _batched(rows), lib=LIBRARY)

"""A weight as operators are given it, and where they take the place of PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..methods.factors import Factors
from . import ops
from .cpu_products import FAST, Prepared, prepared
from .description import describe
from .trained_numbers import TrainedNumbers

KEPT_WEIGHTS = 1 << 20  # of a rebuilt W that is kept: 4 MB in float32
# Up to here a plain product takes less time than what is around a kernel: 1 MB in float32.
SMALL_WEIGHTS = 1 << 18
FEW_NUMBERS = 1 << 12  # that are trained, which are compared in each call


class Operands:
    """What operators are given of a weight beside its trained tensors.

    Parameters
    ----------
    factors : Factors
    names : tuple of str
        Of the tensors that are trained.
    """

    def __init__(self, factors: Factors, names: tuple[str, ...]) -> None:
        self._has_kernels = factors.kind in FAST
        self._n_weights = factors.shape[0] * factors.shape[1]
        self._n_trained = sum(array.size for n, array in factors.tensors().items() if n in names)
        self._kept: tuple[TrainedNumbers, torch.Tensor] | None = None
        self._prepared: Prepared | None = None
        self._description, self._fixed = describe(factors, names)

    def serve(self, x: torch.Tensor) -> bool:
        """Return whether operators are for these inputs or ids of a layer that does not train.

        Kinds without faster kernels need them only in compiled programs, which cannot look into
        what PyTorch's operations make of codes.
        """
        if not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return False
        return self._has_kernels or torch.compiler.is_compiling()

    def linear(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ W.T``, for x of shape (..., in)."""
        if is_plain(x):
            trained = list(tensors.values())
            return self._by_kernels(trained).linear(x, trained)
        y: torch.Tensor = ops.linear(x, [*tensors.values(), self._fixed], self._description)
        return y

    def rows(self, tensors: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of W with these ids, of shape ids.shape + (in,)."""
        if is_plain(ids):
            trained = list(tensors.values())
            return self._by_kernels(trained).rows(ids, trained)
        found: torch.Tensor = ops.rows(ids, [*tensors.values(), self._fixed], self._description)
        return found

    @property
    def keeps_rebuilt(self) -> bool:
        """Whether a rebuilt W is kept from call to call, as gradients are wanted or not now."""
        is_small = self._n_weights <= KEPT_WEIGHTS
        return is_small and not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    @property
    def is_small(self) -> bool:
        """Whether products take the rebuilt W that is kept, in the place of a kernel."""
        is_small = self._n_weights <= SMALL_WEIGHTS and self._n_trained <= FEW_NUMBERS
        return is_small and self.keeps_rebuilt

    def kept(
        self, tensors: Mapping[str, torch.Tensor], rebuild: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Return W as ``rebuild`` makes it; keep a small one while the trained numbers stay.

        Only without gradients and on a CPU. Rebuilding W for every image takes up to half of a
        small convolution's time.
        """
        if not self.keeps_rebuilt or torch.is_autocast_enabled("cpu"):  # which may narrow W
            return rebuild()
        now, kept = list(tensors.values()), self._kept
        if kept is not None and kept[0].are_those_of(now):
            return kept[1]
        if not all(tensor.is_cpu for tensor in now):
            return rebuild()
        numbers, W = TrainedNumbers(now), rebuild()
        self._kept = numbers, W
        return W

    def _by_kernels(self, trained: list[torch.Tensor]) -> Prepared:
        """Return what operators unpack of the weight, for calls that need no dispatcher."""
        if self._prepared is None:
            self._prepared = prepared([*trained, self._fixed], self._description)
        return self._prepared

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_prepared": None}


def is_plain(x: torch.Tensor) -> bool:
    """Return whether a product needs nothing of PyTorch's dispatcher.

    It records no gradient, and no program, counter, profiler or vmap looks on. The dispatcher takes
    as long as a small product.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )

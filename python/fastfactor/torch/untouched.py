"""Running a model on data without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put a model in eval mode and let some weights have gradients; put all back afterwards.

    Modes are put back module by module, and buffers with their numbers. In eval mode attention may
    run as one fused function that calls none of its layers: this is turned off.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    frozen = [weight for weight in weights if not weight.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for weight in frozen:
            weight.requires_grad_(False)
        with torch.no_grad():
            for module, name, buffer, numbers in buffers:
                buffer.copy_(numbers)
                module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode

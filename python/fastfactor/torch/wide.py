"""Tensors in float64, for sums over many of them."""

from __future__ import annotations

import torch


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in float64, without gradients; on the CPU if the device has no float64."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device).to(torch.float64, copy=True)

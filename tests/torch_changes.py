"""Ways in which the trained numbers of a parameter may change, and tolerances by dtype."""

from __future__ import annotations

import torch
from torch import nn

FLOATS = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}


def optimizer_step(parameter):
    parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam([parameter], lr=0.1).step()


def other_state(parameter):
    layer = nn.Module()
    layer.own = parameter
    layer.load_state_dict({"own": parameter.detach() * 2})


def through_data(parameter):
    parameter.data.mul_(3)


def other_data(parameter):
    parameter.data = parameter.data * 2


def other_strides(parameter):
    values = torch.empty(*parameter.shape[:-1], parameter.shape[-1], 2)[..., 0]
    parameter.data = values.copy_(parameter.data * 2)


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 2


CHANGES = (optimizer_step, other_state, through_data, other_data, other_strides, through_numpy)

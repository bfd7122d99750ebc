"""A small model that is pruned step by step, and its training."""

from __future__ import annotations

import torch
from fastfactor.torch import apply_compression
from fastfactor.training import GradualPrune, SparsityRamp
from torch import nn

RAMP = SparsityRamp(0.75, begin=2, end=11, frequency=3)


def outputs_of(model, inputs):
    found = model(*inputs)
    found = found[0] if isinstance(found, tuple) else found
    return found.flatten(0, -2)


def loss_of(model, inputs, step):
    y = outputs_of(model, inputs)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(step))
    return (y - target).square().mean()


def batch_of(step):
    return torch.randn(20, 8, generator=torch.Generator().manual_seed(100 + step))


def prepared(score="taylor", **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    compression = apply_compression(model, GradualPrune(RAMP, score=score, decay=0.8, **settings))
    return model, compression


def trained(model, compression, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, (batch_of(step),), step).backward()
        optimizer.step()
        compression.step()

"""Several processes that train one model, mixed precision, and accumulated gradients."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastfactor.methods import Codebook, LowRank, Prune
from fastfactor.training import Schedule, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
import torch_processes
from fastfactor.torch import apply_compression
from torch import nn

pytestmark = pytest.mark.framework

SCHEDULE = Schedule(begin=3, frequency=1, alpha_decrement=0.5)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_processes_find_equal_factors_and_train_as_one(tmp_path):
    script = Path(torch_processes.__file__)
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path], stderr=subprocess.PIPE, text=True
        )
        for rank in range(torch_processes.WORLD)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    np.testing.assert_equal(first["codes"], second["codes"])
    model, optimizer, compression = torch_processes.prepared()
    for step, (one, other) in enumerate(zip(first["history"], second["history"], strict=True)):
        x, y = (
            torch.cat(each)
            for each in zip(*(torch_processes.batch(step, r) for r in (0, 1)), strict=True)
        )
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compression.step()
        alone = dict(model.named_parameters())
        assert one.keys() == other.keys() == alone.keys()
        for name, parameter in alone.items():
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
            torch.testing.assert_close(one[name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method", [LowRank(rank=3), Codebook(n_bits=3), Prune(sparsity=0.5)], ids=repr
)
def test_autocast_and_a_gradient_scaler(method):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"words": nn.Embedding(20, 8), "rnn": nn.LSTM(8, 12), "out": nn.Linear(12, 20)}
    )
    compression = apply_compression(model, method, SCHEDULE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    ids, losses = torch.randint(0, 20, (6, 4)), []
    for step in range(16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model["out"](model["rnn"](model["words"](ids[:-1]))[0])
            loss = nn.functional.cross_entropy(y.flatten(0, 1).float(), ids[1:].flatten())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step == 9:  # a step that the scaler leaves out
            next(model["out"].parameters()).grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        compression.step()
        losses.append(loss.item())
    assert {row.stage for row in compression.report()} == {State.FACTORS}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def trained(parts):
        torch.manual_seed(0)
        model = nn.Linear(8, 6)
        compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(8):
            x = torch.randn(12, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().sum() / x.numel()).backward()
            optimizer.step()
            compression.step()
        return dict(model.named_parameters())

    whole, split = trained(1), trained(3)
    for name, parameter in whole.items():
        torch.testing.assert_close(split[name], parameter, rtol=1e-4, atol=1e-6)

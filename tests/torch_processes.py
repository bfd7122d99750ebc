"""One of several processes that train one model by gloo: python torch_processes.py RANK FOLDER.

Writes the model's numbers after each step to FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys

import torch
from fastfactor.methods import Codebook, LowRank
from fastfactor.torch import apply_compression
from fastfactor.training import GradualPrune, Schedule, SparsityRamp
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
STEPS = 10
BATCH = 8


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one process's share of a step's examples."""
    random = torch.Generator().manual_seed(step)
    x, y = torch.randn(BATCH, 12, generator=random), torch.randn(BATCH, 6, generator=random)
    share = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    return x[share], y[share]


def prepared() -> tuple[nn.Module, torch.optim.Optimizer, object]:
    """Return a model that is compressed from step 3 to 7, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 6), nn.Linear(6, 6))
    schedule = Schedule(begin=3, frequency=1, alpha_decrement=0.5)
    prune = GradualPrune(SparsityRamp(0.5, begin=3, end=7), score="taylor")
    compression = apply_compression(
        model, {"0": LowRank(rank=3), "2": Codebook(n_bits=2), "3": prune}, schedule
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), compression


def main() -> None:
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    model, optimizer, compression = prepared()
    parallel = DistributedDataParallel(model)
    history = []
    for step in range(STEPS):
        x, y = batch(step, rank)
        loss = (parallel(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        change = compression.step()
        if change.factored or change.finished:
            parallel = DistributedDataParallel(model)
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
    torch.save(
        {"history": history, "codes": model[2].compressed["weight"].matrix.state_dict()},
        f"{folder}/{rank}.pt",
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

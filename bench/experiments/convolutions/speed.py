"""Whole networks made faster: a search, training on, and measured seconds before and after.

    python bench/experiments/convolutions/speed.py CIFAR10 WORK

As metrics.py. For each network the search gets three allowed losses of accuracy on some validation
images; what it finds is trained on for an epoch, all layers at once, and then tested. Seconds are
of the whole network in eval mode on two threads, dense and factored in turns, one image and 16 at a
time. Writes bench/results/convolutions_speed.json and a picture, convolutions_speed.svg.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastfactor.torch import search_convolutions
from fastfactor.torch.measuring import seconds_of
from metrics import collected, write
from networks import NETWORKS, Images, trained
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/convolutions_speed.json"
LOSSES = (0.02, 0.05, 0.1)
N_VALIDATION, N_ROUNDS = 1000, 15
LEARNING_RATE, N_EPOCHS = 1e-3, 1


def main() -> None:
    torch.set_num_threads(2)
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    images = Images(data, work)
    kept = work / "speed.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for name in NETWORKS:
        model = trained(name, data, work, images)
        statistics = collected(model, images)["covariance"]
        dense = images.quality(model, "test")
        for max_loss in LOSSES:
            if (name, max_loss) in {(row["network"], row["max_loss"]) for row in rows}:
                continue
            found = search_convolutions(
                model,
                torch.randn(16, 3, 32, 32),
                lambda other: images.quality(other, "validation", N_VALIDATION),
                max_loss,
                statistics=statistics,
                folder=work / f"search-{name}",
                progress=lambda line: print(line, flush=True),
            )
            print(found.to_text(), flush=True)
            began = time.perf_counter()
            tuned = trained_on(copy.deepcopy(found.model), images)
            rows.append(
                {
                    "network": name,
                    "max_loss": max_loss,
                    "compressors": {n: f"{each!r}" for n, each in found.compressors.items()},
                    "accuracy_dense": dense,
                    "accuracy_before": images.quality(found.model, "test"),
                    "accuracy": images.quality(tuned, "test"),
                    "seconds_of_training": round(time.perf_counter() - began),
                    "bytes_dense": sum(p.nbytes for p in model.parameters()),
                    "bytes": sum(p.nbytes for p in tuned.parameters()),
                    "seconds": timed(model, tuned),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            write(kept, json.dumps(rows))
    head = json.dumps(describe(), indent=1).removesuffix("\n}")
    lines = ",\n".join(map(json.dumps, rows))
    write(RESULTS, f'{head},\n "threads": 2,\n "rows": [\n{lines}\n]}}\n')


def trained_on(model: nn.Module, images: Images) -> nn.Module:
    """Train all of a network for some steps, whose size falls to 0."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    n_steps = N_EPOCHS * images.per_epoch
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / n_steps)
        x, y = images.batch(type(model), step, seed=1)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def timed(dense: nn.Module, factored: nn.Module) -> dict[str, list[float]]:
    """Milliseconds of the dense network and of the factored one, by images at a time."""
    found = {}
    for batch in (1, 16):
        x = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            both = seconds_of([lambda x=x: dense(x), lambda x=x: factored(x)], N_ROUNDS)
        found[str(batch)] = [round(1e3 * each, 3) for each in both]
    return found


if __name__ == "__main__":
    main()

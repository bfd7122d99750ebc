"""Whole networks made faster: a search, training on, and measured seconds before and after.

    python bench/experiments/convolutions/speed.py CIFAR10 WORK [NETWORK...]

As metrics.py. For each network the search gets several allowed losses of accuracy on some
validation images; what it finds is trained on for some steps, all layers at once, and then tested.
Errors of ResNet-20's factors count by the covariances of inputs, those of the other network, whose
covariances have 3,200 columns, as sums of squares. Seconds are
of the whole network in eval mode, dense and factored in turns, one image and 16 at a time, with one
thread and two. Both networks run with channels before places in memory and after them, and the
faster of the two counts. A run that was stopped goes on. Writes
bench/results/convolutions_speed.json.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastfactor.methods import ConvBicluster, ConvCP, ConvMonochromatic, ConvSeparable, ConvSVD
from fastfactor.torch import collect_statistics, search_convolutions
from fastfactor.torch.measuring import seconds_of
from metrics import N_STATISTICS, write
from networks import CROP, NETWORKS, Images, as_input, trained
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/convolutions_speed.json"
LOSSES = {"large": (0.1, 0.3, 0.02), "resnet20": (0.05, 0.02, 0.1)}
RATIOS = {"large": (3, 4, 6, 8), "resnet20": (1.5, 3)}
KINDS = {"large": (ConvSVD, ConvSeparable, ConvBicluster), "resnet20": (ConvSVD, ConvSeparable)}
N_VALIDATION, N_ROUNDS = 1000, 15
LEARNING_RATE = 1e-3
N_STEPS = {"large": 351, "resnet20": 120}  # for the first an epoch
FORMATS = (torch.contiguous_format, torch.channels_last)


def main() -> None:
    torch.set_num_threads(1)
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    images = Images(data, work)
    for name in sys.argv[3:] or NETWORKS:
        model = trained(name, data, work, images)
        dense = images.quality(model, "test")
        for max_loss in LOSSES[name]:
            kept = work / f"speed-{name}-{max_loss}.json"
            if not kept.exists():
                row = row_of(name, model, max_loss, images, work)
                write(kept, json.dumps(row | {"accuracy_dense": dense}))
            print(kept.read_text(), flush=True)
            lines = ",\n".join(each.read_text() for each in sorted(work.glob("speed-*.json")))
            head = json.dumps(describe(), indent=1).removesuffix("\n}")
            write(RESULTS, f'{head},\n "rows": [\n{lines}\n]}}\n')


def row_of(
    name: str, model: nn.Module, max_loss: float, images: Images, work: Path
) -> dict[str, Any]:
    """What a search finds for an allowed loss, trained on and measured."""
    x = as_input(images.train[0][:N_STATISTICS], type(model))
    found = search_convolutions(
        model.to(memory_format=torch.contiguous_format),
        torch.randn(16, 3, 32, 32),
        lambda other: images.quality(other, "validation", N_VALIDATION),
        max_loss,
        candidates=candidates(name, model),
        statistics=collect_statistics(model, [x]) if name == "resnet20" else None,
        folder=work / f"search-{name}",
        progress=lambda line: print(line, flush=True),
    )
    print(found.to_text(), flush=True)
    began = time.perf_counter()
    tuned = trained_on(copy.deepcopy(found.model), images, name)
    took = time.perf_counter() - began
    return {
        "network": name,
        "max_loss": max_loss,
        "chosen": {row.name: row.method for row in found.rows if row.chosen},
        "accuracy_before": images.quality(found.model, "test"),
        "accuracy": images.quality(tuned, "test"),
        "seconds_of_training": round(took),
        "bytes_dense": sum(p.nbytes for p in model.parameters()),
        "bytes": sum(p.nbytes for p in tuned.parameters()),
        "milliseconds": [
            {"threads": threads, "images": batch} | timed(model, tuned, threads, batch)
            for threads in (1, 2)
            for batch in (1, 16)
        ],
    }


def candidates(name: str, model: nn.Module) -> dict[str, list[Any]]:
    """Methods at several ratios for each convolution, by the name of its weight."""
    found, ratios = {}, RATIOS[name]
    for layer, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.in_channels == 3:
            colors = [ConvMonochromatic(n_colors=n) for n in (4, 8, 16)]
            found[f"{layer}.weight"] = [*colors, *(k(ratio=2) for k in (ConvSVD, ConvSeparable))]
            continue
        own = [kind(ratio=ratio) for kind in KINDS[name] for ratio in ratios]
        if name == "large":  # one, as hundreds of outer products take a minute
            own.append(ConvCP(ratio=ratios[1]))
        found[f"{layer}.weight"] = own
    return found


def trained_on(model: nn.Module, images: Images, name: str) -> nn.Module:
    """Train all of a network for some steps, whose size falls to 0."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    n_steps, crop = N_STEPS[name], CROP if name == "large" else 32
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / n_steps)
        x, y = images.batch(type(model), step, seed=1, crop=crop)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def timed(dense: nn.Module, factored: nn.Module, threads: int, batch: int) -> dict[str, float]:
    """Milliseconds of both networks, each in the format in which it is faster."""
    x = torch.randn(batch, 3, 32, 32)
    runs = [
        (copy.deepcopy(model).to(memory_format=form), x.contiguous(memory_format=form))
        for model in (dense, factored)
        for form in FORMATS
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        seconds = seconds_of([lambda run=run: run[0](run[1]) for run in runs], N_ROUNDS)
    torch.set_num_threads(before)
    best = [1e3 * min(seconds[:2]), 1e3 * min(seconds[2:])]
    return {"dense": round(best[0], 3), "factored": round(best[1], 3)}


if __name__ == "__main__":
    main()

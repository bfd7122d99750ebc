"""Accuracy of networks whose convolutions are factored under several metrics, not trained on.

    python bench/experiments/convolutions/metrics.py CIFAR10 WORK

CIFAR10 is the folder with train.npz, test.npz and resnet20.safetensors, WORK one for working files:
it is here that the networks are trained, some ten minutes on one processor, if they are not there
yet. Ranks are equal for all metrics: those that the sum of squares gives at a ratio. All
convolutions but the first are factored, all by one method. A run that was stopped goes on. Writes
bench/results/convolutions_metrics.json.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastfactor.methods import ConvBicluster, ConvCP, ConvMethod, ConvSeparable, ConvSVD
from fastfactor.torch import Statistics, collect_statistics, insert_factors, wrong_class_losses
from networks import NETWORKS, Images, as_input, trained
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/convolutions_metrics.json"
RATIOS = {"large": (4.0, 8.0), "resnet20": (1.5, 2.0)}
METHODS = {
    "ConvSVD": lambda ratio: ConvSVD(ratio=ratio),
    "ConvCP": lambda ratio: ConvCP(ratio=ratio),
    "ConvSeparable": lambda ratio: ConvSeparable(ratio=ratio),
    "ConvBicluster": lambda ratio: ConvBicluster(ratio=ratio),
}
METRICS = ("squares", "covariance", "Fisher", "wrong classes")
N_STATISTICS, N_TEST = 256, 2000


def main() -> None:
    torch.set_num_threads(1)
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    images = Images(data, work)
    kept = work / "metrics.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    done = {(row["network"], row["method"], row["ratio"]) for row in rows}
    for network in NETWORKS:
        model = trained(network, data, work, images)
        print(network, images.quality(model, "test"), flush=True)
        statistics = collected(model, images)
        for name, make in METHODS.items():
            for ratio in RATIOS[network]:
                if (network, name, ratio) in done:
                    continue
                began = time.perf_counter()
                row = {"network": network, "method": name, "ratio": ratio}
                row |= measured(model, make(ratio), statistics, images)
                row["seconds"] = round(time.perf_counter() - began, 1)
                rows.append(row)
                print(json.dumps(row), flush=True)
                write(kept, json.dumps(rows))
        dense = {"network": network, "method": None, "n_images": N_TEST}
        if dense["network"] not in {row["network"] for row in rows if row["method"] is None}:
            rows.append(dense | {"accuracy": {"dense": images.quality(model, "test", N_TEST)}})
            write(kept, json.dumps(rows))
    head = json.dumps(describe(), indent=1).removesuffix("\n}")
    lines = ",\n".join(map(json.dumps, rows))
    write(RESULTS, f'{head},\n "rows": [\n{lines}\n]}}\n')


def collected(model: nn.Module, images: Images) -> dict[str, Statistics]:
    """What errors may count by, from some training images."""
    x = as_input(images.train[0][:N_STATISTICS], type(model))
    y = torch.tensor(images.train[1][:N_STATISTICS]).long()
    losses = {
        "Fisher": lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
        "wrong classes": lambda model, batch: wrong_class_losses(model(batch[0]), batch[1]),
    }
    found = {"covariance": collect_statistics(model, list(x.split(32)))}
    for name, loss in losses.items():
        batches = list(zip(x.split(32), y.split(32), strict=True))
        targets = weights_of(model)
        found[name] = collect_statistics(model, batches, loss, targets=targets)
    return found


def weights_of(model: nn.Module) -> list[str]:
    """The weights of all convolutions but the first."""
    names = [n for n, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [f"{name}.weight" for name in names[1:]]


def measured(
    model: nn.Module, method: ConvMethod, statistics: dict[str, Statistics], images: Images
) -> dict[str, Any]:
    weights = {name: model.get_parameter(name).detach().numpy() for name in weights_of(model)}
    plain = {name: method.compress(W) for name, W in weights.items()}
    parameter = method.parameter
    settings = {
        name: type(method)(**{parameter: getattr(found, "rank", None) or rank_of(found, parameter)})
        for name, found in plain.items()
    }
    accuracy, errors = {}, {}
    for metric in METRICS:
        factors = plain
        if metric != "squares":
            factors = {
                name: settings[name].compress(W, **given(statistics[metric], metric, name))
                for name, W in weights.items()
            }
        network = insert_factors(copy.deepcopy(model), factors).eval()
        accuracy[metric] = images.quality(network, "test", N_TEST)
        errors[metric] = float(
            np.mean([f.error(weights[n].reshape(len(weights[n]), -1)) for n, f in factors.items()])
        )
    return {"accuracy": accuracy, "plain_error": errors}


def rank_of(factors: Any, parameter: str) -> Any:
    """The ranks of factors, as the settings take them."""
    return factors.ranks if parameter == "ranks" else factors.ranks[1]


def given(statistics: Statistics, metric: str, name: str) -> dict[str, Any]:
    if metric == "covariance":
        return {"input_covariance": statistics.input_covariance[name]}
    return {"importance": statistics.importance[name].reshape(len(statistics.importance[name]), -1)}


def write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()

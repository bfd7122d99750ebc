"""Accuracy of networks whose convolutions are factored under several metrics, not trained on.

    python bench/experiments/convolutions/metrics.py CIFAR10 WORK [NETWORK...]

CIFAR10 is the folder with train.npz, test.npz and resnet20.safetensors, WORK one for working files:
it is here that the networks are trained, some ten minutes on one processor, if they are not there
yet. Ranks are equal for all metrics: those that the sum of squares gives at a ratio. All
convolutions but the first are factored, all by one method. "Damped" importances have their mean
added (`Statistics.damped`). A run that was stopped goes on. Writes
bench/results/convolutions_metrics.json after each measurement.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastfactor.methods import (
    ConvBicluster,
    ConvCP,
    ConvCPFactors,
    ConvMethod,
    ConvSeparable,
    ConvSVD,
)
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
METRICS = (
    "squares",
    "covariance",
    "Fisher",
    "Fisher, damped",
    "wrong classes",
    "wrong classes, damped",
)
N_STATISTICS, N_TEST = 256, 2000


def main() -> None:
    torch.set_num_threads(1)
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    images = Images(data, work)
    kept = work / "metrics.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for network in sys.argv[3:] or NETWORKS:
        model = trained(network, data, work, images)
        statistics = collected(model, images)
        epochs = NETWORKS[network].n_epochs
        what = {"network": network, "method": None, "n_images": N_TEST, "epochs": epochs}
        dense = row_of(rows, what)
        if "dense" not in dense["accuracy"]:
            dense["accuracy"]["dense"] = images.quality(model, "test", N_TEST)
        for name, make in METHODS.items():
            for ratio in RATIOS[network]:
                row = row_of(rows, {"network": network, "method": name, "ratio": ratio})
                for metric, accuracy, error in measured(
                    model, make(ratio), statistics, images, row
                ):
                    row["accuracy"][metric], row["plain_error"][metric] = accuracy, error
                    print(network, name, ratio, metric, accuracy, flush=True)
                    write(kept, json.dumps(rows))
                    write(RESULTS, text_of(rows))


def row_of(rows: list[dict[str, Any]], what: dict[str, Any]) -> dict[str, Any]:
    """The row of these values, which is made if there is none."""
    for row in rows:
        if all(row.get(name) == value for name, value in what.items()):
            return row
    rows.append(what | {"accuracy": {}, "plain_error": {}})
    return rows[-1]


def text_of(rows: list[dict[str, Any]]) -> str:
    head = json.dumps(describe(), indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows if row["accuracy"])
    return f'{head},\n "rows": [\n{lines}\n]}}\n'


def collected(model: nn.Module, images: Images) -> dict[str, Statistics]:
    """What errors may count by, from some training images, by the metric."""
    x = as_input(images.train[0][:N_STATISTICS], type(model))
    y = torch.tensor(images.train[1][:N_STATISTICS]).long()
    batches = list(zip(x.split(32), y.split(32), strict=True))

    def found(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Statistics:
        return collect_statistics(
            model, batches, lambda m, batch: loss(m(batch[0]), batch[1]), targets=weights_of(model)
        )

    fisher, wrong = found(functional.cross_entropy), found(wrong_class_losses)
    return {
        "covariance": fisher,
        "Fisher": fisher,
        "Fisher, damped": fisher.damped(),
        "wrong classes": wrong,
        "wrong classes, damped": wrong.damped(),
    }


def weights_of(model: nn.Module) -> list[str]:
    """The weights of all convolutions but the first."""
    names = [n for n, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [f"{name}.weight" for name in names[1:]]


def measured(
    model: nn.Module,
    method: ConvMethod,
    statistics: dict[str, Statistics],
    images: Images,
    row: dict[str, Any],
) -> Iterator[tuple[str, float, float]]:
    """Each metric that a row lacks, the accuracy, and the mean of the relative plain errors."""
    missing = [metric for metric in METRICS if metric not in row["accuracy"]]
    if not missing:
        return
    weights = {name: model.get_parameter(name).detach().numpy() for name in weights_of(model)}
    plain = {name: method.compress(W) for name, W in weights.items()}
    settings = {
        name: type(method)(**{method.parameter: rank_of(found, method.parameter)})
        for name, found in plain.items()
    }
    for metric in missing:
        factors = plain
        if metric != "squares":
            factors = {
                name: settings[name].compress(W, **given(statistics[metric], metric, name))
                for name, W in weights.items()
            }
        network = insert_factors(copy.deepcopy(model), factors).eval()
        errors = [f.error(weights[n].reshape(len(weights[n]), -1)) for n, f in factors.items()]
        yield metric, images.quality(network, "test", N_TEST), float(np.mean(errors))


def rank_of(factors: Any, parameter: str) -> Any:
    """The ranks of factors, as the settings take them."""
    return factors.ranks[1] if isinstance(factors, ConvCPFactors) else getattr(factors, parameter)


def given(statistics: Statistics, metric: str, name: str) -> dict[str, Any]:
    if metric == "covariance":
        return {"input_covariance": statistics.input_covariance[name]}
    return {"importance": statistics.importance[name]}


def write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()

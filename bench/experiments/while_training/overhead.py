"""What compressing costs beside the training step: before, while the weight fades out, and after.

    python bench/experiments/while_training/overhead.py --cifar10 FOLDER --text FILE --folder WORK

Steps of two models take turns on one thread, and their processor times are compared: before a
weight is factored, the compressed model with a plain one; afterwards, with one that calls the same
products of the same factors by itself, with nothing around them. Then the seconds in which
embeddings of 10,000 × 650 are factored. Writes bench/results/while_training_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import Cifar
from fastfactor.adapters import TorchNamespace
from fastfactor.methods import Codebook, Dictionary, Factors, LowRank, Method, Prune
from fastfactor.torch import apply_compression
from fastfactor.training import Schedule
from language import Language
from torch import nn
from torch.nn import functional
from training import Task, Training, factors_of

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/while_training_overhead.json"
PAIRS, WARM_UP = 100, 3
ALPHA_STEPS = 10_000  # so slow that α falls at every step, and is not 0 before the last pair
METHODS: dict[str, Method] = {
    "low rank": LowRank(ratio=15.2),
    "k-means": Codebook(ratio=15.2),
    "pruning": Prune(ratio=15.2),
}
EMBEDDING = (10_000, 650)
DICTIONARIES: tuple[dict[str, int], ...] = (  # the last with whole rows for atoms
    {"n_nonzero_coefs": 3},
    {"n_nonzero_coefs": 1, "block_size": 10, "n_atoms": 128},
    {"n_nonzero_coefs": 3, "block_size": 65, "n_atoms": 128},
    {"n_nonzero_coefs": 10, "block_size": 650, "n_atoms": 256},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="train.npz and test.npz")
    parser.add_argument("--text", type=Path, required=True, help="the novels, in one file")
    parser.add_argument("--folder", type=Path, required=True, help="for decoded images")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    language = Language(args.text, args.folder, 0)
    rows = []
    for task in (Cifar(args.cifar10, args.folder, 0), language):
        rows.append({"task": task.name, "stage": "before"} | before(task))
        print(rows[-1], flush=True)
    for name, method in METHODS.items():
        for stage in ("blended", "after"):
            row = {"task": language.name, "stage": stage, "method": name}
            rows.append(row | beside_products(language, method, stage))
            print(rows[-1], flush=True)
    factoring = [
        factored(kind, settings) for kind in ("trained", "random") for settings in DICTIONARIES
    ]
    lines = [",\n".join(map(json.dumps, part)) for part in (rows, factoring)]
    head = json.dumps(describe() | {"threads": 1, "pairs": PAIRS}, indent=1).removesuffix("\n}")
    text = f'{head},\n "steps": [\n{lines[0]}\n],\n "factoring": [\n{lines[1]}\n]}}\n'
    args.json.write_text(text, encoding="utf-8")


def before(task: Task) -> dict[str, Any]:
    """A model whose compression has not begun, and one without compression."""
    plain, other = Training(task), Training(task)
    compression = apply_compression(
        other.model, dict.fromkeys(task.targets, LowRank(ratio=8)), Schedule(begin=10**9)
    )
    return compared(stepper(plain), stepper(other, compression.step))


def beside_products(task: Language, method: Method, stage: str) -> dict[str, Any]:
    """A compressed model, and one that has the products alone."""
    training = Training(task)
    schedule = Schedule(begin=0, frequency=1, alpha_decrement=1 / ALPHA_STEPS)
    compression = apply_compression(
        training.model,
        dict.fromkeys(task.targets, method),
        schedule if stage == "blended" else None,
    )
    compression.track(training.optimizer)
    compression.step()
    bare = Training(task)
    for name in task.targets:
        layer = bare.model.get_submodule(name)
        factors = method.compress(layer.weight.detach().numpy())
        kind = BareEmbedding if isinstance(layer, nn.Embedding) else BareLinear
        setattr(bare.model, name, kind(layer, factors, blended=stage == "blended"))
    bare.optimizer = torch.optim.Adam(
        [{"params": list(bare.model.parameters()), "share": 1.0}], fused=True
    )
    numbers = [sum(p.numel() for p in each.model.parameters()) for each in (bare, training)]
    assert numbers[0] == numbers[1], numbers
    assert factors_of(compression)
    return compared(stepper(bare), stepper(training, compression.step))


class BareProducts(nn.Module):
    """The factors of a layer, and its weight while they are blended."""

    def __init__(self, layer: Any, factors: Factors, *, blended: bool) -> None:
        super().__init__()
        self.factors, self.xp = factors, TorchNamespace()
        self.weight = layer.weight if blended else None
        self.bias = getattr(layer, "bias", None)
        self.alpha = torch.tensor(0.9)
        self.names = tuple(factors.trainable)
        for name in self.names:
            tensor = torch.tensor(factors.tensors()[name], dtype=torch.float32)
            self.register_parameter(f"factor_{name}", nn.Parameter(tensor))

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, f"factor_{name}") for name in self.names}

    def blended(self, y: torch.Tensor, dense: Callable[[nn.Parameter], torch.Tensor]) -> Any:
        if self.weight is None:
            return y
        return self.alpha * dense(self.weight) + (1 - self.alpha) * y


class BareLinear(BareProducts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.factors.forward(self.xp, self.trained(), x)
        return self.blended(y, lambda weight: functional.linear(x, weight)) + self.bias


class BareEmbedding(BareProducts):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.factors.forward_rows(self.xp, self.trained(), ids)
        return self.blended(rows, lambda weight: functional.embedding(ids, weight))


def stepper(training: Training, after: Callable[[], object] = int) -> Callable[[int], float]:
    """A function that does a step and returns its loss."""

    def one(step: int) -> float:
        training.run(range(step, step + 1), after=lambda _: after())
        return training.losses[-1]

    return one


def compared(one: Callable[[int], float], other: Callable[[int], float]) -> dict[str, Any]:
    """Medians of both, taking turns; the median ratio of neighbours, and its 95 % interval."""
    times: list[tuple[float, float]] = []
    for step in range(WARM_UP + PAIRS):
        pair = {}
        order = ("one", "other") if step % 2 else ("other", "one")
        for name in order:
            began = time.process_time()
            (one if name == "one" else other)(step)
            pair[name] = time.process_time() - began
        if step >= WARM_UP:
            times.append((pair["one"], pair["other"]))
    medians = [1e3 * statistics.median(each) for each in zip(*times, strict=True)]
    ratios = sorted(b / a for a, b in times)
    reach = math.sqrt(len(ratios))  # places from the middle: two standard deviations of a binomial
    first, last = math.floor(len(ratios) / 2 - reach), math.ceil(len(ratios) / 2 + reach) - 1
    return {
        "ms_without": round(medians[0], 3),
        "ms_with": round(medians[1], 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_interval": [round(ratios[first], 4), round(ratios[last], 4)],
    }


def factored(kind: str, settings: dict[str, int]) -> dict[str, Any]:
    """Seconds of a dictionary of an embedding whose singular values fall, or of random numbers."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal(EMBEDDING).astype(np.float32)
    if kind == "trained":
        W = W @ np.diag((1 + np.arange(EMBEDDING[1])) ** -0.5).astype(np.float32)
        W = W @ np.linalg.qr(rng.standard_normal((EMBEDDING[1],) * 2))[0].astype(np.float32)
    began, began_work = time.perf_counter(), time.process_time()
    factors = Dictionary(**settings).compress(W)
    row = {
        "matrix": kind,
        "settings": settings,
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(time.process_time() - began_work, 2),
        "error": round(factors.error(W), 4),
        "ratio": round(W.nbytes / factors.nbytes, 2),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()

"""Deep Compression of LeNet-300-100, trained on between its stages: bytes and test error.

    python bench/experiments/deep_compression.py FOLDER

FOLDER holds MNIST's four gzip files under their usual names. The packaged network is pruned in
steps to the shares that the paper keeps (Han, Mao and Dally, 2016), with training in between, its
weights are shared, the shared values are trained on, and what is left is coded. Errors are over all
10,000 test digits; the last one is that of the network as it is read from its file, multiplied
straight from the codes. Written to bench/results/deep_compression.json. Needs torch, safetensors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from fastfactor import store
from fastfactor.deep_compression import (
    DeepCompression,
    SharedWeights,
    compress_network,
    encode,
    prune,
    share,
)
from safetensors.numpy import load
from torch.nn import functional
from train_lenet import read_mnist, shift_digits

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("fc1", "fc2", "fc3")
BATCH = 128
LOCAL = ("folder", "json")  # arguments that change no result


@dataclass(frozen=True)
class Plan:
    """What to keep of each layer, at how many bits, and how long to train in between."""

    name: str
    kept: tuple[float, float, float]
    n_bits: int
    gap_bits: int | None  # None: whichever takes least
    codebook_dtype: str = "float32"
    plain_dtype: str = "float32"  # of biases


PAPER = Plan("as published: 8, 9, 26 % at 6 bits, gaps of 5", (0.08, 0.09, 0.26), 6, 5)
PLANS = (
    PAPER,
    replace(PAPER, name="the same, best gaps", gap_bits=None),
    replace(
        PAPER,
        name="the same, best gaps, float16 values and biases",
        gap_bits=None,
        codebook_dtype="float16",
        plain_dtype="float16",
    ),
    Plan("3, 7, 25 % at 4 bits", (0.03, 0.07, 0.25), 4, None, "float16", "float16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the four gzip IDX files of MNIST")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/deep_compression.json")
    parser.add_argument("--prune-steps", type=int, default=4)
    parser.add_argument("--prune-epochs", type=int, default=1, help="after each step but the last")
    parser.add_argument("--last-epochs", type=int, default=4, help="after the last step")
    parser.add_argument("--share-epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # layers are small; and the same bits on every machine of a kind
    data = {part: read_mnist(args.folder, part) for part in ("train", "t10k")}
    source = resources.files("fastfactor.demo") / "data/lenet-300-100.safetensors"
    tensors = load(source.read_bytes())

    pruned: dict[tuple[float, ...], dict[str, np.ndarray]] = {}
    lines = []
    for plan in PLANS:
        if plan.kept not in pruned:
            start = time.perf_counter()
            pruned[plan.kept] = prune_in_steps(dict(tensors), plan.kept, data, args)
            print(f"pruned in {time.perf_counter() - start:.0f} s", flush=True)
        line = run(plan, tensors, pruned[plan.kept], data, args)
        lines.append(line)
        print(
            f"{plan.name}: {line['file_bytes']} bytes, 1/{line['ratio']:.1f}, "
            f"error {line['errors']}",
            flush=True,
        )
    result = {
        "experiment": "Deep Compression of LeNet-300-100 on MNIST",
        "dense_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "test_digits": len(data["t10k"][1]),
        "settings": {name: value for name, value in vars(args).items() if name not in LOCAL},
        "plans": lines,
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n")


def run(plan, tensors, pruned, data, args):
    """One plan from the pruned network on: its errors, stage by stage, and its bytes."""
    settings = {
        name: DeepCompression(sparsity=1 - kept, n_bits=plan.n_bits, gap_bits=plan.gap_bits)
        for name, kept in zip(LAYERS, plan.kept, strict=True)
    }
    untrained = compress_network({name: tensors[f"{name}.weight"] for name in LAYERS}, settings)
    at_once = dict(tensors) | {
        f"{name}.weight": layer.to_dense() for name, layer in untrained.items()
    }
    shared = {
        name: share(
            pruned[f"{name}.weight"], n_bits=plan.n_bits, codebook_dtype=plan.codebook_dtype
        )
        for name in LAYERS
    }
    first = with_shared(pruned, shared)
    tuned, biases = tune_shared(shared, pruned, data, args)
    layers = {
        f"{name}.weight": encode(each, gap_bits=plan.gap_bits) for name, each in tuned.items()
    }
    plain = {f"{name}.bias": biases[f"{name}.bias"].astype(plan.plain_dtype) for name in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lenet.safetensors"
        store.save(path, {**layers, **plain}, compact=True)
        start = time.perf_counter()
        with store.open_store(path) as opened:
            network = dict(opened)
            file_bytes, payload_bytes = opened.file_nbytes, opened.payload_nbytes
        load_seconds = time.perf_counter() - start
    dense_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return {
        "plan": plan.name,
        "file_bytes": file_bytes,
        "payload_bytes": payload_bytes,
        "ratio": round(dense_bytes / file_bytes, 2),
        "errors": {
            "before": error_of(tensors, data),
            "all stages without training": error_of(at_once, data),
            "pruned and trained": error_of(pruned, data),
            "shared": error_of(first, data),
            "shared and trained, from the file": error_from_codes(network, data),
        },
        "load_milliseconds": round(1000 * load_seconds, 2),
        "rows": [rounded(row) for row in table_rows(network, file_bytes)],
    }


def table_rows(network, file_bytes):
    """A table as in the paper: a row for each layer, one for what is plain, the total."""
    coded = {name: each for name, each in network.items() if not isinstance(each, np.ndarray)}
    rows = [{"name": name, **each.sizes.as_row()} for name, each in coded.items()]
    plain = sum(each.nbytes for name, each in network.items() if name not in coded)
    rows.append({"name": "plain tensors", "bytes_dense": plain, "bytes": plain})
    rest = file_bytes - sum(row["bytes"] for row in rows)
    rows.append({"name": "names and header", "bytes_dense": 0, "bytes": rest})
    weights = sum(each.sizes.n_weights for each in coded.values())
    dense = sum(row["bytes_dense"] for row in rows)
    total = {
        "name": "total",
        "weights": weights,
        "kept": sum(each.sizes.n_kept for each in coded.values()) / weights,
        "bytes_dense": dense,
        "bytes_shared": sum(row.get("bytes_shared", row["bytes"]) for row in rows),
        "bytes": file_bytes,
        "share": file_bytes / dense,
    }
    return [*rows, total]


def prune_in_steps(tensors, kept, data, args):
    """Prune to shares that fall geometrically to those wanted, with training after each step."""
    for step in range(1, args.prune_steps + 1):
        masks = {
            name: prune(tensors[f"{name}.weight"], sparsity=1 - share ** (step / args.prune_steps))
            for name, share in zip(LAYERS, kept, strict=True)
        }
        epochs = args.prune_epochs if step < args.prune_steps else args.last_epochs
        tensors = train_masked(tensors, masks, data, epochs)
    return tensors


def train_masked(tensors, masks, data, epochs):
    """SGD with momentum, in which what is pruned stays zero."""
    weights = {name: torch.tensor(tensor, requires_grad=True) for name, tensor in tensors.items()}
    fixed = {f"{name}.weight": torch.tensor(mask) for name, mask in masks.items()}
    with torch.no_grad():
        for name, mask in fixed.items():
            weights[name] *= mask
    optimizer = torch.optim.SGD(weights.values(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in schedule(optimizer, 0.05, data, epochs, weights):
        optimizer.step()
        with torch.no_grad():
            for name, mask in fixed.items():
                weights[name] *= mask
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def tune_shared(shared, tensors, data, args):
    """Train the shared values, and the biases; codes and positions stay."""
    codebooks = {name: each.codebook.astype(np.float64) for name, each in shared.items()}
    speeds = {name: np.zeros_like(codebook) for name, codebook in codebooks.items()}
    biases = {
        f"{name}.bias": torch.tensor(tensors[f"{name}.bias"], requires_grad=True) for name in LAYERS
    }
    weights = dict(biases)
    for name in LAYERS:
        dense = torch.tensor(with_shared(tensors, shared)[f"{name}.weight"])
        weights[f"{name}.weight"] = dense.requires_grad_()
    rate = 1e-3
    optimizer = torch.optim.SGD(biases.values(), lr=rate, momentum=0.9)
    for step_rate in schedule(optimizer, rate, data, args.share_epochs, weights):
        optimizer.step()
        for name, each in shared.items():
            weight = weights[f"{name}.weight"]
            # Over the root of its size, so that a large cluster does not run away.
            counts = np.bincount(each.labels[each.mask], minlength=each.codebook.size)
            gradient = each.gradient(weight.grad.numpy()) / np.sqrt(np.maximum(counts, 1))
            speeds[name] = 0.9 * speeds[name] - step_rate * gradient
            codebooks[name] += speeds[name]
            now = SharedWeights(each.labels, codebooks[name].astype(np.float32), each.mask)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(now.to_dense()))
            weight.grad = None
    tuned = {
        name: SharedWeights(each.labels, codebooks[name].astype(each.codebook.dtype), each.mask)
        for name, each in shared.items()
    }
    return tuned, {name: bias.detach().numpy() for name, bias in biases.items()}


def schedule(optimizer, rate, data, epochs, weights):
    """After each batch's gradients, the rate of its step, falling to zero as a cosine."""
    images, labels = data["train"]
    x, y = torch.from_numpy(images).float().div_(255), torch.from_numpy(labels.astype(np.int64))
    n_batches = len(y) // BATCH
    total = epochs * n_batches
    for step in range(total):
        if step % n_batches == 0:
            order = torch.randperm(len(y))
        rows = order[step % n_batches * BATCH :][:BATCH]
        now = rate * 0.5 * (1 + np.cos(np.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = functional.cross_entropy(
            forward(weights, shift_digits(x[rows], 1).flatten(1)), y[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        yield now


def forward(weights, x):
    for name in LAYERS:
        x = functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        if name != LAYERS[-1]:
            x = functional.relu(x)
    return x


def with_shared(tensors, shared):
    """The network with its weights replaced by shared ones."""
    dense = {f"{name}.weight": each.to_dense().astype(np.float32) for name, each in shared.items()}
    return dict(tensors) | dense


def error_of(tensors, data):
    images, labels = data["t10k"]
    weights = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    with torch.no_grad():
        scores = forward(weights, torch.from_numpy(images).flatten(1).float().div_(255))
    return share_wrong(scores.numpy(), labels)


def error_from_codes(network, data):
    images, labels = data["t10k"]
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    for name in LAYERS:
        x = network[f"{name}.weight"].linear(x) + network[f"{name}.bias"].astype(np.float32)
        if name != LAYERS[-1]:
            x = np.maximum(x, 0)
    return share_wrong(x, labels)


def rounded(row):
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}


def share_wrong(scores, labels):
    return round(float((scores.argmax(axis=1) != labels).mean()), 4)


if __name__ == "__main__":
    main()

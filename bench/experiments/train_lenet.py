"""Train the network that the package carries: LeNet-300-100 on MNIST.

    python bench/experiments/train_lenet.py FOLDER

FOLDER holds MNIST's four gzip files under their usual names (train-images-idx3-ubyte.gz, …).
Written are the weights, 1,000 of the test digits and their checksums
(python/fastfactor/demo/data), and the result over all 10,000 test digits
(bench/results/train_lenet.json). Needs torch, safetensors.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SIZES = (784, 300, 100, 10)
DIGITS_KEPT = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the four gzip IDX files of MNIST")
    parser.add_argument("--data", type=Path, default=ROOT / "python/fastfactor/demo/data")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--shift", type=int, default=1, help="largest random shift, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--validate",
        action="store_true",
        help="train on the first 50,000 digits, print the error on the other 10,000, write nothing",
    )
    args = parser.parse_args()

    images, labels = read_mnist(args.folder, "train")
    if args.validate:
        held_out = (images[50_000:], labels[50_000:])
        network, _ = train(images[:50_000], labels[:50_000], args)
        print(f"validation error {1 - count_right(network, *held_out) / 10_000:.2%}")
        return

    test_images, test_labels = read_mnist(args.folder, "t10k")
    network, seconds = train(images, labels, args)
    right = count_right(network, test_images, test_labels)
    test_error = 1 - right / len(test_labels)
    print(f"test error {test_error:.2%} over {len(test_labels):,} digits, {seconds:.0f} s")

    args.data.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    # Every tenth test digit: the first 5,000 and the last 5,000 come from different groups of
    # writers and differ in difficulty, so that the first 1,000 would not speak for the whole.
    step = len(test_labels) // DIGITS_KEPT
    weights_file = args.data / "lenet-300-100.safetensors"
    digits_file = args.data / "mnist-test-1000.npz"
    save_weights(weights_file, network, f"{test_error:.4f}", len(test_labels))
    np.savez_compressed(digits_file, images=test_images[::step], labels=test_labels[::step])
    weights_file.chmod(0o644)  # safetensors makes it private, and a wheel keeps the mode
    sums = [f"{sha256(path)}  {path.name}\n" for path in (weights_file, digits_file)]
    (args.data / "SHA256SUMS").write_text("".join(sums))

    result = {
        "experiment": "LeNet-300-100 on MNIST",
        "test_digits": len(test_labels),
        "test_right": right,
        "test_error": round(test_error, 4),
        "packaged_digits": DIGITS_KEPT,
        "packaged_right": count_right(network, test_images[::step], test_labels[::step]),
        "seconds": round(seconds, 1),
        "settings": {
            name: getattr(args, name)
            for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "shift", "seed")
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    (args.results / "train_lenet.json").write_text(json.dumps(result, indent=2) + "\n")


def train(
    images: np.ndarray, labels: np.ndarray, args: argparse.Namespace
) -> tuple[nn.Sequential, float]:
    """SGD with momentum, weight decay and random shifts; returns (network, seconds)."""
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    network = nn.Sequential(
        nn.Linear(SIZES[0], SIZES[1]), nn.ReLU(),
        nn.Linear(SIZES[1], SIZES[2]), nn.ReLU(),
        nn.Linear(SIZES[2], SIZES[3]),
    )  # fmt: skip
    x = torch.from_numpy(images).float().div_(255)
    y = torch.from_numpy(labels.astype(np.int64))
    n_batches = len(y) // args.batch_size
    optimizer = torch.optim.SGD(
        network.parameters(), lr=args.learning_rate, momentum=0.9, nesterov=True,
        weight_decay=args.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.epochs * n_batches, pct_start=0.1
    )
    loss_function = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for epoch in range(args.epochs):
        total = 0.0
        for rows in torch.randperm(len(y)).split(args.batch_size)[:n_batches]:
            batch = shift_digits(x[rows], args.shift).flatten(1)
            loss = loss_function(network(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{args.epochs}  training loss {total / n_batches:.4f}", flush=True)
    return network, time.perf_counter() - start


def shift_digits(digits: torch.Tensor, largest: int) -> torch.Tensor:
    """(n, 28, 28): each digit moved by its own whole number of pixels, up to `largest` each way."""
    n, height, width = digits.shape
    padded = nn.functional.pad(digits, (largest,) * 4)
    rows, columns = torch.randint(0, 2 * largest + 1, (2, n, 1, 1))
    return padded[
        torch.arange(n).view(n, 1, 1),
        rows + torch.arange(height).view(1, height, 1),
        columns + torch.arange(width).view(1, 1, width),
    ]


@torch.no_grad()
def count_right(network: nn.Sequential, images: np.ndarray, labels: np.ndarray) -> int:
    x = torch.from_numpy(images).flatten(1).float().div_(255)
    return int((network(x).argmax(1).numpy() == labels).sum())


def save_weights(path: Path, network: nn.Sequential, test_error: str, n_test: int) -> None:
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    tensors = {}
    for number, layer in enumerate(layers, start=1):
        tensors[f"fc{number}.weight"] = layer.weight.detach().numpy()
        tensors[f"fc{number}.bias"] = layer.bias.detach().numpy()
    save_file(
        tensors,
        path,
        metadata={
            "model": "LeNet-300-100: 784-300-100-10, ReLU, input = pixel / 255",
            "trained_on": "MNIST, 60,000 training digits",
            "test_error": f"{test_error} over {n_test:,} test digits",
            "made_by": "bench/experiments/train_lenet.py",
            "license": "Apache-2.0",
        },
    )


def read_mnist(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits (n, 28, 28) and labels (n,), both uint8, of the part "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", n_axes=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", n_axes=1)
    if images.shape != (len(labels), 28, 28):
        raise ValueError(f"{part}: {images.shape} digits do not go with {labels.shape} labels")
    return images, labels


def read_idx(path: Path, n_axes: int) -> np.ndarray:
    """IDX: two zero bytes, 8 for uint8, the number of axes, each length (big-endian), values."""
    content = gzip.decompress(path.read_bytes())
    if content[:4] != bytes([0, 0, 8, n_axes]):
        raise ValueError(f"{path} must be an IDX file of uint8 with {n_axes} axes")
    shape = np.frombuffer(content, ">u4", count=n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape).copy()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

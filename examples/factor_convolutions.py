"""Train a network with convolutions of 5 × 5 that reads digits, and make it faster and smaller.

    pip install "fastfactor[torch]"
    python examples/factor_convolutions.py

A search tries factors of each convolution, by measured times and by what the network loses; what it
finds is trained on for a while. Of the 1,000 digits that the package carries 800 are trained on.
"""

import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from fastfactor.methods import ConvCP, ConvSeparable, ConvSVD
from fastfactor.torch import apply_compression, collect_statistics, search_convolutions

BATCH, N_TRAIN, MAX_LOSS = 50, 800, 0.05


def main() -> None:
    torch.manual_seed(0)
    x, y = digits()
    model = new_model()
    train(model, x, y, n_epochs=6)
    print(f"dense: {accuracy(model, x, y):.1%} right")

    found = search_convolutions(
        model,
        x[:16],
        lambda other: accuracy(other, x, y),
        MAX_LOSS,
        candidates=[
            method(ratio=ratio) for method in (ConvSVD, ConvCP, ConvSeparable) for ratio in (3, 6)
        ],
        statistics=collect_statistics(model, [x[:200]]),
        ignore="0",
    )
    print(found.to_text())

    compression = apply_compression(model, found.compressors or {"3": ConvSVD(ratio=4)})
    compression.step()
    train(model, x, y, n_epochs=2)
    print(f"factored and trained on: {accuracy(model, x, y):.1%} right")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        compression.to_store(path)
        n_dense = sum(p.nbytes for p in new_model().parameters())
        print(f"file: {path.stat().st_size:,} bytes, {n_dense:,} of dense weights")


def new_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 64, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 7 * 7, 10),
    )


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = resources.files("fastfactor.demo") / "data" / "mnist-test-1000.npz"
    with resources.as_file(data) as path, np.load(path) as file:
        images, labels = file["images"].reshape(1000, 1, 28, 28), file["labels"]
    return torch.tensor(images).float() / 255, torch.tensor(labels).long()


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, n_epochs: int) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(n_epochs):
        for batch in torch.randperm(N_TRAIN).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of the digits not trained on that the model reads right."""
    return float((model(x[N_TRAIN:]).argmax(1) == y[N_TRAIN:]).float().mean())


if __name__ == "__main__":
    main()

"""Train a network that reads digits, compress it while it trains, save it, load it and time it.

    pip install "fastfactor[torch]"
    python examples/compress_while_training.py

Of the 1,000 digits that the package carries it trains on 800 and is tested on the others.
"""

import statistics
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from fastfactor.methods import Codebook, LowRank
from fastfactor.torch import apply_compression, load_compressed
from fastfactor.training import Schedule

EPOCHS, BATCH, N_TRAIN = 40, 50, 800


def main() -> None:
    torch.manual_seed(0)
    x, y = digits()
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    compression = apply_compression(
        model,
        {"0": LowRank(ratio=8), "2": Codebook(n_bits=4)},
        Schedule.over(EPOCHS * N_TRAIN // BATCH, begin=0.3, end=0.5),
    )
    for epoch in range(EPOCHS):
        for batch in torch.randperm(N_TRAIN).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            compression.step()
        if epoch % 8 == 7:
            stages = {name: state["stage"] for name, state in compression.state().items()}
            print(f"epoch {epoch + 1}: {accuracy(model, x, y):.1%} right, {stages}")

    dense = new_model()
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.safetensors", Path(folder) / "large.pt"
        compression.to_store(small)
        torch.save(dense.state_dict(), large)
        loaded = load_compressed(new_model(), small)
        print(f"files: {small.stat().st_size:,} bytes, {large.stat().st_size:,} if it were dense")
    print(f"loaded: {accuracy(loaded, x, y):.1%} right")
    for name, each in (("dense", dense), ("compressed", loaded)):
        print(f"one digit by the {name} network: {microseconds(each, x[:1]):.0f} µs")


def new_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(784, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = resources.files("fastfactor.demo") / "data" / "mnist-test-1000.npz"
    with resources.as_file(data) as path, np.load(path) as file:
        images, labels = file["images"].reshape(1000, 784), file["labels"]
    return torch.tensor(images).float() / 255, torch.tensor(labels).long()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of the digits not trained on that the model reads right."""
    return float((model(x[N_TRAIN:]).argmax(1) == y[N_TRAIN:]).float().mean())


@torch.no_grad()
def microseconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the median time of a call."""
    model.eval()
    samples = []
    for _ in range(200):
        began = time.perf_counter()
        model(x)
        samples.append(time.perf_counter() - began)
    return 1e6 * statistics.median(samples)


if __name__ == "__main__":
    main()

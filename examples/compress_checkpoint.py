"""Compress the checkpoint that the package carries, and count digits read right before and after.

python examples/compress_checkpoint.py [RATIO]
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

import fastfactor
import numpy as np
from fastfactor import store

DATA = resources.files("fastfactor.demo") / "data"


def main(ratio: float = 8.0) -> None:
    recipe = {"default": {"method": "entropy_coded", "ratio": ratio}}
    packaged = resources.as_file(DATA / "lenet-300-100.safetensors")
    with packaged as model, tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.safetensors"
        report = fastfactor.compress_file(model, small, recipe)
        print(report.table().to_text())
        print(f"{digits_right(model)} of 1,000 digits right before")
        print(f"{digits_right(small)} of 1,000 digits right after")


def digits_right(path: Path) -> int:
    """How many of the packaged digits the network in a file reads, compressed or not."""
    with resources.as_file(DATA / "mnist-test-1000.npz") as file, np.load(file) as digits:
        x = digits["images"].reshape(1000, 784).astype(np.float32) / 255
        labels = digits["labels"]
    with store.open_store(path) as net:
        for layer in ("fc1", "fc2"):
            x = np.maximum(linear(net[f"{layer}.weight"], x) + net[f"{layer}.bias"], 0)
        scores = linear(net["fc3.weight"], x) + net["fc3.bias"]
    return int((scores.argmax(axis=1) == labels).sum())


def linear(weight, x):
    """Return x @ W.T for a W that is an array or factors."""
    return x @ weight.T if isinstance(weight, np.ndarray) else weight.linear(x)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))

"""CIFAR-10 and a small convolutional network: what is compressed, and how good it is.

The images come as JPEG bytes in one array, with the offset of each: train.npz and test.npz of a
folder. They are decoded once, by Pillow. The last 5,000 of the training images are for validation.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

N_TRAIN, BATCH = 45_000, 128
BATCHES_AN_EPOCH = N_TRAIN // BATCH


class Cifar:
    """The task: its data, its model, its loss at a step."""

    name = "cifar10"
    measure = "accuracy"
    n_steps = 4 * BATCHES_AN_EPOCH
    learning_rate = 4e-3
    max_norm = None  # of gradients
    targets = ("conv3", "fc1")

    def __init__(self, source: Path, cache: Path, seed: int) -> None:
        self.seed = seed
        train, test = (decoded(source / f"{part}.npz", cache) for part in ("train", "test"))
        self.train = tuple(a[:N_TRAIN] for a in train)
        self.parts = {"validation": tuple(a[N_TRAIN:] for a in train), "test": test}
        self._order: tuple[int, Any] = (-1, None)

    def new_model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Network().to(memory_format=torch.channels_last)

    def loss(self, model: nn.Module, step: int, carry: Any) -> tuple[torch.Tensor, Any]:
        epoch, at = divmod(step, BATCHES_AN_EPOCH)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, (rng.permutation(N_TRAIN), rng.random(N_TRAIN) < 0.5)
        order, flips = self._order[1]
        batch = slice(at * BATCH, (at + 1) * BATCH)
        images, labels = (array[order[batch]] for array in self.train)
        images = np.where(flips[batch, None, None, None], images[:, :, ::-1], images)
        return functional.cross_entropy(model(as_input(images)), torch.tensor(labels).long()), carry

    def quality(self, model: nn.Module, part: str) -> float:
        """The share of images that are classified correctly."""
        images, labels = self.parts[part]
        model.eval()
        with torch.no_grad():
            found = [
                model(as_input(images[at : at + 500])).argmax(1).numpy()
                for at in range(0, len(images), 500)
            ]
        model.train()
        return float((np.concatenate(found) == labels).mean())


class Network(nn.Module):
    """Three convolutions and two linear layers, 252,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(48)
        self.conv3 = nn.Conv2d(48, 96, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(96)
        self.fc1 = nn.Linear(96 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(functional.max_pool2d(self.conv2(x), 2)))
        x = functional.relu(self.norm3(functional.max_pool2d(self.conv3(x), 2)))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def as_input(images: np.ndarray) -> torch.Tensor:
    """Images (n, 32, 32, 3) of bytes as floats around 0; channels stay last in memory."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (x.float() - 121) / 64


def decoded(path: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file, decoded once and kept in a folder."""
    kept = cache / f"cifar10-{path.stem}.npy"
    with np.load(path) as file:
        labels = file["labels"]
        if not kept.exists():
            cuts = file["offsets"][1:-1]
            with ThreadPoolExecutor() as pool:
                images = list(pool.map(decode, np.split(file["jpeg"], cuts)))
            np.save(kept, np.stack(images))
    return np.load(kept), labels


def decode(jpeg: np.ndarray) -> np.ndarray:
    from PIL import Image  # only where images are not decoded yet

    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))

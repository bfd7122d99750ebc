"""Two networks for CIFAR-10: one of large windows that is trained here, and a given ResNet-20."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "while_training"))

from cifar import N_TRAIN, decoded

BATCH, CROP = 128, 24


class Large(nn.Module):
    """Three convolutions of 5 × 5, of 64, 128 and 256 filters, and a linear layer."""

    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    n_epochs, learning_rate = 6, 3e-3

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 64, 128, 256)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5, padding=2, bias=False) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in sizes[1:])
        self.fc = nn.Linear(sizes[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = functional.relu(norm(conv(x)))
            x = functional.max_pool2d(x, 2) if k < 2 else x.mean(dim=(2, 3))
        return self.fc(x)


class Block(nn.Module):
    """Two convolutions, and a shortcut that drops every other place and adds zero channels."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.stride, self.added = stride, b - a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            side = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """The network of He et al., 2015, for CIFAR-10."""

    mean, deviation = Large.mean, Large.deviation
    n_epochs, learning_rate = 2, 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for k, (a, b, stride) in enumerate(sizes):
            blocks = [Block(a, b, stride), Block(b, b, 1), Block(b, b, 1)]
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


NETWORKS = {"large": Large, "resnet20": ResNet20}


class Images:
    """The images, and batches of them that follow from a seed and the number of a step."""

    def __init__(self, source: Path, cache: Path) -> None:
        train, test = (decoded(source / f"{part}.npz", cache) for part in ("train", "test"))
        self.train = tuple(a[:N_TRAIN] for a in train)
        self.parts = {"validation": tuple(a[N_TRAIN:] for a in train), "test": test}
        self.per_epoch = N_TRAIN // BATCH

    def batch(
        self, network: type[nn.Module], step: int, seed: int = 0, crop: int = 32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch for training: flipped and, if the crop is smaller than 32, cut at random."""
        epoch, at = divmod(step, self.per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(N_TRAIN)
        rng = np.random.default_rng([seed, epoch, at])
        chosen = order[at * BATCH : (at + 1) * BATCH]
        images, labels = (array[chosen] for array in self.train)
        flips = rng.random(BATCH) < 0.5
        images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
        if crop < 32:
            i, j = rng.integers(0, 33 - crop, 2)
            images = images[:, i : i + crop, j : j + crop]
        else:
            i, j = rng.integers(-2, 3, 2)  # moved by up to two places, as around a torus
            images = np.roll(images, (i, j), axis=(1, 2))
        return as_input(images, network), torch.tensor(labels).long()

    def quality(self, model: nn.Module, part: str, n: int | None = None) -> float:
        """The share of the first n images of a part that are classified correctly."""
        images, labels = (array[:n] for array in self.parts[part])
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            found = [
                model(as_input(images[at : at + 250], type(model))).argmax(1).numpy()
                for at in range(0, len(images), 250)
            ]
        model.train(was_training)
        return float((np.concatenate(found) == labels).mean())


def as_input(images: np.ndarray, network: type[nn.Module]) -> torch.Tensor:
    """Images (n, h, w, 3) of bytes as the network takes them."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (Large.mean, Large.deviation))
    return (x - mean) / deviation


def trained(name: str, data: Path, folder: Path, images: Images) -> nn.Module:
    """The network: large windows trained from a seed, or ResNet-20 tuned to the JPEG copy.

    An epoch at a time, so that it goes on where it was stopped.
    """
    torch.manual_seed(0)
    network = NETWORKS[name]
    model = network().to(memory_format=torch.channels_last)
    if name == "resnet20":
        model.load_state_dict(load_file(data / "resnet20.safetensors"))
    path = folder / f"{name}.pt"
    optimizer = torch.optim.Adam(model.parameters(), lr=network.learning_rate)
    state = torch.load(path, weights_only=True) if path.exists() else None
    first = 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    n_steps = network.n_epochs * images.per_epoch
    for epoch in range(first, network.n_epochs):
        began = time.perf_counter()
        for step in range(epoch * images.per_epoch, (epoch + 1) * images.per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = network.learning_rate * rate(step, n_steps)
            crop = CROP if name == "large" else 32
            x, y = images.batch(network, step, crop=crop)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(kept | {"epoch": epoch + 1}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        found = {"epoch": epoch + 1, "loss": float(loss), "seconds": time.perf_counter() - began}
        print(json.dumps(found | {"validation": images.quality(model, "validation")}), flush=True)
    return model.eval()


def rate(step: int, n_steps: int) -> float:
    """The learning rate as a share of the highest: it rises over a fifth, then falls to 0."""
    return min((step + 1) / (0.2 * n_steps), (n_steps - step) / (0.8 * n_steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    images = Images(data, folder)
    for name in NETWORKS:
        model = trained(name, data, folder, images)
        print(name, images.quality(model, "test"), flush=True)

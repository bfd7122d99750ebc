"""Trainings with and without compression, all from one dense phase.

A learning rate rises over the first tenth of the steps and then falls to 0. Factors of
which a number stands for many weights (codebooks, a step) may have a smaller one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from fastfactor.torch import Compression, apply_compression
from fastfactor.training import Compressor, Schedule
from torch import nn

BEGIN, END, RISE = 1 / 3, 1 / 2, 0.1


class Task(Protocol):
    name: str
    measure: str
    n_steps: int
    learning_rate: float
    max_norm: float | None
    targets: tuple[str, ...]
    seed: int

    def new_model(self) -> nn.Module: ...
    def loss(self, model: nn.Module, step: int, carry: Any) -> tuple[torch.Tensor, Any]: ...
    def quality(self, model: nn.Module, part: str) -> float: ...


class Training:
    """A model, its optimizer, and what goes from one step to the next."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = task.new_model()
        self.optimizer = torch.optim.Adam(
            [{"params": list(self.model.parameters()), "share": 1.0}], fused=True
        )
        self.carry: Any = None
        self.losses: deque[float] = deque(maxlen=100)
        self.seconds = 0.0

    def run(
        self, steps: range, *, first_rate: int | None = None, after: Callable[[int], object] = int
    ) -> None:
        """Train; ``after`` is called with the number of each step when it is done.

        ``first_rate`` is the step whose learning rate the first of the steps has, its own if None.
        """
        began = time.perf_counter()
        for step in steps:
            at = step if first_rate is None else first_rate + step - steps.start
            for group in self.optimizer.param_groups:
                group["lr"] = group["share"] * self.task.learning_rate * rate(at, self.task.n_steps)
            loss, self.carry = self.task.loss(self.model, step, self.carry)
            self.optimizer.zero_grad()
            loss.backward()
            if self.task.max_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.task.max_norm)
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            after(step)
        self.seconds += time.perf_counter() - began

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "carry": self.carry,
            "losses": list(self.losses),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.carry = state["carry"]
        self.losses.extend(state["losses"])


def rate(step: int, n_steps: int) -> float:
    """The learning rate at a step, as a share of the highest."""
    return min((step + 1) / (RISE * n_steps), (n_steps - step) / ((1 - RISE) * n_steps))


def schedule_of(task: Task) -> Schedule:
    return Schedule.over(task.n_steps, begin=BEGIN, end=END)


def train_dense(task: Task, folder: Path) -> Training:
    """Train without compression; keep the training as it is at the begin and at the end."""
    training = Training(task)
    begin = schedule_of(task).begin
    training.run(range(begin))
    training.save(checkpoint(task, folder, "begin"))
    training.run(range(begin, task.n_steps))
    training.save(checkpoint(task, folder, "end"))
    return training


def checkpoint(task: Task, folder: Path, stage: str) -> Path:
    return folder / f"{task.name}-{task.seed}-{stage}.pt"


@dataclass(frozen=True)
class Variant:
    """When a model is compressed, and what follows.

    ``start`` is the checkpoint; ``blend`` whether the dense weight fades out; ``further`` whether
    the factors are trained for the rest of the steps.
    """

    start: str
    blend: bool
    further: bool


VARIANTS = {
    "during": Variant("begin", blend=True, further=True),
    "at once": Variant("begin", blend=False, further=True),
    "after": Variant("end", blend=False, further=False),
    "after, further": Variant("end", blend=False, further=True),
    "from the start": Variant("", blend=True, further=True),
}


def train_compressed(
    task: Task, method: Compressor, share: float, variant: Variant, folder: Path
) -> tuple[Training, Compression, float]:
    """Return the training, its compression, and how long the factoring took.

    ``share`` is the learning rate of the factors as a share of that of the weights.
    """
    training = Training(task)
    schedule = schedule_of(task)
    if variant.start:
        training.load(checkpoint(task, folder, variant.start))
    compression = apply_compression(
        training.model, dict.fromkeys(task.targets, method), schedule if variant.blend else None
    )
    compression.track(training.optimizer)
    factoring = 0.0

    def after(step: int) -> None:
        nonlocal factoring
        began = time.perf_counter()
        if compression.step(step).factored:
            factoring = time.perf_counter() - began
            give_own_rate(training.optimizer, factors_of(compression), share)

    n = task.n_steps
    if not variant.start:
        training.run(range(n), after=after)
        return training, compression, factoring
    first = schedule.begin if variant.start == "begin" else n
    if not variant.blend:
        after(first)
    if variant.further:
        steps = range(first, first + n - schedule.begin)
        training.run(
            steps, first_rate=schedule.begin, after=after if variant.blend else lambda step: None
        )
    return training, compression, factoring


def factors_of(compression: Compression) -> list[nn.Parameter]:
    own = tuple(f"{name}_" for name in compression.names)
    return [p for name, p in compression.model.named_parameters() if name.startswith(own)]


def give_own_rate(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], share: float
) -> None:
    """Move parameters to a group of their own, whose learning rate is a share of the others'."""
    own = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in own]
    optimizer.add_param_group({"params": parameters, "share": share})

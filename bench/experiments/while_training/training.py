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
from compressors import Gradual
from fastfactor.torch import Compression, apply_compression
from fastfactor.training import Compressor, Schedule
from torch import nn

RISE = 0.1


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
        self,
        steps: range,
        *,
        first_rate: int | None = None,
        n_rates: int | None = None,
        after: Callable[[int], object] = int,
    ) -> None:
        """Train; ``after`` is called with the number of each step when it is done.

        ``first_rate`` is the step whose learning rate the first of the steps has, its own if None.
        ``n_rates`` is over how many steps the learning rate falls to 0, all if None.
        """
        began = time.perf_counter()
        n_rates = n_rates or self.task.n_steps
        for step in steps:
            at = step if first_rate is None else first_rate + step - steps.start
            for group in self.optimizer.param_groups:
                group["lr"] = group["share"] * self.task.learning_rate * rate(at, n_rates)
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


@dataclass(frozen=True)
class Variant:
    """When a model is compressed, and what follows.

    ``begin`` is the share of the steps after which weights are factored, ``end`` the one after
    which they are gone; they are equal where nothing is blended. ``further`` is for how many steps
    the factors are trained, as a share of all, and ``first_rate`` the share at which the learning
    rate then is. ``dense`` is the share of the steps over which the learning rate of the dense
    phase falls to 0, where that ends before all steps.
    """

    begin: float
    end: float
    further: float
    first_rate: float
    dense: float = 1.0

    def schedule(self, n_steps: int) -> Schedule | None:
        if self.begin == self.end:
            return None
        return Schedule.over(n_steps, begin=self.begin, end=self.end)


VARIANTS = {
    "during": Variant(1 / 3, 1 / 2, 2 / 3, 1 / 3),
    "at once": Variant(1 / 3, 1 / 3, 2 / 3, 1 / 3),
    "late": Variant(0.8, 0.9, 0.2, 0.8),
    "after": Variant(1, 1, 0, 1),
    "after, further": Variant(1, 1, 2 / 3, 1 / 3),
    # As many steps in all as "during" and "late", but the dense phase is a whole training.
    "after a third": Variant(1 / 3, 1 / 3, 2 / 3, 1 / 3, dense=1 / 3),
    "after four fifths": Variant(0.8, 0.8, 0.2, 0.8, dense=0.8),
    "from the start": Variant(1 / 3, 1 / 2, 2 / 3, 1 / 3),
}


def train_dense(task: Task, folder: Path, share: float = 1, rates: float = 1) -> Training:
    """Train without compression for a share of the steps, from the last checkpoint that is kept.

    The learning rate falls to 0 over the share ``rates`` of the steps.
    """
    training, done = Training(task), 0
    for stage in sorted({each.begin for each in VARIANTS.values() if each.dense == rates}):
        kind = "" if rates == 1 else f"-alone{rates:.2f}"
        path = folder / f"{task.name}-{task.seed}-{stage:.2f}{kind}.pt"
        last = round(stage * task.n_steps)
        if stage > share:
            break
        if path.exists():
            training.load(path)
        else:
            training.run(range(done, last), n_rates=round(rates * task.n_steps))
            training.save(path)
        done = last
    return training


def train_compressed(
    task: Task, method: Compressor | Gradual, share: float, when: str, folder: Path
) -> tuple[Training, Compression, float]:
    """Return the training, its compression, and how long the factoring took.

    ``share`` is the learning rate of the factors as a share of that of the weights.
    """
    variant, n = VARIANTS[when], task.n_steps
    first = round(variant.begin * n)
    alone = 0 if when == "from the start" else variant.begin
    training = train_dense(task, folder, alone, variant.dense)
    training.seconds = 0.0
    schedule = variant.schedule(n)
    if isinstance(method, Gradual):
        weights = {name: training.model.get_submodule(name).weight for name in task.targets}
        compressors = {
            name: method.at_size(weight.detach().numpy(), first, round(variant.end * n))
            for name, weight in weights.items()
        }
        compression = apply_compression(training.model, compressors)
    else:
        compressors = dict.fromkeys(task.targets, method)
        compression = apply_compression(training.model, compressors, schedule)
    compression.track(training.optimizer)
    factoring = 0.0

    def after(step: int) -> None:
        nonlocal factoring
        began = time.perf_counter()
        if compression.step(step).factored:
            factoring = time.perf_counter() - began
            if share == 1:
                return
            give_own_rate(training.optimizer, factors_of(compression), share)

    if when == "from the start":
        training.run(range(first), after=after)
    if schedule is None:
        after(first)
    training.run(
        range(first, first + round(variant.further * n)),
        first_rate=round(variant.first_rate * n),
        after=int if schedule is None else after,
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

"""What a benchmark consists of: workloads, the contestants on them, and the targets set."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO

THREADS = 2
COLD_BYTES = 128 << 20  # copies of an operand to rotate over: several times any L3 met so far
BURST_SECONDS = 0.06  # a sample of a short call is the median of a burst at least this long
LEVELS = ("v4", "v3", "v2")

KERNELS = (
    "omp",
    "hashed_omp",
    "kmeans",
    "kmeans1d",
    "spmm",
    "codebook",
    "sparse_codebook",
    "convolution",
    "coding",
    "trellis",
    "select",
)
MODULES = {"select": "selection"}  # where a kernel's own name is one of the standard library's

Sample = Callable[[], float]
Prepare = Callable[["Workload"], "Job"]


@dataclass
class Job:
    """What a contestant made ready inside its worker: how to take a sample, how good it is.

    `samples` maps (measure, state) to a function that runs the work once and returns seconds. The
    state is cold or hot, or "limit" for what a measure is held to and nobody's product.
    `quality` is called once, after a warm-up of every sample, and maps a measure to its figures.
    `work` maps a measure to amounts (say gigaflops) that are divided by the median time.
    """

    samples: Mapping[tuple[str, str], Sample]
    quality: Callable[[], Mapping[str, Mapping[str, float]]] = dict
    work: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Contestant:
    """One library at one setting. `prepare` runs in a worker of its own, where `env` holds."""

    name: str
    prepare: Prepare
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A demand on the ratio of `subject` to the best of `rivals` in one figure of one measure.

    For the figure "seconds" the ratio is rival over subject (how many times faster); for any
    other it is subject over rival, and without rivals the figure itself is held to the bounds.
    """

    measure: str
    rivals: tuple[str, ...]
    figure: str = "seconds"
    subject: str = "fastfactor"
    rival_measure: str = ""  # the same measure unless named
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None


@dataclass(frozen=True)
class Workload:
    kernel: str
    name: str
    title: str
    sizes: Mapping[str, int | float]
    contestants: tuple[Contestant, ...]
    targets: tuple[Target, ...] = ()
    repeats: int = 11


def workloads_of(kernel: str, quick: bool) -> list[Workload]:
    """What the kernel's file in this folder measures."""
    found: list[Workload] = importlib.import_module(MODULES.get(kernel, kernel)).workloads(quick)
    return found


def at_every_level(prepare: Prepare, held: Prepare | None = None) -> tuple[Contestant, ...]:
    """fastfactor as it picks its own instruction-set level, then held to each level in turn.

    `held` prepares less for the levels where the whole job takes long.
    """
    levels = (
        Contestant(f"fastfactor {level}", held or prepare, {"FASTFACTOR_LEVEL": level})
        for level in LEVELS
    )
    return (Contestant("fastfactor", prepare), *levels)


def level_in_use() -> str:
    """The level that the fastfactor of this process picked or was held to."""
    from fastfactor import show_config

    with redirect_stdout(StringIO()):
        return "level " + show_config()["level"]


def level_targets(measure: str, v3_over_v4: float) -> tuple[Target, ...]:
    """What a level must keep of the speed of the level above."""
    return (
        Target(measure, ("fastfactor v4",), subject="fastfactor v3", at_least=v3_over_v4),
        Target(measure, ("fastfactor v3",), subject="fastfactor v2", at_least=0.3),
    )


def copies_for_cold(nbytes: int) -> int:
    """How many copies of an operand of `nbytes` rotate, so that none is cached when met again."""
    return max(2, -(-COLD_BYTES // nbytes))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def burst(call: Callable[[], object]) -> Sample:
    """A sample of `call`: its time, or for a short call the median of a burst without the first.

    The first call after a pause wakes the thread pool, which costs some 50 µs that a user in a
    loop does not pay.
    """

    def sample() -> float:
        times = [seconds(call)]
        if times[0] >= BURST_SECONDS:
            return times[0]
        begin = time.perf_counter()
        times = [seconds(call)]
        while time.perf_counter() - begin < BURST_SECONDS:
            times.append(seconds(call))
        return statistics.median(times)

    return sample

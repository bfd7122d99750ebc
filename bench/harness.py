"""Measure the contestants of a workload side by side: one worker process each, turn by turn.

A B C A B C …: whatever disturbs the machine for a while disturbs all, so the ratios of medians
hold even where the times do not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cases import THREADS, Contestant, Target, Workload

PAUSE_SECONDS = 0.1  # OpenBLAS's idle threads spin for 26 ms, Intel's OpenMP for BLOCK_MS
BLOCK_MS = 20
BUDGET_SECONDS = 30.0  # a slow contestant sits out once it has spent this on a measure …
FEWEST_REPEATS = 3  # … and has at least so many samples

Row = dict[str, Any]


def measure(workload: Workload, *, quick: bool) -> tuple[list[Row], list[str]]:
    """A workload's rows, one per contestant, measure and state, and why anyone is missing."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(workload, c, quick)) for c in workload.contestants]
        for worker in workers:
            worker.wait_until_ready()
        skipped = [
            f"{workload.kernel} {workload.name}: {w.name} skipped ({w.missing})"
            for w in workers
            if w.missing
        ]
        present = [w for w in workers if not w.missing]
        repeats = 2 if quick else workload.repeats
        for _ in range(repeats):
            for worker, key in turns(present):
                worker.take_sample(key)
    rows = [row for worker in present for row in worker.rows()]
    return with_ratios(rows), skipped


def turns(workers: list[Worker]) -> Iterator[tuple[Worker, tuple[str, str]]]:
    """Every measure in turn, and within a measure every contestant that has it."""
    keys = dict.fromkeys(key for worker in workers for key in worker.times)
    for key in keys:
        for worker in workers:
            if key in worker.times and not worker.has_spent_its_budget(key):
                yield worker, key


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, workload: Workload, contestant: Contestant, quick: bool) -> None:
        self.workload, self.name, self.missing = workload, contestant.name, ""
        self.times: dict[tuple[str, str], list[float]] = {}
        self.ready: dict[str, Any] = {}
        script = Path(__file__).with_name("worker.py")
        size = "quick" if quick else "full"
        self.process = subprocess.Popen(
            [sys.executable, str(script), workload.kernel, workload.name, contestant.name, size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(contestant),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # ends the worker's loop, so that its own helpers end with it
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until_ready(self) -> None:
        self.ready = self.receive()
        self.missing = self.ready.get("missing", "")
        self.times = {(name, state): [] for name, state in self.ready.get("samples", ())}

    def take_sample(self, key: tuple[str, str]) -> None:
        time.sleep(PAUSE_SECONDS)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(key) + "\n")
        self.process.stdin.flush()
        self.times[key].append(self.receive()["seconds"])

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.workload.kernel} {self.workload.name}: the worker of {self.name} died"
            )
        message: dict[str, Any] = json.loads(line)
        return message

    def has_spent_its_budget(self, key: tuple[str, str]) -> bool:
        times = self.times[key]
        return len(times) >= FEWEST_REPEATS and sum(times) > BUDGET_SECONDS

    def rows(self) -> Iterator[Row]:
        for (name, state), times in self.times.items():
            median = statistics.median(times)
            rates = {
                f"{unit}/s": amount / median
                for unit, amount in self.ready["work"].get(name, {}).items()
            }
            yield {
                "kernel": self.workload.kernel,
                "workload": self.workload.name,
                "title": self.workload.title,
                "measure": name,
                "state": state,
                "contestant": self.name,
                "median": median,
                "min": min(times),
                "max": max(times),
                "repeats": len(times),
                "figures": self.ready["quality"].get(name, {}) | rates,
                "note": self.ready["note"],
                "pools": self.ready["pools"],
            }


def environment(contestant: Contestant) -> dict[str, str]:
    """The same number of threads for every library, and nothing of the caller's tuning."""
    tuned = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "FASTFACTOR_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    fixed = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
    mkl = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if mkl:
        fixed["MKL_RT"] = str(mkl[-1])
    return (
        kept
        | fixed
        | {"KMP_BLOCKTIME": str(BLOCK_MS), "PYTHONWARNINGS": "ignore"}
        | dict(contestant.env)
    )


def with_ratios(rows: list[Row]) -> list[Row]:
    """Add how many times fastfactor's median goes into each row's, where fastfactor took part."""
    ours = {
        (r["measure"], r["state"]): r["median"] for r in rows if r["contestant"] == "fastfactor"
    }
    for row in rows:
        reference = ours.get((row["measure"], row["state"]))
        row["ratio"] = None if reference is None else row["median"] / reference
    return rows


def judge(workload: Workload, rows: list[Row]) -> list[Row]:
    """Each target with the ratio that cold rows (or a limit) show, None where a side is missing."""
    return [
        {
            "kernel": workload.kernel,
            "workload": workload.name,
            "title": workload.title,
            "measure": target.measure,
            "figure": target.figure,
            "subject": target.subject,
            "rivals": list(target.rivals),
            "rival_measure": target.rival_measure or target.measure,
            "at_least": target.at_least,
            "at_most": target.at_most,
            "aim": target.aim,
            "ratio": (ratio := ratio_of(target, rows)),
            "reached": None if ratio is None else within(target, ratio),
        }
        for target in workload.targets
    ]


def ratio_of(target: Target, rows: list[Row]) -> float | None:
    subject = figures(rows, target.measure, (target.subject,), target.figure)
    rivals = figures(rows, target.rival_measure or target.measure, target.rivals, target.figure)
    if not subject or (target.rivals and not rivals):
        return None
    if not target.rivals:
        return subject[0]
    if target.figure == "seconds":
        return min(rivals) / subject[0]
    best = min(rivals) if target.at_most is not None else max(rivals)
    return subject[0] / best


def figures(rows: list[Row], name: str, contestants: tuple[str, ...], figure: str) -> list[float]:
    """A figure of each of `contestants` in one measure, cold or as a limit, where it was taken."""
    chosen = [
        row["figures"] | {"seconds": row["median"]}
        for row in rows
        if row["measure"] == name
        and row["state"] in ("cold", "limit")
        and row["contestant"] in contestants
    ]
    return [float(each[figure]) for each in chosen if figure in each]


def within(target: Target, ratio: float) -> bool:
    above = target.at_least is None or ratio >= target.at_least
    below = target.at_most is None or ratio <= target.at_most
    return above and below

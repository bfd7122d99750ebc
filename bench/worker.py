"""One contestant on one workload in a process of its own, driven over pipes by harness.py.

    python worker.py KERNEL WORKLOAD CONTESTANT full|quick

Idle thread pools of OpenBLAS, Intel's and GNU's OpenMP spin and slow whatever else runs in the
same process up to three times, so no two contestants share one. Every line read from standard
input is a JSON list [measure, state]; every line written is a JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any, TextIO

from cases import Job, workloads_of


def main(kernel: str, workload_name: str, contestant_name: str, size: str) -> None:
    replies = take_standard_output()
    try:
        job = prepare(kernel, workload_name, contestant_name, quick=size == "quick")
    except ImportError as error:
        reply(replies, {"missing": f"{type(error).__name__}: {error}"})
        return
    for sample in job.samples.values():  # warm up: pools start, pages are touched
        sample()
    reply(
        replies,
        {
            "samples": list(job.samples),
            "quality": job.quality(),
            "work": job.work,
            "note": job.note,
            "pools": thread_pools(),
        },
    )
    for line in sys.stdin:
        measure, state = json.loads(line)
        reply(replies, {"seconds": job.samples[measure, state]()})


def take_standard_output() -> TextIO:
    """Keep the pipe for replies and send whatever a library prints to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def prepare(kernel: str, workload_name: str, contestant_name: str, *, quick: bool) -> Job:
    workload = next(w for w in workloads_of(kernel, quick) if w.name == workload_name)
    contestant = next(c for c in workload.contestants if c.name == contestant_name)
    job: Job = contestant.prepare(workload)
    return job


def thread_pools() -> list[str]:
    """Every BLAS and OpenMP that the contestant loaded, its choice of kernels and its threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return []
    import threadpoolctl

    shown = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    pools = threadpoolctl.threadpool_info()
    return [" ".join(str(pool[key]) for key in shown if pool.get(key)) for pool in pools]


def reply(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

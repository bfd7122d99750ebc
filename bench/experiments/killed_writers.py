"""Writers killed at every line that they run and in the middle of every write: what is left.

    python bench/experiments/killed_writers.py

Each job replaces a file that is there. It is run in a process of its own that is killed (SIGKILL)
when this package's code for files comes to its n-th line, for every n up to the end of the job (or
so many, evenly, where there are more), and then at its n-th write, half of whose bytes are written.
The file must be the old one or the new one, whole. Then the job is run again, taking up what was
left where it can: the file must have the bytes of an undisturbed run, and nothing may lie beside it
but what `store.save` writes under names that no other run has.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fastfactor
import numpy as np
from fastfactor import container, model, store, store_writer
from fastfactor.deep_compression import CodedNetwork, DeepCompression
from fastfactor.methods import LowRank

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

PACKAGE = Path(fastfactor.__file__).parent
# What handles files; methods and products write none.
WATCHED = {
    str(PACKAGE / f"{name}.py")
    for name in ("store", "store_index", "store_writer", "container", "checkpoint", "model")
} | {str(PACKAGE / "model_job.py"), str(PACKAGE / "deep_compression/network.py")}
TARGET = "out.safetensors"
OLD = b"the old file, whole"
RECIPE = {"default": {"method": "codebook", "n_bits": 4}}

Job = Callable[[Path, Path], None]  # of the folder of inputs and the file to write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/killed_writers.json")
    parser.add_argument(
        "--most", type=int, default=2000, help="lines of a job at which it is killed"
    )
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name)
        in_child(lambda: make_inputs(inputs))
        for job, run in JOBS.items():
            rows.append({"job": job, **killed_everywhere(run, inputs, args.most)})
            print(json.dumps(rows[-1]), flush=True)
    args.json.write_text(json.dumps({**describe(), "jobs": rows}, indent=1) + "\n")


# --- jobs


def make_inputs(inputs: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.standard_normal((48, 40)).astype(np.float32) for i in range(4)}
    tensors["bias"] = np.ones(3, np.float32)
    store.save(inputs / "model.safetensors", tensors)
    model.compress_file(inputs / "model.safetensors", inputs / "small.safetensors", RECIPE)


def entries() -> dict[str, Any]:
    W = np.random.default_rng(1).standard_normal((6, 15)).astype(np.float32)
    factors = LowRank(rank=2).compress(W)
    return {"codes": np.arange(7, dtype=np.uint8), "fc": factors, "bias": np.ones(6)}


def save(inputs: Path, path: Path) -> None:
    store.save(path, entries())


def write(inputs: Path, path: Path) -> None:
    with store.Writer(path, resume=True) as writer:
        for name, value in entries().items():
            if name not in writer:
                writer.add(name, value)


def network(inputs: Path, path: Path) -> None:
    W = np.random.default_rng(2).standard_normal((9, 20))
    layer = DeepCompression(sparsity=0.8, n_bits=4).compress(W)
    CodedNetwork({"fc": layer}, {"bias": np.ones(9)}).save(path)


def compress(inputs: Path, path: Path) -> None:
    model.compress_file(inputs / "model.safetensors", path, RECIPE, resume=True, n_threads=1)


def decompress(inputs: Path, path: Path) -> None:
    model.decompress_file(inputs / "small.safetensors", path, resume=True, n_threads=1)


JOBS: dict[str, Job] = {
    "store.save": save,
    "store.Writer": write,
    "CodedNetwork.save": network,
    "compress_file": compress,
    "decompress_file": decompress,
}


# --- kills


def killed_everywhere(run: Job, inputs: Path, most: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / TARGET
        path.write_bytes(OLD)
        assert in_child(lambda: run(inputs, path)) == 0
        new = path.read_bytes()
    n_lines = counted(lambda path: run(inputs, path))
    places = sorted({round(i) for i in np.linspace(1, n_lines, min(n_lines, most))})
    kills = [("at line", n, kill_at_line) for n in places]
    n_writes = 0
    left = {"old": 0, "new": 0}
    beside = 0
    for what, n, start in kills:
        found, more = killed(run, inputs, new, start, n)
        assert found, f"{what} {n} was not reached"
        left[found] += 1
        beside += more
    while True:
        found, more = killed(run, inputs, new, kill_in_write, n_writes + 1)
        if not found:
            break
        n_writes += 1
        left[found] += 1
        beside += more
    return {
        "lines": n_lines,
        "killed_at_lines": len(places),
        "killed_in_writes": n_writes,
        "left_the_old_file": left["old"],
        "left_the_new_file": left["new"],
        "left_a_file_that_no_run_removes": beside,
    }


def killed(
    run: Job, inputs: Path, new: bytes, start: Callable[[int], None], n: int
) -> tuple[str | None, int]:
    """What was left at the path, None where the job ended before; and files beside it for ever."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / TARGET
        path.write_bytes(OLD)

        def task() -> None:
            start(n)
            run(inputs, path)

        status = in_child(task)
        if status == 0:
            return None, 0
        assert status == -signal.SIGKILL, status
        content = path.read_bytes()
        assert content in (OLD, new), f"neither the old nor the new file after {start} {n}"
        assert in_child(lambda: run(inputs, path)) == 0
        assert path.read_bytes() == new, f"other bytes when taken up after {start} {n}"
        beside = [each for each in path.parent.iterdir() if each != path]
        assert all(each.suffix == ".tmp" for each in beside), beside
        return ("old" if content == OLD else "new"), len(beside)


def in_child(task: Callable[[], Any]) -> int:
    """The exit code of a process that does this; the negative signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def on_lines(action: Callable[[], None]) -> None:
    """Do this at every line that the watched modules run from here on."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            action()
        return trace

    sys.settrace(trace)


def counted(run: Callable[[Path], None]) -> int:
    with tempfile.TemporaryDirectory() as name:
        path, result = Path(name) / TARGET, Path(name) / "count"
        path.write_bytes(OLD)

        def task() -> None:
            n = 0

            def count() -> None:
                nonlocal n
                n += 1

            on_lines(count)
            run(path)
            sys.settrace(None)
            result.write_text(str(n))

        assert in_child(task) == 0
        return int(result.read_text())


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_line(n: int) -> None:
    left = n

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            kill()

    on_lines(count)


def kill_in_write(n: int) -> None:
    left = n

    def half(file: Any) -> Any:
        whole = file.write

        def write(data: Any) -> int:
            nonlocal left
            left -= 1
            if left == 0:
                view = memoryview(data).cast("B")
                whole(view[: len(view) // 2])
                file.flush()
                kill()
            return int(whole(data))

        return Halving(file, write)

    def halving(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = builtins.open(path, mode, *rest, **named)  # noqa: SIM115
        return half(file) if mode[0] != "r" or "+" in mode else file

    for module in (container, store_writer):
        vars(module)["open"] = halving


class Halving:
    """A file whose writing is another function's."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> Halving:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


if __name__ == "__main__":
    main()

"""Writers killed at every line that they run and in the middle of every write: what is left.

    python bench/experiments/killed_writers.py

Each job replaces a file that is there. It is run in a process of its own that is killed (SIGKILL)
when this package's code for files comes to its n-th line, for every n up to the end of the job (or
so many, evenly, and the last ones, where there are more), and then in its n-th write, half of whose
bytes are in the file by then. The file must be the old one or the new one, whole.

Then the job is run again. It must take up each entry that the journal holds whole, and write the
others only; the file must have the bytes of an undisturbed run, and nothing may lie beside it but
what `store.save` writes under names that no other run has. A process is killed here, not a machine:
what it wrote is still in the system's memory, so that nothing is shown of a loss of power.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np
from fastfactor import store
from fastfactor.files import checkpoint, compact, container, journal, side_files
from fastfactor.files import index as store_index
from fastfactor.files import writer as store_writer
from fastfactor.methods import LowRank
from fastfactor.models import compress as model
from fastfactor.models import plan as model_job

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

# What handles files; methods and products write none.
FILES = (store, store_index, store_writer, side_files, journal, container, compact, checkpoint)
MODULES = (*FILES, model, model_job)
WATCHED = {module.__file__ for module in MODULES}
TARGET = "out.safetensors"
OLD = b"the old file, whole"
RECIPE = {"default": {"method": "codebook", "n_bits": 4}}
LAST = 100  # lines, at all of which a job is killed: the renaming is among them

Job = Callable[[Path], None]  # of the file to write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/killed_writers.json")
    parser.add_argument(
        "--most", type=int, default=5000, help="lines of a job at which it is killed"
    )
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name)
        # In a child, as all jobs: how many lines one runs depends on what its process did before.
        assert in_child(partial(make_inputs, inputs)) == 0
        for job, run in JOBS.items():
            rows.append({"job": job, **killed_everywhere(partial(run, inputs), args.most)})
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


def save_compact(inputs: Path, path: Path) -> None:
    store.save(path, entries(), compact=True)


def write_compact(inputs: Path, path: Path) -> None:
    with store.Writer(path, resume=True, compact=True) as writer:
        for name, value in entries().items():
            if name not in writer:
                writer.add(name, value)


def compress(inputs: Path, path: Path) -> None:
    model.compress_file(inputs / "model.safetensors", path, RECIPE, resume=True, n_threads=1)


def decompress(inputs: Path, path: Path) -> None:
    model.decompress_file(inputs / "small.safetensors", path, resume=True, n_threads=1)


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "store.save": save,
    "store.Writer": write,
    "store.save, compact": save_compact,
    "store.Writer, compact": write_compact,
    "compress_file": compress,
    "decompress_file": decompress,
}


# --- kills


def killed_everywhere(run: Job, most: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / TARGET
        path.write_bytes(OLD)
        n_entries = n_added(run, path)
        new = path.read_bytes()
    n_lines = counted(run)
    evenly = np.linspace(1, n_lines, min(n_lines, most)).round().astype(int).tolist()
    places = sorted({*evenly, *range(max(n_lines - LAST, 1), n_lines + 1)})
    found = []
    for n in places:
        found.append(killed(run, partial(kill_at_line, n), new, n_entries))
        assert found[-1], f"line {n} of {n_lines} was not reached"
    n_writes = 0
    while each := killed(run, partial(kill_in_write, n_writes + 1), new, n_entries):
        found.append(each)
        n_writes += 1
    left = [each for each in found if each]
    return {
        "entries": n_entries,
        "lines": n_lines,
        "killed_at_lines": len(places),
        "killed_in_writes": n_writes,
        "left_the_old_file": sum(each["content"] == OLD for each in left),
        "left_the_new_file": sum(each["content"] == new for each in left),
        "entries_taken_up": sum(each["taken_up"] for each in left),
        "left_a_file_that_no_run_removes": sum(each["beside"] for each in left),
    }


def killed(run: Job, kill: Callable[[], None], new: bytes, n_entries: int) -> dict[str, Any] | None:
    """What was at the path, taken up, and left beside it for ever; None if the job ended before."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / TARGET
        path.write_bytes(OLD)

        def task() -> None:
            kill()
            run(path)

        status = in_child(task)
        if status == 0:
            return None
        assert status == -signal.SIGKILL, f"{kill}: the job ended with {status}"
        content = path.read_bytes()
        assert content in (OLD, new), f"{kill}: neither the old nor the new file"
        journal = path.with_name(f"{TARGET}.journal")
        # Lines that end, without the first, which is the job's.
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        taken_up = max(lines - 1, 0)
        added = n_added(run, path)
        assert added == n_entries - taken_up, f"{kill}: {added} added, {taken_up} were there"
        assert path.read_bytes() == new, f"{kill}: other bytes when taken up"
        beside = [each for each in path.parent.iterdir() if each != path]
        assert all(each.suffix == ".tmp" for each in beside), f"{kill}: left {beside}"
        return {"content": content, "taken_up": taken_up, "beside": len(beside)}


def in_child(task: Callable[[], None]) -> int:
    """The exit code of a process that does this; the negative signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def number_from_child(task: Callable[[], int]) -> int:
    """What this returns in a process of its own, which must succeed."""
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "number"

        def write() -> None:
            result.write_text(str(task()))

        assert in_child(write) == 0
        return int(result.read_text())


def n_added(run: Job, path: Path) -> int:
    """Run the job; how many entries its writer was given, none where it has no writer."""

    def task() -> int:
        n = 0
        add = store_writer.Writer.add

        def counting(*arguments: Any, **named: Any) -> None:
            nonlocal n
            n += 1
            add(*arguments, **named)

        store_writer.Writer.add = counting  # type: ignore[method-assign]
        run(path)
        return n

    return number_from_child(task)


def counted(run: Job) -> int:
    """The lines that a job runs of the watched modules."""

    def task() -> int:
        n = 0

        def count() -> None:
            nonlocal n
            n += 1

        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / TARGET
            path.write_bytes(OLD)
            on_lines(count)
            run(path)
            sys.settrace(None)
        return n

    return number_from_child(task)


def on_lines(action: Callable[[], None]) -> None:
    """Do this before every line that the watched modules run from here on."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            action()
        return trace

    sys.settrace(trace)


def kill_at_line(n: int) -> None:
    """Kill this process before the n-th line from here on."""
    on_lines(Countdown(n))


def kill_in_write(n: int) -> None:
    """Kill this process when half of the n-th write from here on is in the file."""
    countdown = Countdown(n)

    def halving(*arguments: Any, **named: Any) -> Any:
        file = builtins.open(*arguments, **named)  # noqa: SIM115
        return Halving(file, countdown) if file.writable() else file

    for module in (container, side_files):
        vars(module)["open"] = halving


class Countdown:
    """Kills this process when it is called for the n-th time, after ``last`` is done."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __call__(self, last: Callable[[], None] | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            if last:
                last()
            os.kill(os.getpid(), signal.SIGKILL)


class Halving:
    """A file that writes half only in the write that is the last of this process."""

    def __init__(self, file: IO[bytes], countdown: Countdown) -> None:
        self._file, self._countdown = file, countdown

    def write(self, data: Any) -> int:
        self._countdown(partial(self._write_half, memoryview(data).cast("B")))
        return self._file.write(data)

    def _write_half(self, data: memoryview) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        assert os.fstat(self._file.fileno()).st_size >= self._file.tell()

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

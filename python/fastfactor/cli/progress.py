"""Progress on standard error: a bar in a terminal, else a line from time to time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]

FIRST_LINE, LONGEST_WAIT = 10.0, 120.0  # seconds between lines, which double from line to line


@contextmanager
def show_progress(task: str) -> Iterator[Progress]:
    """Give a callback that shows progress: name of the tensor, bytes done, bytes in all."""
    in_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with _bar(task) if in_terminal else _lines(task) as show:
        yield show


@contextmanager
def _bar(task: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from ..models.report import printable

    columns = (
        SpinnerColumn(),  # which turns, and the time goes on, while one tensor takes long
        TextColumn(task),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[tensor]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(task, tensor="", total=None)

        def show(name: str, done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, tensor=printable(name))

        yield show


@contextmanager
def _lines(task: str) -> Iterator[Progress]:
    """Print lines from a thread, because one tensor may take minutes."""
    from ..models.report import printable

    start, said, ended = time.monotonic(), [task], threading.Event()

    def show(name: str, done: int, total: int) -> None:
        said[0] = f"{task}: {done / total if total else 1:.0%}, {printable(name)}"

    def speak() -> None:
        wait = FIRST_LINE
        while not ended.wait(wait):
            print(f"{said[0]}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            wait = min(2 * wait, LONGEST_WAIT)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()

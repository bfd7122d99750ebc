"""How far a command is: a bar in a terminal, a line elsewhere."""

from __future__ import annotations

import re
import sys
import threading
import time

from fastfactor.cli import progress
from fastfactor.cli.progress import show_progress


def test_bars_are_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with show_progress("compressing") as show:
        show("fc.weight", 500, 1000)
        show("", 1000, 1000)
    assert "compressing" in capsys.readouterr().err


def test_where_there_is_no_terminal_a_line_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    with show_progress("compressing") as show:
        show("fc.weight", 500, 1000)
        seen, end = "", time.monotonic() + 10
        while "fc.weight" not in seen and time.monotonic() < end:
            time.sleep(0.01)
            seen += capsys.readouterr().err
    assert re.search(r"^compressing: 50%, fc.weight, \d+ s$", seen, re.MULTILINE)
    monkeypatch.undo()
    capsys.readouterr()
    n_threads = threading.active_count()
    with show_progress("compressing"):
        assert threading.active_count() == n_threads + 1
    assert threading.active_count() == n_threads
    assert capsys.readouterr().err == ""  # a short run says nothing

"""The command `demo`: its table, and options that reach the demonstration."""

from __future__ import annotations

import dataclasses
import re

from fastfactor.cli import app as cli
from fastfactor.demo import run as demo
from typer.testing import CliRunner

ROW = demo.Row(
    method="17 characters and",
    lesson="B and C",
    file_bytes=1_234_567,
    payload_bytes=1_234_000,
    ratio=12.34,
    relative_error=0.0567,
    n_digits=1000,
    right_before=990,
    right_after=981,
    same_as_held=True,
    seconds_batch=0.12345,
    seconds_single=0.123456,
    seconds_compress=12.345,
)


def test_table_shows_what_was_computed(monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda n_threads, progress: [ROW])
    output = CliRunner().invoke(cli.app, ["demo"]).output
    assert "\x1b" not in output  # plain where it is no terminal
    lines = [line for line in output.splitlines() if ROW.method in line]
    expected = f"{ROW.method} 1,234,567 1,234,000 12.3 5.7% 990 → 981 123.45 123.456 12.35"
    assert lines[0].split() == expected.split()
    assert lines[1] == f"  {ROW.method}  B and C"
    assert "all classify every digit as before" in output
    assert max(map(len, output.splitlines())) <= 90


def test_table_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda n_threads, progress: [ROW])
    result = CliRunner().invoke(cli.app, ["demo"], env={"COLUMNS": "80", "FORCE_COLOR": "1"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output).splitlines()
    assert max(map(len, plain)) <= 80
    (line, _) = (line for line in plain if ROW.method in line)
    assert line.split()[-7:] == ["5.7%", "990", "→", "981", "123.45", "123.456", "12.35"]


def test_table_names_files_that_read_other_digits(monkeypatch):
    row = dataclasses.replace(ROW, same_as_held=False)
    monkeypatch.setattr(demo, "run_demo", lambda n_threads, progress: [ROW, row])
    output = CliRunner().invoke(cli.app, ["demo"]).output
    assert f"these classify digits differently: {ROW.method}." in output


def test_threads_reach_the_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run_demo", lambda n_threads, progress: seen.append(n_threads) or [])
    for arguments in (["demo", "--json"], ["demo", "--json", "--threads", "3"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert seen == [None, 3]

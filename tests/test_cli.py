"""The command line, from outside and through typer's runner."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import fastfactor
import pytest
from fastfactor import cli, demo
from typer.testing import CliRunner


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastfactor", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_demo_as_json_in_under_a_minute():
    start = time.monotonic()
    done = run("demo", "--json", "--threads", "2")
    seconds = time.monotonic() - start
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    assert [row["method"] for row in rows] == ["dense float32", *demo.methods()]
    assert seconds < 60
    for row in rows:
        assert row["ratio"] == pytest.approx(rows[0]["n_bytes"] / row["n_bytes"])
        assert row["right_before"] == rows[0]["right_after"]
        assert set(row) == set(demo.Row.__dataclass_fields__)


def test_demo_as_a_table_is_plain_text_when_piped():
    result = CliRunner().invoke(cli.app, ["demo", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    for name in ("dense float32", *demo.methods()):
        (line,) = (line for line in result.output.splitlines() if line.strip().startswith(name))
        assert "→" in line
    assert max(map(len, result.output.splitlines())) <= 100


def test_table_shows_what_was_computed(monkeypatch):
    row = demo.Row("some method", 1234567, 12.34, 0.0567, 1000, 990, 981, 0.00123, 0.000045, 1.0)
    monkeypatch.setattr(demo, "run_demo", lambda n_threads: [row])
    output = CliRunner().invoke(cli.app, ["demo"]).output
    (line,) = (line for line in output.splitlines() if "some method" in line)
    expected = "some method 1,234,567 12.3 × 5.7% 990 → 981 1.23 1.00 × 0.045"
    assert line.split() == expected.split()


def test_threads_reach_the_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run_demo", lambda n_threads: seen.append(n_threads) or [])
    for arguments in (["demo", "--json"], ["demo", "--json", "--threads", "3"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert seen == [None, 3]


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"fastfactor {fastfactor.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands(arguments):
    done = run(*arguments)
    assert done.returncode == 0
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo", "--threads", "0"], "--threads"),
        (["demo", "--threads", "many"], "--threads"),
        (["demo", "--frobnicate"], "--frobnicate"),
        (["frobnicate"], "frobnicate"),
        (["demo", "surplus"], "surplus"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, word):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fastfactor: error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (FileNotFoundError(2, "No such file", "lenet"), 1, "No such file: 'lenet'"),
        (ValueError("tol must be zero or more, got -1"), 1, "tol must be zero or more, got -1"),
        (MemoryError(), 1, "MemoryError"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_failure_is_one_line_and_a_code(monkeypatch, capsys, raised, code, said):
    def fail(n_threads):
        raise raised

    monkeypatch.setattr(demo, "run_demo", fail)
    monkeypatch.setattr(sys, "argv", ["fastfactor", "demo"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == code
    output = capsys.readouterr()
    assert output.out == ""
    if said is None:
        assert output.err == ""
    else:
        assert output.err.count("\n") == 1
        assert said in output.err

"""The command line as a whole: version, help, wrong usage, failures and exit codes."""

from __future__ import annotations

import sys

import fastfactor
import pytest
from command_line import run
from fastfactor.cli import app as cli
from fastfactor.demo import run as demo


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"fastfactor {fastfactor.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands(arguments):
    done = run(*arguments)
    assert done.returncode == 0
    for command in ("compress", "decompress", "inspect", "compare", "bench", "demo", "recipe"):
        assert f"\n  {command} " in done.stdout
    assert "Exit codes: 0 success, 1 failure" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo", "--threads", "0"], "--threads"),
        (["demo", "--threads", "many"], "--threads"),
        (["demo", "--frobnicate"], "--frobnicate"),
        (["frobnicate"], "frobnicate"),
        (["demo", "surplus"], "surplus"),
        (["compress", "a", "b", "--set", "n_bits=4"], "--set must be given with --method"),
        (["compress", "a", "b", "--recipe", "r", "--method", "m"], "must be given, got both"),
        (["compress", "a", "b", "--recipe", "r", "--keep", "x"], "--keep"),
        (["compress", "a", "b", "--method", "codebook", "--set", "n_bits"], "KEY=VALUE"),
        (["compress", "a", "b", "--method", "codbook"], "--method must be one of"),
        (["compress", "a", "b", "--method", "codbook"], "did you mean 'codebook'?"),
        (["compress", "a", "b", "--method", "codebook", "--set", "nbits=4"], "in --set must be"),
        (["compress", "a", "b", "--method", "codebook", "--set", "nbits=4"], "mean 'n_bits'?"),
        (["compress", "a", "b", "--method", "codebook", "--set", "n_bits=99"], "--set: n_bits"),
        (["compress", "a", "b", "--method", "codebook", "--set", "n_bits={}"], "n_bits in --set"),
        (["compress", "a", "b", "--method", "prune", "--set", "method=keep"], "of --method, got"),
        (["compress", "a", "b", "--method", "keep", "--set", "dtype=f16"], "dtype in --set"),
        (["compress", "a", "b", "--method", "keep", "--report", "r.xml"], "--report"),
        (["compress", "a"], "target"),
        (["compress", "a", "b", "--method", "keep", "--keep-dtype", "f16"], "--keep-dtype"),
        (["compress", "a", "b", "--method", "keep", "--if-impossible", "x"], "--if-imp"),
        (["compress", "a", "b", "--method", "m", "--figures", "f", "--dry-run"], "--figures"),
        (["compare", "a", "b", "--max-error", "-1"], "--max-error"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastfactor", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    assert (left.value.code, printed.out) == (2, "")
    assert printed.err.startswith("fastfactor: error: ")
    assert printed.err.count("\n") == 1
    assert word in printed.err


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
    def fail(n_threads, progress):
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

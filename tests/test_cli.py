"""The command line, from outside and through typer's runner."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time

import fastfactor
import numpy as np
import pytest
from fastfactor import store
from fastfactor.cli import app as cli
from fastfactor.cli import progress
from fastfactor.cli.progress import show_progress
from fastfactor.demo import run as demo
from fastfactor.methods import DeepCompression
from legacy_networks import network_bytes
from legacy_networks import save as save_legacy
from safetensors.numpy import save_file
from typer.testing import CliRunner


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastfactor", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


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


# --- files


@pytest.fixture
def model(tmp_path, rng):
    path = tmp_path / "net.npz"
    np.savez(
        path,
        fc=rng.standard_normal((64, 128)).astype(np.float32),
        norm=rng.standard_normal((64, 64)).astype(np.float32),
        bias=np.zeros(64, np.float32),
    )
    return path


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_files_go_all_the_way_and_back(model, tmp_path):
    recipe, small, large = (tmp_path / n for n in ("r.toml", "small.safetensors", "l.safetensors"))
    assert run("recipe", str(recipe)).returncode == 0
    done = run("compress", str(model), str(small), "--recipe", str(recipe))
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where nobody looks
    assert "codebook n_bits=4" in " ".join(done.stdout.split())
    done = run("inspect", str(small), "--verify")
    assert done.returncode == 0
    assert "3 tensors, 1 compressed" in done.stdout
    assert run("decompress", str(small), str(large)).returncode == 0
    done = run("compare", str(small), str(large), "--max-error", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 3 tensors are equal" in done.stdout
    done = run("compare", str(model), str(large), "--max-error", "0.0001", "--json")
    assert done.returncode == 3
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["norm"]["equal"]
    assert 0.0001 < rows["fc"]["relative_error"] < 0.02
    assert done.stderr.startswith("fastfactor: an error is larger than 0.0001: 0.0")
    assert "for tensor 'fc'" in done.stderr


def test_one_method_on_the_command_line(model, tmp_path):
    target = tmp_path / "out.safetensors"
    method = ("--method", "prune", "--set", "scope=row", "--set", "sparsity=0.75")
    result = invoke("compress", model, target, *method, "--keep", "norm", "--json", "--threads", 1)
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    rows = {row["name"]: row for row in content["rows"]}
    assert rows["fc"]["method"] == "prune"
    assert rows["fc"]["settings"] == {"scope": "row", "sparsity": 0.75}
    assert rows["norm"]["reason"] == "on the skip list"
    assert content["file_bytes_after"] == target.stat().st_size


def test_one_bad_tensor_ends_no_run_that_may_keep_it(tmp_path, rng):
    tensors = {f"w{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(3)}
    tensors["w1"][3, 7] = -np.inf
    model, target = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file({**tensors, "bias": np.ones(64, np.float32)}, model)
    method = ("--method", "codebook", "--set", "n_bits=4")
    for dry in ((), ("--dry-run",)):
        refused = run("compress", str(model), str(target), *method, *dry)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "tensor 'w1': W must be finite, got -inf at [3, 7]; to keep" in refused.stderr
        assert "--if-impossible keep" in refused.stderr
        assert sorted(tmp_path.iterdir()) == [model]
    options = ("--if-impossible", "keep", "--keep-dtype", "float16", "--json")
    for dry in (("--dry-run",), ()):
        result = invoke("compress", model, target, *method, *options, *dry)
        assert result.exit_code == 0, result.output
        rows = {row["name"]: row for row in json.loads(result.output)["rows"]}
        assert rows["w1"]["reason"].startswith("impossible: W must be finite")
        assert [rows[name]["bytes_after"] for name in ("w0", "w1", "bias")] == [2112, 8192, 128]


def test_a_dry_run_writes_nothing(model, tmp_path):
    target = tmp_path / "out.safetensors"
    method = ("--method", "codebook", "--set", "n_bits=2")
    result = invoke("compress", model, target, *method, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 of 3 tensors would be compressed, tensors of 49,408 → 3,360 bytes" in result.output
    assert not target.exists()
    content = json.loads(invoke("compress", model, target, *method, "--dry-run", "--json").output)
    assert [row["bytes_after"] for row in content["rows"]] == [2064, 1040, 256]
    assert (content["at_most"], content["n_unknown"]) == (False, 0)


def test_reports_and_figures(model, tmp_path):
    pytest.importorskip("matplotlib")
    target, figures = tmp_path / "out.safetensors", tmp_path / "figures"
    reports = [tmp_path / f"report.{ending}" for ending in ("txt", "json", "csv")]
    options = [word for report in reports for word in ("--report", report)]
    method = ("--method", "low_rank", "--set", "ratio=4")
    result = invoke("compress", model, target, *method, *options, "--figures", figures)
    assert result.exit_code == 0, result.output
    text, content, lines = (report.read_text(encoding="utf-8") for report in reports)
    assert text == result.output
    assert [row["name"] for row in json.loads(content)["rows"]] == ["fc", "norm", "bias"]
    assert len(lines.splitlines()) == 4
    assert len(list(figures.glob("*.png"))) == 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--recipe", "none.toml"], "none.toml"),
        (["--recipe", "wrong.toml"], "method in [default] must be"),
    ],
)
def test_what_fails_is_one_line(model, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.toml").write_text('[default]\nmethod = "codbook"\n')
    done = run("compress", str(model), "out.safetensors", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fastfactor: error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


@pytest.mark.parametrize(
    ("target", "options", "word"),
    [
        (".", [], "Is a directory: '.'"),
        ("none/out.safetensors", [], "none'"),
        ("out.safetensors", ["--report", "none/r.json"], "none'"),
        ("out.safetensors", ["--figures", "net.npz"], "File exists: 'net.npz'"),
        ("fisher.npz", ["--importance", "fisher.npz"], "a safetensors file, got 'fisher.npz'"),
        ("fisher.st", ["--importance", "fisher.st"], "must not be a source, got 'fisher.st'"),
    ],
)
def test_places_that_cannot_be_written_are_said_before_any_work(
    model, tmp_path, monkeypatch, capsys, target, options, word
):
    if "--figures" in options:
        pytest.importorskip("matplotlib")
    np.savez(tmp_path / "fisher.npz", fc=np.ones((64, 128)))
    save_file({"fc": np.ones((64, 128))}, tmp_path / "fisher.st")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    method = ["--method", "prune", "--set", "nm_sparsity=[1, 2]"]
    monkeypatch.setattr(
        sys, "argv", ["fastfactor", "compress", "net.npz", target, *method, *options]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    output = capsys.readouterr()
    assert (left.value.code, output.out) == (1, "")
    assert output.err.count("\n") == 1
    assert word in output.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_compressed_files_are_not_compressed_again(model, tmp_path):
    layer = DeepCompression(sparsity=0.9, n_bits=4).compress(np.ones((60, 50), np.float32))
    save_legacy(tmp_path / "network.safetensors", network_bytes({"fc": layer}, {}))
    store.save(tmp_path / "compact.safetensors", {"fc": layer}, compact=True)
    method = ("--method", "codebook", "--set", "n_bits=2")
    assert invoke("compress", model, tmp_path / "small.safetensors", *method).exit_code == 0
    for name in ("network", "small", "compact"):
        path = tmp_path / f"{name}.safetensors"
        refused = invoke("compress", path, tmp_path / "out.safetensors", *method)
        assert "got a compressed one; decompress it first" in str(refused.exception)
        assert invoke("inspect", path).exit_code == 0
        assert invoke("compare", path, path).exit_code == 0


def test_resume_after_an_interrupt(model, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    method = ("--method", "codebook", "--set", "n_bits=4")
    add = fastfactor.store.Writer.add

    def stop(self, name, value, **options):
        if name == "norm":
            raise KeyboardInterrupt
        add(self, name, value, **options)

    monkeypatch.setattr(fastfactor.store.Writer, "add", stop)
    arguments = ["compress", model, target, *method, "--resume"]
    monkeypatch.setattr(sys, "argv", ["fastfactor", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    assert not target.exists()
    monkeypatch.undo()
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    seconds = {row["name"]: row["seconds"] for row in json.loads(result.output)["rows"]}
    assert seconds["fc"] is None
    assert seconds["norm"] > 0


def test_decompressing_resumes_after_an_interrupt(model, tmp_path, monkeypatch):
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    method = ("--method", "codebook", "--set", "n_bits=4")
    assert invoke("compress", model, small, *method).exit_code == 0
    add = fastfactor.store.Writer.add

    def stop(self, name, value, **options):
        if name == "norm":
            raise KeyboardInterrupt
        add(self, name, value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fastfactor.store.Writer, "add", stop)
        invoke("decompress", small, large, "--resume")
    assert not large.exists()
    result = invoke("decompress", small, large, "--resume", "--json")
    assert result.exit_code == 0, result.output
    seconds = {row["name"]: row["seconds"] for row in json.loads(result.output)["rows"]}
    assert (seconds["fc"], seconds["norm"] > 0) == (None, True)


def test_a_recipe_is_not_replaced_unless_forced(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("mine")
    done = run("recipe", str(path))
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert path.read_text() == "mine"
    assert run("recipe", str(path), "--force").returncode == 0
    assert path.read_text(encoding="utf-8") == invoke("recipe").output
    methods = json.loads(invoke("recipe", "--json").output)["methods"]
    assert methods["codebook"]["granularity"] == "tensor"


def test_output_that_cannot_show_an_arrow(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    method = ("--method", "low_rank", "--set", "rank=4")
    done = run("compress", str(model), str(tmp_path / "out.safetensors"), *method)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out.safetensors" in done.stdout


def test_importance_reaches_the_method(model, tmp_path):
    method = ("--method", "low_rank", "--set", "rank=4")
    fisher, target = tmp_path / "fisher.npz", tmp_path / "out.safetensors"
    np.savez(fisher, fc=np.ones((64, 128), np.float32))
    arguments = ["compress", model, target, *method, "--importance", fisher]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.output)["rows"]}
    assert [rows[name]["metric"] for name in ("fc", "norm", "bias")] == [
        "importance",
        "squares",
        None,
    ]


def test_a_covariance_reaches_the_method(model, tmp_path):
    inputs, target = tmp_path / "inputs.npz", tmp_path / "out.safetensors"
    np.savez(inputs, fc=np.diag(np.geomspace(0.1, 10, 128)))
    method = ("--method", "low_rank", "--set", "rank=4")
    result = invoke("compress", model, target, *method, "--input-covariance", inputs)
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.output.splitlines() if line.strip().startswith("fc "))
    assert "covariance" in line
    np.savez(tmp_path / "fisher.npz", fc=np.ones((64, 128)))
    both = ("--importance", tmp_path / "fisher.npz", "--input-covariance", inputs)
    refused = invoke("compress", model, target, *method, *both)
    assert "must not both hold 'fc', got both" in str(refused.exception)


def test_damaged_files_are_one_line(model, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\xff" * 20)
    for command in (["inspect"], ["decompress"], ["compare", str(model)]):
        more = [str(tmp_path / "out.safetensors")] if command == ["decompress"] else []
        done = run(*command, str(path), *more)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "header" in done.stderr


def test_bench_as_json(monkeypatch, tmp_path):
    from fastfactor.cli import bench as self_bench

    monkeypatch.setattr(self_bench, "N_SAMPLES", 1)
    monkeypatch.setattr(self_bench, "MIN_SECONDS", 0.0)
    result = invoke("bench", "--json", "--threads", 2, "--report", tmp_path / "bench.txt")
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert content["config"]["threads"] == "2"
    names = {row["name"] for row in content["rows"]}
    assert {"omp", "kmeans", "kmeans1d", "spmm", "codebook_matmul", "huffman_decode"} <= names
    for row in content["rows"]:
        assert row["seconds"] > 0
        assert row["spread"] == 1
        assert row["per_second"] > 0
        assert hasattr(fastfactor, row["name"])
    assert "assignments/s" in (tmp_path / "bench.txt").read_text(encoding="utf-8")


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


# --- what is said before and after


def test_without_a_method_a_good_one_is_taken_and_said(model, tmp_path):
    done = run("compress", str(model), str(tmp_path / "out.safetensors"), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "fastfactor: no method was given: entropy_coded with bits_per_weight=4\n"
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert (rows["fc"]["method"], rows["bias"]["method"]) == ("entropy_coded", "keep")
    assert rows["fc"]["bytes_after"] <= 64 * 128 // 2
    assert rows["fc"]["relative_error"] < 0.01


def test_patterns_that_match_nothing_are_said(model, tmp_path):
    options = ("--method", "prune", "--set", "sparsity=0.9", "--dry-run")
    arguments = ("compress", str(model), str(tmp_path / "out.safetensors"), *options)
    done = run(*arguments, "--keep", "nrom*", "--keep", "nor*")
    assert done.returncode == 0
    assert done.stderr == "fastfactor: no tensor has a name that matches 'nrom*'\n"
    recipe = tmp_path / "r.toml"
    recipe.write_text('[patterns."*.weight"]\nmethod = "keep"\n[default]\nmethod = "keep"')
    done = run("compress", str(model), str(tmp_path / "o.safetensors"), "--recipe", str(recipe))
    assert "matches '*.weight'" in done.stderr


@pytest.mark.parametrize(
    ("shape", "settings", "advice"),
    [
        ((400, 50), ["n_bits=4", "granularity=row"], "granularity=tensor would take 4."),
        ((400, 384), ["n_bits=8", "group_size=4", "vector_dim=4"], "group_size=none would take"),
    ],
)
def test_tables_that_cost_more_than_codes_are_said_before(tmp_path, rng, shape, settings, advice):
    model = tmp_path / "net.safetensors"
    save_file({"w": rng.standard_normal(shape).astype(np.float32)}, model)
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ("compress", str(model), str(tmp_path / "o.safetensors"), "--method", "codebook")
    done = run(*arguments, *options, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert "tables take more bytes than codes in 'w': " in done.stderr
    assert advice in done.stderr
    assert json.loads(done.stdout)["notes"] == [done.stderr[len("fastfactor: ") : -1]]
    cheap = run(*arguments, "--set", "n_bits=4", "--dry-run")
    assert cheap.stderr == ""


def test_a_run_that_compresses_nothing_fails_and_says_why(model, tmp_path):
    target = tmp_path / "out.safetensors"
    arguments = ("compress", str(model), str(target), "--method", "prune", "--set", "sparsity=0")
    done = run(*arguments)
    assert done.returncode == 1
    assert "at least one tensor must be compressed, got none of 3: not smaller" in done.stderr
    assert done.stderr.count("\n") == 1
    converted = run("compress", str(model), str(target), "--method", "keep")
    assert converted.returncode == 0


def test_files_without_a_common_name_cannot_be_compared(model, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, w=np.ones(3))
    done = run("compare", str(model), str(other))
    assert done.returncode == 1
    assert "must have names of tensors in common, got none" in done.stderr


def test_a_minus_is_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("recipe", "-").output == invoke("recipe").output
    assert list(tmp_path.iterdir()) == []


def test_names_are_whole_in_a_pipe(tmp_path):
    name = ".".join(["a_rather_long_name"] * 12)
    save_file({name: np.ones((64, 64), np.float32)}, tmp_path / "net.safetensors")
    assert name in run("inspect", str(tmp_path / "net.safetensors")).stdout

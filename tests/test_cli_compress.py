"""The command `compress`: options, what it refuses, what it says before and after."""

from __future__ import annotations

import json
import sys

import fastfactor
import numpy as np
import pytest
from command_line import invoke, run, small_model
from fastfactor import store
from fastfactor.cli import app as cli
from fastfactor.methods import DeepCompression
from legacy_networks import network_bytes
from legacy_networks import save as save_legacy
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return small_model(tmp_path, rng)


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

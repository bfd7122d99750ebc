"""The commands `decompress`, `inspect` and `compare`, and all of them one after the other."""

from __future__ import annotations

import json

import fastfactor
import numpy as np
import pytest
from command_line import invoke, run, small_model
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return small_model(tmp_path, rng)


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


def test_damaged_files_are_one_line(model, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\xff" * 20)
    for command in (["inspect"], ["decompress"], ["compare", str(model)]):
        more = [str(tmp_path / "out.safetensors")] if command == ["decompress"] else []
        done = run(*command, str(path), *more)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "header" in done.stderr


def test_files_without_a_common_name_cannot_be_compared(model, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, w=np.ones(3))
    done = run("compare", str(model), str(other))
    assert done.returncode == 1
    assert "must have names of tensors in common, got none" in done.stderr


def test_names_are_whole_in_a_pipe(tmp_path):
    name = ".".join(["a_rather_long_name"] * 12)
    save_file({name: np.ones((64, 64), np.float32)}, tmp_path / "net.safetensors")
    assert name in run("inspect", str(tmp_path / "net.safetensors")).stdout

"""Runs that are killed or interrupted: the old file stays, and what was done is taken up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from fastfactor import compress_file, decompress_file
from fastfactor.methods import DeepCompression
from legacy_networks import network_bytes
from legacy_networks import save as save_legacy
from models import RECIPE, saved
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


KILLED = """
import os, signal, sys
from fastfactor import compress_file, decompress_file
task, source, target, after = *sys.argv[1:4], int(sys.argv[4])
names = []
def progress(name, done, total):
    names.append(name)
    if len(names) > after:
        os.kill(os.getpid(), signal.SIGKILL)
if after < 0:  # when the whole file is written beside, before it is renamed
    os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
options = {"resume": True, "progress": progress if after >= 0 else None, "n_threads": 1}
if task == "compress":
    compress_file(source, target, {"default": {"method": "codebook", "n_bits": 4}}, **options)
else:
    decompress_file(source, target, **options)
"""


def killed(source, target, after, task="compress"):
    arguments = [task, str(source), str(target), str(after)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [0, 1, 5, 11, -1])
def test_a_kill_leaves_the_old_file_and_can_be_resumed(model, tmp_path, after):
    path, _ = model
    target, straight = tmp_path / "out.safetensors", tmp_path / "straight.safetensors"
    target.write_bytes(b"the old file")
    expected = compress_file(path, straight, RECIPE)
    killed(path, target, after)
    assert target.read_bytes() == b"the old file"
    report = compress_file(path, target, RECIPE, resume=True)
    assert target.read_bytes() == straight.read_bytes()
    taken_up = 11 if after < 0 else after
    assert sum(row.seconds is None for row in report.rows) == taken_up
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.record() | {"seconds": 0} == other.record() | {"seconds": 0}
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"net.safetensors", "out.safetensors", "straight.safetensors"}


@pytest.mark.parametrize("after", [0, 1, 5, 11, -1])
@pytest.mark.parametrize("form", ["ordinary", "compact", "network"])
def test_decompressing_goes_on_after_a_kill(model, tmp_path, rng, after, form):
    path, _ = model
    small = tmp_path / "small.safetensors"
    if form != "network":
        compress_file(path, small, RECIPE, compact=form == "compact")
    else:
        layers = [DeepCompression(sparsity=0.9, n_bits=4).compress(rng.random((9, 20)))] * 10
        plain = {name: np.ones(i) for i, name in enumerate(("bias", "norm"))}
        entries = {f"fc{i}": layer for i, layer in enumerate(layers)} | plain
        save_legacy(small, network_bytes(entries, {}))
    target, straight = tmp_path / "out.safetensors", tmp_path / "straight.safetensors"
    target.write_bytes(b"the old file")
    expected = decompress_file(small, straight)
    n = len(expected.rows)
    taken_up = n if after < 0 else after
    killed(small, target, after, "decompress")
    assert target.read_bytes() == b"the old file"
    report = decompress_file(small, target, resume=True)
    assert target.read_bytes() == straight.read_bytes()
    assert [row.seconds is None for row in report.rows] == [i < taken_up for i in range(n)]
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.record() | {"seconds": 0} == other.record() | {"seconds": 0}
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".safetensors"]


def test_resuming_to_decompress_another_file_is_refused(model, tmp_path):
    path, _ = model
    target = tmp_path / "out.safetensors"
    for n_bits in (4, 3):
        recipe = {"default": {"method": "codebook", "n_bits": n_bits}}
        compress_file(path, tmp_path / f"{n_bits}.safetensors", recipe)
    killed(tmp_path / "4.safetensors", target, 3, "decompress")
    with pytest.raises(ValueError, match="resume must have the source that"):
        decompress_file(tmp_path / "3.safetensors", target, resume=True)
    with pytest.raises(ValueError, match="resume must have the source that"):
        compress_file(path, target, RECIPE, resume=True)
    report = decompress_file(tmp_path / "4.safetensors", target, resume=True)
    assert sum(row.seconds is None for row in report.rows) == 3


def test_a_kill_at_any_moment(tmp_path, rng):
    """By the clock, wherever it strikes."""
    path, target = tmp_path / "big.safetensors", tmp_path / "out.safetensors"
    save_file(
        {f"w{i:02}": rng.standard_normal((256, 512)).astype(np.float32) for i in range(12)}, path
    )
    straight = tmp_path / "straight.safetensors"
    compress_file(path, straight, RECIPE)
    target.write_bytes(b"the old file")
    code = textwrap.dedent(
        """
        import sys
        import fastfactor
        print("ready", flush=True)
        recipe = {"default": {"method": "codebook", "n_bits": 4}}
        fastfactor.compress_file(sys.argv[1], sys.argv[2], recipe, resume=True)
        """
    )
    for delay in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(target)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        assert target.read_bytes() in (b"the old file", straight.read_bytes())
    compress_file(path, target, RECIPE, resume=True)
    assert target.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("what", ["source", "importance", "input_covariance"])
def test_resuming_another_job_is_refused(model, tmp_path, what):
    path, tensors = model
    target = tmp_path / "out.safetensors"
    killed(path, target, 4)
    options = {}
    if what in ("importance", "input_covariance"):
        W = tensors["fc.float32"]
        weights = {"importance": np.ones(W.shape), "input_covariance": np.eye(W.shape[1])}
        np.savez(tmp_path / "f.npz", **{"fc.float32": weights[what]})
        options[what] = tmp_path / "f.npz"
    else:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    left = (tmp_path / "out.safetensors.partial").read_bytes()
    with pytest.raises(ValueError, match="resume must have the source that"):
        compress_file(path, target, RECIPE, resume=True, **options)
    assert (tmp_path / "out.safetensors.partial").read_bytes() == left
    compress_file(path, target, RECIPE, **options)
    assert {"out.safetensors"} == {p.name for p in tmp_path.iterdir() if "out" in p.name}


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"names": {"conv": {"method": "codebook", "n_bits": 2}}}, {"conv"}),
        ({"skip": ["conv"], "keep_dtype": "float16"}, {"conv", "bias", "small", "empty"}),
        ({"patterns": {"conv": {**RECIPE["default"], "layout": "io"}}}, {"conv"}),
        ({"min_size": 100}, {"small"}),
        ({"if_impossible": "keep"}, set()),
    ],
)
def test_after_a_change_of_the_recipe_only_what_it_changed_is_done_anew(
    model, tmp_path, compact, change, changed
):
    path, _ = model
    target, straight = tmp_path / "out.safetensors", tmp_path / "straight.safetensors"
    recipe = {**RECIPE, **change}
    expected = compress_file(path, straight, recipe, compact=compact)
    killed(path, target, 9)
    names = [row.name for row in expected.rows]

    def stop(name, done, total):
        if name == names[10]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_file(path, target, recipe, resume=True, progress=stop)
    report = compress_file(path, target, recipe, resume=True, compact=compact)
    assert [row.name for row in report.rows if row.seconds is not None] == names[10:]
    assert target.read_bytes() == straight.read_bytes()
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.record() | {"seconds": 0} == other.record() | {"seconds": 0}
    # What changed is done anew, and what the killed run had not reached.
    killed(path, target, 9)
    report = compress_file(path, target, recipe, resume=True, compact=compact)
    anew = {row.name for row in report.rows if row.seconds is not None}
    assert anew == changed | set(names[9:])
    assert target.read_bytes() == straight.read_bytes()


def test_what_an_earlier_run_kept_is_said(tmp_path, rng):
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    names = [f"w{i}" for i in range(3)]
    save_file({n: rng.standard_normal((32, 40)).astype(np.float16) for n in names}, path)
    recipe = {"default": {"method": "low_rank", "rank": 30}}

    def stop(name, done, total):
        if name == "w2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_file(path, target, recipe, resume=True, progress=stop)
    report = compress_file(path, target, recipe, resume=True)
    assert [row.reason for row in report.rows] == [
        "kept by the earlier run",
        "kept by the earlier run",
        "not smaller as low_rank: 4320 bytes",
    ]

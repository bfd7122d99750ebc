"""Whole models: what becomes of each tensor, back again, comparing, memory."""

from __future__ import annotations

import json
import subprocess
import sys

import fastfactor
import ml_dtypes
import numpy as np
import pytest
from fastfactor import CorruptDataError, compare_files, compress_file, decompress_file, store
from fastfactor.checkpoint import open_checkpoint
from fastfactor.deep_compression import CodedNetwork, DeepCompression
from fastfactor.inspection import inspect_file
from fastfactor.methods import Codebook, LowRank
from fastfactor.metrics import Diagonal
from models import FLOATS, RECIPE, same, saved, shard
from safetensors.numpy import load_file, save_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


# --- compressing


def test_each_tensor_becomes_what_the_recipe_says(model, tmp_path):
    path, tensors = model
    target = tmp_path / "out.safetensors"
    recipe = {**RECIPE, "skip": ["*norm*"], "patterns": {"conv": {"method": "low_rank", "rank": 5}}}
    report = compress_file(path, target, recipe)
    rows = {row.name: row for row in report.rows}
    assert set(rows) == set(tensors)
    reasons = {name: row.reason for name, row in rows.items() if row.reason}
    assert reasons == {
        "bias": "not a matrix",
        "norm.weight": "on the skip list",
        "small": "a side of 4",
        "ids": "not of floats",
        "flag": "not of floats",
        "empty": "a side of 0",
    }
    with store.open_store(target) as opened:
        assert set(opened) == set(tensors)
        assert opened.metadata == {"format": "pt"}
        for name, W in tensors.items():
            row = rows[name]
            assert (row.shape, row.dtype, row.bytes_before) == (W.shape, W.dtype.name, W.nbytes)
            assert row.bytes_after == opened.info(name).nbytes
            if row.reason:
                assert same(opened[name], W)
                assert row.relative_error is None
                continue
            method = LowRank(rank=5) if name == "conv" else Codebook(n_bits=4)
            expected = method.compress(W.reshape(len(W), -1))
            assert opened.info(name).shape == W.shape
            assert same(opened[name].to_dense(), expected.to_dense())
            assert row.relative_error == expected.error(W.reshape(len(W), -1))
            assert row.seconds > 0
    assert report.file_bytes_before == path.stat().st_size
    assert report.file_bytes_after == target.stat().st_size
    totals = report.totals()
    assert totals["n_compressed"] == 5
    assert totals["bytes_after"] == sum(row.bytes_after for row in report.rows)
    assert report.ratio == path.stat().st_size / target.stat().st_size


def test_shards_a_folder_and_an_archive_give_the_same_file(model, tmp_path):
    _, tensors = model
    without = {n: W for n, W in tensors.items() if W.dtype.name != "bfloat16"}
    results = []
    folder = tmp_path / "shards"
    folder.mkdir()
    single, archive = tmp_path / "one.safetensors", tmp_path / "net.npz"
    save_file(without, single)
    np.savez(archive, **without)
    for number, source in enumerate([single, shard(folder, without), folder, archive]):
        target = tmp_path / f"{number}.safetensors"
        report = compress_file(source, target, RECIPE)
        assert {row.name for row in report.rows} == set(without)
        with store.open_store(target) as opened:
            results.append({name: opened.to_dense(name).tobytes() for name in opened})
    assert all(result == results[0] for result in results)
    report = compress_file(folder, tmp_path / "again.safetensors", RECIPE)
    assert report.file_bytes_before == sum(file.stat().st_size for file in folder.iterdir())


def test_big_endian_and_fortran_arrays_of_an_archive(tmp_path, rng):
    W = rng.standard_normal((48, 64)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", big=W.astype(">f4"), fortran=np.asfortranarray(W))
    compress_file(tmp_path / "a.npz", tmp_path / "a.safetensors", RECIPE)
    with store.open_store(tmp_path / "a.safetensors") as opened:
        expected = Codebook(n_bits=4).compress(W).to_dense()
        for name in ("big", "fortran"):
            assert same(opened[name].to_dense(), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keep_converts(model, tmp_path, dtype):
    path, tensors = model
    recipe = {"default": {"method": "keep", "dtype": dtype}}
    report = compress_file(path, tmp_path / "out.safetensors", recipe)
    rows = {row.name: row for row in report.rows}
    wanted = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
    with store.open_store(tmp_path / "out.safetensors") as opened:
        for name, W in tensors.items():
            is_float = W.dtype.name in {np.dtype(t).name for t in FLOATS}
            assert same(opened[name], W.astype(wanted) if is_float else W)
    row = rows["bias"]
    assert (row.reason, row.bytes_after) == (f"kept as {dtype}", 128)
    exact = tensors["bias"].astype(np.float64)
    lost = exact - tensors["bias"].astype(wanted).astype(np.float64)
    assert row.relative_error == pytest.approx((lost @ lost) / (exact @ exact))
    assert rows[f"fc.{dtype}"].relative_error is None


def test_values_out_of_range_are_not_made_infinite(tmp_path):
    save_file({"w": np.array([[1e5, np.inf]], np.float32)}, tmp_path / "a.safetensors")
    recipe = {"default": {"method": "keep", "dtype": "float16"}}
    with pytest.raises(ValueError, match=r"tensor 'w': .* float16"):
        compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]
    report = compress_file(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        {**recipe, "if_impossible": "keep"},
    )
    assert report.rows[0].reason.startswith("impossible: ")


def test_what_would_not_be_smaller_stays(tmp_path, rng):
    save_file({"w": rng.standard_normal((32, 40)).astype(np.float16)}, tmp_path / "a.safetensors")
    recipe = {"default": {"method": "low_rank", "rank": 30}}
    report = compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe)
    (row,) = report.rows
    assert row.reason == "not smaller as low_rank: 4320 bytes"
    assert (row.method, row.settings, row.bytes_after) == ("keep", {}, 2560)


def test_a_tensor_that_cannot_be_compressed_is_named_or_kept(model, tmp_path):
    path, tensors = model
    target = tmp_path / "out.safetensors"
    recipe = {"default": {"method": "codebook", "n_bits": 2, "vector_dim": 32}}
    with pytest.raises(ValueError, match=r"tensor '.*': vector_dim must divide"):
        compress_file(path, target, recipe)
    assert sorted(tmp_path.iterdir()) == [path]
    report = compress_file(path, target, {**recipe, "if_impossible": "keep"})
    rows = {row.name: row for row in report.rows}
    assert rows["fc.float32"].reason.startswith("impossible: vector_dim must divide")
    assert rows["norm.weight"].reason == ""
    with store.open_store(target) as opened:
        assert same(opened["fc.float32"], tensors["fc.float32"])


def test_nan_is_refused_by_name(tmp_path):
    W = np.ones((40, 40), np.float32)
    W[3, 7] = np.nan
    save_file({"a": np.ones((40, 40), np.float32), "w": W}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'w': W must be finite, got nan at \[3, 7\]"):
        compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", RECIPE)


def test_a_dry_run_says_and_does_nothing(model, tmp_path):
    path, _ = model
    dry = compress_file(path, tmp_path / "out.safetensors", RECIPE, dry_run=True)
    assert list(tmp_path.iterdir()) == [path]
    wet = compress_file(path, tmp_path / "out.safetensors", RECIPE)
    for planned, done in zip(dry.rows, wet.rows, strict=True):
        same_fields = ("name", "shape", "dtype", "method", "settings", "reason", "bytes_before")
        for field in same_fields:
            assert getattr(planned, field) == getattr(done, field)
        assert planned.bytes_after in (None, done.bytes_after)
    assert dry.file_bytes_after is None
    assert dry.ratio is None


def test_progress_counts_the_source(model, tmp_path):
    path, tensors = model
    seen = []
    compress_file(path, tmp_path / "out.safetensors", RECIPE, progress=lambda *a: seen.append(a))
    total = sum(W.nbytes for W in tensors.values())
    assert [name for name, _, _ in seen] == [*open_checkpoint(path), ""]
    assert seen[0][1] == 0
    assert seen[-1] == ("", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_same_bytes_for_any_number_of_threads(model, tmp_path, n_threads):
    path, _ = model
    files = []
    for n in (1, n_threads):
        target = tmp_path / f"{n}.safetensors"
        compress_file(path, target, RECIPE, n_threads=n)
        files.append(target.read_bytes())
    assert files[0] == files[1]


# --- importance


def test_importance_is_minimised_and_is_what_the_error_weighs(model, tmp_path, rng):
    path, tensors = model
    importance = {n: rng.random(W.shape).astype(np.float32) ** 4 for n, W in tensors.items()}
    np.savez(tmp_path / "fisher.npz", **importance)
    target = tmp_path / "out.safetensors"
    report = compress_file(path, target, RECIPE, importance=tmp_path / "fisher.npz")
    rows = {row.name: row for row in report.rows}
    with store.open_store(target) as opened:
        for name in ("conv", "fc.float16"):
            W, weights = (t[name].reshape(len(t[name]), -1) for t in (tensors, importance))
            expected = Codebook(n_bits=4).compress(W, importance=weights)
            assert same(opened[name].to_dense(), expected.to_dense())
            error = expected.error(W, metric=Diagonal(weights))
            assert rows[name].relative_error == error
            assert error < Codebook(n_bits=4).compress(W).error(W, metric=Diagonal(weights))


def test_importance_must_be_there_and_fit(model, tmp_path, rng):
    path, tensors = model
    target, fisher = tmp_path / "out.safetensors", tmp_path / "fisher.npz"
    ones = {n: np.ones(W.shape, np.float32) for n, W in tensors.items()}
    np.savez(fisher, **{**ones, "conv": np.ones((40, 48), np.float32)})
    with pytest.raises(ValueError, match="tensor 'conv': importance must have the shape of W"):
        compress_file(path, target, RECIPE, importance=fisher)
    del ones["conv"]
    np.savez(fisher, **ones)
    with pytest.raises(ValueError, match=r"importance must hold every .* got none for 'conv'"):
        compress_file(path, target, RECIPE, importance=fisher)
    skipping = {**RECIPE, "skip": ["conv"]}
    first = compress_file(path, target, skipping, importance=fisher)
    assert first.totals()["n_compressed"] == 5


# --- decompressing and comparing


def test_decompressed_tensors_are_those_of_the_factors(model, tmp_path):
    path, tensors = model
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    compress_file(path, small, RECIPE)
    seen = []
    report = decompress_file(small, large, progress=lambda *a: seen.append(a))
    assert seen[-1][1] == seen[-1][2] == sum(W.nbytes for W in tensors.values())
    assert report.file_bytes_after == large.stat().st_size
    rebuilt = load_file(large)
    with store.open_store(small) as opened:
        for name, W in tensors.items():
            assert same(rebuilt[name], opened.to_dense(name))
            assert (rebuilt[name].shape, rebuilt[name].dtype) == (W.shape, W.dtype)
    with store.open_store(large) as opened:
        assert opened.metadata == {"format": "pt"}
        assert all(opened.info(name).kind == "plain" for name in opened)
    # What was decompressed is a model again.
    again = compress_file(large, tmp_path / "again.safetensors", RECIPE)
    assert again.totals()["n_compressed"] == 6


def test_many_bytes_reopen_the_file(model, tmp_path, monkeypatch):
    path, _ = model
    compress_file(path, tmp_path / "s.safetensors", RECIPE)
    decompress_file(tmp_path / "s.safetensors", tmp_path / "a.safetensors")
    monkeypatch.setattr("fastfactor.model.REOPEN_BYTES", 0)
    opened = []
    monkeypatch.setattr(
        "fastfactor.model.open_store", lambda path: opened.append(path) or store.open_store(path)
    )
    decompress_file(tmp_path / "s.safetensors", tmp_path / "b.safetensors")
    assert len(opened) > 5
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_comparing_gives_the_errors_of_the_report(model, tmp_path):
    path, tensors = model
    report = compress_file(path, tmp_path / "s.safetensors", RECIPE)
    found = compare_files(path, tmp_path / "s.safetensors")
    rows = {row.name: row for row in found.rows}
    assert set(rows) == set(tensors)
    for row in report.rows:
        other = rows[row.name]
        assert other.equal == bool(row.reason)
        assert other.relative_error == pytest.approx(row.relative_error or 0)
        assert (other.bytes_first, other.bytes_second) == (row.bytes_before, row.bytes_after)
    assert not found.equal
    assert found.largest_error == max(r.relative_error for r in found.rows)
    decompress_file(tmp_path / "s.safetensors", tmp_path / "d.safetensors")
    assert compare_files(tmp_path / "s.safetensors", tmp_path / "d.safetensors").equal


def test_comparing_says_what_cannot_be_compared(tmp_path):
    nan = np.array([np.nan, 1, np.inf], np.float32)
    one = {"a": np.zeros(3), "b": np.arange(4), "n": nan, "z": np.zeros(2), "t": np.ones(2)}
    two = {"a": np.zeros((3, 1)), "c": np.zeros(2), "n": nan, "z": np.ones(2)}
    two["t"] = np.ones(2, np.float32)
    np.savez(tmp_path / "1.npz", **one, big=np.array([2**60 + 1]), cx=np.array([1 + 2j], "c8"))
    np.savez(tmp_path / "2.npz", **two, big=np.array([2**60]), cx=np.array([1 + 3j], "c8"))
    rows = {r.name: r for r in compare_files(tmp_path / "1.npz", tmp_path / "2.npz").rows}
    assert rows["a"].fault == "shape (3, 1) in the second"
    assert rows["b"].fault == "only in the first"
    assert rows["c"].fault == "only in the second"
    assert (rows["n"].equal, rows["n"].relative_error) == (True, 0)
    assert (rows["z"].equal, rows["z"].relative_error, rows["z"].largest) == (False, np.inf, 1)
    assert (rows["t"].equal, rows["t"].dtype) == (True, "float64, float32")
    assert not rows["big"].equal  # though float64 cannot tell them apart
    assert rows["cx"].relative_error == pytest.approx(1 / 5)
    table = compare_files(tmp_path / "1.npz", tmp_path / "2.npz").table()
    assert json.loads(table.to_json())["largest_error"] is None


def test_inspecting_both_kinds(model, tmp_path):
    path, tensors = model
    compress_file(path, tmp_path / "s.safetensors", RECIPE)
    plain, small = inspect_file(path), inspect_file(tmp_path / "s.safetensors", verify=True)
    assert plain.totals["bytes"] == sum(W.nbytes for W in tensors.values())
    assert (plain.totals["n_compressed"], small.totals["n_compressed"]) == (0, 6)
    kinds = {record["name"]: record["kind"] for record in small.records}
    assert kinds["conv"] == "codebook"
    assert kinds["bias"] == "plain"
    data = bytearray((tmp_path / "s.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s.safetensors").write_bytes(data)
    inspect_file(tmp_path / "s.safetensors")
    with pytest.raises(CorruptDataError, match="checksum"):
        inspect_file(tmp_path / "s.safetensors", verify=True)


def test_a_deep_compression_network_is_looked_at_and_rebuilt(tmp_path, rng):
    W = rng.standard_normal((60, 50)).astype(np.float32)
    layer = DeepCompression(sparsity=0.9, n_bits=4).compress(W)
    network = CodedNetwork({"fc": layer}, {"bias": np.arange(60.0)})
    network.save(tmp_path / "net.safetensors")
    table = inspect_file(tmp_path / "net.safetensors")
    assert table.records[0]["name"] == "fc"
    assert table.records[-1]["bytes"] == table.totals["bytes"] == network.nbytes
    assert "Deep Compression, 1 layers" in table.to_text()
    assert json.loads(table.to_json())["rows"][0]["weights"] == W.size
    report = decompress_file(tmp_path / "net.safetensors", tmp_path / "dense.safetensors")
    rebuilt = load_file(tmp_path / "dense.safetensors")
    assert same(rebuilt["fc"], layer.to_dense())
    assert same(rebuilt["bias"], np.arange(60.0))
    assert [row.bytes_before for row in report.rows] == [layer.nbytes, 480]


# --- memory

# Not ru_maxrss, which begins at what the process had that started this one.
MEMORY = """
import re, sys
import numpy as np
from fastfactor import compress_file, decompress_file
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
warm = np.ones((64, 64), np.float16)
from fastfactor.methods import Codebook
Codebook(n_bits=4).compress(warm, n_threads=2)
before = peak()
recipe = {"default": {"method": "codebook", "n_bits": 4, "scope": "row"}}
compress_file(sys.argv[1], sys.argv[2], recipe, n_threads=2)
first = peak() - before
decompress_file(sys.argv[2], sys.argv[3])
print(first, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_few_times_the_largest_tensor(tmp_path, rng):
    one = rng.standard_normal((512, 2048)).astype(np.float16)  # 2 MB, 16 of them
    save_file({f"w{i}": one for i in range(16)}, tmp_path / "a.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    used, both = map(int, done.stdout.split())
    assert one.nbytes < used
    assert used < 14 * one.nbytes, used
    assert both < 14 * one.nbytes, both


def test_the_functions_are_public():
    for name in ("compress_file", "decompress_file", "compare_files"):
        assert name in fastfactor.__all__

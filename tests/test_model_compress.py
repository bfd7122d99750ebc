"""Whole models compressed: what becomes of each tensor."""

from __future__ import annotations

import fastfactor
import ml_dtypes
import numpy as np
import pytest
from fastfactor import compress_file, store
from fastfactor.files.checkpoint import open_checkpoint
from fastfactor.methods import Codebook, LowRank
from models import FLOATS, RECIPE, same, saved, shard
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


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
        "small": "256 weights, fewer than min_size, 1,024",
        "ids": "not floating-point",
        "flag": "not floating-point",
        "empty": "no weights",
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


def test_the_functions_are_public():
    for name in ("compress_file", "decompress_file", "compare_files"):
        assert name in fastfactor.__all__

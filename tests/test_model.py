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
from fastfactor.files.checkpoint import open_checkpoint
from fastfactor.methods import Codebook, LowRank
from fastfactor.models.inspect import inspect_file
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


EVERY_METHOD = [
    {"method": "codebook", "n_bits": 3, "granularity": "row"},
    {"method": "codebook", "ratio": 6},
    {"method": "low_rank", "rank": 7},
    {"method": "low_rank", "ratio": 3},
    {"method": "prune", "sparsity": 0.8},
    {"method": "prune", "nm_sparsity": [1, 4]},
    {"method": "prune_codebook", "sparsity": 0.8},
    {"method": "simhash", "n_hashes": 65},
    {"method": "block_diagonal", "n_blocks": 4},
    {"method": "block_projection", "reduction": 2},
    {"method": "mixed_block", "rank": 3},
    {"method": "dictionary", "n_nonzero_coefs": 2},
    {"method": "entropy_coded", "bits_per_weight": 3},
    {"method": "keep", "dtype": "float16"},
]


@pytest.mark.parametrize("rule", EVERY_METHOD, ids=lambda rule: rule["method"])
def test_a_dry_run_says_what_will_be_and_does_nothing(model, tmp_path, rule):
    path, _ = model
    recipe = {"default": rule}
    dry = compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)
    assert list(tmp_path.iterdir()) == [path]
    wet = compress_file(path, tmp_path / "out.safetensors", recipe)
    for planned, done in zip(dry.rows, wet.rows, strict=True):
        same_fields = ["name", "shape", "dtype", "bytes_before"]
        if not planned.at_most:  # else the file may hold the tensor as it is
            same_fields += ["method", "settings", "reason", "bytes_after"]
        for field in same_fields:
            assert getattr(planned, field) == getattr(done, field)
        assert done.bytes_after <= planned.bytes_after
    totals = dry.totals()
    assert totals["n_unknown"] == 0
    assert totals["bytes_after"] >= wet.totals()["bytes_after"]
    if not totals["at_most"]:
        assert totals["bytes_after"] == wet.totals()["bytes_after"]
    assert dry.file_bytes_after is None
    assert dry.ratio is None


def test_a_dry_run_says_which_sizes_it_does_not_know(model, tmp_path):
    path, _ = model
    recipe = {
        "default": {"method": "codebook", "max_error": 0.01},
        "names": {"conv": {"method": "codebook", "n_bits": 4}},
    }
    dry = compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)
    rows = {row.name: row for row in dry.rows}
    assert rows["fc.float32"].bytes_after is None
    assert rows["conv"].bytes_after == 40 * 144 // 2 + 16 * 4
    totals = dry.totals()
    assert (totals["n_unknown"], totals["bytes_after"], totals["at_most"]) == (5, None, False)
    last = dry.table().to_text().splitlines()[-1]
    assert "no total before the run: sizes of 5 tensors depend on their values" in last


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "codebook", "vector_dim": 7},
        {"method": "dictionary", "block_size": 7},
        {"method": "mixed_block", "block_shape": [7, 7]},
    ],
    ids=lambda rule: rule["method"],
)
@pytest.mark.parametrize("goal", [{"max_error": 0.1}, {"ratio": 2}], ids=repr)
def test_shapes_that_do_not_fit_are_said_whatever_is_asked_for(model, tmp_path, rule, goal):
    path, _ = model
    recipe = {"names": {"conv": {**rule, **goal}}}
    with pytest.raises(ValueError, match=r"tensor 'conv': .* must divide"):
        compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_is_said_before_any_work(model, tmp_path, dry_run):
    path, tensors = model
    target = tmp_path / "out.safetensors"
    recipe = {**RECIPE, "names": {"conv": {"method": "block_diagonal", "n_blocks": 41}}}
    seen = []
    with pytest.raises(ValueError, match="tensor 'conv': n_blocks must be at most 40"):
        compress_file(
            path, target, recipe, dry_run=dry_run, progress=lambda *a: seen.append(a), resume=True
        )
    assert (seen, list(tmp_path.iterdir())) == ([], [path])
    kept = {**recipe, "if_impossible": "keep"}
    report = compress_file(path, target, kept, dry_run=dry_run)
    row = next(row for row in report.rows if row.name == "conv")
    assert row.reason.startswith("impossible: n_blocks must be at most 40")
    assert (row.method, row.bytes_after) == ("keep", tensors["conv"].nbytes)


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
            error = expected.error(W, importance=weights)
            assert rows[name].relative_error == error
            assert error < Codebook(n_bits=4).compress(W).error(W, importance=weights)


def covariance(rng, n):
    x = rng.standard_normal((3 * n, n)) * np.geomspace(0.1, 3, n)
    return (x.T @ x / len(x)).astype(np.float32)


def test_an_input_covariance_is_minimised_and_is_what_the_error_counts(model, tmp_path, rng):
    path, tensors = model
    given = {name: covariance(rng, n) for name, n in (("conv", 144), ("fc.float16", 48))}
    save_file(given, tmp_path / "inputs.safetensors")
    target = tmp_path / "out.safetensors"
    report = compress_file(path, target, RECIPE, input_covariance=tmp_path / "inputs.safetensors")
    rows = {row.name: row for row in report.rows}
    with store.open_store(target) as opened:
        for name, of_inputs in given.items():
            W = tensors[name].reshape(len(tensors[name]), -1)
            expected = Codebook(n_bits=4).compress(W, input_covariance=of_inputs)
            assert same(opened[name].to_dense(), expected.to_dense())
            error = expected.error(W, input_covariance=of_inputs)
            assert (rows[name].relative_error, rows[name].metric) == (error, "input_covariance")
            assert error < Codebook(n_bits=4).compress(W).error(W, input_covariance=of_inputs)
    # What it has not is compressed as ever, and says so.
    assert rows["fc.float32"].metric == "squares"
    assert rows["bias"].metric is None
    plain = Codebook(n_bits=4).compress(tensors["fc.float32"])
    assert rows["fc.float32"].relative_error == plain.error(tensors["fc.float32"])
    assert report.totals()["input_covariance"].endswith("inputs.safetensors")
    lines = report.table().to_text().splitlines()
    assert any("covariance" in line for line in lines if "conv" in line)


def test_the_report_says_where_weights_are_all_zero(model, tmp_path, rng):
    path, tensors = model
    np.savez(tmp_path / "inputs.npz", conv=np.zeros((144, 144)))
    np.savez(tmp_path / "fisher.npz", **{"fc.float16": np.zeros_like(tensors["fc.float16"])})
    target = tmp_path / "out.safetensors"
    report = compress_file(
        path,
        target,
        RECIPE,
        importance=tmp_path / "fisher.npz",
        input_covariance=tmp_path / "inputs.npz",
    )
    rows = {row.name: row for row in report.rows}
    assert rows["conv"].metric == "squares (zero input_covariance)"
    assert rows["fc.float16"].metric == "squares (zero importance)"
    assert "squares (zero importance)" in report.table().to_text()
    W = tensors["conv"].reshape(len(tensors["conv"]), -1)
    assert rows["conv"].relative_error == Codebook(n_bits=4).compress(W).error(W)


def test_both_weigh_one_model_but_not_one_tensor(model, tmp_path, rng):
    path, tensors = model
    fisher, inputs = tmp_path / "fisher.npz", tmp_path / "inputs.npz"
    np.savez(fisher, conv=rng.random(tensors["conv"].shape), bias=np.ones(64))
    np.savez(inputs, **{"fc.float32": covariance(rng, 48), "bias": np.eye(1)})
    weights = {"importance": fisher, "input_covariance": inputs}
    report = compress_file(path, tmp_path / "out.safetensors", RECIPE, **weights)
    metrics = {row.name: row.metric for row in report.rows if not row.reason}
    assert (metrics["conv"], metrics["fc.float32"]) == ("importance", "input_covariance")
    assert set(metrics.values()) == {"importance", "input_covariance", "squares"}
    np.savez(inputs, conv=covariance(rng, 144))
    with pytest.raises(ValueError, match="input_covariance must not both hold 'conv', got both"):
        compress_file(path, tmp_path / "out.safetensors", RECIPE, **weights)


@pytest.mark.parametrize(
    ("what", "given", "message"),
    [
        ("importance", {"conv": np.ones((40, 48))}, "'conv': importance must have the shape of W"),
        (
            "importance",
            {"cov": np.ones(3)},
            "importance must only have names .* 'cov'; did you mean 'conv'",
        ),
        ("importance", {"bias": np.ones(64)}, "importance must have a tensor for at least one"),
        (
            "importance",
            {"conv": np.ones((40, 144), int)},
            "'conv': importance must have a floating-point dtype",
        ),
        ("importance", {"conv": -np.ones((40, 144))}, "'conv': importance must not be negative"),
        ("input_covariance", {"conv": np.eye(40)}, r"must have shape \(144, 144\), got \(40, 40"),
        ("input_covariance", {"conv": np.triu(np.ones((144, 144)))}, "must be symmetric"),
    ],
)
def test_weights_must_fit(model, tmp_path, what, given, message):
    path, _ = model
    np.savez(tmp_path / "weights.npz", **given)
    with pytest.raises((TypeError, ValueError), match=message):
        compress_file(
            path, tmp_path / "out.safetensors", RECIPE, **{what: tmp_path / "weights.npz"}
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_damaged_weights_are_no_reason_to_keep(model, tmp_path):
    path, tensors = model
    weights = tmp_path / "weights.safetensors"
    store.save(weights, {"conv": np.ones(tensors["conv"].shape, np.float32)})
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptDataError, match="checksum mismatch in tensor 'conv'"):
        compress_file(
            path,
            tmp_path / "out.safetensors",
            {**RECIPE, "if_impossible": "keep"},
            importance=weights,
        )


def test_a_method_that_cannot_minimise_an_error_says_so(model, tmp_path, rng):
    path, _ = model
    inputs, target = tmp_path / "inputs.npz", tmp_path / "out.safetensors"
    np.savez(inputs, **{"fc.float32": covariance(rng, 48)})
    recipe = {"default": {"method": "prune", "sparsity": 0.9}}
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"'fc.float32': input_covariance must not be given"):
            compress_file(path, target, recipe, input_covariance=inputs, dry_run=dry_run)
    kept = {**recipe, "if_impossible": "keep"}
    report = compress_file(path, target, kept, input_covariance=inputs)
    row = next(row for row in report.rows if row.name == "fc.float32")
    assert row.reason.startswith("impossible: input_covariance must not be given to Prune")


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
    monkeypatch.setattr("fastfactor.models.compress.REOPEN_BYTES", 0)
    opened = []
    monkeypatch.setattr(
        "fastfactor.models.compress.open_store",
        lambda path, **options: opened.append(path) or store.open_store(path, **options),
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
    same = compare_files(tmp_path / "s.safetensors", tmp_path / "d.safetensors")
    assert same.equal
    assert repr(same) == f"Comparison({same.table().title}: {same.table().summary})"


def test_comparing_says_what_cannot_be_compared(tmp_path):
    nan = np.array([np.nan, 1, np.inf], np.float32)
    one = {"a": np.zeros(3), "b": np.arange(4), "n": nan, "z": np.zeros(2), "t": np.ones(2)}
    two = {"a": np.zeros((3, 1)), "c": np.zeros(2), "n": nan, "z": np.ones(2)}
    two["t"] = np.ones(2, np.float32)
    np.savez(tmp_path / "1.npz", **one, big=np.array([2**60 + 1]), cx=np.array([1 + 2j], "c8"))
    np.savez(tmp_path / "2.npz", **two, big=np.array([2**60]), cx=np.array([1 + 3j], "c8"))
    rows = {r.name: r for r in compare_files(tmp_path / "1.npz", tmp_path / "2.npz").rows}
    assert rows["a"].fault == "shape (3, 1) in the second file"
    assert rows["b"].fault == "only in the first file"
    assert rows["c"].fault == "only in the second file"
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
recipe = {"default": {"method": "codebook", "n_bits": 4, "granularity": "row"}}
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

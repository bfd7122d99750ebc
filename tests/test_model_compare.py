"""Whole models compared and inspected."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fastfactor import CorruptDataError, compare_files, compress_file, decompress_file
from fastfactor.models.inspect import inspect_file
from models import RECIPE, saved


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


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

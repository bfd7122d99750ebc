"""Whole models rebuilt from compressed files."""

from __future__ import annotations

import pytest
from fastfactor import compress_file, decompress_file, store
from models import RECIPE, same, saved
from safetensors.numpy import load_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


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

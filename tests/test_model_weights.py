"""Importances and input covariances of a model: what they change, and what must fit."""

from __future__ import annotations

import numpy as np
import pytest
from fastfactor import CorruptDataError, compress_file, store
from fastfactor.methods import Codebook
from models import RECIPE, same, saved
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


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
            assert rows[name].plain_error == expected.error(W)
            assert error < Codebook(n_bits=4).compress(W).error(W, input_covariance=of_inputs)
    # What it has not is compressed as ever, and says so.
    assert rows["fc.float32"].metric == "squares"
    assert rows["bias"].metric is None
    plain = Codebook(n_bits=4).compress(tensors["fc.float32"])
    assert rows["fc.float32"].relative_error == plain.error(tensors["fc.float32"])
    assert rows["fc.float32"].plain_error == rows["fc.float32"].relative_error
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

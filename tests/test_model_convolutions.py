"""Files of models whose convolutions are compressed as convolutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fastfactor import compress_file, decompress_file, store
from fastfactor.methods import ConvCP, ConvMonochromatic, ConvSVD
from safetensors.numpy import load_file, save_file

SVD = ({"method": "conv_svd", "ranks": [6, 9]}, ConvSVD(ranks=(6, 9)))
CP = ({"method": "conv_cp", "rank": 12}, ConvCP(rank=12))
COLORS = ({"method": "conv_monochromatic", "n_colors": 4}, ConvMonochromatic(n_colors=4))
ONE_CHANNEL = ({"method": "conv_svd", "ranks": [1, 3]}, ConvSVD(ranks=(1, 3)))


def compressed(tmp_path, tensors, rule, **more):
    source, target = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file(tensors, source)
    report = compress_file(source, target, {"default": rule, "min_size": 1, "min_side": 1}, **more)
    return {row.name: row for row in report.rows}, target


def weight(rng):
    W = rng.standard_normal((32, 5)) @ rng.standard_normal((5, 400))
    return (W + 0.3 * rng.standard_normal(W.shape)).astype(np.float32).reshape(32, 16, 5, 5)


@pytest.mark.parametrize(
    ("kind", "case"),
    [*itertools.product(["torch", "keras"], [SVD, CP, COLORS]), ("depthwise", ONE_CHANNEL)],
    ids=lambda value: value if isinstance(value, str) else value[0]["method"],
)
def test_kernels_are_seen_as_filters_of_channels(rng, tmp_path, kind, case):
    rule, method = case
    W = weight(rng)
    if kind == "depthwise":
        W = np.ascontiguousarray(W[:, :1])
    name, axes = {
        "torch": ("conv.weight", (0, 1, 2, 3)),
        "keras": ("conv/kernel", (2, 3, 1, 0)),
        "depthwise": ("conv/depthwise_kernel", (2, 3, 0, 1)),
    }[kind]
    kernel = np.ascontiguousarray(W.transpose(axes))
    rows, path = compressed(tmp_path, {name: kernel}, rule)
    expected = method.compress(W)
    assert rows[name].reason == ""
    assert rows[name].relative_error == pytest.approx(expected.error(W.reshape(32, -1)), rel=1e-4)
    with store.open_store(path) as opened:
        assert opened[name].weight_shape == W.shape
        np.testing.assert_allclose(
            opened.to_dense(name), expected.to_dense().reshape(W.shape).transpose(axes), atol=1e-5
        )
    decompress_file(path, tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")[name]
    assert again.shape == kernel.shape


def test_other_tensors_are_kept(rng, tmp_path):
    tensors = {
        "conv.weight": weight(rng),
        "fc.weight": rng.standard_normal((64, 96)).astype(np.float32),
        "conv1d.weight": rng.standard_normal((64, 96, 5)).astype(np.float32),
        "bias": np.ones(64, np.float32),
    }
    rows, path = compressed(tmp_path, tensors, {"method": "conv_svd", "ratio": 4})
    kept = "not a convolution over two axes"
    assert {name: row.reason for name, row in rows.items()} == {
        "conv.weight": "",
        "fc.weight": kept,
        "conv1d.weight": kept,
        "bias": "not a matrix",
    }
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["fc.weight"], tensors["fc.weight"])


def test_a_covariance_has_the_order_of_the_tensors_axes(rng, tmp_path):
    """Keras's kernels have inputs by height, width, channel."""
    W = weight(rng)
    x = rng.standard_normal((900, 400)) * np.geomspace(0.1, 3, 400)
    covariance = x.T @ x / 900
    order = np.arange(400).reshape(16, 5, 5).transpose(1, 2, 0).reshape(-1)
    errors = []
    for name, kernel, own in (
        ("conv.weight", W, covariance),
        ("conv/kernel", W.transpose(2, 3, 1, 0), covariance[np.ix_(order, order)]),
    ):
        side = tmp_path / "covariance.safetensors"
        save_file({name: own.astype(np.float32)}, side)
        folder = tmp_path / name.replace("/", ".")
        folder.mkdir()
        rule = {"method": "conv_svd", "ranks": [5, 8]}
        kernel = np.ascontiguousarray(kernel)
        rows, _ = compressed(folder, {name: kernel}, rule, input_covariance=side)
        errors.append(rows[name].relative_error)
    expected = ConvSVD(ranks=(5, 8)).compress(W, input_covariance=covariance)
    known = expected.error(W.reshape(32, -1), input_covariance=covariance)
    assert errors == pytest.approx([known, known], rel=1e-3)


def test_kernels_that_do_not_fit_are_named(rng, tmp_path):
    with pytest.raises(ValueError, match=r"tensor 'conv.weight': n_colors must divide the 32"):
        compressed(
            tmp_path, {"conv.weight": weight(rng)}, {"method": "conv_monochromatic", "n_colors": 5}
        )

"""The demonstration, recomputed by other means: plain loops and SciPy from the arrays it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib import resources
from pathlib import Path

import fastfactor
import numpy as np
import pytest
from fastfactor import CSR, demo
from fastfactor.demo_layers import (
    CodebookLayer,
    DenseLayer,
    DictionaryLayer,
    PrunedLayer,
    cut,
    join,
    pack_nibbles,
)
from safetensors import safe_open

DATA = resources.files("fastfactor") / "data"


@pytest.fixture(scope="module")
def dense():
    return demo.load_model()


@pytest.fixture(scope="module")
def networks(dense):
    return {name: compress(dense) for name, compress in demo.methods().items()}


@pytest.fixture(scope="module")
def rows():
    return {row.method: row for row in demo.run_demo(n_threads=2)}


@pytest.fixture(params=list(demo.methods()))
def method(request):
    return request.param


# What is packaged


def test_packaged_files_are_those_that_were_written():
    lines = (DATA / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == {"lenet-300-100.safetensors", "mnist-test-1000.npz"}
    for name, digest in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("name", "limit"), [("lenet-300-100.safetensors", 1_100_000), ("mnist-test-1000.npz", 250_000)]
)
def test_packaged_files_are_small(name, limit):
    assert len((DATA / name).read_bytes()) <= limit


def test_packaged_network_and_its_metadata(dense):
    shapes = [(300, 784), (100, 300), (10, 100)]
    assert [layer.weight.shape for layer in dense.layers] == shapes
    assert [bias.shape for bias in dense.biases] == [(rows,) for rows, _ in shapes]
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in held_arrays(dense))
    with (
        resources.as_file(DATA / "lenet-300-100.safetensors") as path,
        safe_open(path, "numpy") as file,
    ):
        metadata = file.metadata()
    assert float(metadata["test_error"].split()[0]) <= 0.016
    assert metadata["license"] == "Apache-2.0"


def test_packaged_digits():
    digits, labels = demo.load_digits()
    assert digits.shape == (784, 1000)
    assert digits.dtype == np.float32
    assert digits.min() == 0
    assert digits.max() == 1
    assert np.bincount(labels, minlength=10).min() >= 75


def test_the_licence_names_the_makers_of_the_digits():
    text = (DATA / "LICENSE-DATA.txt").read_text()
    for word in ("LeCun", "Cortes", "Burges", "Attribution-ShareAlike 3.0", "Apache License 2.0"):
        assert word in text


def test_training_result_agrees_with_the_packaged_network(rows):
    file = Path(__file__).parents[1] / "bench/results/train_lenet.json"
    if not file.exists():
        pytest.skip("bench/results is not part of the source archive")
    result = json.loads(file.read_text())
    assert result["test_error"] == pytest.approx(1 - result["test_right"] / result["test_digits"])
    assert rows["dense float32"].right_after == result["packaged_right"]


# What is reported


def test_one_row_a_method_after_the_dense_one(rows):
    assert list(rows) == ["dense float32", *demo.methods()]
    first = rows["dense float32"]
    assert (first.ratio, first.relative_error) == (1.0, 0.0)
    assert first.right_before == first.right_after
    assert all(row.seconds_batch > 0 and row.seconds_single > 0 for row in rows.values())


def test_bytes_are_those_of_the_arrays_held(method, networks, rows):
    held = sum(array.nbytes for array in held_arrays(networks[method]))
    assert networks[method].nbytes == rows[method].n_bytes == held
    assert rows[method].ratio == 4 * 266_610 / held


def test_codes_are_packed(networks):
    scalar, blocks = networks["codebook, 4 bits"].layers, networks["codebook, blocks of 4"].layers
    assert [layer.packed.nbytes for layer in scalar] == [300 * 392, 100 * 150, 10 * 50]
    assert [layer.packed.nbytes for layer in blocks] == [300 * 196, 100 * 75, 10 * 50]
    assert [layer.codebook.shape for layer in blocks] == [(256, 4), (256, 4), (16, 1)]


def test_error_is_that_of_the_rebuilt_weights(method, dense, networks, rows):
    lost = total = 0.0
    for layer, form in zip(dense.layers, networks[method].layers, strict=True):
        rebuilt = rebuild(form)
        np.testing.assert_allclose(form.to_dense(), rebuilt, rtol=1e-5, atol=1e-6)
        lost += np.linalg.norm(layer.weight.astype(float) - rebuilt) ** 2
        total += np.linalg.norm(layer.weight.astype(float)) ** 2
    assert rows[method].relative_error == pytest.approx(lost / total, rel=1e-4)
    assert 0 < rows[method].relative_error < 0.2


def test_forward_is_that_of_the_rebuilt_network(method, networks):
    digits, _ = demo.load_digits()
    scores = networks[method].forward(digits)
    expected = forward([rebuild(layer) for layer in networks[method].layers],
                       networks[method].biases, digits)  # fmt: skip
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        scores, networks[method].to_dense().forward(digits), rtol=1e-4, atol=1e-4
    )


def test_digits_right_are_those_of_the_rebuilt_network(method, dense, networks, rows):
    digits, labels = demo.load_digits()
    before = forward([layer.weight for layer in dense.layers], dense.biases, digits)
    after = forward([rebuild(layer) for layer in networks[method].layers], dense.biases, digits)
    assert rows[method].right_before == np.sum(before.argmax(axis=0) == labels)
    assert rows[method].right_after == np.sum(after.argmax(axis=0) == labels)
    assert rows[method].n_digits == 1000


@pytest.mark.parametrize(
    ("method", "ratio", "lost"),
    [
        ("learned dictionary", 9, 10),
        ("codebook, 4 bits", 7.5, 5),
        ("codebook, blocks of 4", 13, 10),
        ("pruning, 85% zeros", 3, 20),
    ],
)
def test_compression_keeps_the_digits_right(rows, method, ratio, lost):
    assert rows[method].ratio >= ratio
    assert rows[method].right_after >= rows[method].right_before - lost


@pytest.mark.parametrize("n_threads", [1, 3])
def test_same_bits_for_any_number_of_threads(networks, dense, n_threads):
    for name, compress in demo.methods(n_threads).items():
        ours, theirs = held_arrays(networks[name]), held_arrays(compress(dense))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# The parts


def test_inputs_are_left_alone(dense):
    copies = [array.copy() for array in held_arrays(dense)]
    digits, _ = demo.load_digits()
    before = digits.copy()
    for compress in demo.methods().values():
        compress(dense).forward(digits)
    dense.forward(digits)
    np.testing.assert_array_equal(digits, before)
    for array, copy in zip(held_arrays(dense), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_side_by_side_puts_the_pieces_of_a_row_in_one_row():
    generator = np.random.default_rng(4)
    flat = np.where(generator.random((6 * 5, 7)) < 0.3, generator.standard_normal((30, 7)), 0)
    joined = demo.side_by_side(CSR.from_dense(flat), n_pieces=5)
    expected = [np.stack(flat[5 * row : 5 * row + 5], axis=1).ravel() for row in range(6)]
    np.testing.assert_array_equal(joined.to_dense(), expected)


def test_cut_and_join():
    x = np.arange(6 * 8 * 3).reshape(48, 3)
    pieces = cut(x, (6, 8), (3, 2))
    image = x.reshape(6, 8, 3)
    expected = [image[r : r + 3, c : c + 2].reshape(6, 3) for r in (0, 3) for c in (0, 2, 4, 6)]
    np.testing.assert_array_equal(pieces, np.stack(expected, axis=1))
    np.testing.assert_array_equal(join(pieces, (6, 8), (3, 2)), x)


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 130])
@pytest.mark.parametrize(
    ("n_clusters", "block", "in_features"), [(16, 1, 7), (16, 2, 10), (256, 4, 12)]
)
def test_codebook_layer_of_any_size(n_rows, n_clusters, block, in_features):
    generator = np.random.default_rng(n_rows)
    codebook = generator.standard_normal((n_clusters, block)).astype(np.float32)
    codes = generator.integers(0, n_clusters, (n_rows, in_features // block)).astype(np.uint8)
    packed = codes if n_clusters == 256 else pack_nibbles(codes)
    layer = CodebookLayer(packed, codebook, in_features)
    expected = codebook[codes].reshape(n_rows, in_features)
    np.testing.assert_array_equal(layer.to_dense(), expected)
    x = generator.standard_normal((in_features, 5)).astype(np.float32)
    np.testing.assert_allclose(layer.matmul(x), expected @ x, rtol=1e-5, atol=1e-5)


def test_pruning_keeps_the_largest_weights_as_they_are(dense):
    pruned = demo.by_pruning(dense, settings=(0.9, 0.5, None))
    for layer, form, sparsity in zip(dense.layers, pruned.layers, (0.9, 0.5, 0), strict=True):
        left = form.to_dense()
        kept = left != 0
        assert abs(1 - kept.mean() - sparsity) < 1e-3
        np.testing.assert_array_equal(left[kept], layer.weight[kept])
        if sparsity:
            assert np.abs(layer.weight[kept]).min() > np.abs(layer.weight[~kept]).max()


def held_arrays(node):
    """Every array that a dataclass holds, however deep."""
    if isinstance(node, np.ndarray):
        return [node]
    if dataclasses.is_dataclass(node):
        node = [getattr(node, field.name) for field in dataclasses.fields(node)]
    if isinstance(node, list | tuple):
        return [array for item in node for array in held_arrays(item)]
    return []


def rebuild(layer):
    """The weights that a layer's arrays stand for, float64, by index arithmetic in plain loops."""
    if isinstance(layer, DenseLayer):
        return layer.weight.astype(float)
    if isinstance(layer, PrunedLayer):
        return expand(layer.matrix)
    if isinstance(layer, CodebookLayer):
        halves = len(layer.codebook) == 16
        rows = []
        for packed in layer.packed.tolist():
            codes = [c for byte in packed for c in (byte % 16, byte // 16)] if halves else packed
            rows.append(np.concatenate([layer.codebook[c] for c in codes])[: layer.in_features])
        return np.array(rows, float)
    assert isinstance(layer, DictionaryLayer)
    codes, (height, width), (h, w) = expand(layer.codes), layer.grid, layer.patch
    n_pieces = height // h * width // w
    images = np.zeros((len(codes), height, width))
    for piece, (top, left) in enumerate(
        (top, left) for top in range(0, height, h) for left in range(0, width, w)
    ):
        of_piece = codes[:, piece::n_pieces]
        values = of_piece @ layer.dictionary.astype(float)
        images[:, top : top + h, left : left + w] = values.reshape(-1, h, w)
    return images.reshape(len(codes), -1)


def expand(matrix):
    dense = np.zeros(matrix.shape)
    for row in range(matrix.shape[0]):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        dense[row, matrix.indices[span]] = matrix.data[span]
    return dense


def forward(weights, biases, x):
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = np.maximum(weight.astype(float) @ x + bias[:, None], 0)
    return weights[-1].astype(float) @ x + biases[-1][:, None]


def test_the_demonstration_uses_the_public_functions_only():
    for name in ("CSR", "kmeans", "learn_dictionary"):
        assert name in fastfactor.__all__
        assert getattr(demo, name) is getattr(fastfactor, name)

"""Layouts: which matrix a tensor is, that files keep it, and that tensors come back unchanged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastfactor import CorruptDataError, compare_files, compress_file, decompress_file, store
from fastfactor.files.checkpoint import Stored, open_checkpoint
from fastfactor.files.layout import Layout
from fastfactor.methods import Codebook, LowRank
from fastfactor.models.inspect import inspect_file
from fastfactor.models.layouts import AXES_OUT, Layouts, layout_text, named_layout
from safetensors.numpy import save_file

ROWS = {"method": "codebook", "n_bits": 4, "granularity": "row", "codebook_dtype": "float16"}
SHAPES = [(3, 5), (0, 4), (2, 3, 4), (3, 3, 2, 5), (2, 1, 3, 3), (2, 2, 2, 3, 4)]


def model(**shapes):
    return {name: Stored(shape, np.dtype(np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AXES_OUT)
def test_rows_are_what_the_name_says(name, shape, rng):
    W = rng.standard_normal(shape)
    layout = named_layout(name, shape)
    matrix = layout.to_matrix(W)
    assert matrix.shape == layout.matrix
    outputs = AXES_OUT[name](len(shape))
    moved = np.moveaxis(W, outputs, range(len(outputs)))
    rows = math.prod(moved.shape[: len(outputs)])
    columns = math.prod(moved.shape[len(outputs) :])
    assert np.array_equal(matrix, moved.reshape(rows, columns))
    assert np.array_equal(layout.to_tensor(matrix), W)
    assert layout.to_tensor(matrix).flags.c_contiguous


@pytest.mark.parametrize(
    ("tensors", "name", "found"),
    [
        # PyTorch
        ({"fc.weight": (64, 128), "fc.bias": (64,)}, "fc.weight", "64 × 128"),
        ({"conv.weight": (64, 32, 3, 3)}, "conv.weight", "64 × 288"),
        ({"conv.weight": (64, 128, 1, 1)}, "conv.weight", "64 × 128"),
        ({"conv.weight": (64, 128, 5)}, "conv.weight", "64 × 640"),
        ({"conv.weight": (960, 1, 3, 3)}, "conv.weight", "60 × 144 oi, 16 rows in one"),
        ({"conv.weight": (64, 3, 3, 3)}, "conv.weight", "8 × 216 oi, 8 rows in one"),
        ({"embed.weight": (1000, 64)}, "embed.weight", "1,000 × 64"),
        ({"lora_B.weight": (1024, 8)}, "lora_B.weight", "1,024 × 8"),
        # GPT-2, where biases tell; square matrices follow the others
        ({"h.weight": (64, 192), "h.bias": (192,)}, "h.weight", "192 × 64 io"),
        (
            {"a.weight": (64, 192), "a.bias": (192,), "h.weight": (64, 64), "h.bias": (64,)},
            "h.weight",
            "64 × 64 io",
        ),
        (
            {"a.weight": (192, 64), "a.bias": (192,), "h.weight": (64, 64), "h.bias": (64,)},
            "h.weight",
            "64 × 64",
        ),
        # Keras, Flax, Haiku, TensorFlow
        ({"dense/kernel:0": (64, 128)}, "dense/kernel:0", "128 × 64 io"),
        ({"c/kernel": (3, 3, 32, 64)}, "c/kernel", "64 × 288 io"),
        ({"c/kernel": (3, 3, 3, 64)}, "c/kernel", "8 × 216 io, 8 rows in one"),
        ({"c/kernel": (5, 64, 96)}, "c/kernel", "96 × 320 io"),
        (
            {"d/depthwise_kernel": (3, 3, 256, 1)},
            "d/depthwise_kernel",
            "16 × 144 depthwise, 16 rows in one",
        ),
        ({"linear/w": (64, 10), "linear/b": (10,)}, "linear/w", "10 × 64 io"),
        ({"conv/weights": (3, 3, 32, 64)}, "conv/weights", "64 × 288 io"),
        ({"l/d/vars/0": (64, 10), "l/d/vars/1": (10,)}, "l/d/vars/0", "10 × 64 io"),
        ({"arr_0": (3, 3, 32, 64), "arr_1": (64,), "arr_2": (64, 64)}, "arr_2", "64 × 64 io"),
        # Experts
        ({"w": (8, 64, 128)}, "w", "512 × 128 stacked"),
        ({"experts.up": (64, 32, 32)}, "experts.up", "2,048 × 32 stacked"),
        (
            {"experts.up": (8, 64, 128), "experts.up_bias": (8, 128)},
            "experts.up",
            "1,024 × 64 stacked_io",
        ),
        ({"w": (2, 8, 64, 128)}, "w", "1,024 × 128 stacked"),
        # A mask or an embedding of positions is no stack.
        ({"mask": (1, 1, 64, 64)}, "mask", "1 × 4,096"),
    ],
)
def test_names_shapes_and_biases_tell_the_layout(tensors, name, found):
    assert layout_text(Layouts(model(**tensors)).find(name)) == found


NETWORK = {
    "dense/kernel": (48, 96),
    "conv/kernel": (3, 3, 16, 40),
    "depthwise.weight": (256, 1, 3, 3),
    "experts.w": (8, 32, 64),
    "conv.weight": (40, 16, 3, 3),
    "bias": (40,),
    "small": (4, 8),
}


@pytest.fixture
def network(tmp_path, rng):
    scales = {name: np.float32(10) ** np.arange(-2, 2) for name in ("experts.w",)}
    tensors = {}
    for name, shape in NETWORK.items():
        tensors[name] = rng.standard_normal(shape).astype(np.float32)
        if name in scales:  # some experts are quiet
            tensors[name] *= np.repeat(scales[name], 2)[:, None, None]
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    return path, tensors


@pytest.mark.parametrize("compact", [False, True])
def test_tensors_come_back_in_their_shape_dtype_and_order(network, tmp_path, compact):
    path, tensors = network
    small, dense = tmp_path / "small.safetensors", tmp_path / "dense.safetensors"
    recipe = {"default": ROWS, "keep_dtype": "float16"}
    report = compress_file(path, small, recipe, compact=compact)
    rows = {row.name: row for row in report.rows}
    assert [name for name, row in rows.items() if row.reason] == ["bias", "small"]
    assert rows["bias"].reason == "not a matrix, as float16"
    assert rows["bias"].bytes_after == 80
    decompress_file(small, dense)
    back = open_checkpoint(dense)
    layouts = Layouts(open_checkpoint(path).tensors)
    assert set(back) == set(tensors)
    for name, W in tensors.items():
        assert (back[name].shape, back[name].dtype) == (W.shape, W.dtype)
        if rows[name].reason:
            assert np.array_equal(back[name], W.astype(np.float16).astype(np.float32))
            continue
        layout = layouts.find(name)
        expected = Codebook(n_bits=4, granularity="row", codebook_dtype="float16").compress(
            layout.to_matrix(W)
        )
        assert np.array_equal(layout.to_matrix(back[name]), expected.to_dense())
        assert rows[name].relative_error == expected.error(layout.to_matrix(W))
    with store.open_store(small) as opened:
        assert opened.info("dense/kernel").layout == Layout((48, 96), (1, 0), (96, 48))
        assert opened.info("conv.weight").given_layout is None
        x = np.ones(48, np.float32)
        linear = opened["dense/kernel"].linear(x)
        np.testing.assert_allclose(linear, x @ back["dense/kernel"], rtol=1e-4, atol=1e-4)
    for first, second in ((path, small), (small, path), (small, dense), (dense, small)):
        found = compare_files(first, second)
        errors = {row.name: row.relative_error for row in found.rows}
        alike = first != path and second != path
        assert errors["dense/kernel"] == pytest.approx(
            0 if alike else rows["dense/kernel"].relative_error, rel=0.02, abs=1e-12
        )
    records = {record["name"]: record for record in inspect_file(small, verify=True).records}
    assert records["conv/kernel"]["seen_as"] == "40 × 144 io"
    assert records["bias"]["config"] == {"stored_as": "float16"}


def test_the_rows_of_quiet_experts_have_tables_of_their_own(network, tmp_path):
    path, tensors = network
    target = tmp_path / "small.safetensors"
    compress_file(path, target, {"default": ROWS})
    with store.open_store(target) as opened:
        back = opened.to_dense("experts.w")
    lost = ((back - tensors["experts.w"]) ** 2).sum((1, 2)) / (tensors["experts.w"] ** 2).sum(
        (1, 2)
    )
    assert lost.max() < 0.02


def test_a_recipe_sets_the_layout(network, tmp_path):
    path, _ = network
    recipe = {
        "default": {"method": "low_rank", "rank": 2, "layout": "oi"},
        "names": {"dense/kernel": {"method": "low_rank", "rank": 2, "layout": "io"}},
    }
    dry = compress_file(path, tmp_path / "small.safetensors", recipe, dry_run=True)
    seen = {row.name: row.seen_as for row in dry.rows}
    assert (seen["dense/kernel"], seen["conv/kernel"]) == ("96 × 48 io", "3 × 1,920")
    assert seen["depthwise.weight"] == "256 × 9"
    assert "96 × 48 io" in dry.table().to_text()
    with pytest.raises(ValueError, match=r"layout in \[default\] must be one of"):
        compress_file(path, tmp_path / "s", {"default": {**ROWS, "layout": "oihw"}})


def test_weights_of_errors_follow_the_layout(network, tmp_path, rng):
    path, tensors = network
    inputs = rng.standard_normal((500, 48)) * np.geomspace(0.1, 3, 48)
    covariance = (inputs.T @ inputs / 500).astype(np.float32)
    importance = rng.random((3, 3, 16, 40)).astype(np.float32)
    save_file({"dense/kernel": covariance}, tmp_path / "inputs.safetensors")
    save_file({"conv/kernel": importance}, tmp_path / "fisher.safetensors")
    report = compress_file(
        path,
        tmp_path / "small.safetensors",
        {"default": {"method": "codebook", "n_bits": 3}},
        importance=tmp_path / "fisher.safetensors",
        input_covariance=tmp_path / "inputs.safetensors",
    )
    rows = {row.name: row for row in report.rows}
    W = tensors["dense/kernel"].T
    expected = Codebook(n_bits=3).compress(W, input_covariance=covariance)
    error = expected.error(W, input_covariance=covariance)
    assert rows["dense/kernel"].relative_error == error
    layout = named_layout("io", importance.shape)
    W, weights = layout.to_matrix(tensors["conv/kernel"]), layout.to_matrix(importance)
    expected = Codebook(n_bits=3).compress(W, importance=weights)
    assert rows["conv/kernel"].relative_error == expected.error(W, importance=weights)


def test_a_covariance_leaves_the_rows_of_a_convolution_single(tmp_path, rng):
    W = rng.standard_normal((256, 1, 3, 3)).astype(np.float32)
    save_file({"w": W}, tmp_path / "a.safetensors")
    save_file({"w": np.eye(9, dtype=np.float32)}, tmp_path / "c.safetensors")
    report = compress_file(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        {"default": {"method": "codebook", "n_bits": 4}},
        input_covariance=tmp_path / "c.safetensors",
    )
    assert report.rows[0].seen_as == "256 × 9"


def test_a_narrow_matrix_that_its_method_cannot_take_ends_no_run(tmp_path, rng):
    tensors = {"first": (64, 3, 3, 3), "wide": (9, 1000), "w": (64, 64)}
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    recipe = {"default": {"method": "block_diagonal", "n_blocks": 16}}
    report = compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["w"] == ""
    assert reasons["first"].startswith("impossible: n_blocks must be at most 8")
    assert reasons["wide"].startswith("impossible: n_blocks must be at most 9")


def test_values_that_float16_cannot_hold_stay_as_they_are(tmp_path):
    large = np.array([1, 1e6], np.float32)
    save_file({"large": large, "b": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    recipe = {"default": ROWS, "keep_dtype": "float16"}
    report = compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe)
    rows = {row.name: row for row in report.rows}
    assert rows["b"].reason == "not a matrix, as float16"
    assert rows["large"].reason.startswith("not a matrix; not as float16: values must be")
    with store.open_store(tmp_path / "b.safetensors") as opened:
        assert np.array_equal(opened["large"], large)


# --- the file


@pytest.mark.parametrize(
    "layout",
    [
        Layout((6, 4), (1, 0), (4, 5)),
        Layout((6, 4), (0, 0), (4, 6)),
        Layout((6, 4), (1,), (4, 6)),
        Layout((6, 5), (1, 0), (4, 6)),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, tmp_path):
    factors = LowRank(rank=1).compress(np.ones((4, 6)))
    with pytest.raises(ValueError, match="shape of 'w' must flatten"):
        store.save(tmp_path / "a.safetensors", {"w": factors}, shapes={"w": layout})


def test_only_files_with_layouts_or_converted_tensors_have_version_2(tmp_path):
    factors = LowRank(rank=1).compress(np.ones((4, 6)))
    path = tmp_path / "a.safetensors"
    for shape, version in (((4, 2, 3), 1), (Layout((6, 4), (1, 0), (4, 6)), 2)):
        store.save(path, {"w": factors}, shapes={"w": shape})
        assert f'\\"version\\":{version}'.encode() in path.read_bytes()
        with store.open_store(path) as opened:
            assert opened.to_dense("w").shape == (shape if version == 1 else (6, 4))


@pytest.mark.parametrize(
    "layout",
    [
        None,
        {"axes": [1, 0]},
        {"axes": [1, 0], "matrix": [4, 5]},
        {"axes": [1, 1], "matrix": [4, 6]},
        {"axes": [1.0, 0.0], "matrix": [4, 6]},
        {"axes": [1, 0], "matrix": [-4, -6]},
        {"axes": [1, 0], "matrix": [4, 6, 1]},
        {"axes": [1, 0], "matrix": [4, 6], "more": 1},
    ],
    ids=repr,
)
def test_a_stored_layout_is_checked(layout, tmp_path, monkeypatch):
    from fastfactor.files import save

    def forged(*arguments):
        entry, tensors = writer_entry(*arguments)
        return {**entry, "layout": layout}, tensors

    writer_entry = save.described_entry
    monkeypatch.setattr(save, "described_entry", forged)
    path = tmp_path / "a.safetensors"
    factors = LowRank(rank=1).compress(np.ones((4, 6)))
    store.save(path, {"w": factors}, shapes={"w": Layout((6, 4), (1, 0), (4, 6))})
    with pytest.raises(CorruptDataError, match="layout of entry 'w'"):
        store.open_store(path)

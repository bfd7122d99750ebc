"""Tensors of dtypes that NumPy lacks, also of those yet to come, are copied byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.files.checkpoint import open_checkpoint
from fastfactor.files.container import OpaqueTensor, OpaqueType
from fastfactor.models.compare import compare_files
from fastfactor.models.inspect import inspect_file
from models import RECIPE

# name of the dtype: shape and bytes
TENSORS = {
    "F4": ([8, 6], 24),
    "F6_E2M3": ([4, 8], 24),
    "F6_E3M2": ([8], 6),
    "F8_E4M3FNUZ": ([5, 7], 35),
    "F8_E5M2FNUZ": ([3], 3),
    "F8_NEW": ([2, 2], 4),
    "U128": ([3], 48),
    "POSIT": ([10], 7),  # whose width nobody knows here
}


def write(path, described, W=None):
    """A safetensors file with random bytes, and a matrix if one is given; returns the bytes."""
    header, data, content = {}, b"", {}
    if W is not None:
        content["W"] = W.tobytes()
        header["W"] = {"dtype": "F32", "shape": list(W.shape), "data_offsets": [0, W.nbytes]}
        data = content["W"]
    rng = np.random.default_rng(3)
    for code, (shape, nbytes) in described.items():
        content[code] = rng.bytes(nbytes)
        place = [len(data), len(data) + nbytes]
        header[code] = {"dtype": code, "shape": shape, "data_offsets": place}
        data += content[code]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return content


@pytest.fixture
def model(tmp_path, rng):
    path = tmp_path / "model.safetensors"
    return path, write(path, TENSORS, rng.standard_normal((64, 48)).astype(np.float32))


def header_of(path):
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    for place in header.values():
        begin, stop = place.pop("data_offsets")
        place["content"] = content[end + begin : end + stop]
    return header


def test_they_come_through_unchanged(model, tmp_path):
    path, content = model
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    report = compress_file(path, small, RECIPE)
    rows = {row.name: row for row in report.rows}
    assert rows["W"].method == "codebook"
    for code, (shape, nbytes) in TENSORS.items():
        row = rows[code]
        assert (row.method, row.dtype, list(row.shape)) == ("keep", code, shape)
        assert row.bytes_before == row.bytes_after == nbytes
    planned = compress_file(path, small, RECIPE, dry_run=True)
    assert [row.bytes_after for row in planned.rows[1:]] == [n for _, n in TENSORS.values()]
    decompress_file(small, large)
    before, after = header_of(path), header_of(large)
    assert after.keys() == before.keys()
    for code in TENSORS:
        assert after[code] == before[code]
        with store.open_store(small) as opened:
            assert opened.info(code).dtype == OpaqueType(code)
            tensor = opened[code]
            assert isinstance(tensor, OpaqueTensor)
            assert tensor.data.tobytes() == content[code]
            assert not tensor.data.flags.writeable
            with pytest.raises(TypeError, match=r"must be turned into an array by its data"):
                np.asarray(tensor)
    listed = inspect_file(small, verify=True)
    assert {each["name"]: each["bytes"] for each in listed.records}["F4"] == 24
    rows = {row.name: row for row in compare_files(path, small).rows}
    assert all(rows[code].equal for code in TENSORS)
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(path.read_bytes()[:-1] + b"?")
    rows = {row.name: row for row in compare_files(path, changed).rows}
    assert [name for name, row in rows.items() if not row.equal] == ["POSIT"]


def test_a_killed_run_takes_them_up(model, tmp_path):
    path, _ = model
    straight, target = tmp_path / "straight.safetensors", tmp_path / "target.safetensors"
    compress_file(path, straight, RECIPE)

    def stop(name, done, total):
        if name == "U128":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_file(path, target, RECIPE, resume=True, progress=stop)
    compress_file(path, target, RECIPE, resume=True)
    assert target.read_bytes() == straight.read_bytes()


def test_the_compact_form_has_those_whose_width_is_in_their_names(model, tmp_path):
    path, _ = model
    target = tmp_path / "target.safetensors"
    with pytest.raises(ValueError, match="'POSIT' must say its width, got POSIT"):
        compress_file(path, target, RECIPE, compact=True)
    write(path, {code: value for code, value in TENSORS.items() if code != "POSIT"})
    compress_file(path, target, RECIPE, compact=True)
    with store.open_store(target) as opened:
        assert list(opened) == list(TENSORS)[:-1]
        for code in opened:
            assert opened[code].shape == tuple(TENSORS[code][0])
            assert opened[code].data.size == TENSORS[code][1]


@pytest.mark.parametrize(
    ("code", "shape", "nbytes", "message"),
    [
        ("F4", [3], 2, "must fill its last byte"),
        ("F4", [4], 3, "must have 2 bytes"),
        ("F6_E2M3", [4], 4, "must have 3 bytes"),
        ("f4", [4], 2, "dtype of tensor 'f4' must be one of"),
        ("F4 ", [4], 2, "must be one of"),
        ("", [4], 2, "must be one of"),
        ("POSIT", [2**40, 2**40], 2, "with fewer than 2"),
    ],
)
def test_what_contradicts_itself_is_refused(code, shape, nbytes, message, tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, {code: (shape, nbytes)})
    with pytest.raises(CorruptDataError, match=message):
        open_checkpoint(path)


def test_they_may_be_saved(tmp_path):
    path = tmp_path / "m.safetensors"
    tensor = OpaqueTensor(OpaqueType("F4"), (4, 2), np.zeros(4, np.uint8))
    store.save(path, {"x": tensor})
    with store.open_store(path) as opened:
        assert opened["x"].shape == (4, 2)
        assert opened.to_dense("x").data.size == 4
        assert opened.info("x").kind == "plain"

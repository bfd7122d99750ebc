"""Models on disk: files that cannot be sources or targets, and damaged ones."""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.files.checkpoint import is_compressed, open_checkpoint
from models import RECIPE, network, saved, shard
from processes import run_python
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


def test_a_checkpoint_is_shown_in_a_line_and_may_be_copied_and_pickled(model):
    path, tensors = model
    opened = open_checkpoint(path)
    nbytes = path.stat().st_size
    assert repr(opened) == f"Checkpoint({str(path)!r}, {len(tensors)} tensors, {nbytes} bytes)"
    for again in (copy.copy(opened), copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        assert list(again) == list(opened)
        for name in again:
            np.testing.assert_array_equal(again[name], opened[name])


def test_an_archive_may_be_copied_and_pickled(tmp_path, rng):
    np.savez(tmp_path / "m.npz", a=rng.random((3, 4)))
    opened = open_checkpoint(tmp_path / "m.npz")
    for again in (copy.copy(opened), copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        np.testing.assert_array_equal(again["a"], opened["a"])


def test_threads_may_read_at_once(tmp_path):
    """Threads that share one open file get their own tensors."""
    tensors = {str(i): np.full(30_000, i, np.int32) for i in range(64)}
    save_file(tensors, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")

    def wrong(name):
        return sum(int((opened[name] != int(name)).any()) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, tensors)) == 0


def test_more_shards_than_files_that_may_be_open(tmp_path):
    tensors = {f"t{i}": np.full(3, i, np.int32) for i in range(300)}
    shard(tmp_path, tensors, n_shards=300)
    code = """
        import resource, sys
        from fastfactor.files.checkpoint import open_checkpoint
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        opened = open_checkpoint(sys.argv[1])
        assert all((opened[f"t{i}"] == i).all() for i in range(300))
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [100, 1 << 18])  # read, and mapped
def test_a_file_that_was_shortened_or_replaced_after_it_was_opened(tmp_path, n):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.arange(n)}, path)
    opened = open_checkpoint(path)
    save_file({"a": np.zeros(n, int)}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    np.testing.assert_array_equal(opened["a"], np.arange(n))
    opened = open_checkpoint(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CorruptDataError, match="ends within tensor 'a'"):
        opened["a"]


def test_a_compressed_file_is_no_source(model, tmp_path):
    path, _ = model
    compress_file(path, tmp_path / "s.safetensors", RECIPE)
    assert is_compressed(tmp_path / "s.safetensors")
    assert not is_compressed(path)
    with pytest.raises(ValueError, match="decompress it first"):
        compress_file(tmp_path / "s.safetensors", tmp_path / "t.safetensors", RECIPE)


def test_targets_that_cannot_be(model, tmp_path):
    path, tensors = model
    before = path.read_bytes()
    with pytest.raises(ValueError, match="target must not be a source"):
        compress_file(path, tmp_path / "." / "net.safetensors", RECIPE)
    with pytest.raises(ValueError, match="target must not be a source"):
        decompress_file(path, path)
    index = shard(tmp_path, tensors)
    with pytest.raises(ValueError, match="target must not be a source"):
        compress_file(index, tmp_path / "model-00001-of-00003.safetensors", RECIPE)
    with pytest.raises(ValueError, match=r"target must be a safetensors file, got '.*\.npz'"):
        compress_file(path, tmp_path / "out.npz", RECIPE)
    with pytest.raises(FileNotFoundError):
        compress_file(path, tmp_path / "none" / "out.safetensors", RECIPE)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["weight_map"].update(bias="model-00001-of-00003.safetensors"),
            "tensor 'bias' must be in model-00001-of-00003.safetensors",
        ),
        (lambda c: c["weight_map"].update(more="model-00001-of-00003.safetensors"), "'more'"),
        (lambda c: c["weight_map"].update(bias="../x.safetensors"), "in its own folder"),
        (lambda c: c["weight_map"].update(bias="/x.safetensors"), "in its own folder"),
        (lambda c: c["weight_map"].update(bias="a\0b"), "in its own folder"),
        (lambda c: c["weight_map"].update(bias=3), "weight_map"),
        (lambda c: c.pop("weight_map"), "weight_map"),
    ],
)
def test_an_index_that_contradicts_its_shards(tmp_path, rng, change, message):
    index = shard(tmp_path, network(rng))
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptDataError, match=message):
        open_checkpoint(index)


def test_damaged_sources(model, tmp_path):
    path, _ = model
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptDataError, match=r"net\.safetensors"):
            compress_file(path, tmp_path / "out.safetensors", RECIPE)
    np.savez(tmp_path / "a.npz", w=np.ones((40, 40)))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:-30])
    with pytest.raises(CorruptDataError, match=r"a\.npz"):
        open_checkpoint(tmp_path / "a.npz")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(flipped)
    with pytest.raises(CorruptDataError, match="tensor 'w'"):
        compress_file(tmp_path / "a.npz", tmp_path / "out.safetensors", RECIPE)
    (tmp_path / "i.index.json").write_text("{")
    with pytest.raises(CorruptDataError, match="JSON"):
        open_checkpoint(tmp_path / "i.index.json")
    np.savez(tmp_path / "o.npz", w=np.array(["text"]))
    with pytest.raises(TypeError, match=r"'w\.npy'"):
        open_checkpoint(tmp_path / "o.npz")
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="got 0 files"):
        open_checkpoint(tmp_path / "folder")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map": {"a": "x", "a": "y"}}', "{", "\xff"]
)
def test_an_index_that_is_no_json_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptDataError, match=r"must be JSON|must be unique"):
        open_checkpoint(index)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_with_any_byte_changed_is_read_or_refused(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, a=np.arange(20, dtype=np.float32))
    content = path.read_bytes()
    refused = 0
    # Every byte of the directory, which is at the end; some of what stands before it.
    places = (*range(0, len(content) - 100, 5), *range(len(content) - 100, len(content)))
    for at in places:
        for flip in (0x01, 0x20):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                opened = open_checkpoint(path)
                for name in opened:
                    opened[name]
            except CorruptDataError:
                refused += 1
    assert refused > len(places) // 2


@pytest.mark.parametrize(
    "shape", ["(2**40,)", "(2**80,)", "(-1,)", "(True,)", "(" * 900, "-" * 9000 + "1"]
)
def test_an_archive_whose_shapes_lie_is_refused(tmp_path, shape):
    shape = shape.replace("2**40", str(2**40)).replace("2**80", str(2**80))
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        start = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little")
        archive.writestr("a.npy", start + header + bytes(4))
    with pytest.raises(CorruptDataError, match=r"'a\.npy'"):
        open_checkpoint(tmp_path / "a.npz")


def test_damage_is_found_while_compressing_what_has_checksums(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    store.save(path, {"w": rng.standard_normal((64, 64)).astype(np.float32)})
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match="checksum"):
        compress_file(path, tmp_path / "b.safetensors", RECIPE)
    assert list(tmp_path.iterdir()) == [path]

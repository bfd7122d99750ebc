"""Stored files in the compact form: what they hold, how small they are, and damage to them."""

from __future__ import annotations

import json
import struct
import zlib

import damage
import ml_dtypes
import numpy as np
import pytest
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.cli import app as cli
from fastfactor.files import compact
from fastfactor.files.checkpoint import is_compressed, open_checkpoint
from fastfactor.methods import Codebook, DeepCompression, Factors, LowRank
from fastfactor.models.compare import compare_files
from fastfactor.models.inspect import inspect_file
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

SHAPES = {"fc": (6, 5, 3)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


@pytest.fixture
def entries(rng):
    W = rng.standard_normal((6, 15)).astype(np.float32)
    return {
        "codes": np.arange(7, dtype=np.uint8),
        "fc": LowRank(rank=2).compress(W),
        "half": np.ones((1, 2), ml_dtypes.bfloat16),
        "deep": DeepCompression(sparsity=0.6, n_bits=3).compress(W),
        "empty": np.zeros((0, 4), np.int16),
        "bias": rng.standard_normal(6),
        "flag": np.array(True),
    }


def same_entries(opened, entries):
    assert list(opened) == list(entries)
    for name, expected in entries.items():
        value = opened[name]
        if isinstance(expected, Factors):
            assert (value.kind, value.dtype) == (expected.kind, expected.dtype)
            assert value.config() == expected.config()
            value, expected = value.tensors(), expected.tensors()
        else:
            value, expected = {"": value}, {"": expected}
        assert value.keys() == expected.keys()
        for part, array in expected.items():
            assert value[part].dtype == array.dtype
            np.testing.assert_array_equal(value[part], array)
            assert not value[part].flags.writeable


def test_what_was_saved_is_read(path, entries):
    store.save(path, entries, metadata={"made": "by é"}, shapes=SHAPES, compact=True)
    with store.open_store(path) as opened:
        same_entries(opened, entries)
        assert opened.metadata == {"made": "by é"}
        assert opened.info("fc").shape == (6, 5, 3)
        assert opened.to_dense("fc").shape == (6, 5, 3)
        assert opened.has_checksums
        opened.verify()
        nbytes = sum(entry.nbytes for entry in entries.values())
        assert opened.payload_nbytes == nbytes
        assert opened.file_nbytes == path.stat().st_size
        assert 0 < opened.file_nbytes - nbytes < 400


def test_less_stands_beside_the_tensors_than_in_the_ordinary_form(path, entries):
    sizes = []
    for form in (False, True):
        store.save(path, entries, compact=form)
        with store.open_store(path) as opened:
            sizes.append(opened.file_nbytes - opened.payload_nbytes)
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize("metadata", [None, {"a": "b"}])
def test_a_writer_writes_the_bytes_of_save(path, entries, metadata):
    store.save(path, entries, metadata=metadata, shapes=SHAPES, compact=True)
    expected = path.read_bytes()
    with store.Writer(path, metadata=metadata, compact=True) as writer:
        for name, value in entries.items():
            writer.add(name, value, shape=SHAPES.get(name))
    assert path.read_bytes() == expected
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_writer_is_taken_up_in_either_form(path, entries):
    store.save(path, entries, shapes=SHAPES, compact=True)
    expected = path.read_bytes()
    begun = store.Writer(path, resume=True)
    for name in list(entries)[:3]:
        begun.add(name, entries[name], shape=SHAPES.get(name))
    begun._end_files(keep=True)
    with store.Writer(path, resume=True, compact=True) as writer:
        assert list(writer) == list(entries)[:3]
        for name, value in entries.items():
            if name not in writer:
                writer.add(name, value, shape=SHAPES.get(name))
    assert path.read_bytes() == expected


def test_nothing_is_a_file_too(path):
    store.save(path, {}, compact=True)
    with store.open_store(path) as opened:
        assert list(opened) == []
        opened.verify()


def test_other_readers_see_one_tensor_of_bytes(path, entries):
    store.save(path, entries, compact=True)
    (name, array), *rest = load_file(path).items()
    assert (name, array.dtype, rest) == ("fastfactor", np.uint8, [])
    assert path.read_bytes().endswith(array.tobytes())


def test_a_file_of_that_tensor_and_others_is_an_ordinary_one(path):
    save_file({"fastfactor": np.arange(9, dtype=np.uint8), "more": np.ones(2)}, path)
    with store.open_store(path) as opened:
        assert sorted(opened) == ["fastfactor", "more"]
    store.save(path, {"fastfactor": np.arange(9, dtype=np.uint8)})
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["fastfactor"], np.arange(9))


# --- whole models


def test_a_foreign_tensor_that_begins_as_ours_does_is_read(path, rng):
    values = rng.integers(256, size=100, dtype=np.uint8)
    values[:3] = list(b"FFC")
    for n in (3, 100):
        save_file({"w": values[:n]}, path)
        with store.open_store(path) as opened:
            np.testing.assert_array_equal(opened["w"], values[:n])


def test_commands_take_compact_files(tmp_path, rng):
    small = rng.standard_normal((40, 50)).astype(np.float32)
    tensors = {"fc": small, "conv": small.reshape(40, 2, 5, 5), "bias": np.ones(5, np.float32)}
    save_file(tensors, tmp_path / "net.safetensors", metadata={"format": "pt"})
    recipe = {"default": {"method": "deep_compression", "sparsity": 0.8}}
    files = {form: tmp_path / f"{form}.safetensors" for form in (False, True)}
    for form, target in files.items():
        report = compress_file(tmp_path / "net.safetensors", target, recipe, compact=form)
        methods = {row.name: row.method for row in report.rows}
        compressed = dict.fromkeys(("fc", "conv"), "deep_compression")
        assert methods == {**compressed, "bias": "keep"}
    assert files[True].stat().st_size < files[False].stat().st_size - 500
    assert is_compressed(files[True])
    assert compare_files(files[False], files[True]).equal
    assert inspect_file(files[True], verify=True).records == inspect_file(files[False]).records
    dense = {}
    for form, source in files.items():
        decompress_file(source, tmp_path / f"{form}.dense.safetensors")
        dense[form] = (tmp_path / f"{form}.dense.safetensors").read_bytes()
    assert dense[True] == dense[False]
    with pytest.raises(ValueError, match="decompress it first"):
        open_checkpoint(files[True])


def test_a_compact_file_of_plain_tensors_is_a_model(tmp_path, rng):
    tensors = {"fc": rng.standard_normal((64, 48)).astype(np.float32), "ids": np.arange(5)}
    source, target = tmp_path / "plain.safetensors", tmp_path / "small.safetensors"
    store.save(source, tensors, metadata={"a": "b"}, compact=True)
    model = open_checkpoint(source)
    assert model.metadata == {"a": "b"}
    assert list(model) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(model[name], array)
    compress_file(source, target, {"default": {"method": "codebook", "n_bits": 4}})
    with store.open_store(target) as opened:
        expected = Codebook(n_bits=4).compress(tensors["fc"]).to_dense()
        np.testing.assert_array_equal(opened.to_dense("fc"), expected)


@pytest.mark.parametrize("size", [16, 512])
def test_the_command_line_hints_at_it_where_the_header_takes_much(tmp_path, rng, size):
    W = rng.standard_normal((size, size)).astype(np.float32)
    save_file({"fc": W}, tmp_path / "net.safetensors")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('min_size = 1\n[default]\nmethod = "codebook"\nn_bits = 4\n')
    options = ["--recipe", str(recipe)]
    files = [str(tmp_path / "net.safetensors"), str(tmp_path / "small.safetensors")]
    sizes = []
    for more in ([], ["--compact"], ["--json"]):
        found = CliRunner().invoke(cli.app, ["compress", *files, *options, *more])
        assert found.exit_code == 0
        hinted = "--compact makes it smaller" in found.output
        assert hinted == (size == 16 and not more)
        sizes.append((tmp_path / "small.safetensors").stat().st_size)
    assert sizes[1] < sizes[0]


# --- damage


@pytest.fixture
def content(path, rng):
    W = rng.standard_normal((4, 6)).astype(np.float32)
    factors = DeepCompression(sparsity=0.5, n_bits=2).compress(W)
    store.save(path, {"fc": factors, "bias": np.ones(3)}, metadata={"a": "b"}, compact=True)
    return path.read_bytes()


def all_refused(copies, path):
    n = 0
    for copy in copies:
        path.write_bytes(copy)
        with pytest.raises(CorruptDataError):
            store.open_store(path)
        n += 1
    assert n


@pytest.mark.parametrize("flip", [0x01, 0x02, 0x04, 0x10, 0x20, 0x80, 0xFF])
def test_every_changed_byte_is_refused(content, path, flip):
    all_refused(damage.flips(content, flip), path)


def test_every_cut_and_every_byte_more_or_less_is_refused(content, path):
    all_refused(damage.cuts(content), path)
    all_refused(damage.shifts(content), path)


def rewritten(content, change):
    """The file with another JSON, or deflated JSON, under a right checksum."""
    start = 8 + struct.unpack("<Q", content[:8])[0] + compact.START.size
    inflate = zlib.decompressobj(-15, zdict=compact.DICTIONARY)
    header = json.loads(inflate.decompress(content[start:]))
    changed = change(header)
    deflated = changed if isinstance(changed, bytes) else deflate(json.dumps(header).encode())
    return sealed(bytes([1]) + deflated + inflate.unused_data)


def deflate(text):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=compact.DICTIONARY)
    return deflate.compress(text) + deflate.flush()


def sealed(body):
    data = b"FFC" + struct.pack("<I", zlib.crc32(body)) + body
    return compact._outer_header(len(data)) + data


def test_a_file_that_is_written_anew_unchanged_is_read(content, path):
    path.write_bytes(rewritten(content, lambda header: None))
    with store.open_store(path) as opened:
        assert list(opened) == ["fc", "bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("metadata"), "entries and metadata"),
        (lambda h: h.update(more=1), "entries and metadata"),
        (lambda h: h.update(metadata={"a": 1}), "metadata must map names to text"),
        (lambda h: h.update(metadata=[]), "metadata must map names to text"),
        (lambda h: h.update(metadata={"fastfactor": "{}"}), "reserved name 'fastfactor'"),
        (lambda h: h.update(entries=[]), "entries must be a JSON object"),
        (lambda h: h["entries"].pop("bias"), "bytes of tensors, got"),
        (lambda h: h["entries"].update(bias=["F64", [4]]), "bytes of tensors, got"),
        (
            lambda h: h["entries"].update(bias=["f64", [3]]),
            "dtype of tensor 'bias' must be one of F64",
        ),
        (lambda h: h["entries"].update(bias=["F64", [3.0]]), "must be a list of at most 32 sizes"),
        (lambda h: h["entries"].update(bias=["F64", [-3]]), "must be a list of at most 32 sizes"),
        (lambda h: h["entries"].update(bias=["F64", [2**40, 2**40]]), r"fewer than 2\*\*59"),
        (lambda h: h["entries"].update(bias=["F64"]), "must be a list of a dtype and a shape"),
        (lambda h: h["entries"].update(bias="F64"), "must be a list of a dtype and a shape"),
        (lambda h: h["entries"].update(bias=None), "must be a list of a dtype and a shape"),
        (lambda h: h["entries"].update({"fc.codes": ["U8", [0]]}), "belong to one entry, got two"),
        (lambda h: h["entries"]["fc"].pop("tensors"), "must be a JSON object"),
        (lambda h: h["entries"]["fc"].update(tensors=[]), "must be a JSON object"),
        (lambda h: h["entries"]["fc"].pop("kind"), "must be a JSON object with the keys"),
        (lambda h: h["entries"]["fc"].update(crc32=3), "must not hold checksums of its tensors"),
        (
            lambda h: h["entries"]["fc"].update(shape=[2**70]),
            "shape of entry 'fc' must be a list of sizes",
        ),
        (lambda h: b"\xff\xff", "must be deflated"),
        (lambda h: deflate(b"[]"), "must be a JSON object with entries"),
        (lambda h: deflate(b'{"entries":{},"entries":{}}'), "names must be unique"),
        (lambda h: deflate(b'{"entries"'), "the header must be JSON"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(content, path, change, message):
    path.write_bytes(rewritten(content, change))
    with pytest.raises(CorruptDataError, match=message):
        store.open_store(path)


def test_a_header_that_inflates_without_end_is_refused(content, path):
    """20 KB that would be 20 MB of JSON, five times the most that a compact header may be."""
    bomb = deflate(b'{"entries":{},"metadata":{"a":"' + b"a" * 20_000_000 + b'"}}')
    assert len(bomb) < 30_000
    path.write_bytes(rewritten(content, lambda header: bomb))
    with pytest.raises(CorruptDataError, match="at most 4194304 bytes when inflated"):
        store.open_store(path)


def test_a_header_that_could_not_be_read_is_not_written(path, entries):
    with pytest.raises(ValueError, match="compact must be False for a header of more"):
        store.save(path, entries, metadata={"a": "a" * 4_200_000}, compact=True)
    assert not path.exists()


def test_a_newer_version_is_named(content, path):
    start = content.index(b"FFC") + 7
    path.write_bytes(sealed(b"\x03" + content[start + 1 :]))
    with pytest.raises(ValueError, match="a newer fastfactor wrote it") as caught:
        store.open_store(path)
    assert not isinstance(caught.value, CorruptDataError)


def test_bytes_at_random_under_a_right_checksum_do_no_harm(content, path, rng):
    body = content[content.index(b"FFC") + 7 :]
    for at in range(1, len(body)):
        changed = bytearray(body)
        changed[at] = rng.integers(256)
        path.write_bytes(sealed(bytes(changed)))
        try:
            with store.open_store(path) as opened, np.errstate(all="ignore"):
                for name in opened:
                    if np.prod(opened.info(name).shape) < 1 << 20:
                        opened.to_dense(name)
        except CorruptDataError:
            continue

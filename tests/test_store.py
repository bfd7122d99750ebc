from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import struct
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.files.checkpoint import open_checkpoint
from fastfactor.files.container import DTYPES, TensorInfo, dtype_of, header_bytes
from fastfactor.methods import Factors, LowRank, LowRankFactors
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


@pytest.fixture
def low_rank(rng):
    return LowRank(rank=2).compress(rng.standard_normal((6, 15)).astype(np.float32))


@pytest.fixture
def entries(rng, low_rank):
    """Tensors whose bytes are odd in number first, so that what follows lies as it comes."""
    return {
        "codes": np.arange(7, dtype=np.uint8),
        "fc.weight": low_rank,
        "half": rng.standard_normal(3).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 4), np.int16),
    }


def same(value, expected):
    if isinstance(expected, Factors):
        assert type(value) is type(expected)
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        for name, tensor in expected.tensors().items():
            np.testing.assert_array_equal(value.tensors()[name], tensor)
    else:
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(value, expected)


# --- there and back


def test_entries_come_back_as_they_were(path, entries):
    store.save(path, entries, metadata={"note": "ä \"quoted\" 'fastfactor.crc32'"})
    with store.open_store(path) as opened:
        assert list(opened) == list(entries)
        assert len(opened) == 5
        assert opened.metadata == {"note": "ä \"quoted\" 'fastfactor.crc32'"}
        for name, value in entries.items():
            same(opened[name], value)
        opened.verify()


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(path, code):
    array = np.array([[1, 2], [2, 1], [1, 1]]).astype(dtype_of(code))
    store.save(path, {"x": array, "y": array[:, :1], "z": array.T})
    with store.open_store(path) as opened:
        for name, value in (("x", array), ("y", array[:, :1]), ("z", array.T)):
            same(opened[name], value)
            assert opened.info(name).dtype == array.dtype


def test_any_layout_and_byte_order(path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    store.save(path, {"strided": x[::2, ::-3], "big": x.astype(">f4")})
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["strided"], x[::2, ::-3])
        assert opened["big"].dtype == np.float32
        np.testing.assert_array_equal(opened["big"], x)


def test_other_readers_see_every_tensor(path, entries):
    store.save(path, entries, metadata={"note": "text"})
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {
            *("codes", "half", "scalar", "empty"),
            *("fc.weight.B", "fc.weight.C"),
        }
        assert file.metadata()["note"] == "text"
        factors = entries["fc.weight"]
        np.testing.assert_array_equal(file.get_tensor("fc.weight.B"), factors.B)
        np.testing.assert_array_equal(file.get_tensor("codes"), entries["codes"])


def test_files_of_other_writers_are_plain_tensors(path):
    tensors = {"a": np.arange(5, dtype=np.int8), "b": np.ones((2, 3), np.float32)}
    save_file(tensors, path, metadata={"by": "others"})
    with store.open_store(path) as opened:
        assert not opened.has_checksums
        assert opened.metadata == {"by": "others"}
        for name, value in tensors.items():
            same(opened[name], value)
            assert opened.info(name).kind == "plain"
        opened.verify()


def test_unaligned_tensors_are_copied(path):
    places = {"a": TensorInfo("U8", (1,), 0, 1), "b": TensorInfo("F64", (2,), 1, 17)}
    values = np.array([1.5, -2.0])
    header = header_bytes(places, {}, {"version": 1, "entries": {}})
    text = json.loads(header[8:])
    del text["__metadata__"]
    plain = json.dumps(text).encode()
    path.write_bytes(struct.pack("<Q", len(plain)) + plain + b"\x07" + values.tobytes())
    assert np.array_equal(load_file(path)["b"], values)
    with store.open_store(path) as opened:
        same(opened["b"], values)
        assert opened["b"].flags.aligned


def test_same_entries_same_bytes(path, entries):
    store.save(path, entries)
    first = path.read_bytes()
    store.save(path, entries)
    assert path.read_bytes() == first


def test_tensors_of_any_rank_are_matrices(path, low_rank):
    store.save(path, {"conv": low_rank}, shapes={"conv": (6, 5, 3)})
    with store.open_store(path) as opened:
        assert opened.info("conv").shape == (6, 5, 3)
        assert opened["conv"].shape == (6, 15)
        dense = opened.to_dense("conv")
        np.testing.assert_array_equal(dense, low_rank.to_dense().reshape(6, 5, 3))


def test_what_it_says_of_entries(path, entries):
    store.save(path, entries)
    with store.open_store(path) as opened:
        entry = opened.info("fc.weight")
        assert entry == store.Entry(
            name="fc.weight",
            kind="low_rank",
            shape=(6, 15),
            dtype=np.dtype(np.float32),
            nbytes=entries["fc.weight"].nbytes,
            tensors={"B": "fc.weight.B", "C": "fc.weight.C"},
            config={},
        )
        assert opened.file_nbytes == path.stat().st_size
        assert opened.payload_nbytes == sum(v.nbytes for v in entries.values())
        assert opened.payload_nbytes == sum(opened.info(name).nbytes for name in opened)
        assert "fc.weight" in opened
        assert "fc.weight.B" not in opened
        for look_up in (opened.__getitem__, opened.info, opened.to_dense):
            with pytest.raises(KeyError, match=r"file's 5 \('.*', …\), got 'fc.weight.B'"):
                look_up("fc.weight.B")
        assert repr(opened) == f"Store({str(path)!r}, 5 entries, {opened.file_nbytes} bytes)"


# --- lazily, and without copies


def test_arrays_lie_in_the_memory_map(path, entries):
    store.save(path, entries)
    with store.open_store(path) as opened:
        whole = np.frombuffer(opened._map, np.uint8)
        factors = opened["fc.weight"]
        for array in (opened["codes"], opened["half"], factors.B, factors.C):
            assert np.shares_memory(array.reshape(-1).view(np.uint8), whole)
            assert array.flags.aligned
            assert not array.flags.writeable


def test_arrays_outlive_the_store(path, entries):
    store.save(path, entries)
    with store.open_store(path) as opened:
        factors = opened["fc.weight"]
        opened.release()
    gc.collect()
    same(factors, entries["fc.weight"])
    with pytest.raises(ValueError, match=r"store must be open to read 'codes', got a closed store"):
        opened["codes"]
    opened.release()


def test_an_entry_is_read_when_it_is_asked_for(path, entries):
    store.save(path, entries)
    with store.open_store(path) as opened:
        at = opened._start + opened._infos["fc.weight.C"].begin
    damage(path, at)
    with store.open_store(path) as opened:
        same(opened["codes"], entries["codes"])
        for read in (lambda: opened["fc.weight"], opened.verify):
            with pytest.raises(
                CorruptDataError, match=r"checksum mismatch in tensor 'fc.weight.C'"
            ):
                read()


def test_a_large_file_is_not_read_to_be_opened(path):
    store.save(path, {str(i): np.full(1_000_000, i, np.float32) for i in range(5)})
    tracemalloc.start()
    with store.open_store(path) as opened:
        assert opened["3"][7] == 3
        assert opened["4"].sum(dtype=np.float64) == 4_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_factors_multiply_from_the_map(path, low_rank):
    store.save(path, {"fc": low_rank})
    x = np.ones((3, 15), np.float32)
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["fc"].linear(x), low_rank.linear(x))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_entries_are_copied_and_pickled_but_open_files_are_not(path, entries, duplicate):
    store.save(path, entries)
    with store.open_store(path) as opened:
        for name in opened:
            same(duplicate(opened[name]), entries[name])
        assert not duplicate(opened["fc.weight"]).B.flags.writeable
        with pytest.raises(TypeError, match=r"a Store must not be copied .* with open_store"):
            duplicate(opened)
    with (
        store.Writer(path) as writer,
        pytest.raises(TypeError, match="a Writer must not be copied"),
    ):
        duplicate(writer)


# --- damaged


def damage(path, at, flip=1):
    content = bytearray(path.read_bytes())
    content[at] ^= flip
    path.write_bytes(content)


def read_all(path):
    with store.open_store(path) as opened:
        opened.verify()


@pytest.mark.parametrize("flip", [0x01, 0x02, 0x20, 0x80, 0xFF])
def test_every_changed_byte_is_noticed(path, entries, flip):
    store.save(path, entries, metadata={"note": "text"}, shapes={"fc.weight": (6, 5, 3)})
    for at in range(path.stat().st_size):
        damage(path, at, flip)
        with pytest.raises(CorruptDataError):
            read_all(path)
        damage(path, at, flip)
    read_all(path)


def test_every_cut_and_every_addition_is_noticed(path, entries):
    store.save(path, entries)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptDataError):
            read_all(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CorruptDataError, match="must hold"):
        read_all(path)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError):
        read_all(path)


@given(st.binary(max_size=300), st.booleans())
def test_random_headers_are_refused(tmp_path_factory, content, as_json):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    text = b'{"a":' + content + b"}" if as_json else content + b"!"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CorruptDataError):
        read_all(path)


PLAIN = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "f32"}, "dtype of tensor 'a' must be one of F64"),
        ({"dtype": "F4"}, "tensor 'a' must have 1 bytes for dtype F4"),
        ({"dtype": 7}, "dtype of tensor 'a' must be one of F64"),
        ({"shape": [3]}, "must have 12 bytes for dtype F32 and shape"),
        ({"shape": [-2]}, "must be a list of at most 32 sizes"),
        ({"shape": [True, 2]}, "must be a list of at most 32 sizes"),
        ({"shape": "2"}, "must be a list of at most 32 sizes"),
        ({"shape": [1] * 40 + [2]}, "must be a list of at most 32 sizes"),
        ({"shape": [2**62, 0], "data_offsets": [0, 0]}, r"fewer than 2\*\*59 elements"),
        ({"shape": [2**61], "data_offsets": [0, 2**63]}, r"fewer than 2\*\*59 elements"),
        ({"shape": [2**50], "data_offsets": [0, 2**52]}, "must hold"),
        ({"data_offsets": [4, 12]}, "must begin at byte 0"),
        ({"data_offsets": [8, 0]}, "must have 8 bytes for dtype F32"),
        ({"data_offsets": [0, 8, 9]}, "a begin and an end"),
        ({"data_offsets": [0.0, 8.0]}, "a begin and an end"),
        ({"more": 1}, "must have a dtype"),
    ],
)
def test_tensors_that_cannot_be_are_refused(path, change, message):
    header = json.dumps({"a": PLAIN["a"] | change}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CorruptDataError, match=message):
        store.open_store(path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '{"a": NaN}',
        '{"__metadata__": {"a": 1}}',
        '{"__metadata__": []}',
        '{"__metadata__": {"a": "\\ud800"}}',
        '{"a": {}, "a": {}}',
        "[" * 100_000,
        '{"a": ' + "9" * 5_000 + "}",
        "{}  x",
    ],
)
def test_headers_that_are_no_objects_are_refused(path, text):
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    with pytest.raises(CorruptDataError):
        store.open_store(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    for read in (store.open_store, open_checkpoint):
        with pytest.raises(CorruptDataError, match="must be a regular file, got a pipe or device"):
            read(path)


def test_one_name_twice_among_very_many_is_found_at_once(path):
    """Counting each name anew took the square of their number: hours for a header this long."""
    names = ",".join(f'"{number}":0' for number in range(400_000))
    text = "{" + names + ',"399999":0}'
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    with pytest.raises(CorruptDataError, match="names must be unique, got '399999' twice"):
        store.open_store(path)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
def test_lengths_that_lie_are_refused(path, length):
    path.write_bytes(struct.pack("<Q", length) + b"{}      ")
    with pytest.raises(CorruptDataError, match="header must have between 2 bytes and"):
        store.open_store(path)


def test_tensors_must_not_overlap(path):
    header = json.dumps({"a": PLAIN["a"], "b": PLAIN["a"]}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(
        CorruptDataError, match="'b' must begin at byte 8, where the one before it ends"
    ):
        store.open_store(path)


def test_booleans_are_zero_or_one(path):
    header = json.dumps({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\1\2")
    with store.open_store(path) as opened, pytest.raises(CorruptDataError, match="0 or 1, got 2"):
        opened["a"]


# --- an index that contradicts itself, under right checksums

B, C = np.ones((2, 1), np.float32), np.ones((1, 3), np.float32)
SUMS = {"B": zlib.crc32(B), "C": zlib.crc32(C)}
ENTRY = {"kind": "low_rank", "shape": [2, 3], "dtype": "float32", "config": {}, "crc32": SUMS}


def write_index(path, index, names=("w.B", "w.C")):
    places = {names[0]: TensorInfo("F32", (2, 1), 0, 8), names[1]: TensorInfo("F32", (1, 3), 8, 20)}
    path.write_bytes(header_bytes(places, {}, index) + B.tobytes() + C.tobytes())


def test_an_index_made_by_hand_is_read(path):
    write_index(path, {"version": 1, "entries": {"w": ENTRY}})
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["w"].to_dense(), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({k: v for k, v in ENTRY.items() if k != "kind"}, "kind"),
        ({k: v for k, v in ENTRY.items() if k != "crc32"}, "crc32"),
        (
            ENTRY | {"kind": "unheard"},
            r"kind of entry 'w' must be one of .*low_rank.*, got 'unheard'",
        ),
        (ENTRY | {"kind": 3}, "a name as kind"),
        (ENTRY | {"kind": "plain"}, "a name as kind"),
        (ENTRY | {"shape": [2, 4]}, "'w': tensor 'C' must have shape"),
        (ENTRY | {"shape": []}, "shape of entry 'w' must be a list of sizes"),
        (ENTRY | {"shape": [2, -3]}, "shape of entry 'w' must be a list of sizes"),
        (ENTRY | {"shape": [2**40, 2**40]}, "shape of entry 'w' must be a list of sizes"),
        (ENTRY | {"shape": {"0": 2}}, "shape of entry 'w' must be a list of sizes"),
        (ENTRY | {"dtype": "int8"}, "dtype of entry 'w' must be float16"),
        (ENTRY | {"dtype": ["float32"]}, "dtype of entry 'w' must be float16"),
        (ENTRY | {"config": None}, "a JSON object as config"),
        (ENTRY | {"more": 1}, "must be a JSON object with the keys"),
        (ENTRY | {"crc32": SUMS | {"D": 0}}, "tensor 'w.D' is missing"),
        (ENTRY | {"crc32": {"B": SUMS["B"]}}, "tensor 'w.C' must belong to an entry, got none"),
        (
            ENTRY | {"crc32": SUMS | {"C": 0}},
            "checksum mismatch in tensor 'w.C': expected 00000000",
        ),
        (ENTRY | {"crc32": SUMS | {"C": -1}}, r"must be an integer in \[0, 2\*\*32\)"),
        (ENTRY | {"crc32": SUMS | {"C": "12"}}, r"must be an integer in \[0, 2\*\*32\)"),
        (ENTRY | {"crc32": 5}, "must be a JSON object with the keys crc32"),
        ([], "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
def test_entries_that_contradict_the_tensors_are_refused(path, entry, message):
    write_index(path, {"version": 1, "entries": {"w": entry}})
    with pytest.raises(CorruptDataError, match=message):
        read_all(path)


def test_more_tensors_than_a_kind_has_are_refused(path):
    for part in ("D", ""):
        places = {f"w.{part}" if part else "w": TensorInfo("U8", (1,), 20, 21)}
        places |= {"w.B": TensorInfo("F32", (2, 1), 0, 8), "w.C": TensorInfo("F32", (1, 3), 8, 20)}
        sums = SUMS | {part: zlib.crc32(b"\7")}
        index = {"version": 1, "entries": {"w": ENTRY | {"crc32": sums}}}
        data = B.tobytes() + C.tobytes() + b"\7"
        path.write_bytes(header_bytes(places, {}, index) + data)
        with pytest.raises(CorruptDataError, match="must have the tensors B, C, got"):
            read_all(path)


def test_a_tensor_belongs_to_one_entry(path):
    entries = {"w": ENTRY, "w.B": {"crc32": SUMS["B"]}}
    write_index(path, {"version": 1, "entries": entries})
    with pytest.raises(CorruptDataError, match=r"'w.B' must belong to one entry, got two"):
        store.open_store(path)


@pytest.mark.parametrize("entries", [None, [], 3, "w"])
def test_entries_must_be_an_object(path, entries):
    write_index(path, {"version": 1, "entries": entries})
    with pytest.raises(CorruptDataError, match="entries must be a JSON object"):
        store.open_store(path)


def test_a_newer_version_is_named(path):
    write_index(path, {"version": 3, "anything": {}})
    with pytest.raises(
        ValueError, match=r"format version must be at most 2 .*, got 3: a newer fastfactor"
    ) as caught:
        store.open_store(path)
    assert not isinstance(caught.value, CorruptDataError)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None])
def test_versions_are_positive_integers(path, version):
    write_index(path, {"version": version, "entries": {"w": ENTRY}})
    with pytest.raises(CorruptDataError, match="version must be a positive integer"):
        store.open_store(path)


# --- what cannot be stored


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"": B}, ValueError, "name must be text, but not empty"),
        ({"__metadata__": B}, ValueError, "name must be text"),
        ({3: B}, ValueError, "name must be text"),
        ({"\ud800": B}, ValueError, "must be valid Unicode text"),
        ({"a": [1.0]}, TypeError, "'a' must be Factors or an array, got list"),
        ({"a": np.array(["x"])}, TypeError, "'a' must have a dtype that safetensors knows"),
        ({"a": np.zeros(2, np.longdouble)}, TypeError, "dtype that safetensors knows"),
    ],
)
def test_bad_entries_are_named(path, entries, error, message):
    with pytest.raises(error, match=message):
        store.save(path, entries)
    assert not list(path.parent.iterdir())


def test_names_that_would_mean_two_tensors_are_refused(path, low_rank):
    with pytest.raises(ValueError, match=r"names of tensors must be unique, got 'fc.B' twice"):
        store.save(path, {"fc": low_rank, "fc.B": B})


def test_bad_shapes_and_metadata_are_named(path, low_rank):
    for shape, message in [
        ((6, 5, 4), "shape of 'fc' must flatten to"),
        ((), "shape of 'fc' must flatten to"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.save(path, {"fc": low_rank}, shapes={"fc": shape})
    with pytest.raises(ValueError, match="shapes must have names of entries only, got 'other'"):
        store.save(path, {"fc": low_rank}, shapes={"other": (6, 15)})
    with pytest.raises(ValueError, match="shape must be given for factors only"):
        store.save(path, {"b": B}, shapes={"b": (2, 1)})
    with pytest.raises(ValueError, match="must not use the reserved name 'fastfactor'"):
        store.save(path, {"b": B}, metadata={"fastfactor": "x"})
    with pytest.raises(TypeError, match="metadata must map names to text"):
        store.save(path, {"b": B}, metadata={"x": 1})
    assert not list(path.parent.iterdir())


def test_factors_whose_config_is_no_json_are_refused(path):
    class Odd(LowRankFactors):
        kind = "odd"

        def config(self):
            return {"value": float("nan")}

    try:
        odd = Odd(B=B, C=C, shape=(2, 3), dtype=np.dtype(np.float32))
        with pytest.raises(ValueError, match="JSON compliant"):
            store.save(path, {"odd": odd})
    finally:
        del Factors.kinds["odd"]

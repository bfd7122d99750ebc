"""Stored files: what comes back, lazily and without copies."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.files.container import DTYPES, TensorInfo, dtype_of, header_bytes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stores import a_low_rank, damage, mixed_entries, same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


@pytest.fixture
def low_rank(rng):
    return a_low_rank(rng)


@pytest.fixture
def entries(rng, low_rank):
    return mixed_entries(rng, low_rank)


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

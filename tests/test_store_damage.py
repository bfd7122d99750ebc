"""Stored files with changed bytes, cut files, and headers that cannot be."""

from __future__ import annotations

import json
import os
import struct

import pytest
from fastfactor import CorruptDataError, store
from fastfactor.files.checkpoint import open_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from stores import a_low_rank, damage, mixed_entries, read_all


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


@pytest.fixture
def low_rank(rng):
    return a_low_rank(rng)


@pytest.fixture
def entries(rng, low_rank):
    return mixed_entries(rng, low_rank)


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

"""An index that contradicts itself or the tensors, under right checksums."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.files.container import TensorInfo, header_bytes
from stores import B, C, read_all


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


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

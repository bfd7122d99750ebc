"""Files in tests/data, written by any version so far, are read as they were meant.

tests/make_data.py writes those of new kinds.
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from pathlib import Path

import make_data
import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.container import header_bytes, read_header
from fastfactor.deep_compression import CodedNetwork
from fastfactor.methods import Factors

FILES = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
named = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


@named
def test_every_byte_of_it_is_right(path):
    with store.open_store(path) as opened:
        assert opened.has_checksums
        opened.verify()


@named
def test_factors_give_what_they_gave(path):
    with store.open_store(path) as opened:
        for name in opened:
            entry, value = opened.info(name), opened[name]
            if not isinstance(value, Factors):
                continue
            dense = opened[f"{name} dense"]
            assert opened.to_dense(name).shape == entry.shape
            assert value.dtype == dense.dtype
            np.testing.assert_allclose(value.to_dense(), dense, rtol=1e-5, atol=1e-6)
            x = np.linspace(-1, 1, dense.shape[1], dtype=np.float32)
            np.testing.assert_allclose(value.linear(x), dense @ x, rtol=1e-4, atol=1e-4)


# What may stand where it should not.
HOSTILE = (None, 0, -1, 2**31, 10**30, 0.5, [2**40, 2**40])


@named
def test_what_is_said_under_right_checksums_is_read_or_refused(path):
    """Who changes a file on purpose makes the checksums right: then each kind must look itself."""
    content = path.read_bytes()
    header = read_header(memoryview(content))
    # One entry of each kind: the others differ in numbers only.
    kinds = {entry.get("kind"): name for name, entry in header.index["entries"].items()}
    for name in kinds.values():
        entry = header.index["entries"][name]
        changes = [(entry, key) for key in entry if key != "crc32"]
        changes += [(entry["config"], key) for key in entry.get("config", {})]
        for holder, key in changes:
            before = holder[key]
            near = (before + 1, before - 1) if isinstance(before, int) else ()
            for value in (*HOSTILE, *near):
                holder[key] = value
                data = header_bytes(header.places, header.metadata, header.index)
                refused_or_read(data + content[header.size :], name, path.name)
            holder[key] = before


@named
def test_changed_tensors_under_right_checksums_are_read_or_refused(path, rng):
    content = path.read_bytes()
    header = read_header(memoryview(content))
    for name, entry in header.index["entries"].items():
        sums = entry["crc32"]
        if not isinstance(sums, dict):
            continue
        for part in sums:
            place = header.places[f"{name}.{part}"]
            begin, end = header.size + place.begin, header.size + place.end
            at = {begin, end - 1, *rng.integers(begin, end, 3).tolist()} if end > begin else ()
            before = sums[part]
            for position in at:
                for byte in (0, 255):
                    changed = bytearray(content)
                    changed[position] = byte
                    sums[part] = zlib.crc32(changed[begin:end])
                    data = header_bytes(header.places, header.metadata, header.index)
                    refused_or_read(data + bytes(changed[header.size :]), name, path.name)
            sums[part] = before


def refused_or_read(data, name, stem):
    """Entropy-coded levels are decoded, and refused, when they are multiplied."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / stem
        path.write_bytes(data)
        with contextlib.suppress(CorruptDataError), np.errstate(all="ignore"):
            with store.open_store(path) as opened:
                value = opened[name]
            if isinstance(value, Factors) and value.shape[0] * value.shape[1] < 1 << 20:
                x = np.ones(value.shape[1], np.float32)
                assert value.linear(x).shape == (value.shape[0],)
                assert value.to_dense().shape == value.shape


def test_plain_tensors_are_what_they_were():
    path = next(path for path in FILES if path.name.startswith("plain."))
    expected = make_data.plain()
    with store.open_store(path) as opened:
        assert list(opened) == list(expected)
        assert opened.metadata == {"made by": "tests/make_data.py"}
        for name, array in expected.items():
            assert opened[name].dtype == array.dtype
            np.testing.assert_array_equal(opened[name], array)


def test_a_network_is_what_it_was():
    path = next(path for path in FILES if path.name.startswith("deep_compression."))
    network = CodedNetwork.load(path)
    assert {name: layer.shape for name, layer in network.layers.items()} == {
        "full": (30, 40),
        "half": (30, 40),
        "filters": (30, 2, 4, 5),
    }
    for name, layer in network.layers.items():
        np.testing.assert_array_equal(layer.to_dense(), network.plain[f"{name} dense"])
    assert network.plain["scale"] == 2
    assert network.to_bytes() == CodedNetwork.from_bytes(network.to_bytes()).to_bytes()


def test_every_kind_has_a_file():
    """Else: python tests/make_data.py"""
    stored = set()
    for path in FILES:
        with store.open_store(path) as opened:
            stored |= {opened.info(name).kind for name in opened}
    ours = {kind for kind, each in Factors.kinds.items() if each.__module__.startswith("fastfac")}
    assert ours <= stored

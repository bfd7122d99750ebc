"""Files in tests/data, written by any version so far, are read as they were meant.

tests/make_data.py writes those of new kinds.
"""

from __future__ import annotations

from pathlib import Path

import damage
import make_data
import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.cli import app as cli
from fastfactor.deep_compression import CodedNetwork
from fastfactor.methods import Factors
from fastfactor.models.inspect import inspect_file

FILES = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
WITH_FACTORS = [path for path in FILES if not path.name.startswith(("plain.", "deep_compression."))]


def each_of(files):
    return pytest.mark.parametrize("path", files, ids=lambda path: path.name)


@each_of(FILES)
def test_every_byte_of_it_is_right(path):
    with store.open_store(path) as opened:
        assert opened.has_checksums
    read(path)
    assert inspect_file(path, verify=True).totals["verified"]


@each_of(WITH_FACTORS)
def test_factors_give_what_they_gave(path):
    with store.open_store(path) as opened:
        factors = [name for name in opened if isinstance(opened[name], Factors)]
        assert factors
        for name in factors:
            entry, value = opened.info(name), opened[name]
            dense = opened[f"{name} dense"]
            assert opened.to_dense(name).shape == entry.shape
            assert value.dtype == dense.dtype
            np.testing.assert_allclose(value.to_dense(), dense, rtol=1e-5, atol=1e-6)
            x = np.linspace(-1, 1, dense.shape[1], dtype=np.float32)
            np.testing.assert_allclose(value.linear(x), dense @ x, rtol=1e-4, atol=1e-4)


@each_of(FILES)
def test_what_is_said_under_right_checksums_is_read_or_refused(path, tmp_path):
    """Who changes a file on purpose makes the checksums right: then each kind must look itself."""
    refused = [
        damage.refused(written(tmp_path / path.name, data), name)
        for name, data in damage.forged_headers(path.read_bytes())
    ]
    assert any(refused)


@each_of(WITH_FACTORS)
def test_changed_tensors_under_right_checksums_are_read_or_refused(path, tmp_path, rng):
    """Some bytes of each tensor; bench/experiments/damaged_files.py takes all."""

    def some(begin, end):
        return {begin, end - 1, *rng.integers(begin, end, 3).tolist()}

    refused = [
        damage.refused(written(tmp_path / path.name, data), name)
        for name, data in damage.forged_tensors(path.read_bytes(), some)
    ]
    assert not all(refused)  # a weight may be any number


def written(path, data):
    path.write_bytes(data)
    return path


def test_verifying_a_file_decodes_what_reading_it_leaves(tmp_path, monkeypatch):
    """Levels that no encoder gave, under right checksums."""
    source = next(path for path in FILES if path.name.startswith("entropy_coded."))
    forged, only_decoding = tmp_path / source.name, 0
    for name, data in damage.forged_tensors(source.read_bytes(), lambda begin, end: (begin,)):
        forged.write_bytes(data)
        if damage.refuses(lambda: read(forged)):
            continue
        inspect_file(forged)
        if damage.refused(forged, name):
            only_decoding += 1
            with pytest.raises(CorruptDataError, match=f"entry '{name}': "):
                inspect_file(forged, verify=True)
            monkeypatch.setattr("sys.argv", ["fastfactor", "inspect", str(forged), "--verify"])
            with pytest.raises(SystemExit) as left:
                cli.main()
            assert left.value.code == 1
        else:
            assert inspect_file(forged, verify=True).totals["verified"]
    assert only_decoding


def read(path):
    with store.open_store(path) as opened:
        opened.verify()


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

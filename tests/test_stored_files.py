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
from fastfactor.methods import Factors
from fastfactor.models.inspect import inspect_file
from make_data import COMPACT_METHODS

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.safetensors"))
WITH_FACTORS = [path for path in FILES if not path.name.startswith("plain.")]
# What the others' headers say is JSON; test_legacy_networks.py changes what that one says.
WITH_INDEX = [path for path in FILES if not path.name.startswith("coded_network.")]


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
            dense = opened[f"{name} dense"].reshape(value.shape)
            assert opened.to_dense(name).shape == entry.shape
            assert value.dtype == dense.dtype
            np.testing.assert_allclose(value.to_dense(), dense, rtol=1e-5, atol=1e-6)
            x = np.linspace(-1, 1, dense.shape[1], dtype=np.float32)
            np.testing.assert_allclose(value.linear(x), dense @ x, rtol=1e-4, atol=1e-4)


@each_of(WITH_INDEX)
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


def test_a_network_of_the_first_versions_is_what_it_was():
    with store.open_store(DATA / "coded_network.1.safetensors") as opened:
        shapes = {name: opened.info(name).shape for name in ("full", "half", "filters")}
        assert shapes == {"full": (30, 40), "half": (30, 40), "filters": (30, 2, 4, 5)}
        for name in shapes:
            assert opened.info(name).kind == "deep_compression"
            np.testing.assert_array_equal(opened.to_dense(name), opened[f"{name} dense"])
        assert opened["scale"] == 2


def test_a_compact_file_is_what_it_was():
    with store.open_store(DATA / "compact.1.safetensors") as opened:
        assert opened.metadata == {"made by": "tests/make_data.py"}
        kinds = [opened.info(f"{number}").kind for number in range(4)]
        assert kinds == [type(method.compress(np.eye(32))).kind for method in COMPACT_METHODS]
        assert opened.info("0").shape == (24, 2, 16)


def test_every_kind_has_a_file():
    """Else: python tests/make_data.py"""
    stored = set()
    for path in FILES:
        with store.open_store(path) as opened:
            stored |= {opened.info(name).kind for name in opened}
    ours = {kind for kind, each in Factors.kinds.items() if each.__module__.startswith("fastfac")}
    assert ours <= stored

"""The page on the stored file: its reader reads our files, its table names what is in them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fastfactor import store
from fastfactor.methods import Factors

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "format.md").read_text(encoding="utf-8")
# All but what is no longer written, which the page only names.
FILES = [p for p in sorted((TESTS / "data").glob("*.safetensors")) if p.stem != "coded_network.1"]


@pytest.fixture(scope="module")
def reader():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(code, "format.md", "exec"), names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_reads_what_we_read(reader, path):
    found = reader["read"](path)
    with store.open_store(path) as opened:
        assert list(found) == list(opened)
        for name, (_, tensors) in found.items():
            value = opened[name]
            expected = value.tensors() if isinstance(value, Factors) else {"": value}
            assert tensors.keys() == expected.keys()
            for part, array in tensors.items():
                assert array.tobytes() == np.ascontiguousarray(expected[part]).tobytes()


@pytest.mark.parametrize(
    "name", ["codebook.1.safetensors", "layouts.2.safetensors", "compact.2.safetensors"]
)
def test_the_page_decodes_a_codebook(reader, name):
    path = TESTS / "data" / name
    entries = reader["read"](path)
    plainest = {"n_bits": 4, "vector_dim": 1, "n_codebooks": 1, "group_size": 0}
    decoded = 0
    with store.open_store(path) as opened:
        for name, (entry, tensors) in entries.items():
            described = entry if isinstance(entry, dict) else {}
            if described.get("config") == plainest and tensors["codebook"].ndim == 2:
                dense = reader["codebook_dense"](entry, tensors)
                np.testing.assert_array_equal(dense, opened.to_dense(name))
                decoded += 1
    assert decoded


def test_the_page_notices_damage(reader, tmp_path):
    for name in ("low_rank", "compact"):
        content = (TESTS / "data" / f"{name}.1.safetensors").read_bytes()
        for at in (20, len(content) // 2, len(content) - 1):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            (tmp_path / "changed").write_bytes(changed)
            with pytest.raises((AssertionError, KeyError, ValueError)):
                reader["read"](tmp_path / "changed")


def test_the_table_names_every_kind_and_tensor():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    ours = {kind for kind, each in Factors.kinds.items() if each.__module__.startswith("fastfac")}
    assert rows.keys() == ours
    stored = {kind: set() for kind in ours}
    for path in FILES:
        with store.open_store(path) as opened:
            for entry in map(opened.info, opened):
                if entry.kind != "plain":
                    stored[entry.kind] |= entry.tensors.keys()
    assert stored == {kind: set(re.findall(r"`(\w+)`", row)) for kind, row in rows.items()}

"""Damage of every kind of stored file, all of its sort, and what reading does.

    python bench/experiments/damaged_files.py

The files are those of tests/data. With their checksums as they were, they are cut at every length,
each byte is changed (three ways), left out or written twice, and bytes are added: all must be
refused. Then under right checksums each byte of each tensor of factors is made 0 and 255, and what
is said of an entry of each kind and of its tensors is changed: reading, product and dense matrix
must be refused as damaged, or have their shapes. A crash or any other error ends the run.
tests/test_store_damage.py, test_compact.py and test_stored_files.py do a part of this. What a coded
network of the first versions says of itself is changed in tests/test_legacy_networks.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fastfactor import CorruptDataError, store

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

import damage  # noqa: E402
from machine import describe  # noqa: E402

FLIPS = (0x01, 0x80, 0xFF)
VALUES = (0, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/damaged_files.json")
    args = parser.parse_args()
    # A process a file, the largest first: time grows with the square of the size.
    sources = sorted((ROOT / "tests/data").glob("*.safetensors"), key=lambda p: -p.stat().st_size)
    rows = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor() as pool:
        paths = [Path(folder) / source.name for source in sources]
        for row in pool.map(attacked, sources, paths):
            rows.append(row)
            print(json.dumps(row), flush=True)
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key not in ("file", "bytes")}
    args.json.write_text(json.dumps({**describe(), "files": rows, "total": total}, indent=1) + "\n")
    print(total)


def attacked(source: Path, path: Path) -> dict[str, Any]:
    """Counts of changed copies, and of those refused."""
    content = source.read_bytes()
    changed = {
        "cut": damage.cuts(content),
        "byte_changed": (copy for flip in FLIPS for copy in damage.flips(content, flip)),
        "byte_more_or_less": damage.shifts(content),
    }
    row: dict[str, Any] = {"file": source.name, "bytes": len(content)}
    for kind, copies in changed.items():
        row[kind] = all_refused(kind, copies, path)
    forged = {
        "forged_headers": damage.forged_headers(content),
        "forged_tensors": damage.forged_tensors(content, range, VALUES),
    }
    for kind, named in forged.items():
        answers = []
        for name, copy in named:
            path.write_bytes(copy)
            answers.append(damage.refused(path, name))
        row[kind], row[f"{kind}_refused"] = len(answers), sum(answers)
    return row


def all_refused(kind: str, copies: Iterable[bytes], path: Path) -> int:
    """How many there are."""
    n = 0
    for copy in copies:
        path.write_bytes(copy)
        try:
            with store.open_store(path) as opened:
                opened.verify()
        except CorruptDataError:
            n += 1
            continue
        raise AssertionError(f"{path.name}: {kind}, copy {n} was read")
    return n


if __name__ == "__main__":
    main()

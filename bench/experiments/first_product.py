"""A stored matrix opened and multiplied in a fresh process: seconds, and memory beside dense.

    python bench/experiments/first_product.py

A file for each kind of stored factors holds one matrix of random normal weights. A process of its
own opens it (checksums are verified then), multiplies one float32 vector twice, and last unpacks
the matrix and multiplies that. Memory is what the process's peak is above what it held before it
opened the file; pages of the mapped file count. It has imported all, and multiplied by a tiny file
of the same kind, before: what libraries keep for themselves is left out. Files were written just
before, so that none is read from a disk. Times are those of one run: others on the machine show.

Answers must be right, and unpacking must be seen to take the bytes of the dense matrix. Kinds whose
first product takes more than those are named at the end, and the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastfactor import store
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    Factors,
    LowRank,
    Method,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from cases import THREADS  # noqa: E402
from machine import describe  # noqa: E402

TINY, LARGE = 128, 4096  # rows, and columns
NAME = "weight"
METHODS: dict[str, Method] = {
    "low_rank": LowRank(ratio=8),
    "dictionary": Dictionary(n_nonzero_coefs=4, max_iter=2),
    "codebook": Codebook(n_bits=4, granularity="row"),
    "entropy_coded": EntropyCoded(bits_per_weight=3),
    "prune": Prune(sparsity=0.9),
    "prune_codebook": PruneCodebook(sparsity=0.9, n_bits=4),
    "simhash": Simhash(n_hashes=512),
    "random_projection": BlockProjection(reduction=4),
    "block_projection": BlockProjection(reduction=4, learned=True),
    "block_diagonal": BlockDiagonal(n_blocks=8),
    "mixed_block": MixedBlock(ratio=8),
    "deep_compression": DeepCompression(sparsity=0.9, n_bits=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/first_product.json")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.use:
        print(json.dumps(used(args.use)))
        return
    rows = []
    for kind in METHODS:
        rows.append(measured(kind))
        print(json.dumps(rows[-1]), flush=True)
    args.json.write_text(json.dumps({**describe(), "kinds": rows}, indent=1) + "\n")
    beyond = [row["kind"] for row in rows if row["first_product_over_dense"] > 1]
    if beyond:
        raise SystemExit(f"the first product took more than the dense matrix: {', '.join(beyond)}")


def measured(kind: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, "tiny", kind, TINY)
        seconds = make(folder, "large", kind, LARGE)
        nbytes = (folder / "large.safetensors").stat().st_size
        command = [sys.executable, __file__, "--use", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    found = json.loads(done.stdout)
    dense = LARGE * LARGE * np.dtype(np.float32).itemsize
    assert found["unpacked_peak_bytes"] >= dense, f"unpacking was not seen: {kind}, {found}"
    return {
        "kind": kind,
        "settings": repr(METHODS[kind]),
        "shape": [LARGE, LARGE],
        "seconds_to_compress": seconds,
        "dense_bytes": dense,
        "file_bytes": nbytes,
        **found,
        "first_product_over_dense": round(found["first_product_peak_bytes"] / dense, 3),
    }


def make(folder: Path, name: str, kind: str, size: int) -> float:
    """Write a file, an input and the answer of the unpacked matrix; the seconds of compressing."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((size, size), dtype=np.float32)
    start = time.perf_counter()
    factors = METHODS[kind].compress(W, n_threads=THREADS)
    seconds = time.perf_counter() - start
    path = folder / f"{name}.safetensors"
    assert factors.kind == kind, factors
    store.save(path, {NAME: factors})
    x = rng.standard_normal(size, dtype=np.float32)
    np.savez(folder / f"{name}.npz", x=x, y=factors.to_dense() @ x)
    return round(seconds, 2)


# --- in a process of its own


def used(folder: Path) -> dict[str, Any]:
    tiny = opened(folder / "tiny.safetensors")
    with np.load(folder / "tiny.npz") as saved:
        check(tiny.linear(saved["x"]), saved["y"])
    with np.load(folder / "large.npz") as saved:
        x, y = saved["x"], saved["y"]
    before = memory("VmRSS")
    times = [time.perf_counter()]
    factors = opened(folder / "large.safetensors")
    times.append(time.perf_counter())
    first = factors.linear(x)
    times.append(time.perf_counter())
    peak = memory("VmHWM")
    second = factors.linear(x)
    times.append(time.perf_counter())
    dense = factors.to_dense()
    unpacked = dense @ x
    times.append(time.perf_counter())
    peak_unpacked = memory("VmHWM")
    check(first, y)
    check(unpacked, y)
    assert np.array_equal(first, second)
    spans = [round(1000 * span, 3) for span in np.diff(times)]
    names = ("open_ms", "first_product_ms", "second_product_ms", "unpack_and_product_ms")
    return {
        **dict(zip(names, spans, strict=True)),
        "first_product_peak_bytes": peak - before,
        "unpacked_peak_bytes": peak_unpacked - before,
    }


def opened(path: Path) -> Factors:
    with store.open_store(path) as file:
        factors = file[NAME]
    assert isinstance(factors, Factors)
    return factors


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """That they are as near as float32 sums in another order are."""
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def memory(name: str) -> int:
    """Bytes that this process has in memory (VmRSS), or had at most (VmHWM)."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {name}"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()

"""Codebook against faiss's quantizers: squared error at equal true bytes, and time of both.

    pip install --no-deps --target FOLDER wordllama
    pip install faiss-cpu
    python bench/experiments/codebook_quality.py --wordllama FOLDER [--only TEXT]

Matrices are wordllama's embedding (32,000 × 256, float16) and the first layer of the packaged LeNet
(300 × 784, float32). Bytes are those of codes and of tables as each holds them: float32 in faiss,
the settings' dtype in ours. Every line is timed by itself, training and coding together, on two
threads. What --only leaves out is kept as the file has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from fastfactor.demo import run as demo
from fastfactor.methods import Codebook
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

THREADS = 2
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"

Run = Callable[[np.ndarray], tuple[np.ndarray, int]]  # W → as it is rebuilt, and bytes
Case = tuple[str, str, str, Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordllama", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/codebook_quality.json")
    args = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    matrices = {
        "wordllama": load_file(args.wordllama / WEIGHTS)["embedding.weight"],
        "lenet_fc1": demo.load_model().layers[0].to_dense(),
    }
    found = json.loads(args.json.read_text()) if args.json.exists() else {"lines": []}
    lines = {(x["matrix"], x["by"], x["settings"]): x for x in found["lines"]}
    for matrix, by, settings, run in cases():
        if args.only not in f"{matrix} {by} {settings}":
            continue
        W = matrices[matrix]
        start = time.perf_counter()
        dense, nbytes = run(W)
        line = {
            "matrix": matrix,
            "by": by,
            "settings": settings,
            "bits_per_weight": round(8 * nbytes / W.size, 4),
            "error": round(relative_error(W, dense), 5),
            "seconds": round(time.perf_counter() - start, 2),
        }
        print(*line.values(), flush=True)
        lines[matrix, by, settings] = line
        ordered = sorted(lines.values(), key=lambda x: (x["matrix"], x["bits_per_weight"]))
        report = {"machine": describe(), "faiss": faiss.__version__, "lines": ordered}
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def relative_error(W: np.ndarray, dense: np.ndarray) -> float:
    wide = W.astype(np.float64)
    return float(np.sum((wide - dense) ** 2) / np.sum(wide**2))


def cases() -> Iterator[Case]:
    """(matrix, whose, settings, run)."""
    for d in (8, 4):
        for niter in (25, 100):
            yield "wordllama", "faiss", f"product d={d} niter={niter}", product(d, niter)
            yield "lenet_fc1", "faiss", f"shared d={d} niter={niter}", one(d, niter)
    for d, kind in ((16, "residual"), (16, "local search"), (8, "residual"), (8, "local search")):
        yield "lenet_fc1", "faiss", f"shared {kind} 2 × 8 bits d={d}", shared(kind, d)
        if (d, kind) != (8, "local search"):  # which took more than six minutes
            yield "wordllama", "faiss", f"product {kind} 2 × 8 bits d={d}", split(kind, d)
    for dtype in ("float32", "float16"):
        for d in (8, 4):
            yield ours("wordllama", dtype, vector_dim=d, group_size=d)
            yield ours("lenet_fc1", dtype, vector_dim=d)
        for d in (16, 8):
            add = {"vector_dim": d, "n_codebooks": 2}
            yield ours("wordllama", dtype, **add, group_size=d)
            yield ours("lenet_fc1", dtype, **add)
    for n_bits in (1, 2, 3, 4):
        yield ours("wordllama", "float16", n_bits=n_bits, granularity="row")
        yield ours("lenet_fc1", "float16", n_bits=n_bits, granularity="row")


def ours(matrix: str, dtype: str, *, n_bits: int = 8, **settings: Any) -> Case:
    settings["codebook_dtype"] = dtype
    method = Codebook(n_bits=n_bits, **settings)
    words = ", ".join(f"{name}={value}" for name, value in settings.items())

    def run(W: np.ndarray) -> tuple[np.ndarray, int]:
        factors = method.compress(W, n_threads=THREADS)
        return factors.to_dense().astype(np.float64), factors.nbytes

    return matrix, "Codebook", f"n_bits={n_bits}, {words}", run


def product(d: int, niter: int) -> Run:
    """A table for every d columns."""

    def run(W: np.ndarray) -> tuple[np.ndarray, int]:
        x = np.ascontiguousarray(W, np.float32)
        quantizer = faiss.ProductQuantizer(x.shape[1], x.shape[1] // d, 8)
        quantizer.cp.niter = niter
        quantizer.cp.max_points_per_centroid = len(x)  # none left out
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(x)
        codes = quantizer.compute_codes(x)
        return quantizer.decode(codes), codes.nbytes + 4 * quantizer.centroids.size()

    return run


def one(d: int, niter: int) -> Run:
    """One table for all vectors of d columns, all of them trained on."""

    def run(W: np.ndarray) -> tuple[np.ndarray, int]:
        dense, nbytes = product(d, niter)(W.reshape(-1, d))
        return dense.reshape(W.shape), nbytes

    return run


def split(kind: str, d: int) -> Run:
    """Two tables, whose vectors are added, for every d columns."""
    name = "ProductResidualQuantizer" if kind == "residual" else "ProductLocalSearchQuantizer"

    def run(W: np.ndarray) -> tuple[np.ndarray, int]:
        x = np.ascontiguousarray(W, np.float32)
        return added(getattr(faiss, name)(x.shape[1], x.shape[1] // d, 2, 8), x)

    return run


def shared(kind: str, d: int) -> Run:
    """Two tables, whose vectors are added, for all vectors of d columns."""
    name = "ResidualQuantizer" if kind == "residual" else "LocalSearchQuantizer"

    def run(W: np.ndarray) -> tuple[np.ndarray, int]:
        x = np.ascontiguousarray(W, np.float32).reshape(-1, d)
        dense, nbytes = added(getattr(faiss, name)(d, 2, 8), x)
        return dense.reshape(W.shape), nbytes

    return run


def added(quantizer: Any, x: np.ndarray) -> tuple[np.ndarray, int]:
    quantizer.train(x)
    codes = quantizer.compute_codes(x)
    return quantizer.decode(codes), codes.nbytes + 4 * quantizer.codebooks.size()


if __name__ == "__main__":
    main()

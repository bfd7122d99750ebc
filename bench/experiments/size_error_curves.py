"""Relative error of every method at ratios from 2 to 32, against the truncated SVD.

    python bench/experiments/size_error_curves.py

Two matrices: the first layer of the packaged LeNet-300-100 (300 × 784, float32) and the embedding
table of the package wordllama (32,000 × 256, float16; `pip install --no-deps wordllama`). Methods
are whatever fastfactor.methods exports, with their defaults and the variants below. The error is
‖W − Ŵ‖² / ‖W‖², the size what a file holds. Of the table 4,096 rows, evenly spread, go first; a
method that would take too long for all rows has its curve on those only, and the SVD is on both.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fastfactor import demo, methods
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RATIOS = (2, 4, 8, 16, 32)
SLICE_ROWS = 4_096
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "Simhash": [{"axis": 1}],
    "BlockProjection": [{"learned": True}, {"learned": True, "shared": False}],
    "BlockDiagonal": [{"permute": False}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/size_error_curves.json")
    parser.add_argument("--limit", type=float, default=20, help="seconds that all rows may take")
    parser.add_argument("--only", nargs="*", help="methods to print, with nothing written")
    args = parser.parse_args()
    lenet = demo.load_model().layers[0].weight
    table = embedding()
    some = np.ascontiguousarray(table[:: len(table) // SLICE_ROWS][:SLICE_ROWS])
    matrices = {"lenet fc1": lenet, "wordllama, 4,096 rows": some, "wordllama": table}
    lines = [svd_line(name, W) for name, W in matrices.items()]
    for line in lines:
        show(line)
    for method, settings in chosen(args.only):
        for name, W in matrices.items():
            if name == "wordllama":
                expected = sum(lines[-1]["seconds"]) * len(table) / len(some)
                if expected > args.limit:
                    continue
            lines.append(curve(name, W, method, settings))
            show(lines[-1])
            if args.only is None:  # after each, so that what was found outlasts a stop
                result = {**describe(), "ratios": RATIOS, "curves": lines}
                args.json.write_text(json.dumps(result, indent=1) + "\n")


def embedding() -> np.ndarray:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ImportError("wordllama must be installed: pip install --no-deps wordllama")
    path = Path(spec.origin).parent / "weights" / "l2_supercat_256.safetensors"
    with safe_open(path, "np") as file:
        return file.get_tensor("embedding.weight")


def chosen(only: list[str] | None) -> Iterator[tuple[type[methods.Method], dict[str, Any]]]:
    for name in methods.__all__:
        thing = getattr(methods, name)
        if not issubclass(thing, methods.Method) or inspect.isabstract(thing):
            continue
        if only is None or name in only:
            for settings in [{}, *VARIANTS.get(name, [])]:
                yield thing, settings


def curve(
    name: str, W: np.ndarray, method: type[methods.Method], settings: dict[str, Any]
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "matrix": name,
        "method": method.__name__ + "".join(f", {k}={v}" for k, v in settings.items()),
        "bytes": [],
        "error": [],
        "seconds": [],
    }
    for ratio in RATIOS:
        begin = time.perf_counter()
        try:
            factors = method(ratio=ratio, **settings).compress(W)
        except ValueError as refusal:  # a ratio that this form cannot have
            line.setdefault("refused", {})[ratio] = str(refusal)
            size, error = None, None
        else:
            size, error = factors.nbytes, float(f"{factors.error(W):.4g}")
        line["seconds"].append(round(time.perf_counter() - begin, 3))
        line["bytes"].append(size)
        line["error"].append(error)
    return line


def svd_line(name: str, W: np.ndarray) -> dict[str, Any]:
    """The truncated SVD of the rank that fits, before rounding: from the singular values."""
    energies = np.linalg.svd(W.astype(np.float64), compute_uv=False) ** 2
    each = sum(W.shape) * W.itemsize
    ranks = [int(W.nbytes / ratio) // each for ratio in RATIOS]
    return {
        "matrix": name,
        "method": "truncated SVD",
        "bytes": [rank * each for rank in ranks],
        "error": [float(f"{energies[rank:].sum() / energies.sum():.4g}") for rank in ranks],
    }


def show(line: dict[str, Any]) -> None:
    errors = "".join(f"{'–' if e is None else format(e, '.4f'):>9}" for e in line["error"])
    seconds = f"{sum(line['seconds']):8.1f} s" if "seconds" in line else ""
    print(f"{line['matrix']:22} {line['method']:44}{errors}{seconds}", flush=True)


if __name__ == "__main__":
    main()

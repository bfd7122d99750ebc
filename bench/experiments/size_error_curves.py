"""Relative error of every method over sizes, against the truncated SVD.

    python bench/experiments/size_error_curves.py
    python bench/experiments/draw_size_error_curves.py

Two matrices: the first layer of the packaged LeNet-300-100 (300 × 784, float32) and the embedding
table of the package wordllama (32,000 × 256, float16; `pip install --no-deps wordllama`). Methods
are whatever fastfactor.methods exports, with their defaults and the variants below. The error is
‖W − Ŵ‖² / ‖W‖², the size what a file holds. Of the table 4,096 rows, evenly spread, go first; a
method that would take too long for all rows has its curve on those only, and the SVD is on both.
A curve goes from small sizes to large and ends where it has had its time: its further points are
null, as those are that a form cannot have.
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
from fastfactor import methods
from fastfactor.demo import run as demo
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

MATRICES = ("lenet fc1", "wordllama, 4,096 rows", "wordllama")
RATIOS = (64, 32, 16, 8, 4, 2)
SLICE_ROWS = 4_096
# By their own parameters: ratios would find sizes of whole bits twice, and search for the others.
LEVELS: dict[str, tuple[str, tuple[float, ...]]] = {
    "Codebook": ("n_bits", (1, 2, 3, 4, 6, 8)),
    "Dictionary": ("block_error", (0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02)),
    "EntropyCoded": ("bits_per_weight", (0.5, 1, 1.5, 2, 3, 4)),
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "BlockDiagonal": [{"permute": False}],
    "BlockProjection": [
        {"learned": True},
        {"learned": True, "shared": False},
        {"learned": True, "block_out": 1},
    ],
    "Codebook": [
        {"granularity": "row"},
        *({"vector_dim": dim} for dim in (2, 4, 8)),
        {"vector_dim": 4, "group_size": 4},
        *({"vector_dim": dim, "n_codebooks": n} for dim, n in ((4, 2), (8, 2), (8, 4))),
    ],
    "DeepCompression": [{"n_bits": n_bits} for n_bits in (2, 3, 6)],
    "Dictionary": [{"n_atoms": 32}, {"n_atoms": 64}, {"block_size": 16}],
    "MixedBlock": [{"block_shape": (1, 16)}],
    "Prune": [{"scope": "row"}, {"block_shape": (1, 4)}],
    "PruneCodebook": [{"n_bits": n_bits} for n_bits in (2, 3, 6)],
    "Simhash": [{"axis": 1}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/size_error_curves.json")
    parser.add_argument("--limit", type=float, default=60, help="seconds a curve may take")
    parser.add_argument("--only", nargs="*", help="methods to print, with nothing written")
    parser.add_argument("--matrices", nargs="*", choices=MATRICES, default=MATRICES)
    args = parser.parse_args()
    lenet = demo.load_model().layers[0].to_dense()
    table = embedding()
    some = np.ascontiguousarray(table[:: len(table) // SLICE_ROWS][:SLICE_ROWS])
    matrices = {
        name: W
        for name, W in zip(MATRICES, (lenet, some, table), strict=True)
        if name in args.matrices
    }
    lines = [svd_line(name, W) for name, W in matrices.items()]
    for line in lines:
        show(line)
    for method, settings in chosen(args.only):
        for name, W in matrices.items():
            on_some = lines[-1] if lines[-1]["matrix"] == MATRICES[1] else {}
            expected = sum(on_some.get("seconds", [])) * len(table) / len(some)
            if name == MATRICES[2] and expected > args.limit:
                continue
            lines.append(curve(name, W, method, settings, args.limit))
            show(lines[-1])
            if args.only is None:  # after each, so that what was found outlasts a stop
                head = json.dumps(describe(), indent=1).removesuffix("\n}")
                curves = ",\n".join(map(json.dumps, lines))
                args.json.write_text(f'{head},\n "curves": [\n{curves}\n]}}\n')


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
    name: str, W: np.ndarray, method: type[methods.Method], settings: dict[str, Any], limit: float
) -> dict[str, Any]:
    parameter, values = LEVELS.get(method.__name__, ("ratio", RATIOS))
    line: dict[str, Any] = {
        "matrix": name,
        "n_weights": W.size,
        "method": method.__name__ + "".join(f", {k}={v}" for k, v in settings.items()),
        parameter: values,
        "bytes": [],
        "error": [],
        "seconds": [],
    }
    for value in values:
        size = error = None
        begin = time.perf_counter()
        if sum(line["seconds"]) < limit:
            try:
                factors = method(**{parameter: value}, **settings).compress(W)
            except ValueError as refusal:  # a size or setting that this form cannot have
                line.setdefault("refused", {})[value] = str(refusal)
            else:
                size, error = factors.nbytes, float(f"{factors.error(W):.4g}")
        else:
            line.setdefault("refused", {})[value] = f"more than {limit:g} s before it"
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
        "n_weights": W.size,
        "method": "truncated SVD",
        "ratio": RATIOS,
        "bytes": [rank * each for rank in ranks],
        "error": [float(f"{energies[rank:].sum() / energies.sum():.4g}") for rank in ranks],
    }


def show(line: dict[str, Any]) -> None:
    errors = "".join(f"{'–' if e is None else format(e, '.4f'):>9}" for e in line["error"])
    seconds = f"{sum(line['seconds']):8.1f} s" if "seconds" in line else ""
    print(f"{line['matrix']:22} {line['method']:44}{errors}{seconds}", flush=True)


if __name__ == "__main__":
    main()

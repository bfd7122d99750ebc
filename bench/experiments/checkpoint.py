"""A model of a gigabyte through the command line: seconds and memory of compressing it and back.

    python bench/experiments/checkpoint.py

Makes a checkpoint of random float16 matrices in two shards with an index, in a temporary folder,
and runs `fastfactor compress` with 4-bit codebooks, one a row, then `fastfactor decompress`, each
in a process of its own whose peak memory the system reports. That figure begins at what this
process has, so the checkpoint is made in another one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8192, 4096)
N_TENSORS, N_SHARDS = 16, 2
THREADS = 2
INDEX = "model.safetensors.index.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/checkpoint.json")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_checkpoint(args.make)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        small, large = folder / "small.safetensors", folder / "large.safetensors"
        settings = ["--method", "codebook", "--set", "n_bits=4", "--set", "granularity=row"]
        compressed, report = run("compress", folder / INDEX, small, *settings)
        decompressed, _ = run("decompress", small, large)
        errors = [row["relative_error"] for row in report["rows"]]
        result = {
            **describe(),
            "checkpoint": {
                "tensors": N_TENSORS,
                "shape": SHAPE,
                "dtype": "float16",
                "shards": N_SHARDS,
                "bytes": report["file_bytes_before"],
            },
            "settings": "codebook, n_bits=4, granularity=row",
            "compressed_bytes": report["file_bytes_after"],
            "bits_per_weight": report["bits_per_weight"],
            "relative_error": {"least": min(errors), "largest": max(errors)},
            "seconds_of_tensors": [round(row["seconds"], 3) for row in report["rows"]],
            "compress": compressed,
            "decompress": decompressed,
        }
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("compress", "decompress")}, indent=2))


def make_checkpoint(folder: Path) -> None:
    """Normal weights with a scale of its own for each row, written a tensor at a time."""
    weight_map = {}
    each = N_TENSORS // N_SHARDS
    for shard in range(N_SHARDS):
        name = f"model-{shard + 1:05}-of-{N_SHARDS:05}.safetensors"
        tensors = [f"layers.{i}.weight" for i in range(shard * each, (shard + 1) * each)]
        nbytes = SHAPE[0] * SHAPE[1] * 2
        header: dict[str, Any] = {
            tensor: {"dtype": "F16", "shape": SHAPE, "data_offsets": (i * nbytes, (i + 1) * nbytes)}
            for i, tensor in enumerate(tensors)
        }
        header["__metadata__"] = {"format": "pt"}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                rng = np.random.default_rng(len(weight_map))
                scale = np.exp(0.3 * rng.standard_normal((SHAPE[0], 1), dtype=np.float32))
                W = 0.02 * scale * rng.standard_normal(SHAPE, dtype=np.float32)
                file.write(W.astype(np.float16).data)
                weight_map[tensor] = name
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def run(*arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """What a command took, and what it reported."""
    command = [sys.executable, "-m", "fastfactor", *map(str, arguments)]
    output = Path(arguments[2]).with_suffix(".report")
    command += ["--threads", str(THREADS), "--json"]
    start = time.perf_counter()
    with open(output, "wb") as file:
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} left with {process.returncode}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert usage.ru_maxrss > own, "the figure is this process'"
    used = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
    }
    return used, json.loads(output.read_text())


if __name__ == "__main__":
    main()

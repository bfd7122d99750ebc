"""Size and error of EntropyCoded on an embedding table and on a layer of the demo's network.

    python bench/experiments/entropy_quality.py WORDLLAMA.safetensors

The table is `embedding.weight` of weights/l2_supercat_256.safetensors in the package wordllama.
Seconds are those of one core: processor time of one thread.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
from fastfactor.methods import EntropyCoded, LowRank
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

RESULT = Path(__file__).resolve().parents[1] / "results" / "entropy_quality.json"
BITS = (1, 2, 3, 0.5, 1.5, 4)


def main() -> None:
    lenet = load_file(str(files("fastfactor.demo") / "data" / "lenet-300-100.safetensors"))
    tables = {
        "wordllama": load_file(sys.argv[1])["embedding.weight"],
        "lenet fc1": lenet["fc1.weight"],
    }
    rows = []
    for name, W in tables.items():
        for bits in BITS:
            with threadpool_limits(1):
                rows.append({"table": name, "shape": W.shape, **measure(W, bits)})
            print(json.dumps(rows[-1]), flush=True)
            result = {"machine": platform.machine(), "numpy": np.__version__, "rows": rows}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


def measure(W: np.ndarray, bits: float) -> dict[str, object]:
    start = time.thread_time()
    factors = EntropyCoded(bits_per_weight=bits).compress(W, n_threads=1)
    encoded = time.thread_time() - start
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, W.shape[1])).astype(np.float32)
    ids = iter(rng.integers(W.shape[0], size=101).tolist())
    factors.rows([0])  # tables are made where they are first needed
    error, limit = factors.error(W), 4.0**-factors.bits_per_weight
    result = {
        "bits_asked": bits,
        "bits": factors.bits_per_weight,
        "error": error,
        "gaussian_limit": limit,
        "error_over_limit": error / limit,
        "nbytes": {key: tensor.nbytes for key, tensor in factors.tensors().items()},
        "rotation_bits": factors.rotation_bits,
        "classes": factors.classes,
        "encode_seconds": encoded,
        "decode_seconds": median_seconds(lambda: factors.to_dense(n_threads=1), 5),
        "linear_seconds": median_seconds(lambda: factors.linear(x, n_threads=1), 5),
        "row_seconds": median_seconds(lambda: factors.rows([next(ids)], n_threads=1), 101),
    }
    rank = int(factors.nbytes / (sum(W.shape) * W.itemsize))
    if rank:
        result["svd_error"] = LowRank(rank=rank).compress(W).error(W)
    return result


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()

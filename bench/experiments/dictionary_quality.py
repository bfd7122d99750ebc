"""Dictionary against SPAMS and scikit-learn: error at equal true bytes on trained weights.

    pip install --no-deps --target FOLDER wordllama
    pip install spams scikit-learn
    python bench/experiments/dictionary_quality.py --wordllama FOLDER

Matrices are wordllama's embedding (32,000 × 256, float16) and two layers of the packaged LeNet
(300 × 784 and 100 × 300, float32). All learn as many atoms for blocks as long, code each block
with as many nonzeros, and so take the bytes that our factors take: an index of few bits and a
float16 for each nonzero, atoms in the dtype of W. Rivals' atoms and values are not rounded. SPAMS
gets ten times our time with each of its settings below, and codes by its own order-recursive
pursuit; scikit-learn gets ten times our time too, but at least one pass or --seconds, with each of
its own, and codes by whichever of its pursuit and ours has less error. The best setting counts.
Each begins with blocks drawn at random. Low rank is the truncated SVD of as many bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import spams
from fastfactor import omp, spmm
from fastfactor.demo import run as demo
from fastfactor.methods import Dictionary, LowRank
from safetensors.numpy import load_file
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

# L0-constrained, and lasso at a share of the mean norm; batches of its default, smaller ones, all.
SPAMS = (
    {"mode": 3, "batchsize": 512},
    {"mode": 3, "batchsize": 128},
    {"mode": 3, "batch": True},
    {"mode": 2, "batchsize": 512},
)
LASSO = 0.2
SCIKIT_LEARN = ("cd", "lars")
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
# Matrix, columns of a block, atoms, nonzeros a block.
CASES = (
    ("wordllama", 64, 256, 3),
    ("wordllama", 64, 256, 6),
    ("lenet_fc1", 56, 128, 3),
    ("lenet_fc1", 56, 128, 6),
    ("lenet_fc2", 60, 32, 3),
    ("lenet_fc2", 60, 32, 6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordllama", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0, help="at least, for scikit-learn")
    default = ROOT / "bench/results/dictionary_quality.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    layers = demo.load_model().layers
    matrices = {
        "wordllama": load_file(args.wordllama / WEIGHTS)["embedding.weight"],
        "lenet_fc1": layers[0].to_dense(),
        "lenet_fc2": layers[1].to_dense(),
    }
    found = json.loads(args.json.read_text()) if args.json.exists() else {"lines": []}
    lines = {(x["matrix"], x["n_nonzero_coefs"], x["by"]): x for x in found["lines"]}
    for matrix, block_size, n_atoms, nonzero in CASES:
        if args.only not in f"{matrix} {nonzero}":
            continue
        W = matrices[matrix]
        settings = {"block_size": block_size, "n_atoms": n_atoms, "n_nonzero_coefs": nonzero}
        begin = time.perf_counter()
        factors = Dictionary(**settings).compress(W, n_threads=args.threads)
        seconds = time.perf_counter() - begin
        errors = {"Dictionary": (factors.error(W), factors.nbytes, seconds)}
        ratio = W.nbytes / factors.nbytes
        begin = time.perf_counter()
        uneven = Dictionary(ratio=ratio, block_size=block_size, n_atoms=n_atoms)
        uneven = uneven.compress(W, n_threads=args.threads)
        errors["Dictionary, by ratio"] = (
            uneven.error(W),
            uneven.nbytes,
            time.perf_counter() - begin,
        )
        X = np.ascontiguousarray(W, np.float32).reshape(-1, block_size)
        start = X[np.random.default_rng(0).choice(len(X), n_atoms, replace=False)]
        start = start / np.maximum(np.linalg.norm(start, axis=1, keepdims=True), 1e-9)
        for by, found_by_it in (
            ("SPAMS trainDL", by_spams(X, start, nonzero, 10 * seconds, args.threads)),
            (
                "scikit-learn",
                by_scikit_learn(X, start, nonzero, 10 * seconds, args.seconds, args.threads),
            ),
        ):
            error, took, setting = min(found_by_it)
            errors[f"{by}, {setting}"] = (error, factors.nbytes, took)
        begin = time.perf_counter()
        low = LowRank(ratio=ratio).compress(W)
        errors["LowRank"] = (low.error(W), low.nbytes, time.perf_counter() - begin)
        lines = {at: x for at, x in lines.items() if at[:2] != (matrix, nonzero)}
        for by, (error, nbytes, took) in errors.items():
            line = {
                "matrix": matrix,
                **settings,
                "by": by,
                "bits_per_weight": round(8 * nbytes / W.size, 4),
                "error": round(error, 5),
                "seconds": round(took, 2),
            }
            print(*line.values(), flush=True)
            lines[matrix, nonzero, by] = line
        report = {"machine": describe(), "lines": list(lines.values())}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def by_spams(
    X: np.ndarray, start: np.ndarray, nonzero: int, limit: float, threads: int
) -> Iterator[tuple[float, float, str]]:
    """Its error, the seconds of learning, and the setting; negative batches are a time for it."""
    columns = np.asfortranarray(X.T)
    norm = float(np.sqrt(squares(X) / len(X)))
    for setting in SPAMS:
        begin = time.perf_counter()
        atoms = spams.trainDL(
            columns,
            D=np.asfortranarray(start.T),
            lambda1=nonzero if setting["mode"] == 3 else LASSO * norm,
            iter=-max(round(limit), 1),
            numThreads=threads,
            verbose=False,
            **setting,
        )
        took = time.perf_counter() - begin
        codes = spams.omp(columns, atoms, L=nonzero, eps=0.0, numThreads=threads)
        yield squares(X - (atoms @ codes).T) / squares(X), took, words(setting)


def by_scikit_learn(
    X: np.ndarray, start: np.ndarray, nonzero: int, limit: float, least: float, threads: int
) -> Iterator[tuple[float, float, str]]:
    shuffled = X / np.sqrt(squares(X) / len(X))
    shuffled = shuffled[np.random.default_rng(0).permutation(len(X))].astype(np.float32)
    # Its tolerance is relative to float64; the gaps it warns of are those of rounding in float32.
    warnings.simplefilter("ignore", ConvergenceWarning)
    for algorithm in SCIKIT_LEARN:
        learner = MiniBatchDictionaryLearning(
            len(start),
            alpha=LASSO,
            fit_algorithm=algorithm,
            batch_size=512,
            dict_init=start,
            n_jobs=threads,
        )
        begin = time.perf_counter()
        passes = 0
        while passes == 0 or time.perf_counter() - begin < limit:
            for first in range(0, len(shuffled), 512):
                learner.partial_fit(shuffled[first : first + 512])
                if time.perf_counter() - begin > max(limit, least):
                    break
            passes += 1
        took = time.perf_counter() - begin
        atoms = learner.components_.astype(np.float32)
        atoms /= np.maximum(np.linalg.norm(atoms, axis=1, keepdims=True), 1e-9)
        found = []
        for criterion in ("correlation", "ols"):
            codes = omp(X, atoms, n_nonzero_coefs=nonzero, criterion=criterion, n_threads=threads)
            found.append(squares(X - spmm(codes, atoms, n_threads=threads)) / squares(X))
        yield min(found), took, algorithm


def words(setting: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def squares(X: np.ndarray) -> float:
    return float(np.sum(np.asarray(X, np.float64) ** 2))


if __name__ == "__main__":
    main()

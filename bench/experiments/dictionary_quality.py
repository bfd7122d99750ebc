"""Dictionary against SPAMS and scikit-learn: error at equal true bytes on trained weights.

    pip install --no-deps --target FOLDER wordllama
    pip install spams scikit-learn
    python bench/experiments/dictionary_quality.py --wordllama FOLDER

Matrices are wordllama's embedding (32,000 × 256, float16) and the first layer of the packaged LeNet
(300 × 784, float32). All learn as many atoms for pieces as long, code each piece with as many
nonzeros, and so take the bytes that our factors take: an index of few bits and a float16 for each
nonzero, atoms in the dtype of W. Rivals' atoms and values are not rounded. SPAMS gets ten times our
time and codes by its own order-recursive pursuit; scikit-learn gets ten times our time too, but at
least one pass or 40 seconds, and codes by whichever of its pursuit and ours has less error. Each
begins with pieces drawn at random. Low rank is the truncated SVD of as many bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import spams
from fastfactor import demo, omp, spmm
from fastfactor.methods import Dictionary, LowRank
from safetensors.numpy import load_file
from sklearn.decomposition import MiniBatchDictionaryLearning

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

THREADS = 2
LEAST_SECONDS = 40.0
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
# Matrix, columns of a piece, atoms, nonzeros a piece.
CASES = (
    ("wordllama", 64, 256, 3),
    ("wordllama", 64, 256, 6),
    ("lenet_fc1", 56, 128, 3),
    ("lenet_fc1", 56, 128, 6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordllama", type=Path, required=True)
    parser.add_argument("--only", default="")
    default = ROOT / "bench/results/dictionary_quality.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    matrices = {
        "wordllama": load_file(args.wordllama / WEIGHTS)["embedding.weight"],
        "lenet_fc1": demo.load_model().layers[0].to_dense(),
    }
    found = json.loads(args.json.read_text()) if args.json.exists() else {"lines": []}
    lines = {(x["matrix"], x["n_nonzero_coefs"], x["by"]): x for x in found["lines"]}
    for matrix, piece, n_atoms, nonzero in CASES:
        if args.only not in f"{matrix} {nonzero}":
            continue
        W = matrices[matrix]
        settings = {"piece": piece, "n_atoms": n_atoms, "n_nonzero_coefs": nonzero}
        begin = time.perf_counter()
        factors = Dictionary(**settings).compress(W, n_threads=THREADS)
        seconds = time.perf_counter() - begin
        errors = {"Dictionary": (factors.error(W), factors.nbytes, seconds)}
        ratio = W.nbytes / factors.nbytes
        begin = time.perf_counter()
        uneven = Dictionary(ratio=ratio, piece=piece, n_atoms=n_atoms)
        uneven = uneven.compress(W, n_threads=THREADS)
        errors["Dictionary, by ratio"] = (
            uneven.error(W),
            uneven.nbytes,
            time.perf_counter() - begin,
        )
        X = np.ascontiguousarray(W, np.float32).reshape(-1, piece)
        start = X[np.random.default_rng(0).choice(len(X), n_atoms, replace=False)]
        start = start / np.maximum(np.linalg.norm(start, axis=1, keepdims=True), 1e-9)
        for name, learn in (("SPAMS trainDL", by_spams), ("scikit-learn", by_scikit_learn)):
            error, took = learn(X, start, nonzero, 10 * seconds)
            errors[name] = (error, factors.nbytes, took)
        begin = time.perf_counter()
        low = LowRank(ratio=ratio).compress(W)
        errors["LowRank"] = (low.error(W), low.nbytes, time.perf_counter() - begin)
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


def by_spams(X: np.ndarray, start: np.ndarray, nonzero: int, limit: float) -> tuple[float, float]:
    """Its error, and the seconds of learning; a negative number of batches is a time for it."""
    columns = np.asfortranarray(X.T)
    begin = time.perf_counter()
    atoms = spams.trainDL(
        columns,
        D=np.asfortranarray(start.T),
        mode=3,
        lambda1=nonzero,
        batchsize=512,
        iter=-max(round(limit), 1),
        numThreads=THREADS,
        verbose=False,
    )
    took = time.perf_counter() - begin
    codes = spams.omp(columns, atoms, L=nonzero, eps=0.0, numThreads=THREADS)
    return squares(X - (atoms @ codes).T) / squares(X), took


def by_scikit_learn(
    X: np.ndarray, start: np.ndarray, nonzero: int, limit: float
) -> tuple[float, float]:
    scale = float(np.sqrt(np.mean(np.sum(X.astype(np.float64) ** 2, axis=1))))
    shuffled = (X / scale)[np.random.default_rng(0).permutation(len(X))]
    learner = MiniBatchDictionaryLearning(
        len(start), alpha=0.2, fit_algorithm="cd", batch_size=512, dict_init=start, n_jobs=THREADS
    )
    begin = time.perf_counter()
    passes = 0
    while passes == 0 or time.perf_counter() - begin < limit:
        for first in range(0, len(shuffled), 512):
            learner.partial_fit(shuffled[first : first + 512])
            if time.perf_counter() - begin > max(limit, LEAST_SECONDS):
                break
        passes += 1
    took = time.perf_counter() - begin
    atoms = learner.components_.astype(np.float32)
    atoms /= np.maximum(np.linalg.norm(atoms, axis=1, keepdims=True), 1e-9)
    found = []
    for selection in ("omp", "ols"):
        codes = omp(X, atoms, n_nonzero_coefs=nonzero, selection=selection, n_threads=THREADS)
        found.append(squares(X - spmm(codes, atoms)) / squares(X))
    return min(found), took


def squares(X: np.ndarray) -> float:
    return float(np.sum(np.asarray(X, np.float64) ** 2))


if __name__ == "__main__":
    main()

"""Dictionary learning against SPAMS and scikit-learn: what is left, in which time.

    pip install spams scikit-learn
    python bench/experiments/dictionary_learning.py

Signals are those of bench/omp.py's workload a: 100,000 × 64, 256 atoms, 5 nonzeros. Rivals begin
with the same 256 signals. All are judged alike: the error is ‖X − codes · D‖² / ‖X‖² with the codes
of this package's `omp` for 5 nonzeros. Times are medians of rounds in which all but scikit-learn
take turns; they end with the dictionary, ours with the last coding as well. SPAMS uses float32,
with one thread and with two. scikit-learn takes batches of 512 for the seconds it is given, by
coordinate descent, which was faster than its LARS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import spams
from fastfactor import learn_dictionary, omp, spmm
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import omp as signals_of  # noqa: E402
from machine import describe  # noqa: E402

N_ATOMS, N_NONZERO, THREADS = 256, 5, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="for scikit-learn")
    default = ROOT / "bench/results/dictionary_learning.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    X, true = signals_of.data(signals_of.workload("a", quick=False))
    start = X[np.random.default_rng(0).choice(len(X), N_ATOMS, replace=False)]
    start = start / np.linalg.norm(start, axis=1, keepdims=True)

    def ours(passes: int, init: object = "k-means++") -> Callable[[], np.ndarray]:
        return lambda: (
            learn_dictionary(
                X,
                N_ATOMS,
                n_nonzero_coefs=N_NONZERO,
                init=init,
                max_iter=passes,
                n_threads=THREADS,
            ).dictionary
        )

    columns = np.asfortranarray(X.T)

    def rival(batches: int, threads: int) -> Callable[[], np.ndarray]:
        return lambda: (
            spams.trainDL(
                columns,
                D=np.asfortranarray(start.T),
                mode=3,
                lambda1=N_NONZERO,
                batchsize=512,
                iter=batches,
                numThreads=threads,
                verbose=False,
            ).T
        )

    # scikit-learn's coordinate descent says so of most batches.
    warnings.simplefilter("ignore", ConvergenceWarning)

    def scikit_learn() -> np.ndarray:
        learner = MiniBatchDictionaryLearning(
            N_ATOMS, fit_algorithm="cd", batch_size=512, dict_init=start, n_jobs=THREADS
        )
        end = time.perf_counter() + args.seconds
        for first in range(0, len(X), 512):
            learner.partial_fit(X[first : first + 512])
            if time.perf_counter() > end:
                break
        return learner.components_

    contestants = {f"fastfactor, {n} passes": ours(n) for n in (1, 2, 3, 4, 10)}
    contestants["fastfactor, 2 passes, same start"] = ours(2, start)
    for batches in (200, 1000):
        for threads in (1, 2):
            contestants[f"SPAMS, {batches} batches, {threads} threads"] = rival(batches, threads)
    lines = {name: {"seconds": [], "error": 0.0} for name in contestants}
    for _ in range(args.rounds):
        for name, learn in contestants.items():
            run(lines[name], learn, X)
    name = f"scikit-learn MiniBatch, batches of 512, {args.seconds:.0f} s or one pass"
    lines[name] = {"seconds": [], "error": 0.0}
    run(lines[name], scikit_learn, X)
    report = {
        "machine": describe(),
        "error of the true dictionary": error(X, true),
        "error of the start": error(X, start),
        "lines": {},
    }
    for name, line in lines.items():
        seconds = [round(s, 4) for s in line["seconds"]]
        median = statistics.median(seconds)
        report["lines"][name] = {"median": median, "seconds": seconds, "error": line["error"]}
        print(f"{name:36} {median:8.3f} s  {line['error']:.5f}")
    args.json.write_text(json.dumps(report, indent=1) + "\n")


def run(line: dict, learn: Callable[[], np.ndarray], X: np.ndarray) -> None:
    begin = time.perf_counter()
    dictionary = learn()
    line["seconds"].append(time.perf_counter() - begin)
    line["error"] = error(X, dictionary)


def error(X: np.ndarray, dictionary: np.ndarray) -> float:
    atoms = np.ascontiguousarray(dictionary, np.float32)
    codes = omp(X, atoms, n_nonzero_coefs=N_NONZERO, n_threads=THREADS)
    left = X - spmm(codes, atoms, n_threads=THREADS)
    return float(np.sum(left.astype(np.float64) ** 2) / np.sum(X.astype(np.float64) ** 2))


if __name__ == "__main__":
    main()

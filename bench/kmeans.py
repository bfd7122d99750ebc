"""k-means: standard normal data, everyone from the same initial rows; plus groups and balance."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import balance
import groups
import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Sample,
    Target,
    Workload,
    at_every_level,
    burst,
    copies_for_cold,
    level_in_use,
    level_targets,
)
from machine import old_openblas
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Fit = Callable[[Floats, int], Floats]  # (X, number of iterations) -> centroids

LONG = 20  # iterations of a whole run
SHORT = 6  # one iteration is (time of SHORT − time of 1) / (SHORT − 1): set-up cancels
SHAPES = {
    "a": {"n": 1_000_000, "d": 8, "clusters": 256},
    "b": {"n": 200_000, "d": 64, "clusters": 1024},
    "c": {"n": 100_000, "d": 384, "clusters": 512},
}
AGAINST_FAISS = {"a": (3.5, 5), "b": (2.4, 3), "c": (1.25, 2)}
AGAINST_SKLEARN = {"a": 9, "b": 3.2, "c": 1.5}
ITERATION = f"one iteration, of 2 to {SHORT}"
RUN, PLUS_PLUS = f"{LONG} iterations", "k-means++"


def workloads(quick: bool) -> list[Workload]:
    plain = [workload(name, quick) for name in SHAPES]
    return [*plain, groups.workload(quick), *balance.workloads(quick)]


def workload(name: str, quick: bool) -> Workload:
    sizes = dict(SHAPES[name])
    if quick:
        sizes["n"] //= 50
    least, aim = AGAINST_FAISS[name]
    return Workload(
        "kmeans",
        name,
        "{n:,} × {d}, K {clusters}".format(**sizes),
        sizes,
        (
            *at_every_level(fastfactor, held=fastfactor_iteration),
            Contestant("faiss", faiss, old_openblas()),
            Contestant("scikit-learn", scikit_learn),
            Contestant("scikit-learn-intelex", scikit_learn_intelex),
        ),
        (
            Target(ITERATION, ("faiss",), at_least=least),
            Target(RUN, ("faiss",), aim=aim),
            Target(ITERATION, ("scikit-learn",), at_least=AGAINST_SKLEARN[name]),
            Target(RUN, ("faiss",), figure="inertia", at_most=1.0001),
            Target(RUN, ("scikit-learn",), figure="inertia", at_most=1.0001),
            Target(PLUS_PLUS, ("fastfactor",), rival_measure=ITERATION, at_least=1 / 3),
            *level_targets(ITERATION, 0.4),
        ),
        repeats=5,
    )


def fastfactor(workload: Workload) -> Job:
    """One iteration, a whole run, and what k-means++ adds to a start from given rows."""
    fit, seed, x = fit_and_seed(workload)
    job = of_fit(fit, x)
    rotation = cycle([x, x.copy()])
    from_seeds = burst(lambda: seed(next(rotation)))
    from_rows = burst(lambda: fit(next(rotation), 1))
    seeding = {(PLUS_PLUS, "cold"): lambda: from_seeds() - from_rows()}
    return Job({**job.samples, **seeding}, job.quality, note=level_in_use())


def fastfactor_iteration(workload: Workload) -> Job:
    """One iteration only: what the levels are compared by."""
    fit, _, x = fit_and_seed(workload)
    samples = of_fit(fit, x).samples
    return Job({(ITERATION, "cold"): samples[ITERATION, "cold"]}, note=level_in_use())


def fit_and_seed(workload: Workload) -> tuple[Fit, Callable[[Floats], object], Floats]:
    from fastfactor import kmeans

    x, init = data(workload)

    def fit(x: Floats, iterations: int) -> Floats:
        result = kmeans(x, len(init), init=init, max_iter=iterations, tol=0, n_threads=THREADS)
        return np.asarray(result.centroids)

    def seed(x: Floats) -> object:
        return kmeans(
            x, len(init), init="k-means++", max_iter=1, tol=0, random_state=5, n_threads=THREADS
        )

    return fit, seed, x


def faiss(workload: Workload) -> Job:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    x, init = data(workload)

    def fit(x: Floats, iterations: int) -> Floats:
        model = faiss.Kmeans(
            x.shape[1],
            len(init),
            niter=iterations,
            min_points_per_centroid=1,
            max_points_per_centroid=len(x),
        )
        model.train(x, init_centroids=init)
        return np.asarray(model.centroids)

    return of_fit(fit, x)


def scikit_learn(workload: Workload) -> Job:
    from sklearn.cluster import KMeans

    return lloyd_estimator(KMeans, workload)


def scikit_learn_intelex(workload: Workload) -> Job:
    import daal4py
    from sklearnex.cluster import KMeans

    daal4py.daalinit(nthreads=THREADS)
    return lloyd_estimator(KMeans, workload)


def lloyd_estimator(estimator: Any, workload: Workload) -> Job:
    x, init = data(workload)

    def fit(x: Floats, iterations: int) -> Floats:
        model = estimator(
            len(init), init=init, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
        )
        return np.asarray(model.fit(x).cluster_centers_)

    return of_fit(fit, x)


def of_fit(fit: Fit, x: Floats) -> Job:
    copies = [x, *(x.copy() for _ in range(copies_for_cold(x.nbytes) - 1))]
    rotation = cycle(copies)
    final: dict[str, Floats] = {}

    def timed(iterations: int) -> Sample:
        return burst(lambda: fit(next(rotation), iterations))

    def run() -> None:
        final["centroids"] = fit(next(rotation), LONG)

    one, several = timed(1), timed(SHORT)
    return Job(
        {
            (ITERATION, "cold"): lambda: (several() - one()) / (SHORT - 1),
            (RUN, "cold"): burst(run),
        },
        lambda: {RUN: {"inertia": inertia(x, final["centroids"])}},
    )


def inertia(x: Floats, centroids: Floats) -> float:
    """Mean squared distance to the nearest centroid, in float64, whatever a library reports."""
    c = centroids.astype(np.float64)
    norms = np.einsum("kd,kd->k", c, c)
    total = 0.0
    for begin in range(0, len(x), 20_000):
        block = x[begin : begin + 20_000].astype(np.float64)
        # ‖x − c‖² = ‖x‖² − 2x·c + ‖c‖²
        nearest = (norms - 2 * (block @ c.T)).min(axis=1)
        total += float(nearest.sum() + np.einsum("nd,nd->", block, block))
    return total / len(x)


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Standard normal rows and distinct rows among them to start from."""
    n, d, clusters = (int(workload.sizes[key]) for key in ("n", "d", "clusters"))
    random = np.random.default_rng(3)
    x = random.standard_normal((n, d), dtype=np.float32)
    return x, x[random.choice(n, clusters, replace=False)].copy()

"""k-means of thousands of small problems: one call of ours, a Python loop for the rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import THREADS, Contestant, Job, Target, Workload, at_every_level, burst, level_in_use
from machine import old_openblas
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ITERATIONS = 10
MEASURE = f"{ITERATIONS} iterations"
LOOPED_GROUPS = 64  # as many as a rival is timed on; also those whose inertia is compared


def workload(quick: bool) -> Workload:
    groups = 64 if quick else 4096
    sizes = {"groups": groups, "n": 512, "d": 8, "clusters": 16}
    return Workload(
        "kmeans",
        "groups",
        "{groups:,} groups of {n} × {d}, K {clusters}".format(**sizes),
        sizes,
        (
            *at_every_level(fastfactor),
            Contestant("scikit-learn", scikit_learn),
            Contestant("faiss", faiss, old_openblas()),
        ),
        (
            Target(MEASURE, ("scikit-learn",), at_least=60, aim=200),
            Target(MEASURE, ("scikit-learn",), figure="inertia", at_most=1.0001),
        ),
    )


def fastfactor(workload: Workload) -> Job:
    from fastfactor import kmeans

    x, init = data(workload)

    def fit() -> Any:
        return kmeans(x, init.shape[1], init=init, max_iter=ITERATIONS, tol=0, n_threads=THREADS)

    return Job(
        {(MEASURE, "cold"): burst(fit)},
        lambda: {MEASURE: {"inertia": mean_inertia(x, fit().centroids)}},
        note=level_in_use(),
    )


def scikit_learn(workload: Workload) -> Job:
    from sklearn.cluster import KMeans

    def fit(x: Floats, init: Floats) -> Floats:
        model = KMeans(
            len(init), init=init, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd"
        )
        return np.asarray(model.fit(x).cluster_centers_)

    return looped(fit, workload)


def faiss(workload: Workload) -> Job:
    import faiss

    faiss.omp_set_num_threads(THREADS)

    def fit(x: Floats, init: Floats) -> Floats:
        model = faiss.Kmeans(
            x.shape[1],
            len(init),
            niter=ITERATIONS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(x),
        )
        model.train(x, init_centroids=init)
        return np.asarray(model.centroids)

    return looped(fit, workload)


def looped(fit: Callable[[Floats, Floats], Floats], workload: Workload) -> Job:
    x, init = data(workload)
    scale = len(x) / LOOPED_GROUPS

    def loop() -> Floats:
        return np.stack([fit(x[g], init[g]) for g in range(LOOPED_GROUPS)])

    timed = burst(loop)
    return Job(
        {(MEASURE, "cold"): lambda: scale * timed()},
        lambda: {MEASURE: {"inertia": mean_inertia(x, loop()), "groups timed": LOOPED_GROUPS}},
        note="a loop, timed on some groups and scaled",
    )


def mean_inertia(x: Floats, centroids: Floats) -> float:
    """Mean squared distance to the nearest centroid, in float64, over the looped groups."""
    part = x[:LOOPED_GROUPS, :, None, :].astype(np.float64)
    squared = ((part - centroids[:LOOPED_GROUPS, None, :, :]) ** 2).sum(axis=-1)
    return float(squared.min(axis=-1).mean())


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Standard normal rows (groups, n, d) and distinct rows of every group to start from."""
    groups, n, d, clusters = (int(workload.sizes[key]) for key in ("groups", "n", "d", "clusters"))
    random = np.random.default_rng(17)
    x = random.standard_normal((groups, n, d), dtype=np.float32)
    chosen = random.permuted(np.tile(np.arange(n), (groups, 1)), axis=1)[:, :clusters]
    return x, np.take_along_axis(x, chosen[:, :, None], axis=1).copy()

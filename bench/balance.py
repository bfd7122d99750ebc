"""Balanced k-means: clusters of equal size, against k-means-constrained (a minimum-cost flow)."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from cases import THREADS, Contestant, Job, Target, Workload, burst, level_in_use
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ITERATIONS = 10
CLUSTERS = 64
RUN = f"{ITERATIONS} iterations"
SHARE = "one assignment over theirs"
SPREAD = "largest less smallest cluster"


def workloads(quick: bool) -> list[Workload]:
    return [workload(n) for n in ((1_280,) if quick else (10_240, 51_200))]


def workload(n: int) -> Workload:
    return Workload(
        "kmeans",
        f"balanced {n:,}",
        f"balanced, {n:,} × 32, K {CLUSTERS}",
        {"n": n, "d": 32, "clusters": CLUSTERS},
        (Contestant("fastfactor", fastfactor), Contestant("k-means-constrained", constrained)),
        (
            Target(RUN, ("k-means-constrained",), at_least=20, aim=50),
            Target(RUN, (), figure=SHARE, at_most=1.0),
            Target(RUN, (), figure=SPREAD, at_most=1),
        ),
        repeats=5,
    )


def fastfactor(workload: Workload) -> Job:
    from fastfactor import kmeans

    x, init = data(workload)
    results: dict[int, Any] = {}

    def fit(iterations: int) -> Any:
        results[iterations] = kmeans(
            x,
            CLUSTERS,
            init=init,
            balanced=True,
            max_iter=iterations,
            tol=0,
            n_threads=THREADS,
        )
        return results[iterations]

    def quality() -> dict[str, dict[str, float]]:
        run = results[ITERATIONS]
        return {RUN: outcome(x, run.centroids, run.labels) | share(x, fit(1))}

    return Job({(RUN, "cold"): burst(lambda: fit(ITERATIONS))}, quality, note=level_in_use())


def share(x: Floats, ours: Any) -> dict[str, float]:
    """The inertia of our assignment to our centroids over that of the rival's to the same ones."""
    if importlib.util.find_spec("k_means_constrained") is None:
        return {}
    theirs = constrained_model(x, ours.centroids)
    theirs.cluster_centers_ = ours.centroids
    labels = theirs.predict(x)
    return {SHARE: inertia(x, ours.centroids, ours.labels) / inertia(x, ours.centroids, labels)}


def constrained(workload: Workload) -> Job:
    """It assigns once more after the last iteration, as we do: both run eleven assignments."""
    x, init = data(workload)
    model = constrained_model(x, init)
    return Job(
        {(RUN, "cold"): burst(lambda: model.fit(x))},
        lambda: {RUN: outcome(x, model.cluster_centers_, model.labels_)},
        note="minimises the sum of distances, not of their squares",
    )


def constrained_model(x: Floats, init: Floats) -> Any:
    from k_means_constrained import KMeansConstrained

    return KMeansConstrained(
        CLUSTERS,
        size_min=len(x) // CLUSTERS,
        size_max=-(-len(x) // CLUSTERS),
        init=init,
        n_init=1,
        max_iter=ITERATIONS,
        tol=0,
    )


def outcome(x: Floats, centroids: Floats, labels: NDArray[Any]) -> dict[str, float]:
    sizes = np.bincount(labels, minlength=CLUSTERS)
    return {"inertia": inertia(x, centroids, labels), SPREAD: float(np.ptp(sizes))}


def inertia(x: Floats, centroids: Floats, labels: NDArray[Any]) -> float:
    """Mean squared distance to the centroid assigned, in float64."""
    apart = x.astype(np.float64) - centroids.astype(np.float64)[labels]
    return float(np.einsum("nd,nd->", apart, apart) / len(x))


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Standard normal rows and distinct rows among them to start from."""
    n, d = int(workload.sizes["n"]), int(workload.sizes["d"])
    random = np.random.default_rng(19)
    x = random.standard_normal((n, d), dtype=np.float32)
    return x, x[random.choice(n, CLUSTERS, replace=False)].copy()

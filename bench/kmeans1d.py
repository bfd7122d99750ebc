"""k-means of scalars: a codebook a row of a weight matrix, and one for a long vector.

ckwrap and kmeans1d find the optimum too, flash1dkmeans and the torch composition run Lloyd's
iterations. All of them take one vector at a time but torch, so the rows are a Python loop for them,
timed on some and scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Target,
    Workload,
    at_every_level,
    burst,
    copies_for_cold,
    level_in_use,
    level_targets,
)
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Cluster = Callable[[Floats, Floats | None], Floats]  # (values, weights) -> centroids

EXACT, WEIGHTED, LLOYD = "exact", "exact, weighted", "Lloyd"
LOOPED_ROWS = 64  # as many as a rival is timed on; also those whose inertia is compared
TORCH_STEPS = 20
VECTORS = {"1M": (1_000_000, 16), "100k": (100_000, 256)}
LAYER = (4096, 11008)
SCALED = "a loop, timed on some rows and scaled"
TORCH = "torch sort + prefix sums"


def workloads(quick: bool) -> list[Workload]:
    return [rows(quick), *(vector(name, quick) for name in VECTORS), layer(quick)]


def rows(quick: bool) -> Workload:
    n = 64 if quick else 4096
    return Workload(
        "kmeans1d",
        "rows",
        f"{n:,} rows of 4,096, K 16",
        {"groups": n, "n": 4096, "clusters": 16},
        (
            *at_every_level(fastfactor_rows, held=fastfactor_exact_rows),
            Contestant("ckwrap", ckwrap_rows),
            Contestant("kmeans1d", kmeans1d_rows),
            Contestant("flash1dkmeans", flash_rows),
            Contestant(TORCH, torch_rows),
        ),
        (
            Target(EXACT, ("ckwrap",), at_least=12, aim=40),
            Target(WEIGHTED, ("ckwrap",), at_least=12, aim=40),
            Target(EXACT, ("flash1dkmeans",), rival_measure=LLOYD, aim=1),
            Target(LLOYD, (TORCH,), at_least=5, aim=10),
            Target(EXACT, ("ckwrap", "kmeans1d"), figure="inertia", at_most=1.000001),
            Target(WEIGHTED, ("ckwrap",), figure="inertia", at_most=1.000001),
            Target(LLOYD, (TORCH,), figure="inertia", at_most=1.0001),
            *level_targets(EXACT, 0.4),
        ),
        repeats=5,
    )


def vector(name: str, quick: bool) -> Workload:
    n, clusters = VECTORS[name]
    n = n // 50 if quick else n
    return Workload(
        "kmeans1d",
        name,
        f"one vector of {n:,}, K {clusters}",
        {"groups": 1, "n": n, "clusters": clusters},
        (
            *at_every_level(fastfactor_vector),
            Contestant("ckwrap", ckwrap_vector),
            Contestant("kmeans1d", kmeans1d_vector),
        ),
        (
            Target(EXACT, ("ckwrap",), at_least=10, aim=30),
            Target(EXACT, ("ckwrap", "kmeans1d"), figure="inertia", at_most=1.000001),
            *level_targets(EXACT, 0.4),
        ),
        repeats=5,
    )


def layer(quick: bool) -> Workload:
    height, width = (LAYER[0] // 50, LAYER[1]) if quick else LAYER
    return Workload(
        "kmeans1d",
        "layer",
        f"bfloat16 {height} × {width}, one table, K 256",
        {"groups": 1, "n": height * width, "clusters": 256},
        at_every_level(fastfactor_layer),
        (
            Target(EXACT, (), figure="tables/s", at_least=1, aim=2.5),
            *level_targets(EXACT, 0.4),
        ),
        repeats=5,
    )


def fastfactor_rows(workload: Workload) -> Job:
    from fastfactor import kmeans1d

    x, weights = data(workload)
    k = int(workload.sizes["clusters"])
    copies = cycle([x.copy() for _ in range(copies_for_cold(x.nbytes))])

    def exact() -> Any:
        return kmeans1d(next(copies), k, n_threads=THREADS)

    def weighted() -> Any:
        return kmeans1d(next(copies), k, sample_weight=weights, n_threads=THREADS)

    def lloyd() -> Any:
        return kmeans1d(next(copies), k, method="lloyd", n_threads=THREADS)

    def quality() -> dict[str, dict[str, float]]:
        part, their_weights = x[:LOOPED_ROWS], weights[:LOOPED_ROWS]
        moved = lloyd()
        return {
            EXACT: {"inertia": mean_inertia(part, exact().centroids)},
            WEIGHTED: {"inertia": mean_inertia(part, weighted().centroids, their_weights)},
            LLOYD: {
                "inertia": mean_inertia(part, moved.centroids),
                "iterations": float(moved.n_iter.mean()),
            },
        }

    return Job(
        {
            (EXACT, "cold"): burst(exact),
            (WEIGHTED, "cold"): burst(weighted),
            (LLOYD, "cold"): burst(lloyd),
        },
        quality,
        note=level_in_use(),
    )


def fastfactor_exact_rows(workload: Workload) -> Job:
    samples = fastfactor_rows(workload).samples
    return Job({(EXACT, "cold"): samples[EXACT, "cold"]}, note=level_in_use())


def fastfactor_vector(workload: Workload) -> Job:
    from fastfactor import kmeans1d

    def cluster(x: Floats, _: Floats | None) -> Floats:
        result = kmeans1d(x, int(workload.sizes["clusters"]), n_threads=THREADS)
        return np.asarray(result.centroids)[:, 0]

    return of_vector(cluster, workload, note=level_in_use())


def fastfactor_layer(workload: Workload) -> Job:
    import ml_dtypes
    from fastfactor import kmeans1d

    x = (0.02 * data(workload)[0][0]).astype(ml_dtypes.bfloat16)
    k = int(workload.sizes["clusters"])
    return Job(
        {(EXACT, "cold"): burst(lambda: kmeans1d(x, k, n_threads=THREADS))},
        work={EXACT: {"tables": 1}},
        note=level_in_use(),
    )


def ckwrap_cluster(clusters: int) -> Cluster:
    import ckwrap

    def cluster(x: Floats, weights: Floats | None) -> Floats:
        return np.asarray(ckwrap.ckmeans(x, clusters, weights=weights).centers)

    return cluster


def kmeans1d_cluster(clusters: int) -> Cluster:
    """The package of that name; this module, which shadows it, steps aside for the import."""
    kmeans1d = other_kmeans1d()
    return lambda x, _: np.asarray(kmeans1d.cluster(x, clusters).centroids)


def flash_cluster(clusters: int) -> Cluster:
    from flash1dkmeans import kmeans_1d

    def cluster(x: Floats, _: Floats | None) -> Floats:
        return np.asarray(kmeans_1d(x, clusters, random_state=0)[0])

    return cluster


def other_kmeans1d() -> Any:
    import importlib
    import sys
    from pathlib import Path

    here = str(Path(__file__).parent)
    mine, path = sys.modules.pop("kmeans1d", None), sys.path.copy()
    sys.path[:] = [entry for entry in path if entry not in ("", here)]
    try:
        return importlib.import_module("kmeans1d")
    finally:
        sys.path[:] = path
        if mine is not None:
            sys.modules["kmeans1d"] = mine


def ckwrap_rows(workload: Workload) -> Job:
    cluster = ckwrap_cluster(int(workload.sizes["clusters"]))
    return looped(cluster, workload, EXACT, WEIGHTED)


def ckwrap_vector(workload: Workload) -> Job:
    return of_vector(ckwrap_cluster(int(workload.sizes["clusters"])), workload)


def kmeans1d_rows(workload: Workload) -> Job:
    return looped(kmeans1d_cluster(int(workload.sizes["clusters"])), workload, EXACT)


def kmeans1d_vector(workload: Workload) -> Job:
    return of_vector(kmeans1d_cluster(int(workload.sizes["clusters"])), workload)


def flash_rows(workload: Workload) -> Job:
    return looped(flash_cluster(int(workload.sizes["clusters"])), workload, LLOYD)


def torch_rows(workload: Workload) -> Job:
    """All rows at once: sorted, their sums prefixed, and then some of Lloyd's iterations."""
    import torch

    torch.set_num_threads(THREADS)
    x, k = data(workload)[0], int(workload.sizes["clusters"])
    copies = cycle([torch.from_numpy(x.copy()) for _ in range(copies_for_cold(x.nbytes))])

    def run() -> Any:
        values = next(copies)
        ordered = torch.sort(values, dim=1).values
        sums = torch.nn.functional.pad(torch.cumsum(ordered, dim=1, dtype=torch.float64), (1, 0))
        share = torch.linspace(0, 1, k)
        first, last = ordered[:, :1], ordered[:, -1:]
        centroids = (first + (last - first) * share).double()
        edge = torch.zeros((len(values), 1), dtype=torch.int64)
        end = edge + values.shape[1]
        for _ in range(TORCH_STEPS):
            middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
            inner = torch.searchsorted(ordered, middles.float().contiguous(), right=True)
            cuts = torch.cat([edge, inner, end], dim=1)
            counts = cuts.diff(dim=1)
            means = torch.gather(sums, 1, cuts).diff(dim=1) / counts
            centroids = torch.where(counts > 0, means, centroids)
        middles = ((centroids[:, 1:] + centroids[:, :-1]) / 2).float().contiguous()
        return centroids, torch.searchsorted(middles, values, out_int32=True)

    def quality() -> dict[str, dict[str, float]]:
        centroids = run()[0].numpy()[:LOOPED_ROWS]
        inertia = mean_inertia(x[:LOOPED_ROWS], centroids)
        return {LLOYD: {"inertia": inertia, "iterations": TORCH_STEPS}}

    return Job({(LLOYD, "cold"): burst(run)}, quality, note=f"{TORCH_STEPS} iterations")


def looped(cluster: Cluster, workload: Workload, *measures: str) -> Job:
    x, weights = data(workload)
    scale = len(x) / LOOPED_ROWS

    def loop(measure: str) -> Floats:
        weighing = weights if measure == WEIGHTED else None
        return np.stack(
            [cluster(x[g], None if weighing is None else weighing[g]) for g in range(LOOPED_ROWS)]
        )

    def sample(measure: str) -> Callable[[], float]:
        timed = burst(lambda: loop(measure))
        return lambda: scale * timed()

    def quality() -> dict[str, dict[str, float]]:
        return {
            measure: {
                "inertia": mean_inertia(
                    x[:LOOPED_ROWS],
                    loop(measure),
                    weights[:LOOPED_ROWS] if measure == WEIGHTED else None,
                )
            }
            for measure in measures
        }

    return Job({(measure, "cold"): sample(measure) for measure in measures}, quality, note=SCALED)


def of_vector(cluster: Cluster, workload: Workload, note: str = "") -> Job:
    x = data(workload)[0]
    copies = cycle([x.copy() for _ in range(copies_for_cold(x.nbytes))])

    def quality() -> dict[str, dict[str, float]]:
        return {EXACT: {"inertia": mean_inertia(x, cluster(x[0], None)[None])}}

    return Job({(EXACT, "cold"): burst(lambda: cluster(next(copies)[0], None))}, quality, note=note)


def mean_inertia(x: Floats, centroids: Any, weights: Floats | None = None) -> float:
    """Mean over rows of Σ w (x − c)², c nearest, in float64."""
    total = 0.0
    for g, row in enumerate(x.astype(np.float64)):
        places = np.sort(np.asarray(centroids[g], np.float64).ravel())
        after = np.searchsorted((places[1:] + places[:-1]) / 2, row)
        squares = (row - places[after]) ** 2
        total += float(squares.sum() if weights is None else squares @ weights[g])
    return total / len(x)


def data(workload: Workload) -> tuple[Floats, Floats]:
    """Standard normal rows, and weights between ½ and 2."""
    shape = int(workload.sizes["groups"]), int(workload.sizes["n"])
    random = np.random.default_rng(23)
    x = random.standard_normal(shape, dtype=np.float32)
    if shape[0] == 1:
        return x, np.ones_like(x)
    return x, (0.5 + 1.5 * random.random(shape, dtype=np.float32)).astype(np.float32)

"""Selection by magnitude: the threshold of 100M float32, and the masks of a matrix, cold.

Kernel `select` on the command line; a file of that name would hide the standard library's module.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Target,
    Workload,
    at_every_level,
    burst,
    level_in_use,
    level_targets,
    seconds,
)
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SPARSITY = 0.9
THRESHOLD, MASK, ROWS, TWO_OF_FOUR = "threshold", "mask", "mask by row", "mask 2:4"


def workloads(quick: bool) -> list[Workload]:
    return [of_a_model(quick), of_a_matrix(quick)]


def of_a_model(quick: bool) -> Workload:
    n = 1_000_000 if quick else 100_000_000
    return Workload(
        "select",
        "model",
        f"{n // 1_000_000}M, 90 % dropped",
        {"rows": n, "cols": 1},
        (
            *at_every_level(fastfactor_threshold),
            Contestant("NumPy abs + partition", numpy_partition),
            Contestant("torch.kthvalue", torch_kthvalue),
            Contestant("torch.sum of the same", memory_read),
        ),
        (
            Target(THRESHOLD, ("NumPy abs + partition",), at_least=5),
            Target(THRESHOLD, ("torch.sum of the same",), figure="GB/s", aim=0.9),
            *level_targets(THRESHOLD, 0.4),
        ),
        repeats=5,
    )


def of_a_matrix(quick: bool) -> Workload:
    size = 512 if quick else 4096
    return Workload(
        "select",
        "matrix",
        f"{size} × {size}, 90 % dropped",
        {"rows": size, "cols": size},
        (
            Contestant("fastfactor", fastfactor_masks),
            Contestant("NumPy partition", numpy_masks),
            Contestant("torch topk", torch_masks),
        ),
    )


def fastfactor_threshold(workload: Workload) -> Job:
    from fastfactor import magnitude_threshold

    values = weights(workload)
    return threshold_job(
        values,
        lambda: float(magnitude_threshold(values, SPARSITY, n_threads=THREADS)),
        level_in_use(),
    )


def numpy_partition(workload: Workload) -> Job:
    values = weights(workload)
    n_dropped = round(SPARSITY * values.size)
    return threshold_job(
        values, lambda: float(np.partition(np.abs(values), n_dropped, axis=None)[n_dropped])
    )


def torch_kthvalue(workload: Workload) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    values = weights(workload)
    tensor = torch.from_numpy(values.ravel())
    n_dropped = round(SPARSITY * values.size)
    return threshold_job(
        values, lambda: float(torch.kthvalue(tensor.abs(), n_dropped + 1).values.item())
    )


def memory_read(workload: Workload) -> Job:
    """How fast two threads read the same array: what a selection that reads it once is held to."""
    import torch

    torch.set_num_threads(THREADS)
    tensor = torch.from_numpy(weights(workload))
    return Job(
        {(THRESHOLD, "limit"): burst(lambda: tensor.sum())},
        work={THRESHOLD: {"GB": tensor.nbytes / 1e9}},
        note="no selection: the rate at which memory is read",
    )


def threshold_job(values: Floats, call: Callable[[], float], note: str = "") -> Job:
    """`wrong` counts the kept that are fewer than asked, or would be more without a tie."""
    n_kept = values.size - round(SPARSITY * values.size)

    def quality() -> dict[str, dict[str, float]]:
        threshold = call()
        magnitudes = np.abs(values)
        missing = max(0, n_kept - int(np.count_nonzero(magnitudes >= threshold)))
        excess = max(0, int(np.count_nonzero(magnitudes > threshold)) - n_kept + 1)
        return {THRESHOLD: {"wrong": float(missing + excess)}}

    return Job(
        {(THRESHOLD, "cold"): burst(call)}, quality, {THRESHOLD: {"GB": values.nbytes / 1e9}}, note
    )


def fastfactor_masks(workload: Workload) -> Job:
    from fastfactor import nm_sparsity_mask, prune_mask

    values = weights(workload)
    return mask_job(
        values,
        {
            MASK: lambda: prune_mask(values, SPARSITY, n_threads=THREADS),
            ROWS: lambda: prune_mask(values, SPARSITY, scope="row", n_threads=THREADS),
            TWO_OF_FOUR: lambda: nm_sparsity_mask(values, 2, 4, n_threads=THREADS),
        },
        level_in_use(),
    )


def numpy_masks(workload: Workload) -> Job:
    values = weights(workload)

    def above(axis: int | None, n_dropped: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        magnitudes = np.abs(values).reshape(shape)
        threshold = np.partition(magnitudes, n_dropped, axis=axis).take([n_dropped], axis=axis)
        return (magnitudes >= threshold).reshape(values.shape)

    size = len(values)
    return mask_job(
        values,
        {
            MASK: lambda: above(None, round(SPARSITY * size * size), values.shape),
            ROWS: lambda: above(1, round(SPARSITY * size), values.shape),
            TWO_OF_FOUR: lambda: above(1, 2, (-1, 4)),
        },
    )


def torch_masks(workload: Workload) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    values = weights(workload)
    tensor = torch.from_numpy(values)

    def kept(n_kept: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        magnitudes = tensor.abs().reshape(shape)
        found = torch.topk(magnitudes, n_kept, dim=-1, sorted=False).indices
        mask = torch.zeros(magnitudes.shape, dtype=torch.bool).scatter_(-1, found, True)
        return mask.reshape(tensor.shape).numpy()

    size = len(values)
    return mask_job(
        values,
        {
            MASK: lambda: kept(size * size - round(SPARSITY * size * size), (-1,)),
            ROWS: lambda: kept(size - round(SPARSITY * size), tuple(tensor.shape)),
            TWO_OF_FOUR: lambda: kept(2, (-1, 4)),
        },
    )


def mask_job(
    values: Floats, calls: dict[str, Callable[[], NDArray[np.bool_]]], note: str = ""
) -> Job:
    """The values are no larger than a cache may be, so a larger array is read before each."""
    other = np.ones(32 << 20, np.float32)

    def cold(call: Callable[[], object]) -> Callable[[], float]:
        def sample() -> float:
            other.sum()
            return seconds(call)

        return sample

    return Job(
        {(name, "cold"): cold(call) for name, call in calls.items()},
        lambda: {name: {"kept": float(call().mean())} for name, call in calls.items()},
        {name: {"GB": values.nbytes / 1e9} for name in calls},
        note,
    )


def weights(workload: Workload) -> Floats:
    shape = (int(workload.sizes["rows"]), int(workload.sizes["cols"]))
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)

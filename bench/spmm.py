"""Sparse × dense: 4096 × 4096 CSR by 1, 8, 64 and 512 columns, against sparse and dense rivals."""

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
    copies_for_cold,
    level_in_use,
    level_targets,
)
from product_jobs import (
    Floats,
    Multiply,
    csr_bytes,
    csr_copies,
    pinned,
    rotating,
    torch_csr_copies,
)

COLUMNS = (1, 8, 64, 512)
SPARSE_RIVALS = ("MKL", "torch CSR", "SciPy")
DENSE_RIVALS = ("NumPy dense", "torch dense")
READ_BYTES = 256 << 20


def workloads(quick: bool) -> list[Workload]:
    return [workload(percent, quick) for percent in ((90,) if quick else (80, 90, 95))]


def workload(percent: int, quick: bool) -> Workload:
    size = 512 if quick else 4096
    rivals = (
        Contestant("SciPy", scipy_csr),
        Contestant("MKL", mkl),
        Contestant("torch CSR", torch_csr),
        Contestant("NumPy dense", numpy_dense),
        Contestant("torch dense", torch_dense),
        Contestant("torch.sum of 256 MB", memory_read),
    )
    ours = at_every_level(fastfactor)
    return Workload(
        "spmm",
        f"{percent} %",
        f"{size} × {size}, {percent} % zero",
        {"size": size, "percent": percent},
        (*(ours if percent == 90 else ours[:1]), *rivals),
        targets(percent),
    )


def targets(percent: int) -> tuple[Target, ...]:
    if percent == 80:
        return (Target(measure_of(512), DENSE_RIVALS, at_least=1.3, aim=2),)
    if percent == 95:
        return ()
    return (
        Target(measure_of(1), SPARSE_RIVALS, at_least=1),
        Target(measure_of(8), SPARSE_RIVALS, at_least=1.3),
        Target(measure_of(64), SPARSE_RIVALS, at_least=1.8),
        Target(measure_of(512), SPARSE_RIVALS, at_least=2),
        Target(measure_of(1), ("torch.sum of 256 MB",), figure="GB/s", aim=0.9),
        Target(measure_of(64), DENSE_RIVALS, figure="GFLOP/s", aim=0.4),
        Target(measure_of(512), DENSE_RIVALS, figure="GFLOP/s", aim=0.4),
        *level_targets(measure_of(1), 0.8),
        *level_targets(measure_of(64), 0.4),
        *level_targets(measure_of(512), 0.4),
    )


def fastfactor(workload: Workload) -> Job:
    from fastfactor import CSR, spmm

    weight = dense_weight(workload)
    matrices = [CSR.from_dense(weight) for _ in range(copies_for_cold(csr_bytes(weight)))]

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        out = np.empty((len(weight), *b.shape[1:]), np.float32)
        return lambda i: spmm(matrices[i], b, out=out, n_threads=THREADS), out

    return job(weight, len(matrices), with_columns, note=level_in_use())


def scipy_csr(workload: Workload) -> Job:
    weight = dense_weight(workload)
    matrices = csr_copies(weight)

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        return lambda i: matrices[i] @ b, matrices[0] @ b

    return job(weight, len(matrices), with_columns)


def mkl(workload: Workload) -> Job:
    """In C order, which takes MKL half the time or less of Fortran order from 8 columns on."""
    from sparse_dot_mkl import dot_product_mkl

    weight = dense_weight(workload)
    matrices = csr_copies(weight)

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        out = np.zeros((len(weight), *b.shape[1:]), np.float32)
        return lambda i: dot_product_mkl(matrices[i], b, out=out, out_scalar=0), out

    return job(weight, len(matrices), with_columns)


def torch_csr(workload: Workload) -> Job:
    import torch

    weight = dense_weight(workload)
    matrices = torch_csr_copies(weight)

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(b)
        return lambda i: matrices[i] @ right, (matrices[0] @ right).numpy()

    return job(weight, len(matrices), with_columns)


def numpy_dense(workload: Workload) -> Job:
    weight = dense_weight(workload)
    matrices = [weight.copy() for _ in range(copies_for_cold(weight.nbytes))]

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        out = np.empty((len(weight), *b.shape[1:]), np.float32)
        return lambda i: np.matmul(matrices[i], b, out=out), out

    return job(weight, len(matrices), with_columns, dense=True)


def torch_dense(workload: Workload) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    weight = dense_weight(workload)
    matrices = [torch.from_numpy(weight.copy()) for _ in range(copies_for_cold(weight.nbytes))]

    def with_columns(b: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(b)
        out = torch.empty((len(weight), *b.shape[1:]))
        return lambda i: torch.matmul(matrices[i], right, out=out), out.numpy()

    return job(weight, len(matrices), with_columns, dense=True)


def memory_read(workload: Workload) -> Job:
    """How fast two threads read main memory: what one column, which reads A once, is held to."""
    import torch

    torch.set_num_threads(THREADS)
    values = torch.ones(READ_BYTES // 4)
    return Job(
        {(measure_of(1), "limit"): burst(lambda: values.sum())},
        work={measure_of(1): {"GB": READ_BYTES / 1e9}},
        note="no product: the rate at which memory is read",
    )


def job(
    weight: Floats,
    n_copies: int,
    with_columns: Callable[[Floats], tuple[Multiply, Floats]],
    *,
    dense: bool = False,
    note: str = "",
) -> Job:
    """Cold and hot samples for each number of columns; `with_columns` gives the result to check."""
    samples, checks, work = {}, {}, {}
    nonzeros = weight.size if dense else np.count_nonzero(weight)
    nbytes = weight.nbytes if dense else csr_bytes(weight)
    for columns in COLUMNS:
        b = right_side(len(weight), columns)
        multiply, result = with_columns(b)
        samples[measure_of(columns), "cold"] = burst(rotating(multiply, n_copies))
        samples[measure_of(columns), "hot"] = burst(pinned(multiply))
        checks[measure_of(columns)] = (b, result)
        work[measure_of(columns)] = {"GFLOP": 2e-9 * nonzeros * columns, "GB": nbytes / 1e9}
    return Job(
        samples,
        lambda: {name: {"error": relative_error(weight, *check)} for name, check in checks.items()},
        work,
        note,
    )


def relative_error(weight: Floats, b: Floats, result: Floats) -> float:
    """Largest |y − ŷ| over the largest |y|, with y in float64."""
    exact = weight.astype(np.float64) @ b.astype(np.float64)
    return float(np.abs(exact - result).max() / np.abs(exact).max())


def measure_of(columns: int) -> str:
    return "1 column" if columns == 1 else f"{columns} columns"


def dense_weight(workload: Workload) -> Floats:
    """A normal matrix with zeros at random places, as unstructured pruning leaves them."""
    size = int(workload.sizes["size"])
    random = np.random.default_rng(11)
    weight = random.standard_normal((size, size), dtype=np.float32)
    weight[random.random((size, size), dtype=np.float32) < workload.sizes["percent"] / 100] = 0
    return weight


def right_side(rows: int, columns: int) -> Floats:
    shape = (rows,) if columns == 1 else (rows, columns)
    return np.random.default_rng(13).standard_normal(shape, dtype=np.float32)

"""Pruned matrices with shared weights: 4096 × 4096 by 1 and 8 inputs, against float CSR and dense.

Every contestant multiplies by the same matrix: normal weights, most of them dropped at random, the
others rounded to one of 15 values. Codes take 4 bits and a gap as many as are best.
"""

from __future__ import annotations

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Target,
    Workload,
    at_every_level,
    copies_for_cold,
    level_in_use,
    level_targets,
)
from numpy.typing import NDArray
from product_jobs import (
    BATCHES,
    Floats,
    Multiply,
    WithInputs,
    csr_bytes,
    csr_copies,
    input_job,
    measure_of,
    numpy_dense_job,
    torch_csr_copies,
    torch_dense_job,
)

SPARSE_RIVALS = ("MKL", "torch CSR", "SciPy")
DENSE_RIVALS = ("NumPy dense", "torch dense")


def workloads(quick: bool) -> list[Workload]:
    return [workload(percent, quick) for percent in ((90,) if quick else (90, 95))]


def workload(percent: int, quick: bool) -> Workload:
    size = 512 if quick else 4096
    ours = at_every_level(fastfactor)
    return Workload(
        "sparse_codebook",
        f"{percent} %",
        f"{size} × {size}, {percent} % zero, 4-bit codes",
        {"size": size, "percent": percent},
        (
            *(ours if percent == 90 else ours[:1]),
            Contestant("fastfactor spmm, float CSR", fastfactor_spmm),
            Contestant("SciPy", scipy_csr),
            Contestant("MKL", mkl),
            Contestant("torch CSR", torch_csr),
            Contestant("NumPy dense", numpy_dense),
            Contestant("torch dense", torch_dense),
        ),
        targets(percent),
    )


def targets(percent: int) -> tuple[Target, ...]:
    one, eight = (measure_of(batch) for batch in BATCHES)
    return (
        Target(one, SPARSE_RIVALS, at_least=2, aim=3),
        Target(one, ("fastfactor spmm, float CSR",), at_least=2),
        Target(one, DENSE_RIVALS, at_least=5),
        Target(eight, SPARSE_RIVALS, at_least=1.3),
        *(Target(m, (), figure="error / Σ|wx|", at_most=1e-5) for m in (one, eight)),
        *(level_targets(one, 0.1) if percent == 90 else ()),
    )


def fastfactor(workload: Workload) -> Job:
    from fastfactor import SparseCodes, sparse_codebook_matmul

    labels, codebook = labels_and_codebook(workload)
    first = SparseCodes.from_labels(labels, codebook)
    stored = (first.codes, first.gaps, first.gap_bits, first.codebook, first.shape)
    matrices = [SparseCodes(*stored) for _ in range(copies_for_cold(first.execution_nbytes))]

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        out = np.empty((*x.shape[:-1], len(labels)), np.float32)
        return lambda i: sparse_codebook_matmul(x, matrices[i], out=out, n_threads=THREADS), out

    sizes = f"{first.stored_nbytes / 1e6:.2f} MB stored, {first.execution_nbytes / 1e6:.2f} MB read"
    note = f"{level_in_use()}, {sizes}"
    return job(workload, first.execution_nbytes, len(matrices), with_inputs, note)


def fastfactor_spmm(workload: Workload) -> Job:
    from fastfactor import CSR, spmm

    weight = dense_weight(workload)
    matrices = [CSR.from_dense(weight) for _ in range(copies_for_cold(csr_bytes(weight)))]

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = np.ascontiguousarray(x.T)
        out = np.empty((len(weight), *right.shape[1:]), np.float32)
        return lambda i: spmm(matrices[i], right, out=out, n_threads=THREADS), out.T

    return csr_job(workload, len(matrices), with_inputs)


def scipy_csr(workload: Workload) -> Job:
    matrices = csr_copies(dense_weight(workload))

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = np.ascontiguousarray(x.T)
        return lambda i: matrices[i] @ right, (matrices[0] @ right).T

    return csr_job(workload, len(matrices), with_inputs)


def mkl(workload: Workload) -> Job:
    """In C order, which takes MKL half the time or less of Fortran order from 8 columns on."""
    from sparse_dot_mkl import dot_product_mkl

    matrices = csr_copies(dense_weight(workload))

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = np.ascontiguousarray(x.T)
        out = np.zeros((matrices[0].shape[0], *right.shape[1:]), np.float32)
        return lambda i: dot_product_mkl(matrices[i], right, out=out, out_scalar=0), out.T

    return csr_job(workload, len(matrices), with_inputs)


def torch_csr(workload: Workload) -> Job:
    import torch

    matrices = torch_csr_copies(dense_weight(workload))

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(np.ascontiguousarray(x.T))
        return lambda i: matrices[i] @ right, (matrices[0] @ right).numpy().T

    return csr_job(workload, len(matrices), with_inputs)


def numpy_dense(workload: Workload) -> Job:
    return numpy_dense_job(dense_weight(workload))


def torch_dense(workload: Workload) -> Job:
    return torch_dense_job(dense_weight(workload))


def csr_job(workload: Workload, n_copies: int, with_inputs: WithInputs) -> Job:
    nbytes = csr_bytes(dense_weight(workload))
    return job(workload, nbytes, n_copies, with_inputs)


def job(
    workload: Workload, nbytes: int, n_copies: int, with_inputs: WithInputs, note: str = ""
) -> Job:
    weight = dense_weight(workload)
    return input_job(weight, len(weight), nbytes, n_copies, with_inputs, note)


def dense_weight(workload: Workload) -> Floats:
    labels, codebook = labels_and_codebook(workload)
    return codebook[labels]


def labels_and_codebook(workload: Workload) -> tuple[NDArray[np.uint8], Floats]:
    """15 even steps over ± 2.1 standard deviations, and zero at random places."""
    size = int(workload.sizes["size"])
    random = np.random.default_rng(11)
    weight = random.standard_normal((size, size), dtype=np.float32)
    dropped = random.random((size, size), dtype=np.float32) < workload.sizes["percent"] / 100
    values = (np.arange(15, dtype=np.float32) - 7.25) * np.float32(0.3)
    labels = np.clip(np.rint(weight / 0.3 + 7.25), 0, 14).astype(np.uint8) + 1
    labels[dropped] = 0
    return labels, np.concatenate([np.zeros(1, np.float32), values])

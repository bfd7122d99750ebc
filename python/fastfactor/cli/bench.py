"""Time the main kernels on this machine, on workloads of the size of a layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ..config import configuration
from ..kernels.clustering import kmeans
from ..kernels.codebooks import codebook_matmul
from ..kernels.huffman import huffman_decode, huffman_encode
from ..kernels.packing import PackedCodes
from ..kernels.scalar_clustering import kmeans1d
from ..kernels.selection import prune_mask
from ..kernels.sparse import CSR, spmm
from ..kernels.sparse_codes import SparseCodes, sparse_codebook_matmul
from ..kernels.sparse_coding import omp
from ..models.report import Table

N_SAMPLES = 5
MIN_SECONDS = 0.02  # of a sample, so that the resolution of the clock does not matter

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The time of one workload.

    Attributes
    ----------
    name, workload : str
        The function, and a description of its input.
    seconds : float
        Time of a call, median of the samples.
    spread : float
        Time of the slowest sample over that of the fastest.
    per_second, unit : float, str
        Work done in a second, and the unit of work.
    """

    name: str
    workload: str
    seconds: float
    spread: float
    per_second: float
    unit: str


def run_bench(n_threads: int | None = None) -> Table:
    """Time each workload after a warm-up call, on random inputs.

    Parameters
    ----------
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Table
        One row for each workload.
    """
    rows = [
        _timed(name, workload, call, work, unit)
        for name, workload, call, work, unit in _workloads(n_threads)
    ]
    records = [{**asdict(row), "ms": 1e3 * row.seconds} for row in rows]
    for record in records:
        record["rate"] = f"{record['per_second']:.3g} {record['unit']}/s"
    columns = {"name": "function", "workload": "workload", "ms": "ms", "spread": "spread"}
    columns["rate"] = "rate"
    config = configuration()
    if n_threads is not None:
        config["threads"] = str(n_threads)
    summary = (
        f"ms: median of {N_SAMPLES} samples; spread: slowest sample over fastest. "
        f"Instruction-set level {config['level']}, {config['threads']} threads, "
        f"fastfactor {config['fastfactor']}."
    )
    return Table(
        "fastfactor on this machine", records, columns, {"config": config}, summary, ("ms", "rate")
    )


def _timed(name: str, workload: str, call: Call, work: float, unit: str) -> Timing:
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    repeats = max(int(np.ceil(MIN_SECONDS / max(once, 1e-9))), 1)
    samples = []
    for _ in range(N_SAMPLES):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        samples.append((time.perf_counter() - start) / repeats)
    seconds = statistics.median(samples)
    return Timing(name, workload, seconds, max(samples) / min(samples), work / seconds, unit)


def _workloads(n_threads: int | None) -> Iterator[tuple[str, str, Call, float, str]]:
    """Give for each workload its function, description, call, amount of work and unit of work."""
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"n_threads": n_threads}

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    atoms = normal(256, 64)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = normal(20_000, 64)
    yield (
        "omp",
        "20,000 × 64, 256 atoms, 5 each",
        lambda: omp(X, atoms, n_nonzero_coefs=5, **options),
        20_000,
        "rows",
    )
    vectors, start = normal(100_000, 8), normal(256, 8)
    yield (
        "kmeans",
        "100,000 × 8, K 256, 5 iterations",
        lambda: kmeans(vectors, 256, init=start, max_iter=5, tol=0, **options),
        5 * 100_000,
        "assignments",
    )
    W = normal(1024, 4096)
    yield (
        "kmeans1d",
        "1,024 rows of 4,096, K 16, exact",
        lambda: kmeans1d(W, 16, **options),
        W.size,
        "values",
    )
    yield "prune_mask", "1,024 × 4,096", lambda: prune_mask(W, 0.9, **options), W.size, "values"
    mask = prune_mask(W, 0.9, n_threads=n_threads)
    pruned = CSR.from_dense(np.where(mask, W, 0))
    x = normal(4096, 16)
    for n_vectors in (1, 16):
        some = np.ascontiguousarray(x[:, :n_vectors])
        yield (
            "spmm",
            f"1,024 × 4,096, a tenth kept, {_vectors(n_vectors)}",
            partial(spmm, pruned, some, **options),
            W.size / 10 * n_vectors,
            "multiply-adds",
        )
    books = kmeans1d(W, 16, n_threads=n_threads)
    packed = PackedCodes.pack(books.labels, 4, n_threads=n_threads)
    tables = books.centroids.astype(np.float32)
    for n_vectors in (1, 16):
        some = np.ascontiguousarray(x[:, :n_vectors].T)
        yield (
            "codebook_matmul",
            f"1,024 × 4,096, 4 bits, a table a row, {_vectors(n_vectors)}",
            partial(codebook_matmul, some, packed, tables, **options),
            W.size * n_vectors,
            "multiply-adds",
        )
    shared = kmeans1d(np.where(mask, W, 0).ravel(), 16, fixed=[0], n_threads=n_threads)
    labels = shared.labels.reshape(W.shape)
    coded = SparseCodes.from_labels(labels, shared.centroids, mask=mask)
    one = np.ascontiguousarray(x[:, :1].T)
    yield (
        "sparse_codebook_matmul",
        "1,024 × 4,096, a tenth kept, 4 bits, one vector",
        lambda: sparse_codebook_matmul(one, coded, **options),
        W.size / 10,
        "multiply-adds",
    )
    symbols = np.minimum(np.abs(W.ravel()) * 8, 15).astype(np.uint8)
    data = huffman_encode(symbols, n_threads=n_threads)
    yield (
        "huffman_encode",
        "4,194,304 symbols of 16",
        lambda: huffman_encode(symbols, **options),
        symbols.size,
        "symbols",
    )
    yield (
        "huffman_decode",
        "4,194,304 symbols of 16",
        lambda: huffman_decode(data, **options),
        symbols.size,
        "symbols",
    )


def _vectors(n: int) -> str:
    return "one vector" if n == 1 else f"{n} vectors"

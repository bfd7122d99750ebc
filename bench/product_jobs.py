"""What benchmarks of products share: cold and hot samples, errors, and rivals that hold W whole."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from cases import THREADS, Job, burst, copies_for_cold
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Multiply = Callable[[int], object]  # runs the product with copy number i of the matrix
WithInputs = Callable[[Floats], tuple[Multiply, Floats]]  # the product, and its result to check

BATCHES = (1, 8)


def input_job(
    weight: Floats | None, size: int, nbytes: int, n_copies: int, with_inputs: WithInputs, note: str
) -> Job:
    """x @ W.T for each batch, cold and hot; `weight` to check results by, None for no check."""
    samples, checks, work = {}, {}, {}
    for batch in BATCHES:
        x = inputs(size, batch)
        multiply, result = with_inputs(x)
        samples[measure_of(batch), "cold"] = burst(rotating(multiply, n_copies))
        samples[measure_of(batch), "hot"] = burst(pinned(multiply))
        if weight is not None:
            checks[measure_of(batch)] = (weight, x, result)
        work[measure_of(batch)] = {"GB": nbytes / 1e9}
    return Job(
        samples,
        lambda: {name: {"error / Σ|wx|": relative_error(*check)} for name, check in checks.items()},
        work,
        note,
    )


def numpy_dense_job(weight: Floats) -> Job:
    copies = [weight.copy() for _ in range(copies_for_cold(weight.nbytes))]

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        out = np.empty((*x.shape[:-1], len(weight)), np.float32)
        if x.ndim == 1:
            return lambda i: np.matmul(copies[i], x, out=out), out
        return lambda i: np.matmul(x, copies[i].T, out=out), out

    return input_job(weight, weight.shape[1], weight.nbytes, len(copies), with_inputs, "")


def torch_dense_job(weight: Floats) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    copies = [torch.from_numpy(weight.copy()) for _ in range(copies_for_cold(weight.nbytes))]

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(x)
        linear = torch.nn.functional.linear
        return lambda i: linear(right, copies[i]), linear(right, copies[0]).numpy()

    return input_job(weight, weight.shape[1], weight.nbytes, len(copies), with_inputs, "")


def rotating(multiply: Multiply, n_copies: int) -> Callable[[], object]:
    numbers = cycle(range(n_copies))
    return lambda: multiply(next(numbers))


def pinned(multiply: Multiply) -> Callable[[], object]:
    return lambda: multiply(0)


def relative_error(weight: Floats, x: Floats, result: Floats) -> float:
    """Largest |y − ŷ| over Σ|w x|, with y in float64."""
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    scale = np.abs(x.astype(np.float64)) @ np.abs(weight.T).astype(np.float64)
    return float((np.abs(exact - result) / scale).max())


def measure_of(batch: int) -> str:
    return "1 input" if batch == 1 else f"{batch} inputs"


def inputs(size: int, batch: int) -> Floats:
    shape = (size,) if batch == 1 else (batch, size)
    return np.random.default_rng(13).standard_normal(shape, dtype=np.float32)


def csr_copies(weight: Floats) -> list[Any]:
    from scipy.sparse import csr_array

    matrix = csr_array(weight)
    return [matrix.copy() for _ in range(copies_for_cold(csr_bytes(weight)))]


def torch_csr_copies(weight: Floats) -> list[Any]:
    import torch

    torch.set_num_threads(THREADS)
    return [
        torch.sparse_csr_tensor(
            torch.from_numpy(m.indptr),
            torch.from_numpy(m.indices),
            torch.from_numpy(m.data),
            m.shape,
        )
        for m in csr_copies(weight)
    ]


def csr_bytes(weight: Floats) -> int:
    """Of float32 values and 32-bit indices."""
    return 8 * int(np.count_nonzero(weight)) + 4 * (len(weight) + 1)

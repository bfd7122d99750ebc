"""Products from packed codes: 4096 × 4096 by 1 and 8 inputs, against dense and packed rivals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from cases import (
    THREADS,
    Contestant,
    Job,
    Sample,
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
    input_job,
    measure_of,
    numpy_dense_job,
    torch_dense_job,
)

GROUP = 128  # columns that share a scale, of the rivals that have one
DENSE = ("NumPy dense", "torch dense")
AFFINE = ("torch int4pack, bfloat16", "ONNX Runtime MatMulNBits")
SHAPES = {
    "4-bit": {"n_bits": 4, "dim": 1, "books": 1},
    "8-bit": {"n_bits": 8, "dim": 1, "books": 1},
    "vectors": {"n_bits": 8, "dim": 8, "books": 1},
    "additive": {"n_bits": 8, "dim": 8, "books": 2},
}


def workloads(quick: bool) -> list[Workload]:
    size = 512 if quick else 4096
    titles = {
        "4-bit": "scalar codes of 4 bits, a table a row",
        "8-bit": "scalar codes of 8 bits, a table a row",
        "vectors": "vectors of 8, one table of 256",
        "additive": "vectors of 8, two tables of 256",
    }
    return [
        Workload(
            "codebook",
            name,
            f"{size} × {size}, {titles[name]}",
            {"size": size, **shape},
            contestants(name),
            targets(name),
        )
        for name, shape in SHAPES.items()
    ]


def contestants(name: str) -> tuple[Contestant, ...]:
    dense = (Contestant("NumPy dense", numpy_dense), Contestant("torch dense", torch_dense))
    if name == "4-bit":
        return (
            *at_every_level(fastfactor),
            *dense,
            Contestant("torch int4pack, bfloat16", torch_int4),
            Contestant("ONNX Runtime MatMulNBits", onnx_affine),
            Contestant("ONNX Runtime MatMulBnb4", onnx_table),
        )
    if name == "8-bit":
        return (
            *at_every_level(fastfactor),
            Contestant("fastfactor, bfloat16 tables", fastfactor_bfloat16),
            *dense,
        )
    aqlm = (Contestant("AQLM numba", aqlm_numba),) if name == "additive" else ()
    return (
        *at_every_level(fastfactor),
        *dense,
        Contestant("torch products and gather", torch_gather),
        *aqlm,
    )


def targets(name: str) -> tuple[Target, ...]:
    one, eight = (measure_of(batch) for batch in BATCHES)
    quality = tuple(
        Target(measure, (), figure="error / Σ|wx|", at_most=1e-5) for measure in (one, eight)
    )
    if name == "4-bit":
        table = ("ONNX Runtime MatMulBnb4",)
        return (
            Target(one, table, at_least=15),
            Target(eight, table, at_least=7),
            Target(one, AFFINE, at_least=0.9, aim=1.3),
            Target(eight, AFFINE, at_least=0.9, aim=1.2),
            Target(one, DENSE, at_least=5, aim=7),
            *quality,
            *level_targets(one, 0.4),
        )
    if name == "8-bit":
        return (
            Target(one, DENSE, subject="fastfactor, bfloat16 tables", at_least=2.3, aim=3.3),
            Target(one, DENSE, at_least=1, aim=1.8),
            *quality,
        )
    gather = ("torch products and gather",)
    if name == "vectors":
        return (
            Target(one, gather, at_least=4.5),
            Target(eight, gather, at_least=8),
            *quality,
        )
    return (Target(one, (*gather, "AQLM numba"), at_least=2, aim=4), *quality)


def fastfactor(workload: Workload) -> Job:
    return fastfactor_with(workload, np.float32)


def fastfactor_bfloat16(workload: Workload) -> Job:
    import ml_dtypes

    return fastfactor_with(workload, ml_dtypes.bfloat16)


def fastfactor_with(workload: Workload, dtype: Any) -> Job:
    from fastfactor import PackedCodes, codebook_matmul

    codes, table = codes_and_table(workload)
    sizes = workload.sizes
    packed = PackedCodes.pack(codes, int(sizes["n_bits"]), vector_dim=int(sizes["dim"]))
    copies = [
        PackedCodes(packed.data, packed.n_bits, packed.shape, packed.vector_dim, packed.n_codebooks)
        for _ in range(copies_for_cold(packed.nbytes))
    ]
    table = table.astype(dtype)

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        out = np.empty((*x.shape[:-1], packed.shape[0]), np.float32)
        return lambda i: codebook_matmul(x, copies[i], table, out=out, n_threads=THREADS), out

    weight = dense_weight(codes, table)
    note = level_in_use()
    return job(workload, weight, packed.nbytes, len(copies), with_inputs, note)


def numpy_dense(workload: Workload) -> Job:
    return numpy_dense_job(dense_weight(*codes_and_table(workload)))


def torch_dense(workload: Workload) -> Job:
    return torch_dense_job(dense_weight(*codes_and_table(workload)))


def torch_gather(workload: Workload) -> Job:
    """Products of the input's pieces with every code vector, then those that codes name."""
    import torch

    torch.set_num_threads(THREADS)
    codes, table = codes_and_table(workload)
    weight = dense_weight(codes, table)
    books = int(workload.sizes["books"])
    tables = torch.from_numpy(table.reshape(books, *table.shape[-2:]))
    by_place = codes.reshape(books, *codes.shape[-2:]).swapaxes(1, 2)
    places = torch.from_numpy(np.ascontiguousarray(by_place, np.int64))  # (books, places, out)
    copies = [places.clone() for _ in range(2)]

    def product(right: Any, index: Any) -> Any:
        pieces = right.reshape(len(right), -1, tables.shape[-1])
        total = 0
        for book in range(books):
            products = pieces @ tables[book].T  # (batch, places, K)
            total = total + torch.stack(
                [torch.gather(p, 1, index[book]).sum(dim=0) for p in products]
            )
        return total

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(x.reshape(-1, x.shape[-1]))
        result = product(right, copies[0]).numpy().reshape(*x.shape[:-1], -1)
        return lambda i: product(right, copies[i]), result

    return job(workload, weight, codes.size, len(copies), with_inputs)


def aqlm_numba(workload: Workload) -> Job:
    """AQLM's kernel for processors. Its threads add to the same outputs, unguarded."""
    import numba
    import torch
    from aqlm.inference_kernels.numba_kernel import numba_gemm_lut

    codes, table = codes_and_table(workload)
    weight = dense_weight(codes, table)
    size = len(weight)
    by_place = np.ascontiguousarray(codes.transpose(2, 1, 0)).view(np.int8)  # (places, out, books)
    copies = [torch.from_numpy(by_place.copy()) for _ in range(copies_for_cold(by_place.nbytes))]
    tables = torch.from_numpy(table[:, :, np.newaxis])
    scales = torch.ones(size, 1, 1, 1)

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(x)

        def multiply(i: int) -> Any:
            return numba_gemm_lut(right, copies[i], tables, scales, None)

        return multiply, multiply(0).numpy()

    def best(sample: Sample) -> float:
        times = []
        for n_threads in (1, THREADS) * 2:
            numba.set_num_threads(n_threads)
            times.append(sample())
        return min(times)

    note = "best of runs on 1 and more threads; data race"
    made = job(workload, weight, by_place.nbytes, len(copies), with_inputs, note)
    return replace(made, samples={key: partial(best, s) for key, s in made.samples.items()})


def torch_int4(workload: Workload) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    codes, _ = codes_and_table(workload)
    size = len(codes)
    pack = torch._convert_weight_to_int4pack_for_cpu
    copies = [
        pack(torch.from_numpy(codes.astype(np.int32)), 1)
        for _ in range(copies_for_cold(codes.size // 2))
    ]
    scales = torch.ones(size // GROUP, size, 2, dtype=torch.bfloat16)
    scales[..., 1] = 0
    weight = codes.astype(np.float32) - 8  # its codes mean (code − 8) · scale + zero

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        right = torch.from_numpy(x.reshape(-1, size)).to(torch.bfloat16)

        def multiply(i: int) -> Any:
            return torch._weight_int4pack_mm_for_cpu(right, copies[i], GROUP, scales)

        return multiply, multiply(0).float().numpy().reshape(*x.shape[:-1], -1)

    return job(workload, weight, codes.size // 2, len(copies), with_inputs, note="8-bit mantissas")


def onnx_affine(workload: Workload) -> Job:
    codes, _ = codes_and_table(workload)
    size = len(codes)
    packed = pairs(codes).reshape(size, size // GROUP, GROUP // 2)
    scales = np.ones(size * size // GROUP, np.float32)
    attributes = {"bits": 4, "block_size": GROUP, "accuracy_level": 4}
    return onnx_job(
        workload,
        codes.astype(np.float32) - 8,
        "MatMulNBits",
        (packed, scales),
        attributes,
        "8-bit arithmetic",
    )


def onnx_table(workload: Workload) -> Job:
    """NormalFloat: one table for all, a scale for 64 columns."""
    codes, _ = codes_and_table(workload)
    size = len(codes)
    scales = np.ones(size * size // 64, np.float32)
    attributes = {"block_size": 64, "quant_type": 1}
    operands = (pairs(codes).reshape(-1), scales)
    return onnx_job(workload, None, "MatMulBnb4", operands, attributes, "NF4")


def onnx_job(
    workload: Workload,
    weight: Floats | None,
    operator: str,
    operands: tuple[NDArray[Any], ...],
    attributes: dict[str, int],
    note: str,
) -> Job:
    import onnxruntime

    size = int(workload.sizes["size"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = onnx_model(operator, size, operands, attributes)
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(copies_for_cold(operands[0].nbytes))
    ]

    def with_inputs(x: Floats) -> tuple[Multiply, Floats]:
        feed = {"A": x.reshape(-1, size)}

        def multiply(i: int) -> Any:
            return sessions[i].run(None, feed)[0]

        return multiply, multiply(0).reshape(*x.shape[:-1], -1)

    return job(workload, weight, operands[0].nbytes, len(sessions), with_inputs, note=note)


def onnx_model(
    operator: str, size: int, operands: tuple[NDArray[Any], ...], attributes: dict[str, int]
) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    names = ["B", "scales"]
    node = helper.make_node(
        operator, ["A", *names], ["Y"], domain="com.microsoft", K=size, N=size, **attributes
    )
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info("A", floats, ["batch", size])],
        [helper.make_tensor_value_info("Y", floats, ["batch", size])],
        [numpy_helper.from_array(a, name) for a, name in zip(operands, names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def job(
    workload: Workload,
    weight: Floats | None,
    nbytes: int,
    n_copies: int,
    with_inputs: WithInputs,
    note: str = "",
) -> Job:
    return input_job(weight, int(workload.sizes["size"]), nbytes, n_copies, with_inputs, note)


def pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of 4 bits, two a byte, the first in the low half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def codes_and_table(workload: Workload) -> tuple[NDArray[np.uint8], Floats]:
    """Random codes, and normal tables: one a row for scalars, one a book for vectors."""
    size, n_bits, dim, books = (
        int(workload.sizes[key]) for key in ("size", "n_bits", "dim", "books")
    )
    random = np.random.default_rng(29)
    codes = random.integers(0, 2**n_bits, (books, size, size // dim), dtype=np.uint8)
    lead = (size,) if dim == 1 else (books,) * (books > 1)
    table = random.standard_normal((*lead, 2**n_bits, dim), dtype=np.float32)
    return (codes if books > 1 else codes[0]), table


def dense_weight(codes: NDArray[np.uint8], table: NDArray[Any]) -> Floats:
    table = table.astype(np.float32)
    if table.shape[-1] == 1:
        return np.take_along_axis(table[..., 0], codes.astype(np.int64), axis=1)
    books = codes.reshape(-1, *codes.shape[-2:])
    tables = table.reshape(len(books), *table.shape[-2:])
    parts = [tables[b][books[b]].reshape(books.shape[1], -1) for b in range(len(books))]
    return np.asarray(sum(parts), np.float32)

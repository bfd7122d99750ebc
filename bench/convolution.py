"""Factored convolutions: the forms of Denton et al. for two layers, against the dense layers.

Weights are random, as speed does not depend on them. The dense rivals compute the layer that a form
stands for; "torch, factored" computes the form's own convolutions one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
Stages = list[tuple[NDArray[np.int64] | None, Floats, int]]  # (order, weight, groups)
Convolve = Callable[[Floats], Any]  # of one array of images
WithImages = Callable[[Floats], Convolve]

BATCHES = (1, 16)
DENSE = ("torch", "torch channels last", "torch.compile", "ONNX Runtime")
FIRST = {"channels": 3, "filters": 96, "kernel": 7, "stride": 2, "padding": 3, "size": 224}
SECOND = {"channels": 96, "filters": 256, "kernel": 5, "stride": 1, "padding": 2, "size": 55}


def workloads(quick: bool) -> list[Workload]:
    monochromatic = [
        workload(f"monochromatic {n}", FIRST | {"colours": n}, f"{n} colours", aim, quick)
        for n, aim in ((6, 3.0), (12, None))
    ]
    svd = {"in_clusters": 2, "out_clusters": 2, "rank_in": 19, "rank_out": 64}
    cp = {"in_clusters": 48, "out_clusters": 2, "rank": 8}
    biclusters = [
        workload(f"bicluster-{name} {place}", SECOND | form | change, told, None, quick)
        for name, form, told in (
            ("svd", svd, "2 × 2 clusters, SVD 19, 64"),
            ("cp", cp, "48 × 2 clusters, CP 8"),
        )
        for place, change in (("55", {}), ("27", {"size": 27}), ("55/2", {"stride": 2}))
    ]
    one = {"in_clusters": 1, "out_clusters": 1}
    plain = [
        workload(
            "svd 55", SECOND | one | {"rank_in": 38, "rank_out": 128}, "SVD 38, 128", None, quick
        ),
        workload("cp 55", SECOND | one | {"rank": 400}, "CP 400", None, quick),
    ]
    return monochromatic + (biclusters[:1] if quick else biclusters + plain)


def workload(
    name: str, sizes: Mapping[str, int], form: str, aim: float | None, quick: bool
) -> Workload:
    if quick:
        sizes = {**sizes, "size": sizes["size"] // 4}
    layer = "{kernel} × {kernel} × {channels} → {filters}, {size} × {size}".format(**sizes)
    if sizes["stride"] > 1:
        layer += f", stride {sizes['stride']}"
    leveled = name in ("monochromatic 6", "bicluster-svd 55", "bicluster-cp 55")
    return Workload(
        "convolution",
        name,
        f"{layer}: {form}",
        sizes,
        (
            *(at_every_level(fastfactor) if leveled else at_every_level(fastfactor)[:1]),
            Contestant("torch", torch_dense),
            Contestant("torch channels last", torch_channels_last),
            Contestant("torch.compile", torch_compiled),
            Contestant("ONNX Runtime", onnx_runtime),
            Contestant("torch, factored", torch_factored),
        ),
        (
            *(Target(measure_of(n), DENSE, at_least=2, aim=aim) for n in BATCHES),
            *(Target(measure_of(n), ("torch, factored",), at_least=1) for n in BATCHES),
            *(level_targets(measure_of(16), 0.4) if leveled else ()),
        ),
        repeats=7,
    )


def fastfactor(workload: Workload) -> Job:
    """Write to the same memory in each call, as ONNX Runtime's arena does."""
    from fastfactor.kernels.convolution import ConvChain, conv_chain

    stages, order = form_of(workload)
    chain, steps = ConvChain(stages, order), steps_of(workload)

    def with_images(x: Floats) -> Convolve:
        out = conv_chain(x, chain, **steps)
        return lambda images: conv_chain(images, chain, **steps, out=out, n_threads=THREADS)

    return job(workload, with_images, stages, order, note=level_in_use())


def torch_dense(workload: Workload) -> Job:
    import torch

    layer = torch_layer(workload)
    return job(workload, lambda x: lambda images: layer(torch.from_numpy(images)))


def torch_channels_last(workload: Workload) -> Job:
    """With weights and images in the layout that oneDNN convolves without copies."""
    import torch

    layer = torch_layer(workload).to(memory_format=torch.channels_last)

    def with_images(x: Floats) -> Convolve:
        kept: dict[int, Any] = {}  # the images in that layout, whose making is not measured

        def convolve(images: Floats) -> object:
            key = images.ctypes.data
            if key not in kept:
                tensor = torch.from_numpy(images)
                kept[key] = tensor.contiguous(memory_format=torch.channels_last)
            return layer(kept[key])

        return convolve

    return job(workload, with_images)


def torch_compiled(workload: Workload) -> Job:
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True  # weights are packed once, as they are here
    compiled = torch.compile(torch_layer(workload), dynamic=False)
    return job(workload, lambda x: lambda images: compiled(torch.from_numpy(images)))


def torch_layer(workload: Workload) -> Any:
    import torch

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    weight = torch.from_numpy(dense_weight(workload))
    sizes = workload.sizes
    layer = torch.nn.Conv2d(
        sizes["channels"],
        sizes["filters"],
        sizes["kernel"],
        stride=sizes["stride"],
        padding=sizes["padding"],
        bias=False,
    )
    layer.weight.copy_(weight)
    return layer.eval()


def torch_factored(workload: Workload) -> Job:
    import torch

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    stages, order = form_of(workload)
    steps = steps_of(workload)
    parts = [
        (
            None if before is None else torch.from_numpy(before),
            torch.from_numpy(weight),
            {"groups": groups} | (steps if weight.shape[2] > 1 else {}),
        )
        for before, weight, groups in stages
    ]
    last = torch.from_numpy(order)

    def convolve(images: Floats) -> Any:
        y = torch.from_numpy(images)
        for before, weight, options in parts:
            y = y if before is None else y[:, before]
            y = torch.nn.functional.conv2d(y, weight, **options)
        return y[:, last]

    return job(workload, lambda x: convolve, stages, order)


def onnx_runtime(workload: Workload) -> Job:
    import onnx
    import onnxruntime

    sizes, (first, second) = workload.sizes, ("x", "y")
    node = onnx.helper.make_node(
        "Conv",
        [first, "weight"],
        [second],
        strides=[sizes["stride"]] * 2,
        pads=[sizes["padding"]] * 4,
    )
    images = ["n", sizes["channels"], sizes["size"], sizes["size"]]
    graph = onnx.helper.make_graph(
        [node],
        "convolution",
        [onnx.helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, images)],
        [onnx.helper.make_tensor_value_info(second, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(dense_weight(workload), "weight")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return job(workload, lambda x: lambda images: session.run(None, {first: images}))


def job(
    workload: Workload,
    with_images: WithImages,
    stages: Stages | None = None,
    order: NDArray[np.int64] | None = None,
    note: str = "",
) -> Job:
    """Samples for each batch, of images that are not in cache; results of forms are checked."""
    samples, checks, work = {}, {}, {}
    for n in BATCHES:
        x = images_of(workload, n)
        copies = [x.copy() for _ in range(copies_for_cold(x.nbytes))]
        convolve = with_images(x)
        if stages is not None and order is not None:
            checks[measure_of(n)] = (x, np.asarray(convolve(x)), stages, order)
        samples[measure_of(n), "cold"] = burst(rotating(convolve, copies))
        work[measure_of(n)] = {"GMAC": n * multiply_adds(workload, stages) / 1e9}
    return Job(
        samples,
        lambda: {
            name: {"error": relative_error(workload, *check)} for name, check in checks.items()
        },
        work,
        note,
    )


def rotating(convolve: Convolve, copies: list[Floats]) -> Callable[[], object]:
    images = cycle(copies)
    return lambda: convolve(next(images))


def multiply_adds(workload: Workload, stages: Stages | None) -> int:
    """Of one image: of the dense layer, or of the stages."""
    sizes = workload.sizes
    inputs, outputs = int(sizes["size"]) ** 2, outputs_of(workload) ** 2
    if stages is None:
        return dense_weight(workload).size * outputs
    window = next(s for s, (_, weight, _) in enumerate(stages) if weight.shape[2] > 1)
    return sum(
        weight.size * (inputs if s < window else outputs) for s, (_, weight, _) in enumerate(stages)
    )


def relative_error(
    workload: Workload, x: Floats, result: Floats, stages: Stages, order: NDArray[np.int64]
) -> float:
    """Largest |y − ŷ| over the largest |y| for the first image, with y in float64."""
    sizes = workload.sizes
    y = x[0].astype(np.float64)
    for before, weight, groups in stages:
        y = y if before is None else y[before]
        pad, stride = (
            (int(sizes["padding"]), int(sizes["stride"])) if weight.shape[2] > 1 else (0, 1)
        )
        y = convolved(np.pad(y, ((0, 0), (pad, pad), (pad, pad))), weight, groups, stride)
    y = y[order]
    return float(np.abs(y - result[0]).max() / np.abs(y).max())


def convolved(
    y: NDArray[np.float64], weight: Floats, groups: int, stride: int
) -> NDArray[np.float64]:
    kernel = weight.shape[2]
    n = (y.shape[1] - kernel) // stride + 1
    filters = weight.reshape(groups, -1, *weight.shape[1:]).astype(np.float64)
    planes = y.reshape(groups, -1, *y.shape[1:])
    total = np.zeros((groups, filters.shape[1], n * n))
    for i in range(kernel):
        for j in range(kernel):
            seen = planes[:, :, i : i + n * stride : stride, j : j + n * stride : stride]
            total += filters[:, :, :, i, j] @ seen.reshape(groups, -1, n * n)
    return total.reshape(-1, n, n)


def form_of(workload: Workload) -> tuple[Stages, NDArray[np.int64]]:
    """The stages of a form, and the order of its result."""
    sizes = {name: int(value) for name, value in workload.sizes.items()}
    random = np.random.default_rng(11)
    channels, filters, kernel = sizes["channels"], sizes["filters"], sizes["kernel"]

    def weight(*shape: int) -> Floats:
        return random.standard_normal(shape, dtype=np.float32)

    order = random.permutation(filters)
    if "colours" in sizes:
        colours = sizes["colours"]
        mix, windows = weight(colours, channels, 1, 1), weight(filters, 1, kernel, kernel)
        return [(None, mix, 1), (None, windows, colours)], order
    groups, halves = sizes["in_clusters"], sizes["out_clusters"]
    ranks = (sizes["rank"],) * 2 if "rank" in sizes else (sizes["rank_in"], sizes["rank_out"])
    pairs = groups * halves
    windows = (
        (weight(pairs * ranks[0], 1, kernel, kernel), pairs * ranks[0])
        if "rank" in sizes
        else (weight(pairs * ranks[1], ranks[0], kernel, kernel), pairs)
    )
    # Pairs of clusters are counted by input cluster; filters read those of their own cluster.
    by_output = np.arange(pairs * ranks[1]).reshape(groups, halves, -1).transpose(1, 0, 2).ravel()
    return [
        (random.permutation(channels), weight(pairs * ranks[0], channels // groups, 1, 1), groups),
        (None, *windows),
        (by_output, weight(filters, groups * ranks[1], 1, 1), halves),
    ], order


def steps_of(workload: Workload) -> dict[str, int]:
    return {name: int(workload.sizes[name]) for name in ("stride", "padding")}


def outputs_of(workload: Workload) -> int:
    """Rows of the result, and columns."""
    sizes = {name: int(value) for name, value in workload.sizes.items()}
    return (sizes["size"] + 2 * sizes["padding"] - sizes["kernel"]) // sizes["stride"] + 1


def measure_of(n: int) -> str:
    return "1 image" if n == 1 else f"{n} images"


def dense_weight(workload: Workload) -> Floats:
    sizes = {name: int(value) for name, value in workload.sizes.items()}
    shape = (sizes["filters"], sizes["channels"], sizes["kernel"], sizes["kernel"])
    return np.random.default_rng(12).standard_normal(shape, dtype=np.float32)


def images_of(workload: Workload, n: int) -> Floats:
    size = int(workload.sizes["size"])
    shape = (n, int(workload.sizes["channels"]), size, size)
    return np.random.default_rng(13).standard_normal(shape, dtype=np.float32)

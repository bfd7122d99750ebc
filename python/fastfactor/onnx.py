"""Factored convolutions as ONNX models of standard operators, which other software runs.

Needs onnx: ``pip install "fastfactor[onnx]"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise ImportError(
        "fastfactor.onnx needs onnx, which is not installed: pip install 'fastfactor[onnx]'"
    ) from error

from . import _checks
from ._checks import Array
from .methods.convolution.chain import Convolve, Placement, Reorder, placements
from .methods.convolution.factors import ConvFactors, pair_of

__all__ = ["convolution_model"]

OPSET, IR_VERSION = 17, 8  # of 2022, which ONNX Runtime reads from 1.12 on
Pair = tuple[int, int]


def convolution_model(
    factors: ConvFactors,
    *,
    bias: Any = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    name: str = "convolution",
) -> onnx.ModelProto:
    """Return an ONNX model that computes what a convolution with these factors does.

    Parameters
    ----------
    factors : ConvFactors
        Of a method for convolutions.
    bias : array of shape (F,), optional
        Added to each filter's results.
    stride, padding, dilation : int or (int, int)
        As of a convolution layer; images are padded with zeros.
    name : str
        The name of the graph, with which the names of its nodes and weights begin.

    Returns
    -------
    ModelProto
        Its input ``x`` has the shape (batch, C · groups, height, width) and its output ``y`` the
        shape (batch, F, height', width'); batch and sizes of images are free. Its nodes are
        ``Conv`` and, where channels change their order, ``Gather``.

    Raises
    ------
    TypeError, ValueError
        For other factors, a bias of another shape, and numbers out of range.

    Notes
    -----
    Weights are in float32, or float64 if factors are. Operators are those of opset 17. To put the
    graph in the place of a convolution of a larger model, see ``onnx.compose``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import ConvSVD
    >>> from fastfactor.onnx import convolution_model
    >>> W = np.random.default_rng(0).standard_normal((32, 16, 5, 5)).astype(np.float32)
    >>> model = convolution_model(ConvSVD(ranks=(8, 12)).compress(W), stride=2, padding=2)
    >>> [node.op_type for node in model.graph.node]
    ['Conv', 'Conv', 'Conv']
    """
    if not isinstance(factors, ConvFactors):
        raise TypeError(f"factors must be those of a convolution, got {type(factors).__name__}")
    sides = pair_of(stride, "stride", 1), pair_of(padding, "padding", 0)
    chain = factors.chain()
    placed = iter(placements(chain, *sides, pair_of(dilation, "dilation", 1)))
    F, C, *_ = factors.weight_shape
    biases = iter(_biases(chain, bias, F))
    dtype = _checks.result_dtype(*(factors.tensors()[each] for each in factors.trainable))
    nodes: list[Any] = []
    weights: list[Any] = []
    last = "x"
    for number, stage in enumerate(chain):
        start, result = f"{name}.{number}", f"{name}.{number}.result"
        if number == len(chain) - 1:
            result = "y"
        if isinstance(stage, Reorder):
            given = {f"{start}.order": stage.channels}
            node = helper.make_node("Gather", [last, *given], [result], axis=1)
        else:
            own = {"weight": stage.weight, "bias": next(biases)}
            given = {f"{start}.{k}": v.astype(dtype) for k, v in own.items() if v is not None}
            settings = _attributes(stage, next(placed))
            node = helper.make_node("Conv", [last, *given], [result], **settings)
        nodes.append(node)
        weights += [
            numpy_helper.from_array(np.ascontiguousarray(array), each)
            for each, array in given.items()
        ]
        last = result
    element = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
    x, y = (
        helper.make_tensor_value_info(end, element, ["batch", channels, *sizes])
        for end, channels, sizes in (
            ("x", C * factors.groups, ("height", "width")),
            ("y", F, ("height_out", "width_out")),
        )
    )
    graph = helper.make_graph(nodes, name, [x], [y], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="fastfactor", opset_imports=opsets)
    model.ir_version = IR_VERSION
    return model


def _attributes(stage: Convolve, placement: Placement) -> dict[str, Any]:
    height, width = placement.padding
    return {
        "kernel_shape": list(stage.weight.shape[2:]),
        "strides": list(placement.stride),
        "pads": [height, width, height, width],
        "dilations": list(placement.dilation),
        "group": stage.groups,
    }


def _biases(chain: tuple[Any, ...], bias: Any, n_filters: int) -> Iterator[Array | None]:
    """Iterate over the biases of a chain's convolutions: only the last may have one."""
    n = sum(isinstance(stage, Convolve) for stage in chain)
    yield from [None] * (n - 1)
    if bias is None:
        yield None
        return
    array = _checks.float_array(bias, "bias", ndim=(1,))
    if array.shape != (n_filters,):
        raise ValueError(f"bias must have shape {(n_filters,)}, got {array.shape}")
    yield array[chain[-1].inverse] if isinstance(chain[-1], Reorder) else array

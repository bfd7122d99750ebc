"""Convolutions as ONNX models, run by ONNX Runtime, against NumPy's products."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import pytest
from fastfactor.methods import (
    ConvBicluster,
    ConvCP,
    ConvMonochromatic,
    ConvSeparable,
    ConvSVD,
    LowRank,
)

if None in map(importlib.util.find_spec, ("onnx", "onnxruntime")):
    pytest.skip("onnx and onnxruntime are not installed", allow_module_level=True)

import onnx
import onnx.reference
import onnxruntime
from fastfactor.onnx import convolution_model

pytestmark = pytest.mark.framework

METHODS = (
    ConvSVD(ranks=(3, 5)),
    ConvSeparable(rank=4),
    ConvCP(rank=5),
    ConvMonochromatic(n_colors=4),
    ConvBicluster(ranks=(2, 2)),
    ConvBicluster(ranks=2, inside="cp", n_clusters=(2, 3)),
)
methods = pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: type(m).__name__ + getattr(m, "inside", "")
)


def run(model, x):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@methods
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "padding": (1, 2)}, {"dilation": (2, 1), "padding": 3, "stride": (1, 3)}],
    ids=str,
)
def test_the_model_gives_what_the_factors_give(rng, method, groups, settings):
    W = rng.standard_normal((24, 6, 3, 4)).astype(np.float32)
    bias = rng.standard_normal(24).astype(np.float32)
    type_ = type(method)
    factors = type_(**{**vars(method), "groups": groups}).compress(W)
    model = convolution_model(factors, bias=bias, **settings, name="layer1")
    for shape in [(1, 6 * groups, 9, 10), (3, 6 * groups, 8, 13)]:
        x = rng.standard_normal(shape).astype(np.float32)
        expected = factors.conv(x, **settings) + bias[:, None, None]
        y = run(model, x)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Gather"}
    plain = run(convolution_model(factors, **settings), x)
    np.testing.assert_allclose(plain, expected - bias[:, None, None], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_are_in_the_dtype_of_products(rng, dtype):
    W = rng.standard_normal((8, 4, 3, 3)).astype(dtype)
    factors = ConvSVD(ranks=(2, 3)).compress(W)
    wide = np.float64 if dtype == np.float64 else np.float32
    x = rng.standard_normal((1, 4, 6, 6)).astype(wide)
    bias = np.arange(8, dtype=wide)
    model = convolution_model(factors, bias=bias)
    kinds = {onnx.numpy_helper.to_array(each).dtype for each in model.graph.initializer}
    assert kinds == {np.dtype(wide)}
    # ONNX Runtime has no convolutions in float64; ONNX itself has, in NumPy.
    if wide == np.float32:
        y, atol = run(model, x), 1e-4
    else:
        y, atol = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0], 1e-12
    assert y.dtype == wide
    expected = factors.conv(x) + bias[:, None, None]
    np.testing.assert_allclose(y, expected, rtol=0, atol=atol)


def test_bad_input_is_named(rng):
    factors = ConvSVD(ranks=(1, 1)).compress(np.ones((8, 4, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(4,\)"):
        convolution_model(factors, bias=np.ones(4))
    with pytest.raises(ValueError, match=r"stride must be in \[1, 1048576\], got 0"):
        convolution_model(factors, stride=0)
    with pytest.raises(TypeError, match="factors must be those of a convolution, got LowRank"):
        convolution_model(LowRank(rank=1).compress(np.ones((8, 4), np.float32)))

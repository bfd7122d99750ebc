"""Chains of convolutions against sliding windows in NumPy."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from fastfactor.kernels.convolution import ConvChain, conv_chain


def convolve(x, weight, groups, stride, padding, dilation):
    """One convolution of float64 images, by sliding windows."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    windows = sliding_window_view(x, spans, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    parts = [
        np.einsum("nchwij,fcij->nfhw", part, filters)
        for part, filters in zip(
            np.split(windows, groups, axis=1), np.split(weight, groups), strict=True
        )
    ]
    return np.concatenate(parts, axis=1)


def oracle(x, stages, order=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), bias=None):
    """The stages one by one; along an axis without a window, the first one takes the steps."""
    x = x.astype(np.float64)
    owners = [
        next((s for s, stage in enumerate(stages) if stage[1].shape[2 + axis] > 1), 0)
        for axis in range(2)
    ]
    for s, (before, weight, groups) in enumerate(stages):
        x = x if before is None else x[:, before]
        own = [owner == s for owner in owners]
        steps = [
            [value if mine else neutral for value, mine in zip(values, own, strict=True)]
            for values, neutral in ((stride, 1), (padding, 0), (dilation, 1))
        ]
        x = convolve(x, weight.astype(np.float64), groups, *steps)
    x = x if order is None else x[:, order]
    return x if bias is None else x + bias[:, None, None]


def random_stage(rng, channels, filters, groups, kernel=(1, 1), ordered=True):
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(np.float32)
    return rng.permutation(channels) if ordered else None, weight, groups


def assert_close(found, expected, stages):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    depth = math.prod(w[0].size for _, w, _ in stages)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-6 * depth * max(1, np.abs(expected).max())
    )


CHAINS = {
    "pointwise": [(6, 5, 1, (1, 1))],
    "window": [(4, 9, 1, (3, 3))],
    "depthwise": [(20, 20, 20, (5, 5))],
    "monochromatic": [(3, 6, 1, (1, 1)), (6, 96, 6, (7, 7))],
    "monochromatic 12": [(3, 12, 1, (1, 1)), (12, 96, 12, (7, 7))],
    "svd": [(12, 20, 2, (1, 1)), (20, 28, 4, (5, 5)), (28, 22, 2, (1, 1))],
    "cp": [(8, 64, 4, (1, 1)), (64, 64, 64, (5, 5)), (64, 18, 2, (1, 1))],
    "rows then columns": [(5, 7, 1, (4, 1)), (7, 6, 1, (1, 3))],
    "columns then rows": [(5, 7, 1, (1, 4)), (7, 6, 1, (3, 1))],
    "four": [(4, 18, 1, (1, 1)), (18, 18, 18, (3, 1)), (18, 18, 18, (1, 3)), (18, 5, 1, (1, 1))],
    "window first": [(4, 12, 2, (3, 3)), (12, 10, 1, (1, 1)), (10, 9, 1, (1, 1))],
}


def chain_of(rng, name):
    return [random_stage(rng, *sizes) for sizes in CHAINS[name]]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [(7, 7), (16, 15), (9, 33), (31, 70)])
@pytest.mark.parametrize("steps", [{}, {"padding": 2}, {"stride": 2, "padding": 3}])
def test_matches_oracle(rng, name, size, steps):
    stages = chain_of(rng, name)
    x = rng.standard_normal((2, CHAINS[name][0][0], *size)).astype(np.float32)
    filters = CHAINS[name][-1][1]
    order, bias = rng.permutation(filters), rng.standard_normal(filters).astype(np.float32)
    found = conv_chain(x, ConvChain(stages, order), bias=bias, **steps)
    pairs = {key: (value, value) for key, value in steps.items()}
    assert_close(found, oracle(x, stages, order, bias=bias, **pairs), stages)

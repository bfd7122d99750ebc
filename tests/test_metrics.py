"""Weights of errors: what may be one, and what is cut or refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor.methods import BlockDiagonal, Codebook, EntropyCoded, LowRank, Prune
from fastfactor.metrics import Covariance, Diagonal, Frobenius, metric_for

SHAPE = (12, 9)


def rotated(values, seed=0):
    """A symmetric matrix that has these eigenvalues, in a random basis."""
    n = len(values)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    product = (basis * np.asarray(values, np.float64)) @ basis.T
    return (product + product.T) / 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_of_zero_are_no_weights(dtype):
    assert isinstance(metric_for(SHAPE, np.zeros(SHAPE, dtype)), Frobenius)
    assert isinstance(metric_for(SHAPE, None, np.zeros((9, 9), dtype)), Frobenius)
    one = np.zeros(SHAPE, dtype)
    one[3, 4] = 1
    assert isinstance(metric_for(SHAPE, one), Diagonal)


def test_a_method_that_refuses_a_covariance_refuses_zeros_too(rng):
    with pytest.raises(ValueError, match="input_covariance must not be given to Prune"):
        Prune(sparsity=0.5).compress(rng.standard_normal(SHAPE), input_covariance=np.zeros((9, 9)))


@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize(
    ("covariance", "least"),
    [
        (np.diag([-0.5, *np.ones(8)]), -0.5),
        (-np.eye(9), -1),
        (np.diag([*np.zeros(8), -2.0]), -2),
        (rotated([-0.01, *np.ones(8)]), -0.01),
        (np.eye(9) - np.ones((9, 9)) / 8, -0.125),
    ],
)
def test_a_negative_eigenvalue_is_named(covariance, least, unit):
    with pytest.raises(ValueError, match="input_covariance must have no negative eigenv") as fault:
        metric_for(SHAPE, None, covariance * unit)
    assert float(str(fault.value).split()[-1]) == pytest.approx(least * unit, rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(np.float64, 1e-9), (np.float32, 1e-6), (np.float16, 1e-3)]
)
def test_eigenvalues_that_rounding_made_negative_are_cut(dtype, rounding):
    values = np.array([*np.full(4, -rounding), 0.5, 1, 1, 1, 2])
    metric = metric_for(SHAPE, None, rotated(values).astype(dtype))
    assert isinstance(metric, Covariance)
    found = np.linalg.eigvalsh(metric.input_covariance)
    assert found[0] >= -1e-15
    np.testing.assert_allclose(found / found[-1], np.maximum(values, 0) / 2, atol=2 * rounding)


def test_only_what_is_negative_is_changed():
    definite, singular = rotated(np.arange(1, 10) / 9), np.diag([0.0, 0, *np.ones(7)])
    for covariance in (definite, singular):
        held = metric_for(SHAPE, None, covariance).input_covariance
        power = covariance[5, 5] / held[5, 5]
        np.testing.assert_array_equal(held * power, covariance)


def test_what_is_no_covariance_is_named():
    lopsided = np.eye(9)
    lopsided[2, 3] = 1e-2
    nan = np.eye(9)
    nan[4, 4] = np.nan
    for wrong, message in (
        (lopsided, "input_covariance must be symmetric"),
        (nan, r"input_covariance must be finite, got nan at \[4, 4\]"),
        (np.eye(8), r"input_covariance must have shape \(9, 9\), got \(8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metric_for(SHAPE, None, wrong)


@pytest.mark.parametrize("unit", [5e-324, 1e-300, 1e300, 1.7e308])
def test_the_unit_of_weights_does_not_matter(rng, unit):
    W = rng.standard_normal(SHAPE)
    factors = LowRank(rank=2).compress(W)
    importance = rng.integers(0, 2, SHAPE).astype(np.float64)
    inputs = np.diag(rng.integers(0, 2, 9).astype(np.float64))
    for name, weights in (("importance", importance), ("input_covariance", inputs)):
        expected = factors.error(W, **{name: weights})
        assert factors.error(W, **{name: weights * unit}) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        EntropyCoded(bits_per_weight=4),
        Codebook(n_bits=3),
        Codebook(n_bits=2, vector_dim=3),
        LowRank(rank=4),
        BlockDiagonal(n_blocks=2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_covariance_of_fewer_inputs_than_columns_is_one(rng, method, dtype):
    W = rng.standard_normal((40, 24)).astype(np.float32)
    x = rng.standard_normal((6, 24)).astype(dtype)
    covariance = x.T @ x / 6
    factors = method.compress(W, input_covariance=covariance)
    assert np.abs(factors.to_dense()).max() < 100
    error = factors.error(W, input_covariance=covariance)
    assert 0 <= error <= method.compress(W).error(W, input_covariance=covariance)

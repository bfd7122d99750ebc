from __future__ import annotations

import numpy as np
import pytest
from contract import MethodContract
from fastfactor.methods import LowRank


class TestLowRank(MethodContract):
    METHODS = (LowRank(rank=3), LowRank(rank=8))
    EXACT_BITS = False


def truncated(W, rank):
    U, s, V = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_is_that_of_the_truncated_svd(rng, shape, dtype):
    W = rng.standard_normal(shape).astype(dtype)
    for rank in (1, 5, 12):
        factors = LowRank(rank=rank).compress(W)
        best = np.sum((W - truncated(W, rank)) ** 2) / np.sum(W.astype(np.float64) ** 2)
        assert factors.error(W) == pytest.approx(best, rel=1e-4, abs=1e-10)
        assert factors.nbytes == rank * sum(shape) * W.itemsize


def test_covariance_is_exact_even_where_it_is_singular(rng):
    W = rng.standard_normal((15, 20)).astype(np.float32)
    x = rng.standard_normal((6, 20))  # six directions of twenty
    covariance = x.T @ x
    factors = LowRank(rank=2).compress(W, input_covariance=covariance)
    singular = np.linalg.svd(W.astype(np.float64) @ x.T, compute_uv=False)
    best = np.sum(singular[2:] ** 2) / np.sum(singular**2)
    assert factors.error(W, input_covariance=covariance) == pytest.approx(best, rel=1e-3)


def test_separable_importance_reaches_the_optimum(rng):
    W = rng.standard_normal((30, 25)).astype(np.float32)
    rows, columns = rng.random(30) + 0.1, rng.random(25) + 0.1
    importance = np.outer(rows, columns)
    factors = LowRank(rank=3).compress(W, importance=importance)
    singular = np.linalg.svd(np.sqrt(importance) * W, compute_uv=False)
    best = np.sum(singular[3:] ** 2) / np.sum(singular**2)
    assert factors.error(W, importance=importance) <= 1.01 * best


def test_weights_without_importance_are_free(rng):
    W = np.outer(rng.standard_normal(20), rng.standard_normal(30)).astype(np.float32)
    importance = np.ones(W.shape)
    hidden = rng.random(W.shape) < 0.2
    importance[hidden] = 0
    spoiled = np.where(hidden, 50 * rng.standard_normal(W.shape), W).astype(np.float32)
    factors = LowRank(rank=1).compress(spoiled, importance=importance)
    assert factors.error(spoiled, importance=importance) < 1e-3


def test_rank_is_the_least_that_reaches_an_error(rng):
    W = (rng.standard_normal((50, 30)) * np.geomspace(1, 1e-3, 30)).astype(np.float32)
    factors = LowRank(max_error=1e-3).compress(W)
    rank = factors.B.shape[1]
    assert factors.error(W) <= 1e-3 < LowRank(rank=rank - 1).compress(W).error(W)


def test_more_than_the_rank_is_left_out():
    W = np.outer(np.arange(1, 9), np.arange(1, 6)).astype(np.float64)
    factors = LowRank(rank=5).compress(W)
    assert factors.error(W) < 1e-25


def test_an_error_that_rounding_forbids_is_refused(rng):
    W = rng.standard_normal((20, 30)).astype(np.float16)
    with pytest.raises(ValueError, match="max_error must be at least"):
        LowRank(max_error=1e-12).compress(W)

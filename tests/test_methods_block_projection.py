from __future__ import annotations

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError
from fastfactor.methods import BlockProjection, BlockProjectionFactors, LowRank
from fastfactor.methods.structured.gaussian import gaussian


class TestRandomProjection(MethodContract):
    METHODS = (
        BlockProjection(reduction=2, block_in=8, block_out=4),
        BlockProjection(reduction=4, block_in=16, block_out=1),
        BlockProjection(reduction=1.5, block_in=8, block_out=8, shared=False, random_state=7),
    )
    EXACT_BITS = False


class TestLearnedProjection(MethodContract):
    METHODS = (
        BlockProjection(reduction=2, block_in=8, block_out=8, learned=True),
        BlockProjection(reduction=4, block_in=16, block_out=12, learned=True, shared=False),
    )
    EXACT_BITS = False


def diagonal(M, length):
    """M once for each block of a side: the matrix that stands for it."""
    groups, block, reduced = M.shape
    n = -(-length // block)
    result = np.zeros((n * block, n * reduced))
    for i in range(n):
        at = result[i * block : (i + 1) * block, i * reduced : (i + 1) * reduced]
        at[...] = M[i if groups > 1 else 0]
    return result[:length]


def metrics(rng, shape):
    x = rng.standard_normal((200, shape[1])) @ rng.standard_normal((shape[1], shape[1]))
    importance, covariance = rng.random(shape) + 0.01, x.T @ x / 200
    return {}, {"importance": importance}, {"input_covariance": covariance}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(16, 24), (17, 30)])
def test_between_drawn_projections_stands_the_best_matrix(rng, shape, shared):
    """Against least squares on all of C's entries at once."""
    W = rng.standard_normal(shape)
    settings = BlockProjection(reduction=2, block_in=6, block_out=4, shared=shared, random_state=11)
    counts = (1, 1) if shared else (-(-shape[1] // 6), -(-shape[0] // 4))
    B = diagonal(gaussian(11, 0, counts[0] * 6, 3).reshape(-1, 6, 3) / np.sqrt(6), shape[1])
    D = diagonal(gaussian(11, 1, counts[1] * 4, 2).reshape(-1, 4, 2) / np.sqrt(4), shape[0])
    for given in metrics(rng, shape):
        root = np.ones(W.size)
        if "input_covariance" in given:
            values, vectors = np.linalg.eigh(given["input_covariance"])
            half = vectors * np.sqrt(values)
            design, target = np.kron(D, half.T @ B), (W @ half).reshape(-1)
        else:
            if given:
                root = np.sqrt(given["importance"]).reshape(-1)
            design, target = root[:, None] * np.kron(D, B), root * W.reshape(-1)
        C = np.linalg.lstsq(design, target, rcond=None)[0]
        best = np.sum((target - design @ C) ** 2) / np.sum(target**2)
        factors = settings.compress(W, **given)
        assert factors.error(W, **given) == pytest.approx(best, rel=1e-6)
        dense = D @ factors.C @ B.T
        np.testing.assert_allclose(factors.to_dense(), dense, rtol=1e-6, atol=1e-6)
        x = rng.standard_normal((2, shape[1]))
        np.testing.assert_allclose(factors.linear(x), x @ dense.T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(24, 40), (23, 37)])
def test_hidden_projections_are_learned(rng, shape, shared):
    B = rng.standard_normal((1 if shared else 5, 8, 3))
    D = rng.standard_normal((1 if shared else 4, 6, 2))
    D, B = diagonal(D, shape[0]), diagonal(B, shape[1])
    W = D @ rng.standard_normal((D.shape[1], B.shape[1])) @ B.T
    noisy = (W + 0.01 * W.std() * rng.standard_normal(shape)).astype(np.float32)
    settings = BlockProjection(reduction=2.9, block_in=8, block_out=6, learned=True, shared=shared)
    factors = settings.compress(noisy)
    assert factors.C.shape == (D.shape[1], B.shape[1])
    assert factors.error(noisy) < 2e-4
    assert LowRank(ratio=noisy.nbytes / factors.nbytes).compress(noisy).error(noisy) > 0.01


@pytest.mark.parametrize("shared", [True, False])
def test_learned_projections_cannot_be_bettered_nearby(rng, shared):
    W = rng.standard_normal((12, 16))
    for given in metrics(rng, W.shape):
        factors = BlockProjection(
            reduction=2, block_in=8, block_out=4, learned=True, shared=shared
        ).compress(W, **given)
        best = factors.error(W, **given)
        gains = []
        for name in ("B", "C", "D"):
            for _ in range(10):
                tensors = factors.tensors()
                step = rng.standard_normal(tensors[name].shape)
                tensors[name] = tensors[name] + 0.03 * step
                other = BlockProjectionFactors.from_tensors(tensors, {}, W.shape, W.dtype)
                gains.append(best - other.error(W, **given))
        assert max(gains) < 0.01 * best


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_learned_projections_have_less_error_than_drawn_ones(rng, argument):
    W = rng.standard_normal((64, 96)).astype(np.float32)
    given = metrics(rng, W.shape)[argument]
    drawn = BlockProjection(reduction=2, block_in=16, block_out=16).compress(W, **given)
    learned = BlockProjection(reduction=2, block_in=16, block_out=16, learned=True)
    assert learned.compress(W, **given).error(W, **given) < drawn.error(W, **given)


def test_without_a_reduction_nothing_is_lost(rng):
    W = rng.standard_normal((20, 30)).astype(np.float32)
    for learned in (False, True):
        factors = BlockProjection(reduction=1, block_in=8, block_out=7, learned=learned).compress(W)
        assert factors.error(W) < 1e-10


def test_drawn_projections_cost_a_seed(rng):
    W = rng.standard_normal((128, 192)).astype(np.float16)
    factors = BlockProjection(reduction=4).compress(W)
    assert factors.nbytes == W.nbytes // 16 + 8
    assert factors.error(W) == pytest.approx(1 - 1 / 16, abs=0.01)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_matrices_without_weights(shape, learned):
    factors = BlockProjection(reduction=2, learned=learned).compress(np.zeros(shape, np.float32))
    assert factors.to_dense().shape == shape
    assert factors.linear(np.ones((2, shape[1]), np.float32)).shape == (2, shape[0])


def test_a_reduction_below_one_is_refused():
    with pytest.raises(ValueError, match=r"reduction must be at least 1, got 0\.5"):
        BlockProjection(reduction=0.5)


def test_projections_of_another_matrix_are_refused(rng):
    factors = BlockProjection(reduction=2, block_in=8, block_out=6, learned=True, shared=False)
    factors = factors.compress(rng.standard_normal((24, 32)))
    for name, shape in (("B", (3, 8, 4)), ("B", (4, 0, 4)), ("D", (4, 3, 64)), ("D", (4, 7, 6))):
        with pytest.raises(CorruptDataError, match=name):
            BlockProjectionFactors.from_tensors(
                factors.tensors() | {name: np.zeros(shape)}, {}, factors.shape, factors.dtype
            )

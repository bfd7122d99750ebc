from __future__ import annotations

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError
from fastfactor.methods import Simhash, SimhashFactors
from fastfactor.methods.structured import simhash
from fastfactor.methods.structured.gaussian import TILE, gaussian, gaussian_tile


class TestSimhash(MethodContract):
    METHODS = (
        Simhash(n_hashes=16),
        Simhash(n_hashes=150, random_state=5),
        Simhash(n_hashes=37, axis=1),
    )
    EXACT_BITS = False


class TestPublishedScale(MethodContract):
    METHODS = (Simhash(n_hashes=40, scale="norm"),)
    EXACT_BITS = False

    def _lower_or_refused(self, method, W, metric, *, strictly=True, **argument):
        with pytest.raises(ValueError, match="scale must be 'least_squares'"):
            method.compress(W, **argument)


def by_definition(W, n_hashes, seed, scale):
    """R S D of a matrix whose columns are hashed, in float64."""
    R = gaussian(seed, 0, len(W), n_hashes).astype(np.float64)
    S = np.where(R.T @ W >= 0, 1.0, -1.0)
    P = R @ S
    if scale == "norm":
        D = np.linalg.norm(W, axis=0) / np.linalg.norm(P, axis=0)
    else:
        D = np.sum(W * P, axis=0) / np.sum(P * P, axis=0)
    return P * D


@pytest.mark.parametrize("scale", ["least_squares", "norm"])
@pytest.mark.parametrize("n_hashes", [1, 127, 128, 300])
def test_it_is_the_published_formula(rng, n_hashes, scale):
    W = rng.standard_normal((23, 31))
    factors = Simhash(n_hashes=n_hashes, scale=scale, random_state=3).compress(W)
    expected = by_definition(W, n_hashes, 3, scale)
    np.testing.assert_allclose(factors.to_dense(), expected, rtol=1e-9, atol=1e-9)
    across = Simhash(n_hashes=n_hashes, scale=scale, random_state=3, axis=1).compress(W.T)
    np.testing.assert_allclose(across.to_dense(), expected.T, rtol=1e-9, atol=1e-9)
    x = rng.standard_normal((3, 31))
    np.testing.assert_allclose(factors.linear(x), x @ expected.T, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(across.linear(x[:, :23]), x[:, :23] @ expected, rtol=1e-9, atol=1e-8)


def test_a_projection_of_zero_counts_as_positive():
    W = np.zeros((5, 9), np.float32)
    assert (Simhash(n_hashes=8).compress(W).signs[:, 0] == 255).all()


def test_least_squares_have_less_error_than_kept_lengths(rng):
    W = rng.standard_normal((60, 50)).astype(np.float32)
    least = Simhash(n_hashes=60).compress(W)
    norm = Simhash(n_hashes=60, scale="norm").compress(W)
    assert least.error(W) < norm.error(W)
    np.testing.assert_array_equal(least.signs, norm.signs)
    lengths = np.linalg.norm(norm.to_dense(), axis=0)
    np.testing.assert_allclose(lengths, np.linalg.norm(W, axis=0), rtol=1e-4)


def test_the_error_is_what_theory_says(rng):
    """⟨a, Rs⟩² / (‖a‖² ‖Rs‖²) → (2/π) k / ((2/π) k + m)."""
    W = rng.standard_normal((200, 300)).astype(np.float32)
    for bits in (1, 2, 4):
        error = Simhash(n_hashes=200 * bits).compress(W).error(W)
        assert error == pytest.approx(1 / (1 + 2 * bits / np.pi), rel=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_are_the_best_there_are(rng, axis):
    W = rng.standard_normal((20, 30))
    importance = rng.random(W.shape)
    x = rng.standard_normal((200, 30)) * np.geomspace(0.1, 3, 30)
    covariance = x.T @ x / 200
    for argument in ({"importance": importance}, {"input_covariance": covariance}):
        factors = Simhash(n_hashes=64, axis=axis).compress(W, **argument)
        best = factors.error(W, **argument)
        for at in range(len(factors.scale)):
            for change in (0.99, 1.01):
                scale = factors.scale.copy()
                scale[at] *= change
                other = SimhashFactors(
                    signs=factors.signs,
                    scale=scale,
                    seed=factors.seed,
                    n_hashes=64,
                    axis=axis,
                    length=W.shape[axis],
                    shape=W.shape,
                    dtype=W.dtype,
                )
                assert other.error(W, **argument) > best


@pytest.mark.parametrize("axis", [0, 1])
def test_a_projection_that_is_drawn_at_each_product_is_the_same(rng, axis, monkeypatch):
    W = rng.standard_normal((300, 40)).astype(np.float32)
    factors = Simhash(n_hashes=200, axis=axis).compress(W)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    ids = np.array([[7, 8, 9], [299, 0, 7]])
    expected = factors.linear(x), factors.rows(ids), factors.to_dense()
    monkeypatch.setattr(simhash, "MAX_CACHED_BYTES", 0)
    again = Simhash(n_hashes=200, axis=axis).compress(W)
    assert again._cached_projection is None
    for one, other in zip(
        expected, (again.linear(x), again.rows(ids), again.to_dense()), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert again.rows([]).shape == (0, 40)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_matrices_without_weights(shape, axis):
    W = np.zeros(shape, np.float32)
    factors = Simhash(n_hashes=3, axis=axis).compress(W)
    assert factors.to_dense().shape == shape
    assert not factors.linear(np.ones((2, shape[1]), np.float32)).any()
    with pytest.raises(ValueError, match="W must not be empty"):
        Simhash(ratio=2, axis=axis).compress(W)


def test_a_seed_is_drawn_once_a_call_and_stored(rng):
    W = rng.standard_normal((30, 40)).astype(np.float32)
    expected = np.random.default_rng(1).integers(2**64, size=2, dtype=np.uint64)
    method = Simhash(ratio=20, random_state=np.random.default_rng(1))
    assert [method.compress(W).seed.item() for _ in range(2)] == expected.tolist()
    fresh = Simhash(n_hashes=8, random_state=None).compress(W)
    assert fresh.seed != Simhash(n_hashes=8, random_state=None).compress(W).seed


def test_bits_after_the_last_sign_are_refused(rng):
    factors = Simhash(n_hashes=5).compress(rng.standard_normal((8, 9)))
    signs = factors.signs.copy()
    signs[0, 1] |= 128
    with pytest.raises(CorruptDataError):
        SimhashFactors.from_tensors(
            factors.tensors() | {"signs": signs}, factors.config(), factors.shape, factors.dtype
        )


# --- the random numbers, which files depend on


def test_gaussian_numbers_stay_what_they_were():
    found = gaussian(2026, 1, 2, 300)[:, [0, 1, 64, 127, 128, 299]]
    expected = [
        [-1.2878404, 0.26145452, -0.15463725, 0.10386221, 1.0687037, -0.77437508],
        [-0.49417064, 0.58994323, 0.46983498, 0.54839867, 1.2201794, 0.038783066],
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-7)


def test_gaussian_numbers_are_normal_and_apart():
    g = gaussian(0, 0, 400, 500).astype(np.float64)
    assert abs(g.mean()) < 0.01
    assert abs(g.std() - 1) < 0.01
    assert abs((g**4).mean() - 3) < 0.1
    assert np.abs(np.corrcoef(g) - np.eye(400)).max() < 0.3
    for other in (gaussian(1, 0, 400, 500), gaussian(0, 1, 400, 500)):
        assert abs((g * other).mean()) < 0.01


def test_a_narrower_matrix_is_the_beginning_of_a_wider_one():
    g = gaussian(9, 0, 50, 3 * TILE)
    np.testing.assert_array_equal(g[:20, :130], gaussian(9, 0, 20, 130))
    np.testing.assert_array_equal(g[11:14, TILE : 2 * TILE], gaussian_tile(9, 0, 11, 14, 1))

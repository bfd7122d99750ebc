from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, store
from fastfactor.methods import EntropyCoded, EntropyCodedFactors


class TestEntropyCoded(MethodContract):
    METHODS = (EntropyCoded(bits_per_weight=4.0), EntropyCoded(bits_per_weight=6, block_rows=5))
    EXACT_BITS = False


def uneven(rng, shape, spread=1.0):
    """Gaussian, with rows and (rotated) directions of different scale."""
    n = shape[1]
    W = rng.standard_normal(shape) * np.exp(0.5 * spread * rng.standard_normal((shape[0], 1)))
    W = W * np.geomspace(4, 0.25, n)
    return (W @ np.linalg.qr(rng.standard_normal((n, n)))[0]).astype(np.float32)


# --- quality


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_matrix_with_structure_is_below_the_equal_rate_limit(rng, bits):
    W = uneven(rng, (1200, 24))
    factors = EntropyCoded(bits_per_weight=bits).compress(W)
    assert 0.985 * bits <= factors.bits_per_weight <= bits
    assert factors.rotation is not None
    assert (factors.classes > 1) == (bits > 1)  # whose tables and scales of rows take 0.2 bits
    assert factors.error(W) < 0.6 * 4.0**-bits


def test_gaussian_noise_is_within_a_decibel_of_the_limit(rng):
    W = rng.standard_normal((800, 64)).astype(np.float32)
    factors = EntropyCoded(bits_per_weight=2.5).compress(W)
    assert 4.0**-2.5 < factors.error(W) < 1.26 * 4.0**-2.5
    assert factors.rotation is None


def test_no_rotation_where_it_takes_more_than_it_saves(rng):
    assert EntropyCoded(bits_per_weight=3).compress(uneven(rng, (40, 60))).rotation is None


def water_filling(variances, bits):
    """The least mean squared error at this many bits each (Cover and Thomas, 10.3.3)."""
    for noise in np.geomspace(variances.max(), variances.max() * 1e-12, 4000):
        if 0.5 * np.log2(np.maximum(variances / noise, 1)).mean() >= bits:
            return np.minimum(variances, noise).mean()
    raise AssertionError


def test_covariance_counts_even_where_it_is_nearly_singular(rng):
    W = rng.standard_normal((1500, 32)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    variances = np.geomspace(1, 1e-6, 32)
    covariance = turn * variances @ turn.T
    factors = EntropyCoded(bits_per_weight=2).compress(W, input_covariance=covariance)
    error = factors.error(W, input_covariance=covariance)
    rotation = 8 * (factors.rotation.nbytes + factors.column_steps.nbytes) / W.size
    least = water_filling(variances, 2 - rotation) / variances.mean()
    assert least < error < 1.8 * least


@pytest.mark.parametrize(("bits", "share"), [(1.5, 0.7), (6, 0.01)])
def test_weights_without_importance_cost_little(rng, bits, share):
    W = rng.standard_normal((200, 64)).astype(np.float32)
    importance = (rng.random(W.shape) < 0.5).astype(np.float64)
    method = EntropyCoded(bits_per_weight=bits)
    weighted = method.compress(W, importance=importance).error(W, importance=importance)
    assert weighted < share * method.compress(W).error(W, importance=importance)


def test_an_error_is_met_closely(rng):
    W = uneven(rng, (500, 40))
    for wanted in (0.3, 0.01):
        assert 0.98 * wanted < EntropyCoded(max_error=wanted).compress(W).error(W) <= wanted


def test_too_few_bits_are_refused(rng):
    with pytest.raises(ValueError, match=r"bits_per_weight must be at least .* got 0.01"):
        EntropyCoded(bits_per_weight=0.01).compress(rng.standard_normal((20, 20)))


def test_by_leaps_the_best_that_fits_is_kept(rng):
    W = (0.03 * np.sign(rng.standard_normal((1024, 128)))).astype(np.float32)
    for bits, most in ((0.6, 0.8), (0.9, 1), (1.7, 1e-6), (2.5, 1e-6)):
        factors = EntropyCoded(bits_per_weight=bits).compress(W)
        assert factors.bits_per_weight <= bits
        assert factors.error(W) < most


@pytest.mark.parametrize("shape", [(20, 20), (1, 50), (300, 7), (64, 40)])
def test_no_size_that_can_be_reached_is_refused(rng, shape):
    W = uneven(rng, shape)
    with pytest.raises(ValueError, match=r"bits_per_weight must be at least") as refusal:
        EntropyCoded(bits_per_weight=1e-6).compress(W)
    least = float(re.search(r"at least ([\d.]+)", str(refusal.value)).group(1))
    nbytes = math.ceil(least * W.size / 8 * (1 - 1e-3))
    assert EntropyCoded(bits_per_weight=8 * nbytes / W.size).compress(W).nbytes == nbytes
    errors = []
    for more in (1.02, 1.1, 1.5, 3, 8):
        factors = EntropyCoded(bits_per_weight=more * least).compress(W)
        assert factors.bits_per_weight <= more * least
        errors.append(factors.error(W))
    assert errors[0] <= 1
    assert errors[3:] == sorted(errors[3:], reverse=True)
    assert errors[4] < 0.7 * errors[2]


def test_a_size_is_met_closely(rng):
    W = uneven(rng, (3000, 64))
    for bits in (0.7, 3):
        factors = EntropyCoded(bits_per_weight=bits).compress(W)
        assert 0.999 * bits < factors.bits_per_weight <= bits


def test_products_have_the_same_bits_for_any_number_of_threads(rng, n_threads):
    W = uneven(rng, (700, 40))
    factors = EntropyCoded(bits_per_weight=2, block_rows=7).compress(W)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    several = {"n_threads": n_threads}
    np.testing.assert_array_equal(factors.linear(x, **several), factors.linear(x, n_threads=1))
    np.testing.assert_array_equal(factors.to_dense(**several), factors.to_dense(n_threads=1))
    assert factors.error(W, **several) == factors.error(W, n_threads=1)


def test_an_error_that_rounding_forbids_is_refused(rng):
    W = rng.standard_normal((20, 30)).astype(np.float16)
    with pytest.raises(ValueError, match="max_error must be at least"):
        EntropyCoded(max_error=1e-14).compress(W)


# --- what is stored


def test_rotations_and_scales_are_read_back(rng, tmp_path):
    """The matrix of the contract is too small to have them."""
    W = uneven(rng, (400, 23))
    x = rng.standard_normal((2, 23)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((23, 23)))[0]
    for covariance, tensors in (
        (None, {"columns", "rotation"}),
        (turn * np.geomspace(9, 0.001, 23) @ turn.T, {"column_steps", "rotation"}),
    ):
        factors = EntropyCoded(bits_per_weight=3).compress(W, input_covariance=covariance)
        assert tensors <= factors.tensors().keys()
        store.save(tmp_path / "saved", {"fc": factors})
        with store.open_store(tmp_path / "saved") as saved:
            np.testing.assert_array_equal(saved["fc"].to_dense(), factors.to_dense())
            np.testing.assert_array_equal(saved["fc"].linear(x), factors.linear(x))


def test_rotations_of_another_shape_are_refused(rng):
    factors = EntropyCoded(bits_per_weight=3).compress(uneven(rng, (400, 24)))
    rows, row_bytes = factors.rotation.shape
    assert (rows, row_bytes) == (24, 3 * factors.rotation_bits)
    for shape in ((rows * row_bytes,), (row_bytes, rows), (rows, row_bytes + 1), (rows, 0)):
        tensors = factors.tensors() | {"rotation": np.zeros(shape, np.uint8)}
        with pytest.raises(CorruptDataError, match="rotation"):
            EntropyCodedFactors.from_tensors(
                tensors, factors.config(), factors.shape, factors.dtype
            )


# --- random access


def test_a_row_needs_its_own_block_only(rng):
    W = rng.standard_normal((50, 16)).astype(np.float32)
    factors = EntropyCoded(bits_per_weight=4, block_rows=8).compress(W)
    dense = factors.to_dense()
    words = factors.words.copy()
    words[: factors.lengths[0]] = 0
    damaged = dataclasses.replace(factors, words=words)
    ids = np.array([49, 8, 33])
    np.testing.assert_allclose(damaged.rows(ids), dense[ids], rtol=1e-6)
    with pytest.raises(CorruptDataError):
        damaged.to_dense()


def test_any_words_are_safe_to_decode(rng):
    factors = EntropyCoded(bits_per_weight=3).compress(uneven(rng, (200, 12)))
    damage = 0
    for _ in range(60):
        words = factors.words.copy()
        words[rng.integers(len(words))] ^= np.uint16(1 << rng.integers(16))
        broken = dataclasses.replace(factors, words=words)
        try:
            assert np.isfinite(broken.to_dense()).all()
        except CorruptDataError:
            damage += 1
    assert damage > 50  # a lane must end where its words do, in the state where it began


def test_few_rows_and_many_are_read_alike(rng):
    W = uneven(rng, (330, 12)) * np.where(rng.random((330, 1)) < 0.1, 200, 1).astype(np.float32)
    factors = EntropyCoded(bits_per_weight=8, block_rows=4).compress(W)
    assert len(factors.lengths) > 80
    dense = factors.to_dense()  # side by side
    assert np.abs(dense).max() > 0
    np.testing.assert_array_equal(factors.rows(np.arange(330)), dense)
    one_by_one = np.concatenate([factors.rows([at]) for at in range(330)])
    np.testing.assert_allclose(one_by_one, dense, rtol=1e-4, atol=1e-4)


# --- shapes and ranges


@pytest.mark.parametrize("more", [{}, {"importance": np.ones((2, 150_000), np.float32)}])
def test_nothing_is_as_large_as_the_square_of_many_columns(rng, more):
    W = rng.standard_normal((2, 150_000)).astype(np.float32)
    factors = EntropyCoded(bits_per_weight=2).compress(W, **more)
    assert factors.bits_per_weight <= 2
    assert factors.error(W) < 0.09
    dense = factors.to_dense()
    np.testing.assert_array_equal(factors.rows([1, 0, 1]), dense[[1, 0, 1]])
    x = rng.standard_normal(150_000).astype(np.float32)
    np.testing.assert_allclose(factors.linear(x), dense @ x, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_at_the_end_of_their_range_stay_in_it(rng, dtype, bits):
    most = np.finfo(dtype).max
    for turned in (False, True):
        W = np.sign(rng.standard_normal((1024, 1 if turned else 16)))
        W = (np.broadcast_to(W, (1024, 16)) * most).astype(dtype)
        factors = EntropyCoded(bits_per_weight=bits).compress(W)
        assert bits == 2 or (factors.rotation is not None) == turned
        assert np.isfinite(factors.to_dense()).all()
        assert np.isfinite(factors.rows([0, 31])).all()
        assert factors.error(W) < 0.1


def test_large_values_that_do_not_count_are_numbers(rng):
    W = (1e30 * rng.standard_normal((32, 16))).astype(np.float32)
    W[:, 1] *= 3e38 / np.abs(W[:, 1]).max()
    importance = rng.random(W.shape).astype(np.float32)
    importance[:, :2] = 0
    for wanted in (0.9, 0.1):
        factors = EntropyCoded(max_error=wanted).compress(W, importance=importance)
        assert np.isfinite(factors.to_dense()).all()
        assert factors.error(W, importance=importance) <= wanted


def test_coordinates_of_a_covariance_that_gain_nothing_are_not_used():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((256, 256)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((256, 256)))[0]
    covariance = turn * np.geomspace(0.09, 1, 256) @ turn.T
    for settings in ({"bits_per_weight": 3}, {"ratio": 10.5}, {"max_error": 0.03}):
        method = EntropyCoded(**settings)
        plain = method.compress(W)
        weighted = method.compress(W, input_covariance=covariance)
        if "max_error" in settings:
            assert weighted.error(W, input_covariance=covariance) <= 0.03
            assert weighted.nbytes <= plain.nbytes * 1.02
        else:
            assert weighted.nbytes * 8 <= 3.05 * W.size
            errors = [f.error(W, input_covariance=covariance) for f in (weighted, plain)]
            assert errors[0] <= errors[1]


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**100])
def test_a_power_of_two_changes_the_step_alone(rng, scale):
    W = uneven(rng, (200, 12))
    plain = EntropyCoded(bits_per_weight=3).compress(W)
    scaled = EntropyCoded(bits_per_weight=3).compress(W * np.float32(scale))
    np.testing.assert_array_equal(plain.words, scaled.words)
    np.testing.assert_array_equal(plain.step * np.float32(scale), scaled.step)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, exchange_atoms, learn_dictionary, omp
from fastfactor.methods import Dictionary, DictionaryFactors


class TestDictionary(MethodContract):
    METHODS = (
        Dictionary(n_nonzero_coefs=2, n_atoms=8, block_size=16, max_iter=5),
        Dictionary(n_nonzero_coefs=3, n_atoms=5, block_size=8, max_iter=5, value_dtype=None),
        Dictionary(n_nonzero_coefs=1, max_iter=3, criterion="correlation", init="rows"),
        Dictionary(
            n_nonzero_coefs=2, n_atoms=8, max_iter=3, criterion="correlation", search="hash"
        ),
    )


def dense(factors):
    """By its definition, bit by bit from what is stored."""

    def numbers(packed, bits, n):
        stream = [byte >> k & 1 for byte in packed.tolist() for k in range(8)]
        return [sum(stream[i * bits + k] << k for k in range(bits)) for i in range(n)]

    block_size = factors.dictionary.shape[1]
    n = factors.shape[0] * factors.shape[1] // block_size
    counts = [factors.count] * n
    if factors.count_bits:
        counts = numbers(factors.counts, factors.count_bits, n)
    atoms = numbers(factors.indices, (len(factors.dictionary) - 1).bit_length(), sum(counts))
    W, at = np.zeros((n, block_size)), 0
    for i, count in enumerate(counts):
        for j in range(at, at + count):
            W[i] += float(factors.values[j]) * factors.dictionary[atoms[j]].astype(np.float64)
        at += count
    return W.reshape(factors.shape)


@pytest.mark.parametrize("n_atoms", [1, 2, 5, 16])
@pytest.mark.parametrize("how", [{"n_nonzero_coefs": 2}, {"block_error": 0.3}])
def test_what_is_stored_stands_for_the_matrix(rng, n_atoms, how):
    W = rng.standard_normal((13, 24)).astype(np.float32)
    W[3] = 0
    factors = Dictionary(**how, n_atoms=n_atoms, block_size=8, max_iter=3).compress(W)
    np.testing.assert_allclose(factors.to_dense(), dense(factors), atol=1e-5)
    n_values = len(factors.values)
    bits = (n_atoms - 1).bit_length()
    expected = n_atoms * 8 * 4 + 2 * n_values + -(-n_values * bits // 8)
    assert factors.nbytes == expected + -(-39 * factors.count_bits // 8)
    assert not factors.to_dense()[3].any()


def test_blocks_along_few_directions_are_found_again(rng):
    atoms = rng.standard_normal((6, 16))
    W = rng.choice([-1, 1, 2], (400, 1)) * atoms[rng.integers(6, size=400)]
    W = W.reshape(100, 64).astype(np.float32)
    factors = Dictionary(n_nonzero_coefs=1, n_atoms=8, block_size=16).compress(W)
    assert factors.error(W) < 1e-6


def test_an_error_for_blocks_sends_values_where_the_energy_is(rng):
    W = (rng.standard_normal((64, 64)) * np.geomspace(0.02, 2, 64)[:, None]).astype(np.float32)
    factors = Dictionary(block_error=0.2, n_atoms=32, block_size=16, max_iter=20).compress(W)
    left = (W - factors.to_dense().astype(np.float64)).reshape(-1, 16)
    mean = np.mean(np.sum(W.astype(np.float64).reshape(-1, 16) ** 2, axis=1))
    assert np.sum(left**2, axis=1).max() <= 0.2 * mean * 1.01
    counts = np.diff(factors._codes.indptr).reshape(64, 4).sum(axis=1)
    assert counts[:20].sum() == 0 < counts[-1]


def test_a_search_uses_uneven_counts_where_they_are_better(rng):
    W = (rng.standard_normal((64, 64)) * np.geomspace(0.02, 2, 64)[:, None]).astype(np.float32)
    settings = {"n_atoms": 16, "block_size": 16, "max_iter": 10}
    even = Dictionary(n_nonzero_coefs=3, **settings).compress(W)
    found = Dictionary(ratio=W.nbytes / even.nbytes, **settings).compress(W)
    assert found.count_bits > 0
    assert found.nbytes <= even.nbytes
    assert found.error(W) < 0.7 * even.error(W)
    found = Dictionary(max_error=even.error(W), **settings).compress(W)
    assert found.error(W) <= even.error(W)
    assert found.nbytes < 0.8 * even.nbytes


def test_weights_without_importance_are_free(rng):
    atoms = rng.standard_normal((4, 16))
    W = (rng.standard_normal((80, 1)) * atoms[rng.integers(4, size=80)]).astype(np.float32)
    importance = np.ones(W.shape)
    hidden = rng.random(W.shape) < 0.05
    importance[hidden] = 0
    spoiled = np.where(hidden, W + rng.standard_normal(W.shape), W).astype(np.float32)
    settings = Dictionary(n_nonzero_coefs=1, n_atoms=8, value_dtype=None)
    weighted = settings.compress(spoiled, importance=importance).error(
        spoiled, importance=importance
    )
    assert weighted < 0.8 * settings.compress(spoiled).error(spoiled, importance=importance)


def test_importance_of_blocks_is_exact(rng):
    """The same as a matrix whose blocks are longer by its root."""
    W = rng.standard_normal((60, 16))
    weights = rng.random((60, 1)) + 0.1
    importance = np.broadcast_to(weights, W.shape)
    settings = Dictionary(n_nonzero_coefs=2, n_atoms=8, value_dtype=None)
    weighted = settings.compress(W, importance=importance)
    scaled = settings.compress(np.sqrt(weights) * W)
    error = weighted.error(W, importance=importance)
    assert error <= scaled.error(np.sqrt(weights) * W) * 1.001


@pytest.mark.parametrize("block_size", [8, 16])
def test_a_covariance_of_few_directions_leaves_the_others_free(rng, block_size):
    W = rng.standard_normal((50, 16)).astype(np.float32)
    x = rng.standard_normal((3, 16))
    settings = Dictionary(
        n_nonzero_coefs=2, n_atoms=8, block_size=block_size, value_dtype="float32"
    )
    weighted = settings.compress(W, input_covariance=x.T @ x).error(W, input_covariance=x.T @ x)
    assert weighted < 0.5 * settings.compress(W).error(W, input_covariance=x.T @ x)


def test_values_are_least_squares_for_the_atoms_as_stored(rng):
    W = rng.standard_normal((40, 32)).astype(np.float16)
    settings = Dictionary(n_nonzero_coefs=3, n_atoms=16, block_size=16, max_iter=20, exchange=False)
    factors = settings.compress(W)
    signals = W.reshape(-1, 16)
    codes = omp(signals, factors.dictionary, n_nonzero_coefs=3, criterion="ols")
    np.testing.assert_array_equal(factors.values, codes.data.astype(np.float16))
    # With exchanges other atoms may be chosen: these have no more error, and values that fit them.
    factors = replace(settings, exchange=True).compress(W)
    assert factors.error(W) < settings.compress(W).error(W)
    codes = exchange_atoms(signals, factors.dictionary, factors._codes, max_exchanges=0)
    np.testing.assert_array_equal(factors.values, codes.data.astype(np.float16))


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e6, 1e30])
def test_values_of_any_size_are_held_in_half_precision(rng, size):
    W = rng.standard_normal((30, 32)).astype(np.float32)
    settings = Dictionary(n_nonzero_coefs=3, n_atoms=8, block_size=16, max_iter=5)
    large = settings.compress(W * np.float32(size))
    assert large.values.dtype == np.float16
    expected = settings.compress(W).error(W)
    found = large.to_dense().astype(np.float64) / np.float32(size)
    assert np.sum((W - found) ** 2) / np.sum(W.astype(np.float64) ** 2) < 1.1 * expected


def test_the_largest_halves_are_held(rng):
    W = (60_000 * rng.choice([-1.0, 1.0], (20, 64))).astype(np.float16)
    factors = Dictionary(n_nonzero_coefs=2, n_atoms=64, max_iter=5).compress(W)
    assert (factors.values.dtype, factors.dictionary.dtype) == (np.float16, np.float16)
    assert factors.error(W) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (50, 1), (3, 16)])
def test_as_many_atoms_as_blocks_or_more_leave_rounding_only(rng, shape):
    W = rng.standard_normal(shape).astype(np.float32)
    for n_atoms in (shape[0], shape[0] + 60):
        factors = Dictionary(n_nonzero_coefs=1, n_atoms=n_atoms, max_iter=5).compress(W)
        assert factors.error(W) < 1e-6
        assert factors.dictionary.shape[0] == n_atoms


def test_matrices_of_zeros_and_of_one_number():
    for how in ({"n_nonzero_coefs": 2}, {"block_error": 0.1}, {"ratio": 4}, {"max_error": 0.1}):
        W = np.zeros((64, 64), np.float32)
        assert not Dictionary(**how).compress(W).to_dense().any()
        assert Dictionary(**how).compress(W + 3).error(W + 3) <= 0.1


def test_metrics_that_are_zero_in_places(rng):
    W = rng.standard_normal((40, 32)).astype(np.float32)
    settings = Dictionary(n_nonzero_coefs=2, n_atoms=8, block_size=16, max_iter=5)
    importance = rng.random(W.shape)
    importance[3], importance[:, 5] = 0, 0
    plain = settings.compress(W)
    for size in (1.0, 1e-200, 1e30):
        weighed = settings.compress(W, importance=size * importance)
        assert weighed.error(W, importance=size * importance) < plain.error(
            W, importance=size * importance
        )
    nothing = settings.compress(W, input_covariance=np.zeros((32, 32)))
    assert np.isfinite(nothing.to_dense()).all()


def test_a_search_at_its_ends(rng):
    W = rng.standard_normal((64, 64)).astype(np.float32)
    settings = {"n_atoms": 8, "max_iter": 3}
    assert Dictionary(max_error=1.0, **settings).compress(W).error(W) <= 1
    assert Dictionary(ratio=1, **settings).compress(W).nbytes <= W.nbytes
    with pytest.raises(ValueError, match="ratio must be at most"):
        Dictionary(ratio=1000, **settings).compress(W)
    with pytest.raises(ValueError, match="max_error must be at least"):
        Dictionary(max_error=1e-9, **settings).compress(W)


def test_default_blocks_and_atoms():
    def of(shape):
        W = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        return Dictionary(n_nonzero_coefs=1, max_iter=1).compress(W).dictionary.shape

    assert of((300, 784)) == (256, 56)
    assert of((20, 256)) == (8, 64)
    assert of((40, 17)) == (4, 17)
    assert of((40, 131)) == (4, 131)


def test_what_does_not_fit_is_named(rng):
    W = rng.standard_normal((4, 10)).astype(np.float32)
    with pytest.raises(ValueError, match="block_size must divide the columns of W, 10, got 3"):
        Dictionary(n_nonzero_coefs=1, block_size=3).compress(W)
    with pytest.raises(ValueError, match="W must not be empty"):
        Dictionary(n_nonzero_coefs=1).compress(W[:0])
    with pytest.raises(ValueError, match="dictionary_dtype must hold values up to"):
        Dictionary(n_nonzero_coefs=1, dictionary_dtype="float16").compress(1e12 * W)
    for name in ("block_size", "n_atoms", "max_iter", "criterion", "search", "init", "value_dtype"):
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            Dictionary(n_nonzero_coefs=1, **{name: -1})


def test_atoms_and_counts_that_do_not_exist_are_refused(rng):
    W = rng.standard_normal((10, 16)).astype(np.float32)
    factors = Dictionary(block_error=0.4, n_atoms=5, block_size=8).compress(W)
    tensors, config = factors.tensors(), factors.config()
    for name in ("indices", "counts"):
        full = np.full_like(tensors[name], 255)
        with pytest.raises(CorruptDataError):
            DictionaryFactors.from_tensors(
                tensors | {name: full}, config, factors.shape, factors.dtype
            )


def test_a_ratio_is_learned_for_once(rng, monkeypatch):
    """Where all blocks have as many values; else as often as a bisection asks."""
    calls = []

    def counted(*arguments, **settings):
        calls.append(settings["n_nonzero_coefs"])
        return learn_dictionary(*arguments, **settings)

    monkeypatch.setattr("fastfactor.methods.dictionary.method.learn_dictionary", counted)
    W = rng.standard_normal((60, 32)).astype(np.float32)
    settings = Dictionary(ratio=4, n_atoms=8, block_size=16, max_iter=2)
    found = settings.compress(W)
    assert len(calls) == 1
    assert found.nbytes * 4 <= W.nbytes
    # One more value a block would not have fitted.
    assert (
        replace(settings, ratio=None, n_nonzero_coefs=calls[0] + 1).compress(W).nbytes * 4
        > W.nbytes
    )
    calls.clear()
    W[::2] = 0  # these need no values
    assert settings.compress(W).nbytes * 4 <= W.nbytes
    assert len(calls) > 1


@pytest.mark.parametrize("spread", [0.09, 1e-6])
def test_a_ratio_under_a_covariance_is_no_worse_than_without(spread):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 32)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    covariance = turn * np.geomspace(spread, 1, 32) @ turn.T
    method = Dictionary(ratio=3, block_size=8, n_atoms=16, max_iter=2)
    weighted = method.compress(W, input_covariance=covariance)
    assert weighted.nbytes * 3 <= W.nbytes
    plain = method.compress(W).error(W, input_covariance=covariance)
    assert weighted.error(W, input_covariance=covariance) <= plain

"""learn_dictionary against plain linear algebra, and however it is called."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import CSR, exchange_atoms, hashed_omp, learn_dictionary, omp, spmm
from fastfactor.learning.code_exchange import improved
from fastfactor.learning.code_products import DenseGram, SparseGram, gram_of_codes
from fastfactor.learning.dictionary_update import ATOMS_AT_ONCE, repeated


def signals(rng, n=600, d=12, n_atoms=10, k=2, noise=0.01):
    atoms = rng.standard_normal((n_atoms, d))
    X = noise * rng.standard_normal((n, d))
    for row in X:
        row += rng.standard_normal(k) @ atoms[rng.choice(n_atoms, k, replace=False)]
    return X


def test_sums_over_codes_are_those_of_dense_codes(rng):
    dense = rng.standard_normal((70_000, 9)) * (rng.random((70_000, 9)) < 0.3)
    codes = CSR.from_dense(dense)
    expected = dense.T @ dense
    np.testing.assert_allclose(gram_of_codes(codes), expected, rtol=1e-10, atol=1e-9)
    np.testing.assert_array_equal(codes.T.to_dense(), dense.T)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_codes_multiply_as_their_matrix_does(rng, memory):
    products, matrix = SparseGram(9), DenseGram(9)
    expected = np.zeros((9, 9))
    for _ in range(4):
        dense = rng.standard_normal((50, 9)) * (rng.random((50, 9)) < 0.3)
        factors, forgotten = rng.uniform(0.5, 2, 9), rng.choice(9, 2, replace=False)
        codes = CSR.from_dense(dense)
        for one in (products, matrix):
            one.add(codes, codes.T, memory)
            one.rescale(factors)
            one.forget(forgotten)
        expected = (memory * expected + dense.T @ dense) * factors[:, None] * factors
        expected[forgotten], expected[:, forgotten] = 0, 0
        atoms = rng.standard_normal((9, 5))
        for one in (products, matrix):
            np.testing.assert_allclose(one.diagonal(), expected.diagonal(), atol=1e-12)
            found = one.operator(0.1, n_threads=2)(atoms)
            np.testing.assert_allclose(found, expected @ atoms + 0.1 * atoms, atol=1e-11)


def test_codes_are_dropped_once_they_have_faded(rng):
    products = SparseGram(4)
    codes = CSR.from_dense(rng.standard_normal((3, 4)))
    for _ in range(100):
        products.add(codes, codes.T, 0.8)
    assert 0.8 ** len(products.batches) < 1e-3
    assert len(products.batches) < 50


def test_atoms_that_repeat_one_before_them_are_found(rng):
    n = ATOMS_AT_ONCE + 7
    unit = rng.standard_normal((n, 30))
    unit[ATOMS_AT_ONCE] = -unit[3]
    unit[5] = 2 * unit[4] + 1e-3 * unit[6]
    unit[-1] = unit[ATOMS_AT_ONCE + 1]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = np.flatnonzero(repeated(unit, 2))
    np.testing.assert_array_equal(found, [5, ATOMS_AT_ONCE, n - 1])


def test_more_atoms_than_a_matrix_of_products_is_held_for(rng, monkeypatch):
    X = signals(rng, n=2000)
    settings = {"n_nonzero_coefs": 2, "batch_size": 300, "max_iter": 4}
    expected = learn_dictionary(X, 10, **settings)
    monkeypatch.setattr("fastfactor.learning.dictionary_update.MOST_DENSE", 9)
    result = learn_dictionary(X, 10, **settings)
    assert (result.dictionary != expected.dictionary).any()
    np.testing.assert_allclose(result.error, expected.error, rtol=0.1)


# --- coding by hash


def test_hashed_codes_are_those_of_hashed_omp(rng):
    X = signals(rng, n=3000, d=16, n_atoms=300).astype(np.float32)
    settings = {"n_nonzero_coefs": 2, "search": "hash", "max_iter": 3, "random_state": 3}
    result = learn_dictionary(X, 300, **settings)
    expected = hashed_omp(X, result.dictionary, n_nonzero_coefs=2, random_state=3)
    np.testing.assert_array_equal(result.codes.indices, expected.indices)
    np.testing.assert_array_equal(result.codes.data, expected.data)
    left = X - spmm(result.codes, result.dictionary)
    assert result.error == pytest.approx(np.sum(left**2) / np.sum(X**2), rel=1e-4)
    for n_threads in (1, 3):
        again = learn_dictionary(X, 300, n_threads=n_threads, **settings)
        np.testing.assert_array_equal(again.dictionary, result.dictionary)
        np.testing.assert_array_equal(again.codes.data, result.codes.data)


@pytest.mark.parametrize("init", ["k-means++", "rows", "neighbours"])
def test_learning_by_hash_comes_near_to_learning_by_all(rng, init):
    X = signals(rng, n=3000, d=16, n_atoms=150)
    settings = {"n_nonzero_coefs": 3, "init": init, "max_iter": 4}
    start = learn_dictionary(X, 150, search="hash", **(settings | {"max_iter": 0}))
    by_hash = learn_dictionary(X, 150, search="hash", **settings)
    by_all = learn_dictionary(X, 150, **settings)
    assert by_hash.error < 0.7 * start.error
    assert by_hash.error < 1.5 * by_all.error


def test_hash_and_ols_do_not_go_together(rng):
    with pytest.raises(
        ValueError, match=r"^criterion must be 'correlation' with search='hash', got 'ols'"
    ):
        learn_dictionary(rng.standard_normal((9, 4)), 2, criterion="ols", search="hash")


def test_exchanging_atoms_leaves_less(rng):
    X = signals(rng, n=1500, d=16, n_atoms=60)
    plain, exchanged = (
        learn_dictionary(X, 40, n_nonzero_coefs=5, max_iter=30, exchange=exchange)
        for exchange in (False, True)
    )
    assert exchanged.error < 0.97 * plain.error
    # The codes are what no exchange improves, and no worse than new ones.
    settings = {"max_exchanges": 5}
    for codes in (exchanged.codes, omp(X, exchanged.dictionary, n_nonzero_coefs=5)):
        other = exchange_atoms(X, exchanged.dictionary, codes, **settings).to_dense()
        left = X - other @ exchanged.dictionary
        assert np.sum(left**2) / np.sum(X**2) > 0.999 * exchanged.error


@pytest.mark.parametrize("n_threads", [2, 7])
@pytest.mark.parametrize("limits", [{"n_nonzero_coefs": 3}, {"tol": 0.3}])
def test_exchanging_gives_the_same_bits_for_any_number_of_threads(rng, n_threads, limits):
    X = signals(rng, n=1000).astype(np.float32)
    settings = {"exchange": True, "max_iter": 6, **limits}
    one = learn_dictionary(X, 20, n_threads=1, **settings)
    other = learn_dictionary(X, 20, n_threads=n_threads, **settings)
    np.testing.assert_array_equal(one.dictionary, other.dictionary)
    np.testing.assert_array_equal(one.codes.data, other.codes.data)
    np.testing.assert_array_equal(one.codes.indices, other.codes.indices)


def test_a_limit_of_error_holds_after_exchanges(rng):
    X = signals(rng)
    result = learn_dictionary(X, 30, tol=0.05, max_iter=10, exchange=True)
    left = X - result.codes.to_dense() @ result.dictionary
    assert np.sum(left**2, axis=1).max() <= 0.05 * (1 + 1e-9)
    assert result.error == pytest.approx(np.sum(left**2) / np.sum(X**2), rel=1e-9)


def test_each_row_has_the_better_of_two_codes(rng):
    """Rows of different numbers of atoms among them, and rows that no exchange changes."""
    X, atoms = rng.standard_normal((60, 8)), rng.standard_normal((20, 8))
    codes = omp(X, atoms, tol=2.0)
    earlier = omp(X, atoms, n_nonzero_coefs=3)
    found = improved(X, atoms, codes, earlier, 2)
    left = [
        np.sum((X - exchange_atoms(X, atoms, each).to_dense() @ atoms) ** 2, axis=1)
        for each in (codes, earlier)
    ]
    expected = np.minimum(*left)
    assert (left[0] < left[1]).any()
    assert (left[0] > left[1]).any()
    np.testing.assert_allclose(np.sum((X - found.to_dense() @ atoms) ** 2, axis=1), expected)
    alone = improved(X, atoms, codes, None, 2)
    np.testing.assert_array_equal(alone.data, exchange_atoms(X, atoms, codes).data)


def test_hash_and_exchanges_do_not_go_together(rng):
    with pytest.raises(ValueError, match=r"^exchange must be False with search='hash', got True"):
        learn_dictionary(rng.standard_normal((9, 4)), 2, search="hash", exchange=True)


def test_error_codes_and_atoms_are_what_they_are_said_to_be(rng):
    X = signals(rng)
    result = learn_dictionary(X, 10, n_nonzero_coefs=2, batch_size=100)
    left = X - result.codes.to_dense() @ result.dictionary
    assert result.error == pytest.approx(np.sum(left**2) / np.sum(X**2), rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(result.dictionary, axis=1), 1, rtol=1e-12)
    expected = omp(X, result.dictionary, n_nonzero_coefs=2)
    np.testing.assert_array_equal(result.codes.data, expected.data)
    np.testing.assert_array_equal(result.codes.indices, expected.indices)


def test_one_pass_over_all_is_the_exact_least_squares_refit(rng):
    X = signals(rng)
    start = rng.standard_normal((6, 12))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    codes = omp(X, start, n_nonzero_coefs=2).to_dense()
    expected = np.linalg.lstsq(codes, X, rcond=None)[0]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    result = learn_dictionary(X, 6, n_nonzero_coefs=2, init=start, batch_size=len(X), max_iter=1)
    np.testing.assert_allclose(result.dictionary, expected, atol=1e-4)
    assert result.n_iter == 1


@pytest.mark.parametrize("init", ["k-means++", "rows", "neighbours"])
def test_learning_lowers_the_error(rng, init):
    X = signals(rng, n=3000)
    settings = {"n_nonzero_coefs": 2, "init": init}
    before = learn_dictionary(X, 10, max_iter=0, **settings)
    after = learn_dictionary(X, 10, **settings)
    assert before.n_iter == 0
    assert after.error < 0.5 * before.error


def test_every_row_is_coded_down_to_tol(rng):
    X = signals(rng)
    result = learn_dictionary(X, 30, tol=0.05, max_iter=10)
    left = X - result.codes.to_dense() @ result.dictionary
    assert np.sum(left**2, axis=1).max() <= 0.05 * (1 + 1e-9)


def test_as_many_atoms_as_different_signals_leave_nothing(rng):
    distinct = rng.standard_normal((5, 8))
    X = distinct[np.arange(200) % 5] * rng.standard_normal((200, 1))
    for n_atoms in (5, 9):
        assert learn_dictionary(X, n_atoms, n_nonzero_coefs=1, max_iter=20).error < 1e-12


@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_same_bits_for_any_number_of_threads(rng, n_threads):
    X = signals(rng, n=2000).astype(np.float32)
    one = learn_dictionary(X, 20, n_nonzero_coefs=3, batch_size=300, n_threads=1)
    other = learn_dictionary(X, 20, n_nonzero_coefs=3, batch_size=300, n_threads=n_threads)
    np.testing.assert_array_equal(one.dictionary, other.dictionary)
    np.testing.assert_array_equal(one.codes.data, other.codes.data)


def test_the_seed_decides(rng):
    X = signals(rng)
    settings = {"n_nonzero_coefs": 2, "max_iter": 1}
    first, again, other = (
        learn_dictionary(X, 7, random_state=seed, **settings).dictionary for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_float_is_taken_and_left_as_it_is(rng, dtype):
    X = signals(rng).astype(dtype)
    before = X.copy()
    result = learn_dictionary(X, 8, n_nonzero_coefs=2, max_iter=2)
    assert result.dictionary.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_array_equal(X, before)


def test_zeros_and_more_atoms_than_samples(rng):
    zeros = learn_dictionary(np.zeros((4, 3), np.float32), 5, n_nonzero_coefs=2)
    assert (zeros.error, zeros.codes.nnz) == (0.0, 0)
    assert np.isfinite(zeros.dictionary).all()
    few = learn_dictionary(rng.standard_normal((3, 6)), 8, n_nonzero_coefs=1)
    assert few.error < 1e-12


@pytest.mark.parametrize(
    ("dtype", "exponent"), [(np.float32, -110), (np.float32, 110), (np.float64, 700)]
)
def test_the_unit_of_the_signals_does_not_matter(rng, dtype, exponent):
    X = signals(rng, n=200).astype(dtype)
    X /= np.abs(X).max()  # so that the largest is a power of two
    scaled = learn_dictionary(np.ldexp(X, exponent), 10, n_nonzero_coefs=2, max_iter=3)
    expected = learn_dictionary(X, 10, n_nonzero_coefs=2, max_iter=3)
    assert scaled.error == pytest.approx(expected.error, rel=1e-3)
    np.testing.assert_allclose(scaled.dictionary, expected.dictionary, atol=1e-3)


def test_a_limit_of_error_follows_the_unit(rng):
    X = signals(rng, n=200)
    plain = learn_dictionary(X, 10, tol=0.05, max_iter=3)
    scaled = learn_dictionary(np.ldexp(X, 100), 10, tol=0.05 * 2.0**200, max_iter=3)
    np.testing.assert_allclose(scaled.codes.data, np.ldexp(plain.codes.data, 100), rtol=1e-6)


def test_few_signals_get_many_passes_and_a_limit_holds(rng):
    X = signals(rng, n=60)
    assert learn_dictionary(X, 10, n_nonzero_coefs=2).n_iter > 200
    assert learn_dictionary(X, 10, n_nonzero_coefs=2, max_iter=7).n_iter <= 7


def test_bad_arguments_are_named(rng):
    X = signals(rng, n=20)
    for name, value in {
        "n_atoms": 0,
        "n_nonzero_coefs": 0,
        "tol": -1.0,
        "batch_size": 0,
        "max_iter": -1,
        "criterion": "best",
        "search": "tree",
        "init": "best",
        "random_state": -1,
        "n_threads": 0,
    }.items():
        arguments = {"n_atoms": 4} | {name: value}
        with pytest.raises(ValueError, match=f"{name} must be"):
            learn_dictionary(X, **arguments)
    with pytest.raises(ValueError, match=r"init must have shape \(4, 12\), got \(4, 3\)"):
        learn_dictionary(X, 4, init=np.ones((4, 3)))
    with pytest.raises(ValueError, match="X must have at least one row"):
        learn_dictionary(X[:0], 4)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="X must be finite"):
        learn_dictionary(X, 4)

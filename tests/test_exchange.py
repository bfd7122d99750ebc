"""exchange_atoms against every exchange tried in plain NumPy, and however it is called."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import CSR, LinearDependenceWarning, exchange_atoms, hashed_omp, omp
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from omp_checks import (
    SIZES,
    assert_same_bits,
    assert_well_formed,
    dense,
    errors,
    sparse_signals,
    unit_atoms,
)


def atoms_of(codes):
    """Of each row, ascending."""
    return [
        sorted(codes.indices[start:end].tolist())
        for start, end in itertools.pairwise(codes.indptr.tolist())
    ]


def best_exchange(x, dictionary, atoms):
    """The atoms after the best exchange, and its squared error; all of them are tried."""
    found = atoms, float(np.sum(oracle.least_squares(x, dictionary, atoms)[1] ** 2))
    for place, atom in itertools.product(range(len(atoms)), range(len(dictionary))):
        other = sorted({*atoms[:place], *atoms[place + 1 :], atom})
        if atom in atoms:
            continue
        error = float(np.sum(oracle.least_squares(x, dictionary, other)[1] ** 2))
        if error < found[1] - 1e-9 * float(x @ x):
            found = other, error
    return found


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_each_exchange_is_the_best_of_all(rng, units, k):
    dictionary = unit_atoms(rng, 30, 9) if units else rng.standard_normal((30, 9)) * 3
    X = rng.standard_normal((25, 9))
    # Atoms at random: there is much to exchange.
    chosen = np.sort([rng.choice(30, k, replace=False) for _ in X])
    codes = CSR(np.ones(25 * k), chosen.ravel(), np.arange(26) * k, (25, 30))
    expected = atoms_of(codes)
    for count in range(4):
        found = exchange_atoms(X, dictionary, codes, max_exchanges=count)
        assert atoms_of(found) == expected
        for x, row, atoms in zip(X, dense(found), expected, strict=True):
            exact = oracle.least_squares(x, dictionary, atoms)[0]
            np.testing.assert_allclose(row[atoms], exact, rtol=1e-9, atol=1e-12)
        expected = [
            best_exchange(x, dictionary, atoms)[0] for x, atoms in zip(X, expected, strict=True)
        ]


def test_it_ends_where_no_exchange_lowers_the_error(rng):
    dictionary, X = unit_atoms(rng, 40, 12), rng.standard_normal((30, 12))
    codes = omp(X, dictionary, n_nonzero_coefs=4)
    found = exchange_atoms(X, dictionary, codes, max_exchanges=1000)
    for x, atoms in zip(X, atoms_of(found), strict=True):
        assert best_exchange(x, dictionary, atoms)[0] == atoms
    assert (errors(X, found, dictionary) <= errors(X, codes, dictionary) + 1e-12).all()
    assert errors(X, found, dictionary).sum() < 0.97 * errors(X, codes, dictionary).sum()
    # What is asked for by default, an exchange an atom, comes close to it.
    usual = exchange_atoms(X, dictionary, codes)
    assert_same_bits(usual, exchange_atoms(X, dictionary, codes, max_exchanges=4))
    assert errors(X, usual, dictionary).sum() < 1.01 * errors(X, found, dictionary).sum()


def test_combinations_that_a_pursuit_misses_are_found(rng):
    dictionary = unit_atoms(rng, 64, 32)
    X, truth = sparse_signals(rng, dictionary, 200, 7)
    codes = omp(X, dictionary, n_nonzero_coefs=7)
    found = exchange_atoms(X, dictionary, codes)
    exact = [np.flatnonzero(row).tolist() for row in truth]

    def right(some):
        return sum(a == b for a, b in zip(atoms_of(some), exact, strict=True))

    assert right(codes) < 150
    assert right(found) > right(codes) + 30


@given(
    n_samples=st.integers(0, 40),
    n_atoms=st.sampled_from(SIZES),
    n_features=st.sampled_from(SIZES),
    k=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None)
def test_errors_never_grow(n_samples, n_atoms, n_features, k, seed, dtype):
    rng = np.random.default_rng(seed)
    dictionary = unit_atoms(rng, n_atoms, n_features, dtype)
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=k)
    found = exchange_atoms(X, dictionary, codes)
    assert_well_formed(found, n_samples, n_atoms, dtype, k)
    np.testing.assert_array_equal(found.indptr, codes.indptr)
    slack = np.sum(X.astype(np.float64) ** 2, axis=1) * np.finfo(dtype).eps * 8
    assert (errors(X, found, dictionary) <= errors(X, codes, dictionary) + slack).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads_or_on_other_rows(rng, dtype):
    dictionary = unit_atoms(rng, 100, 24, dtype)
    X = rng.standard_normal((701, 24)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=5)
    one = exchange_atoms(X, dictionary, codes, n_threads=1)
    for n_threads in (2, 3, 7):
        assert_same_bits(one, exchange_atoms(X, dictionary, codes, n_threads=n_threads))
    some = slice(5 * 100, 5 * 103)
    alone = CSR(codes.data[some], codes.indices[some], np.arange(4) * 5, (3, 100))
    found = exchange_atoms(X[100:103], dictionary, alone, max_exchanges=5)
    np.testing.assert_array_equal(found.data, one.data[some])
    np.testing.assert_array_equal(found.indices, one.indices[some])


def test_the_gram_matrix_may_be_given_or_done_without(rng):
    dictionary = unit_atoms(rng, 4000, 8)
    X = rng.standard_normal((3, 8))  # too few rows for the whole of it
    codes = omp(X, dictionary, n_nonzero_coefs=3)
    found = exchange_atoms(X, dictionary, codes)
    given_gram = exchange_atoms(X, dictionary, codes, gram=dictionary @ dictionary.T)
    assert atoms_of(found) == atoms_of(given_gram)
    assert atoms_of(found) != atoms_of(codes)
    np.testing.assert_allclose(found.data, given_gram.data, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_of_any_dtype_and_layout(rng, dtype, layout):
    dictionary = unit_atoms(rng, 33, 10).astype(dtype)
    X = rng.standard_normal((20, 10)).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    codes = omp(X, dictionary, n_nonzero_coefs=3)
    plain = exchange_atoms(X.astype(wide), dictionary.astype(wide), codes)
    found = exchange_atoms(layout(X), layout(dictionary), codes)
    assert_same_bits(plain, found)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_of_any_dtype_and_order(rng, index_dtype, dtype):
    dictionary, X = unit_atoms(rng, 30, 8), rng.standard_normal((20, 8))
    codes = omp(X, dictionary, n_nonzero_coefs=3)
    reverse = codes.indices.reshape(20, 3)[:, ::-1].ravel()
    other = CSR(
        np.zeros(60, dtype), reverse.astype(index_dtype), codes.indptr.astype(index_dtype), (20, 30)
    )
    found = exchange_atoms(X, dictionary, other)
    expected = exchange_atoms(X, dictionary, codes)
    assert atoms_of(found) == atoms_of(expected)
    assert (np.diff(found.indices.reshape(20, 3)) > 0).all()
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-9)


def test_rows_of_any_number_of_atoms(rng):
    dictionary, X = unit_atoms(rng, 20, 16), rng.standard_normal((17, 16))
    rows = [np.sort(rng.choice(20, count, replace=False)) for count in range(17)]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    codes = CSR(np.ones(indptr[-1]), np.concatenate(rows), indptr, (17, 20))
    found = exchange_atoms(X, dictionary, codes, max_exchanges=100)
    assert list(map(len, atoms_of(found))) == list(range(17))
    assert (
        errors(X, found, dictionary)[16] < 1e-14
    )  # a basis: rounding, times the square of its condition
    for x, atoms in zip(X[:4], atoms_of(found)[:4], strict=True):
        assert best_exchange(x, dictionary, atoms)[0] == atoms


def test_dependent_atoms_stay_as_they_are(rng):
    dictionary = unit_atoms(rng, 10, 4)
    dictionary[3] = -dictionary[7]
    X = rng.standard_normal((3, 4))
    rows = [[7, 3, 1], [0, 1, 2, 4, 5], [6, 6]]
    codes = CSR(np.arange(10.0), np.concatenate(rows), np.array([0, 3, 8, 10]), (3, 10))
    with pytest.warns(LinearDependenceWarning, match="3 of 3 rows were left unchanged"):
        found = exchange_atoms(X, dictionary, codes)
    assert_same_bits(
        found, CSR(codes.data, codes.indices.astype(np.int32), codes.indptr, codes.shape)
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_magnitudes_do_not_matter(rng, scale):
    dictionary, X = unit_atoms(rng, 40, 12), rng.standard_normal((30, 12))
    power = np.ldexp(1.0, int(np.log2(scale)))
    codes = omp(X, dictionary, n_nonzero_coefs=4)
    found = exchange_atoms(X, dictionary, codes)
    np.testing.assert_array_equal(
        exchange_atoms(X * power, dictionary, codes).data, found.data * power
    )
    longer = exchange_atoms(X, dictionary * power, codes)
    np.testing.assert_array_equal(longer.data, found.data / power)
    np.testing.assert_array_equal(longer.indices, found.indices)


def test_zeros_and_atoms_of_no_length(rng):
    dictionary = unit_atoms(rng, 12, 5)
    dictionary[[2, 9]] = 0
    X = np.vstack([np.zeros(5), rng.standard_normal((3, 5))])
    codes = CSR(np.ones(8), np.array([0, 1] * 4), np.arange(5) * 2, (4, 12))
    found = exchange_atoms(X, dictionary, codes)
    assert (found.data[:2] == 0).all()
    assert atoms_of(found)[0] == [0, 1]
    assert not {2, 9} & set(found.indices.tolist())


def test_hashed_codes_are_improved_too(rng):
    dictionary = unit_atoms(rng, 2000, 16, np.float32)
    X = rng.standard_normal((100, 16)).astype(np.float32)
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=3)
    found = exchange_atoms(X, dictionary, codes)
    assert errors(X, found, dictionary).sum() < 0.97 * errors(X, codes, dictionary).sum()


def test_codes_hold_what_they_held(rng):
    dictionary, X = unit_atoms(rng, 30, 8), rng.standard_normal((20, 8))
    codes = omp(X, dictionary, n_nonzero_coefs=3)
    before = [array.copy() for array in (codes.data, codes.indices, codes.indptr)]
    exchange_atoms(X, dictionary, codes)
    for array, expected in zip((codes.data, codes.indices, codes.indptr), before, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": np.eye(3)}, TypeError, "codes must be a CSR, got ndarray"),
        ({"codes": CSR.from_dense(np.eye(3))}, ValueError, r"codes must have shape \(4, 6\)"),
        ({"max_exchanges": -1}, ValueError, "max_exchanges must be"),
        ({"max_exchanges": 1.5}, TypeError, "max_exchanges must be"),
        ({"gram": np.eye(5)}, ValueError, r"gram must have shape \(6, 6\), got \(5, 5\)"),
        ({"gram": np.full((6, 6), np.nan)}, ValueError, "gram must be finite"),
        ({"X": np.full((4, 5), np.nan)}, ValueError, "X must be finite"),
        ({"X": np.ones((4, 4))}, ValueError, "X must have as many columns as the dictionary"),
        ({"dictionary": np.full((6, 5), np.inf)}, ValueError, "dictionary must be finite"),
        ({"n_threads": 0}, ValueError, "n_threads must be"),
    ],
)
def test_bad_arguments_are_refused(rng, change, error, message):
    arguments = {
        "X": rng.standard_normal((4, 5)),
        "dictionary": rng.standard_normal((6, 5)),
        "codes": CSR(np.ones(4), np.arange(4), np.arange(5), (4, 6)),
    }
    exchange_atoms(**arguments)
    with pytest.raises(error, match=message):
        exchange_atoms(**{**arguments, **change})


@pytest.mark.parametrize("share", [0.02, 1e-3])
def test_float32_exchanges_where_float64_does(rng, share):
    noise = rng.standard_normal((30, 32))
    dictionary = (rng.standard_normal(32) + share * noise).astype(np.float32)
    X = rng.standard_normal((50, 32)).astype(np.float32)
    start = omp(X, dictionary, n_nonzero_coefs=6)
    found = exchange_atoms(X, dictionary, start)
    wide = exchange_atoms(X.astype(np.float64), dictionary, start)
    left, least = errors(X, found, dictionary).sum(), errors(X, wide, dictionary).sum()
    assert found.data.dtype == np.float32
    assert least < 0.99 * errors(X, start, dictionary).sum()
    assert left <= 1.01 * least

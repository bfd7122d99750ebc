"""omp against scikit-learn where the problem is well posed, against the oracle where it is hard."""

from __future__ import annotations

from functools import partial

import numpy as np
import oracle
import pytest
from fastfactor import LinearDependenceWarning, omp
from hypothesis import given
from hypothesis import strategies as st
from omp_checks import (
    assert_greedy,
    assert_rows_alone_have_the_same_bits,
    assert_same_bits,
    assert_tol_is_reached_at_the_error,
    assert_well_formed,
    dense,
    errors,
    sparse_signals,
    unit_atoms,
)
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import orthogonal_mp

# --- scikit-learn's answer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_scikit_learn_finds_the_same_codes(rng, dtype, k):
    dictionary = unit_atoms(rng, 120, 40, dtype)
    X = rng.standard_normal((200, 40)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=k)
    # float64: the reference must not lose a choice to its own rounding.
    expected = sparse_encode(
        X.astype(np.float64), dictionary.astype(np.float64), algorithm="omp", n_nonzero_coefs=k
    )
    np.testing.assert_array_equal(dense(codes) != 0, expected != 0)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planted_codes_are_recovered(rng, dtype):
    dictionary = unit_atoms(rng, 100, 80)
    X, planted = sparse_signals(rng, dictionary, 150, 4)
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=4)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(dense(codes), planted, atol=tolerance)


def test_longer_atoms_are_preferred_as_in_scikit_learn(rng):
    lengths = 10 ** rng.uniform(-1, 1, (60, 1))
    dictionary = unit_atoms(rng, 60, 30) * lengths
    X = rng.standard_normal((100, 30))
    expected = orthogonal_mp(dictionary.T, X.T, n_nonzero_coefs=5).T
    np.testing.assert_allclose(
        dense(omp(X, dictionary, n_nonzero_coefs=5)), expected, rtol=1e-9, atol=1e-9
    )
    # The rule matters: unit atoms give other supports.
    unit = omp(X, dictionary / lengths, n_nonzero_coefs=5)
    assert ((dense(unit) != 0) != (expected != 0)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tol_stops_where_scikit_learn_stops(rng, dtype):
    dictionary = unit_atoms(rng, 90, 30, dtype)
    X = rng.standard_normal((120, 30)).astype(dtype)
    expected = orthogonal_mp(dictionary.T.astype(np.float64), X.T.astype(np.float64), tol=2.5).T
    codes = omp(X, dictionary, tol=2.5)
    np.testing.assert_array_equal(dense(codes) != 0, expected != 0)
    np.testing.assert_allclose(dense(codes), expected, atol=1e-4 if dtype == np.float32 else 1e-10)


def test_residuals_are_no_worse_than_scikit_learns(rng):
    dictionary = unit_atoms(rng, 256, 64, np.float32)
    X = rng.standard_normal((400, 64)).astype(np.float32)
    for k in (4, 16):
        theirs = sparse_encode(X, dictionary, algorithm="omp", n_nonzero_coefs=k)
        left = X.astype(np.float64) - theirs.astype(np.float64) @ dictionary.astype(np.float64)
        ours = errors(X, omp(X, dictionary, n_nonzero_coefs=k), dictionary).sum()
        assert ours <= 1.0001 * (left**2).sum()


def test_without_a_limit_a_tenth_of_the_features_are_used(rng):
    for n_features, expected in [(1, 1), (9, 1), (10, 1), (20, 2), (57, 5)]:
        dictionary = rng.standard_normal((64, n_features))
        codes = omp(rng.standard_normal((11, n_features)), dictionary)
        np.testing.assert_array_equal(np.diff(codes.indptr), expected)


# --- limits


@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_the_first_limit_reached_stops(rng, criterion):
    dictionary = unit_atoms(rng, 50, 20)
    X = rng.standard_normal((80, 20))
    by_tol = np.diff(omp(X, dictionary, tol=4.0, criterion=criterion).indptr)
    assert by_tol.min() < 6 < by_tol.max()
    both = omp(X, dictionary, n_nonzero_coefs=6, tol=4.0, criterion=criterion)
    np.testing.assert_array_equal(np.diff(both.indptr), np.minimum(by_tol, 6))
    expected = oracle.omp_codes(X, dictionary, 6, tol=4.0, criterion=criterion)
    np.testing.assert_allclose(dense(both), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7), (1, 3), (3, 1), (1, 1)])
def test_limits_beyond_atoms_and_features(rng, dtype, shape):
    dictionary = rng.standard_normal(shape).astype(dtype)
    X = rng.standard_normal((40, shape[1])).astype(dtype)
    most = omp(X, dictionary, n_nonzero_coefs=min(shape))
    for count in (min(shape) + 1, 1000, 2**31, 2**70):
        assert_same_bits(omp(X, dictionary, n_nonzero_coefs=count), most)
    assert_well_formed(most, 40, shape[0], dtype, min(shape))


@pytest.mark.parametrize(
    ("dtype", "share"),
    [(np.float32, share) for share in (0.5, 1e-2, 1e-5, 1e-7)]
    + [(np.float64, share) for share in (0.5, 1e-2, 1e-7, 1e-10)],
)
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_a_row_that_stopped_by_tol_is_within_tol(rng, dtype, criterion, share):
    dictionary = unit_atoms(rng, 60, 24, dtype)
    X = rng.standard_normal((200, 24)).astype(dtype)
    tol = share * 24
    codes = omp(X, dictionary, tol=tol, criterion=criterion)
    error, counts = errors(X, codes, dictionary), np.diff(codes.indptr)
    # The codes are of the result's precision: what they leave can differ by that from what the
    # search saw, which only shows where tol lies at the level of rounding.
    rounding = 24 * np.finfo(dtype).eps * np.sqrt(tol * (X.astype(np.float64) ** 2).sum(axis=1))
    by_tol = counts < 24
    assert (error[by_tol] <= tol + rounding[by_tol]).all()
    # One atom fewer would not have done.
    for i in np.flatnonzero(by_tol & (counts > 0))[:20]:
        one_less = omp(
            X[i : i + 1], dictionary, n_nonzero_coefs=int(counts[i]) - 1 or 1, criterion=criterion
        )
        if counts[i] > 1:
            assert errors(X[i : i + 1], one_less, dictionary)[0] > tol - rounding[i]
    if share >= 1e-5:
        assert by_tol.any()


def test_tol_at_the_error_of_an_exact_code():
    assert_tol_is_reached_at_the_error(omp)


# --- hard problems


@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40), (33, 33)])
def test_oracle_on_random_data(rng, criterion, shape):
    dictionary = rng.standard_normal(shape)
    X = rng.standard_normal((60, shape[1]))
    for k in (1, 3, 10):
        expected = oracle.omp_codes(X, dictionary, k, criterion=criterion)
        codes = dense(omp(X, dictionary, n_nonzero_coefs=k, criterion=criterion))
        np.testing.assert_allclose(codes, expected, rtol=1e-8, atol=1e-8)


def test_ols_is_no_omp(rng):
    # Atom 0 answers loudest, atoms 1 and 2 together explain more: OLS sees it at the second step.
    dictionary = unit_atoms(rng, 100, 20)
    X = rng.standard_normal((200, 20))
    ols, plain = (
        omp(X, dictionary, n_nonzero_coefs=5, criterion=s) for s in ("ols", "correlation")
    )
    assert errors(X, ols, dictionary).sum() < errors(X, plain, dictionary).sum()


@pytest.mark.parametrize("coherence", [0.9, 0.999])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_oracle_on_coherent_atoms(rng, coherence, criterion):
    common = rng.standard_normal(32)
    dictionary = np.sqrt(coherence) * common + np.sqrt(1 - coherence) * rng.standard_normal(
        (50, 32)
    )
    X = rng.standard_normal((80, 32))
    expected = oracle.omp_codes(X, dictionary, 6, criterion=criterion)
    codes = dense(omp(X, dictionary, n_nonzero_coefs=6, criterion=criterion))
    np.testing.assert_allclose(codes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_choice_is_greedy_on_coherent_atoms(rng, dtype):
    dictionary = rng.standard_normal(24) + 0.1 * rng.standard_normal((40, 24))
    X = rng.standard_normal((30, 24))
    slack = 1e-3 if dtype == np.float32 else 1e-9
    assert_greedy(X.astype(dtype), dictionary.astype(dtype), 8, slack)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("n_distinct", [13, 150])
def test_duplicated_atoms_are_taken_once_and_the_first_of_them(rng, dtype, criterion, n_distinct):
    distinct = rng.standard_normal((n_distinct, 10)).astype(dtype)
    dictionary = np.concatenate([distinct, distinct, -distinct, distinct])
    X = rng.standard_normal((70, 10)).astype(dtype)
    alone = omp(X, distinct, n_nonzero_coefs=10, criterion=criterion)
    codes = omp(X, dictionary, n_nonzero_coefs=10, criterion=criterion)
    assert (codes.indices < n_distinct).all()
    np.testing.assert_array_equal(codes.indices, alone.indices)
    np.testing.assert_array_equal(codes.data, alone.data)


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_deficient_dictionaries_stop_at_their_rank(rng, dtype, criterion, rank):
    dictionary = (rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 30))).astype(dtype)
    X = rng.standard_normal((50, 30)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=30, criterion=criterion)
    assert_well_formed(codes, 50, 40, dtype, rank)
    best = X - X.astype(np.float64) @ np.linalg.pinv(dictionary.astype(np.float64), rcond=1e-5) @ (
        dictionary.astype(np.float64)
    )
    slack = 1.001 if dtype == np.float32 else 1 + 1e-9
    assert (errors(X, codes, dictionary) <= slack * (best**2).sum(axis=1)).all()


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_zero_atoms_are_never_taken(rng, dtype, criterion):
    dictionary = rng.standard_normal((20, 12)).astype(dtype)
    dictionary[[0, 3, 19]] = 0
    X = rng.standard_normal((30, 12)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=12, criterion=criterion)
    assert not np.isin(codes.indices, [0, 3, 19]).any()
    assert len(omp(X, 0 * dictionary, n_nonzero_coefs=5, criterion=criterion).data) == 0
    assert len(omp(X, 0 * dictionary, tol=1e-3, criterion=criterion).data) == 0


@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 3}, {"tol": 0.0}])
@pytest.mark.parametrize("length", [1e-17, 1e-18, 1e-20, 1e-30])
def test_short_atoms_are_taken(criterion, limit, length):
    dictionary = np.diag([1, 0.5, length]).astype(np.float32)
    X = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 0]], np.float32)
    codes = omp(X, dictionary, criterion=criterion, **limit)
    expected = np.array([[0, 0, 1 / length], [1, 2, 1 / length], [0, 2, 0]])
    np.testing.assert_allclose(dense(codes), expected, rtol=1e-6)


@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_atoms_whose_square_has_no_inverse_are_never_taken(criterion):
    dictionary = np.diag([1, 0.5, 1e-160])
    X = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 0]], np.float64)
    with pytest.warns(LinearDependenceWarning, match="2 of 3 rows"):
        codes = omp(X, dictionary, criterion=criterion, n_nonzero_coefs=3)
    np.testing.assert_allclose(dense(codes), [[0, 0, 0], [1, 2, 0], [0, 2, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 7}, {"tol": 0.0}, {"tol": 1e-3}, {}])
def test_zero_signals_have_empty_codes(rng, dtype, limit):
    dictionary = rng.standard_normal((20, 12)).astype(dtype)
    X = rng.standard_normal((31, 12)).astype(dtype)
    X[::3] = 0
    counts = np.diff(omp(X, dictionary, **limit).indptr)
    assert (counts[::3] == 0).all()
    assert (counts[1::3] > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 60}, {"tol": 0.0}])
def test_signals_in_the_span_of_few_atoms_end_there(rng, dtype, criterion, limit):
    dictionary = unit_atoms(rng, 100, 60)
    X, planted = sparse_signals(rng, dictionary, 90, 3)
    X, dictionary = X.astype(dtype), dictionary.astype(dtype)
    codes = omp(X, dictionary, criterion=criterion, **limit)
    assert_well_formed(codes, 90, 100, dtype, 60)
    norms = (X.astype(np.float64) ** 2).sum(axis=1)
    assert (errors(X, codes, dictionary) <= (40 * np.finfo(dtype).eps) ** 2 * norms).all()
    # What X was rounded to is not quite in the span: a few atoms may go into that, not sixty.
    assert (np.diff(codes.indptr) <= (3 if dtype == np.float64 else 12)).mean() > 0.9
    found = dense(codes)
    np.testing.assert_allclose(found[planted != 0], planted[planted != 0], atol=1e-4)


def test_exact_signals_stop_with_no_residual():
    # Orthogonal integer atoms and integer coefficients: every number is exact, zero is zero.
    dictionary = np.array(
        [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32
    )
    dictionary = np.concatenate([dictionary, 2 * dictionary[::-1]])
    planted = np.array([[0, 0, 0, 0, 3, 0, 0, 1], [0, 0, 0, 0, 0, 0, 5, 0]], np.float32)
    codes = omp(planted @ dictionary, dictionary, n_nonzero_coefs=4)
    np.testing.assert_array_equal(codes.to_dense(), planted)
    np.testing.assert_array_equal(np.diff(codes.indptr), [2, 1])


SMALL_INTEGERS = st.integers(-2, 2)


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
@given(
    data=st.data(),
    n_atoms=st.integers(1, 12),
    n_features=st.integers(1, 6),
    n_samples=st.integers(0, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_integer_problem_is_coded_greedily(data, n_atoms, n_features, n_samples, dtype):
    """Full of ties, duplicates, zeros and dependent atoms, and exact enough to judge."""

    def matrix(rows):
        row = st.lists(SMALL_INTEGERS, min_size=n_features, max_size=n_features)
        drawn = data.draw(st.lists(row, min_size=rows, max_size=rows))
        return np.array(drawn, dtype).reshape(rows, n_features)

    X, dictionary = matrix(n_samples), matrix(n_atoms)
    limit = min(n_atoms, n_features)
    codes = omp(X, dictionary, n_nonzero_coefs=limit)
    assert_well_formed(codes, n_samples, n_atoms, dtype, limit)
    assert_greedy(X, dictionary, limit, 1e-3 if dtype == np.float32 else 1e-7)
    first = omp(X, dictionary, n_nonzero_coefs=1)
    correlation = np.abs(X @ dictionary.T)
    taken = first.indices[first.indptr[:-1][np.diff(first.indptr) > 0]]
    np.testing.assert_array_equal(taken, correlation.argmax(axis=1)[correlation.any(axis=1)])


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
@given(
    data=st.data(),
    n_atoms=st.integers(1, 12),
    n_features=st.integers(1, 6),
    dtype=st.sampled_from([np.float32, np.float64]),
    criterion=st.sampled_from(["correlation", "ols"]),
)
def test_any_integer_problem_has_least_squares_codes(data, n_atoms, n_features, dtype, criterion):
    row = st.lists(SMALL_INTEGERS, min_size=n_features, max_size=n_features)
    dictionary = np.array(data.draw(st.lists(row, min_size=n_atoms, max_size=n_atoms)), dtype)
    X = np.array(data.draw(st.lists(row, min_size=3, max_size=3)), dtype)
    before = np.inf
    for limit in range(1, min(n_atoms, n_features) + 1):
        codes = omp(X, dictionary, n_nonzero_coefs=limit, criterion=criterion)
        assert_well_formed(codes, 3, n_atoms, dtype, limit)
        error = errors(X, codes, dictionary)
        for i in range(3):
            atoms = codes.indices[codes.indptr[i] : codes.indptr[i + 1]]
            residual = oracle.least_squares(X[i], dictionary, atoms)[1] if len(atoms) else X[i]
            assert error[i] <= residual @ residual + 1e-4 * (X[i] @ X[i])
        assert (error <= before + 1e-4 * (X.astype(np.float64) ** 2).sum(axis=1)).all()
        before = error


# --- the Gram matrix


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_a_given_gram_changes_nothing(rng, dtype, criterion):
    # Integers, so that NumPy's Gram matrix and ours have the same bits.
    dictionary = rng.integers(-9, 10, (70, 33)).astype(dtype)
    X = rng.standard_normal((90, 33)).astype(dtype)
    gram = dictionary @ dictionary.T
    options = {"n_nonzero_coefs": 8, "criterion": criterion}
    assert_same_bits(omp(X, dictionary, gram=gram, **options), omp(X, dictionary, **options))
    assert_same_bits(
        omp(X, dictionary, gram=np.asfortranarray(gram), **options), omp(X, dictionary, **options)
    )


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
def test_a_given_gram_is_used(rng):
    # A Gram matrix that claims atom 1 to be atom 0 makes atom 1 dependent.
    dictionary = np.eye(3)
    claimed = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    codes = omp(np.array([[3.0, 2, 1]]), dictionary, gram=claimed, n_nonzero_coefs=3)
    assert 1 not in codes.indices


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_few_rows_of_a_big_dictionary_have_the_bits_of_many(rng, dtype, criterion):
    # Few rows take the Gram matrix row by row, many build it whole.
    dictionary = rng.standard_normal((1500, 37)).astype(dtype)
    X = rng.standard_normal((400, 37)).astype(dtype)
    encode = partial(omp, n_nonzero_coefs=5, criterion=criterion)
    parts = [(0, 1), (211, 212), (399, 400)]
    assert_rows_alone_have_the_same_bits(encode, X, dictionary, parts)


# --- atoms that depend on each other almost linearly


def near_duplicates(rng, n_atoms, n_features, share):
    """Atoms b + share · noise in float32, and signals."""
    noise = rng.standard_normal((n_atoms, n_features))
    dictionary = (rng.standard_normal(n_features) + share * noise).astype(np.float32)
    return rng.standard_normal((50, n_features)).astype(np.float32), dictionary


@pytest.mark.parametrize("share", [0.1, 0.02, 1e-3, 1e-4])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
@pytest.mark.parametrize("n_nonzero", [5, 15])
def test_float32_goes_on_where_float64_does(rng, share, criterion, n_nonzero):
    X, dictionary = near_duplicates(rng, 20, 32, share)
    options = {"n_nonzero_coefs": n_nonzero, "criterion": criterion}
    codes = omp(X, dictionary, **options)
    wide = omp(X.astype(np.float64), dictionary.astype(np.float64), **options)
    assert codes.data.dtype == np.float32
    assert codes.nnz == wide.nnz == 50 * n_nonzero
    left = errors(X, codes, dictionary).sum()
    assert left <= 1.01 * errors(X, wide, dictionary).sum()


def test_ols_is_as_good_among_atoms_of_both_kinds(rng):
    X, close = near_duplicates(rng, 20, 32, 0.01)
    dictionary = np.concatenate([close, unit_atoms(rng, 8, 32, np.float32)])
    codes = omp(X, dictionary, n_nonzero_coefs=8, criterion="ols")
    wide = omp(X.astype(np.float64), dictionary, n_nonzero_coefs=8, criterion="ols")
    assert errors(X, codes, dictionary).sum() <= 1.01 * errors(X, wide, dictionary).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_rows_that_end_early_are_warned_of(rng, dtype, criterion):
    atoms = unit_atoms(rng, 3, 8, dtype)
    dictionary = np.concatenate([atoms, atoms])
    X = np.concatenate([rng.standard_normal((4, 8)), np.zeros((2, 8)), atoms[:2]]).astype(dtype)
    with pytest.warns(LinearDependenceWarning, match="4 of 8 rows ended early, with an error left"):
        codes = omp(X, dictionary, n_nonzero_coefs=5, criterion=criterion)
    assert codes.nnz == 4 * 3 + 2
    with pytest.warns(LinearDependenceWarning, match="4 of 8 rows"):
        omp(X, dictionary, tol=1e-3, criterion=criterion)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", ["correlation", "ols"])
def test_rows_without_an_error_cause_no_warning(rng, dtype, criterion):
    dictionary = unit_atoms(rng, 60, 20, dtype)
    X = np.concatenate([sparse_signals(rng, dictionary, 200, 3)[0], np.zeros((5, 20))]).astype(
        dtype
    )
    codes = omp(X, dictionary, n_nonzero_coefs=15, criterion=criterion)
    assert (np.diff(codes.indptr) == 3).sum() > 100

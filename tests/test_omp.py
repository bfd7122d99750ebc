"""omp against scikit-learn where the problem is well posed, against the oracle where it is hard."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import omp
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import orthogonal_mp

SIZES = [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65]


def unit_atoms(rng, n_atoms, n_features, dtype=np.float64):
    atoms = rng.standard_normal((n_atoms, n_features))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(dtype)


def sparse_signals(rng, dictionary, n_samples, n_nonzero):
    """Rows that combine few atoms with coefficients between 1 and 2, and their codes."""
    codes = np.zeros((n_samples, len(dictionary)))
    for row in codes:
        atoms = rng.choice(len(dictionary), n_nonzero, replace=False)
        row[atoms] = rng.choice([-1, 1], n_nonzero) * rng.uniform(1, 2, n_nonzero)
    return codes @ dictionary, codes


def dense(codes):
    """The codes as a matrix, from their arrays alone."""
    matrix = np.zeros(codes.shape)
    for i, (start, end) in enumerate(zip(codes.indptr[:-1], codes.indptr[1:], strict=True)):
        matrix[i, codes.indices[start:end]] = codes.data[start:end]
    return matrix


def errors(X, codes, dictionary):
    """Squared errors of the rows, in float64."""
    left = np.asarray(X, np.float64) - dense(codes) @ np.asarray(dictionary, np.float64)
    return np.einsum("ij,ij->i", left, left)


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.indptr, other.indptr)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.data, other.data)
    assert one.data.dtype == other.data.dtype


def assert_well_formed(codes, n_samples, n_atoms, dtype, limit):
    assert codes.shape == (n_samples, n_atoms)
    assert codes.data.dtype == dtype
    assert codes.indices.dtype == np.int32
    assert len(codes.indptr) == n_samples + 1
    assert codes.indptr[0] == 0
    assert codes.indptr[-1] == len(codes.data) == len(codes.indices)
    counts = np.diff(codes.indptr)
    assert (counts >= 0).all()
    assert (counts <= limit).all()
    assert np.isfinite(codes.data).all()
    for start, end in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        assert (np.diff(codes.indices[start:end]) > 0).all()  # ascending, so none twice
        assert ((codes.indices[start:end] >= 0) & (codes.indices[start:end] < n_atoms)).all()


def assert_greedy(X, dictionary, limit, slack, **options):
    """Each atom taken is the best one for what the atoms before it left, up to rounding.

    The order in which atoms were taken shows in the codes of ever larger limits.
    """
    X64, D64 = np.asarray(X, np.float64), np.asarray(dictionary, np.float64)
    longest = np.linalg.norm(D64, axis=1).max(initial=0)
    chosen = [[] for _ in X64]
    for count in range(1, limit + 1):
        codes = omp(X, dictionary, n_nonzero_coefs=count, **options)
        for i, x in enumerate(X64):
            residual = oracle.least_squares(x, D64, chosen[i])[1] if chosen[i] else x
            correlation = np.abs(D64 @ residual)
            support = set(codes.indices[codes.indptr[i] : codes.indptr[i + 1]].tolist())
            assert set(chosen[i]) <= support
            new = support - set(chosen[i])
            assert len(new) <= 1
            enough = slack * np.linalg.norm(x) * longest
            if new:
                assert correlation[next(iter(new))] >= correlation.max() - enough
                chosen[i].append(new.pop())
            else:
                assert correlation.max() <= enough  # it stopped because nothing was left


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


@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_the_first_limit_reached_stops(rng, selection):
    dictionary = unit_atoms(rng, 50, 20)
    X = rng.standard_normal((80, 20))
    by_tol = np.diff(omp(X, dictionary, tol=4.0, selection=selection).indptr)
    assert by_tol.min() < 6 < by_tol.max()
    both = omp(X, dictionary, n_nonzero_coefs=6, tol=4.0, selection=selection)
    np.testing.assert_array_equal(np.diff(both.indptr), np.minimum(by_tol, 6))
    expected = oracle.omp_codes(X, dictionary, 6, tol=4.0, selection=selection)
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
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_a_row_that_stopped_by_tol_is_within_tol(rng, dtype, selection, share):
    dictionary = unit_atoms(rng, 60, 24, dtype)
    X = rng.standard_normal((200, 24)).astype(dtype)
    tol = share * 24
    codes = omp(X, dictionary, tol=tol, selection=selection)
    error, counts = errors(X, codes, dictionary), np.diff(codes.indptr)
    # The codes are of the result's precision: what they leave can differ by that from what the
    # search saw, which only shows where tol lies at the level of rounding.
    rounding = 24 * np.finfo(dtype).eps * np.sqrt(tol * (X.astype(np.float64) ** 2).sum(axis=1))
    by_tol = counts < 24
    assert (error[by_tol] <= tol + rounding[by_tol]).all()
    # One atom fewer would not have done.
    for i in np.flatnonzero(by_tol & (counts > 0))[:20]:
        one_less = omp(
            X[i : i + 1], dictionary, n_nonzero_coefs=int(counts[i]) - 1 or 1, selection=selection
        )
        if counts[i] > 1:
            assert errors(X[i : i + 1], one_less, dictionary)[0] > tol - rounding[i]
    if share >= 1e-5:
        assert by_tol.any()


def test_tol_at_the_error_of_an_exact_code():
    # Errors are small integers, so exact in every precision: tol decides by ≤, not by <.
    X = np.array([[3, 2, 1, 0]], np.float32)
    atoms = np.eye(4, dtype=np.float32)
    counts = {14: 0, 13: 1, 5: 1, 4.5: 2, 1: 2, 0.5: 3, 0: 3}
    assert {tol: omp(X, atoms, tol=tol).indptr[-1] for tol in counts} == counts
    assert omp(X, atoms, tol=np.inf).indptr[-1] == 0


# --- hard problems


@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40), (33, 33)])
def test_oracle_on_random_data(rng, selection, shape):
    dictionary = rng.standard_normal(shape)
    X = rng.standard_normal((60, shape[1]))
    for k in (1, 3, 10):
        expected = oracle.omp_codes(X, dictionary, k, selection=selection)
        codes = dense(omp(X, dictionary, n_nonzero_coefs=k, selection=selection))
        np.testing.assert_allclose(codes, expected, rtol=1e-8, atol=1e-8)


def test_ols_is_no_omp(rng):
    # Atom 0 answers loudest, atoms 1 and 2 together explain more: OLS sees it at the second step.
    dictionary = unit_atoms(rng, 100, 20)
    X = rng.standard_normal((200, 20))
    ols, plain = (omp(X, dictionary, n_nonzero_coefs=5, selection=s) for s in ("ols", "omp"))
    assert errors(X, ols, dictionary).sum() < errors(X, plain, dictionary).sum()


@pytest.mark.parametrize("coherence", [0.9, 0.999])
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_oracle_on_coherent_atoms(rng, coherence, selection):
    common = rng.standard_normal(32)
    dictionary = np.sqrt(coherence) * common + np.sqrt(1 - coherence) * rng.standard_normal(
        (50, 32)
    )
    X = rng.standard_normal((80, 32))
    expected = oracle.omp_codes(X, dictionary, 6, selection=selection)
    codes = dense(omp(X, dictionary, n_nonzero_coefs=6, selection=selection))
    np.testing.assert_allclose(codes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_choice_is_greedy_on_coherent_atoms(rng, dtype):
    dictionary = rng.standard_normal(24) + 0.1 * rng.standard_normal((40, 24))
    X = rng.standard_normal((30, 24))
    slack = 1e-3 if dtype == np.float32 else 1e-9
    assert_greedy(X.astype(dtype), dictionary.astype(dtype), 8, slack)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("n_distinct", [13, 150])
def test_duplicated_atoms_are_taken_once_and_the_first_of_them(rng, dtype, selection, n_distinct):
    distinct = rng.standard_normal((n_distinct, 10)).astype(dtype)
    dictionary = np.concatenate([distinct, distinct, -distinct, distinct])
    X = rng.standard_normal((70, 10)).astype(dtype)
    alone = omp(X, distinct, n_nonzero_coefs=10, selection=selection)
    codes = omp(X, dictionary, n_nonzero_coefs=10, selection=selection)
    assert (codes.indices < n_distinct).all()
    np.testing.assert_array_equal(codes.indices, alone.indices)
    np.testing.assert_array_equal(codes.data, alone.data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_deficient_dictionaries_stop_at_their_rank(rng, dtype, selection, rank):
    dictionary = (rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 30))).astype(dtype)
    X = rng.standard_normal((50, 30)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=30, selection=selection)
    assert_well_formed(codes, 50, 40, dtype, rank)
    best = X - X.astype(np.float64) @ np.linalg.pinv(dictionary.astype(np.float64), rcond=1e-5) @ (
        dictionary.astype(np.float64)
    )
    slack = 1.001 if dtype == np.float32 else 1 + 1e-9
    assert (errors(X, codes, dictionary) <= slack * (best**2).sum(axis=1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_zero_atoms_are_never_taken(rng, dtype, selection):
    dictionary = rng.standard_normal((20, 12)).astype(dtype)
    dictionary[[0, 3, 19]] = 0
    X = rng.standard_normal((30, 12)).astype(dtype)
    codes = omp(X, dictionary, n_nonzero_coefs=12, selection=selection)
    assert not np.isin(codes.indices, [0, 3, 19]).any()
    assert len(omp(X, 0 * dictionary, n_nonzero_coefs=5, selection=selection).data) == 0
    assert len(omp(X, 0 * dictionary, tol=1e-3, selection=selection).data) == 0


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
@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 60}, {"tol": 0.0}])
def test_signals_in_the_span_of_few_atoms_end_there(rng, dtype, selection, limit):
    dictionary = unit_atoms(rng, 100, 60)
    X, planted = sparse_signals(rng, dictionary, 90, 3)
    X, dictionary = X.astype(dtype), dictionary.astype(dtype)
    codes = omp(X, dictionary, selection=selection, **limit)
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


@given(
    data=st.data(),
    n_atoms=st.integers(1, 12),
    n_features=st.integers(1, 6),
    dtype=st.sampled_from([np.float32, np.float64]),
    selection=st.sampled_from(["omp", "ols"]),
)
def test_any_integer_problem_has_least_squares_codes(data, n_atoms, n_features, dtype, selection):
    row = st.lists(SMALL_INTEGERS, min_size=n_features, max_size=n_features)
    dictionary = np.array(data.draw(st.lists(row, min_size=n_atoms, max_size=n_atoms)), dtype)
    X = np.array(data.draw(st.lists(row, min_size=3, max_size=3)), dtype)
    before = np.inf
    for limit in range(1, min(n_atoms, n_features) + 1):
        codes = omp(X, dictionary, n_nonzero_coefs=limit, selection=selection)
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
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_a_given_gram_changes_nothing(rng, dtype, selection):
    # Integers, so that NumPy's Gram matrix and ours have the same bits.
    dictionary = rng.integers(-9, 10, (70, 33)).astype(dtype)
    X = rng.standard_normal((90, 33)).astype(dtype)
    gram = dictionary @ dictionary.T
    options = {"n_nonzero_coefs": 8, "selection": selection}
    assert_same_bits(omp(X, dictionary, gram=gram, **options), omp(X, dictionary, **options))
    assert_same_bits(
        omp(X, dictionary, gram=np.asfortranarray(gram), **options), omp(X, dictionary, **options)
    )


def test_a_given_gram_is_used(rng):
    # A Gram matrix that claims atom 1 to be atom 0 makes atom 1 dependent.
    dictionary = np.eye(3)
    claimed = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    codes = omp(np.array([[3.0, 2, 1]]), dictionary, gram=claimed, n_nonzero_coefs=3)
    assert 1 not in codes.indices


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_few_rows_of_a_big_dictionary_have_the_bits_of_many(rng, dtype, selection):
    # Few rows take the Gram matrix row by row, many build it whole.
    dictionary = rng.standard_normal((1500, 37)).astype(dtype)
    X = rng.standard_normal((400, 37)).astype(dtype)
    many = omp(X, dictionary, n_nonzero_coefs=5, selection=selection)
    for first in (0, 211, 399):
        few = omp(X[first : first + 1], dictionary, n_nonzero_coefs=5, selection=selection)
        at = slice(many.indptr[first], many.indptr[first + 1])
        np.testing.assert_array_equal(few.indices, many.indices[at])
        np.testing.assert_array_equal(few.data, many.data[at])


# --- the same bits, however it is called


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 6}, {"tol": 3.0}])
def test_a_row_alone_has_the_bits_it_has_among_others(rng, dtype, limit):
    dictionary = rng.standard_normal((65, 17)).astype(dtype)
    X = rng.standard_normal((997, 17)).astype(dtype)
    together = omp(X, dictionary, **limit)
    for first, end in [(0, 1), (1, 2), (11, 13), (500, 997), (763, 775), (996, 997)]:
        part = omp(X[first:end], dictionary, **limit)
        at = slice(together.indptr[first], together.indptr[end])
        np.testing.assert_array_equal(part.indices, together.indices[at])
        np.testing.assert_array_equal(part.data, together.data[at])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_samples", "n_atoms", "n_features"), [(3001, 67, 19), (50, 2000, 40)])
def test_any_number_of_threads_gives_the_same_bits(
    rng, dtype, n_threads, n_samples, n_atoms, n_features
):
    dictionary = rng.standard_normal((n_atoms, n_features)).astype(dtype)
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    for options in (
        {"n_nonzero_coefs": 5},
        {"tol": 4.0},
        {"n_nonzero_coefs": 4, "selection": "ols"},
    ):
        assert_same_bits(
            omp(X, dictionary, n_threads=n_threads, **options),
            omp(X, dictionary, n_threads=1, **options),
        )


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened_exactly(rng, narrow):
    X = rng.standard_normal((101, 23)).astype(narrow)
    dictionary = rng.standard_normal((40, 23)).astype(narrow)
    X[0, :3] = np.array([6e-8, -3e-5, 0], narrow)  # float16's denormals too
    expected = omp(X.astype(np.float32), dictionary.astype(np.float32), n_nonzero_coefs=5)
    assert_same_bits(omp(X, dictionary, n_nonzero_coefs=5), expected)
    gram = (dictionary.astype(np.float32) @ dictionary.astype(np.float32).T).astype(narrow)
    assert_same_bits(
        omp(X, dictionary, gram=gram, n_nonzero_coefs=5),
        omp(X, dictionary, gram=gram.astype(np.float32), n_nonzero_coefs=5),
    )


def test_one_float64_operand_makes_a_float64_result(rng):
    X = rng.standard_normal((9, 8)).astype(np.float32)
    dictionary = rng.standard_normal((12, 8)).astype(np.float32)
    wide = omp(X.astype(np.float64), dictionary.astype(np.float64), n_nonzero_coefs=3)
    assert_same_bits(omp(X, dictionary.astype(np.float64), n_nonzero_coefs=3), wide)
    assert_same_bits(omp(X.astype(np.float64), dictionary, n_nonzero_coefs=3), wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_layout_does_not_matter(rng, layout, dtype):
    X = rng.standard_normal((37, 13)).astype(dtype)
    dictionary = rng.standard_normal((29, 13)).astype(dtype)
    expected = omp(X, dictionary, n_nonzero_coefs=4)
    assert_same_bits(omp(layout(X), layout(dictionary), n_nonzero_coefs=4), expected)


def test_read_only_memory_maps(rng, as_memmap):
    X = rng.standard_normal((200, 13)).astype(np.float32)
    dictionary = rng.standard_normal((29, 13)).astype(np.float32)
    gram = (dictionary @ dictionary.T).astype(np.float32)
    codes = omp(as_memmap(X), as_memmap(dictionary), gram=as_memmap(gram), n_nonzero_coefs=4)
    assert_same_bits(codes, omp(X, dictionary, gram=gram, n_nonzero_coefs=4))


def test_rows_that_share_memory(rng):
    # A stride of zero, and windows that overlap.
    row = rng.standard_normal(21)
    dictionary = rng.standard_normal((30, 21))
    same = omp(np.broadcast_to(row, (5, 21)), dictionary, n_nonzero_coefs=3)
    np.testing.assert_array_equal(same.indices, np.tile(same.indices[:3], 5))
    windows = np.lib.stride_tricks.sliding_window_view(rng.standard_normal(60), 21)
    assert_same_bits(
        omp(windows, dictionary, n_nonzero_coefs=3),
        omp(windows.copy(), dictionary, n_nonzero_coefs=3),
    )


def test_lists_of_floats():
    codes = omp([[0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], n_nonzero_coefs=1)
    np.testing.assert_array_equal(codes.to_dense(), [[0.0, 2.0]])


def test_operands_are_not_written_to(rng):
    X, dictionary = rng.standard_normal((40, 9)), rng.standard_normal((20, 9))
    gram = dictionary @ dictionary.T
    copies = X.copy(), dictionary.copy(), gram.copy()
    omp(X, dictionary, gram=gram, n_nonzero_coefs=4)
    for array, copy in zip((X, dictionary, gram), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- sizes and magnitudes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", SIZES)
def test_any_number_of_atoms(rng, dtype, n_atoms):
    dictionary = rng.standard_normal((n_atoms, 12))
    X = rng.standard_normal((25, 12))
    expected = oracle.omp_codes(X, dictionary, 4)
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=4)
    assert_well_formed(codes, 25, n_atoms, dtype, 4)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_features", [*SIZES, 255, 256, 257, 513, 1021])
def test_any_number_of_features(rng, dtype, n_features):
    dictionary = rng.standard_normal((20, n_features))
    X = rng.standard_normal((14, n_features))
    limit = min(3, n_features)
    expected = oracle.omp_codes(X, dictionary, limit)
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=limit)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_samples", [0, *SIZES, 767, 768, 769])
def test_any_number_of_rows(rng, dtype, n_samples):
    dictionary = rng.standard_normal((21, 11))
    X = rng.standard_normal((n_samples, 11))
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=2)
    assert_well_formed(codes, n_samples, 21, dtype, 2)
    expected = oracle.omp_codes(X, dictionary, 2)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [15, 16, 17, 33, 40])
def test_codes_longer_than_the_first_allocation(rng, count):
    dictionary = rng.standard_normal((60, 45))
    X = rng.standard_normal((10, 45))
    np.testing.assert_allclose(
        dense(omp(X, dictionary, n_nonzero_coefs=count)),
        oracle.omp_codes(X, dictionary, count),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("power", [-110, -60, -1, 1, 60, 110])
def test_scaling_by_a_power_of_two_scales_the_codes(rng, power):
    dictionary = rng.standard_normal((50, 20)).astype(np.float32)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    scale = np.float32(2.0**power)
    base = omp(X, dictionary, n_nonzero_coefs=6)
    scaled = omp(X * scale, dictionary, n_nonzero_coefs=6)
    np.testing.assert_array_equal(scaled.indices, base.indices)
    np.testing.assert_array_equal(scaled.data, base.data * scale)
    shrunk = omp(X, dictionary * scale, n_nonzero_coefs=6)
    np.testing.assert_array_equal(shrunk.indices, base.indices)
    np.testing.assert_array_equal(shrunk.data, base.data / scale)


def test_tol_scales_with_the_square(rng):
    dictionary = rng.standard_normal((50, 20)).astype(np.float32)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    base = omp(X, dictionary, tol=3.0)
    scaled = omp(X * np.float32(2.0**-70), dictionary, tol=3.0 * 2.0**-140)
    np.testing.assert_array_equal(scaled.indices, base.indices)


def test_rows_of_any_magnitude_side_by_side(rng):
    dictionary = unit_atoms(rng, 40, 8, np.float32)
    X = rng.uniform(0.5, 1, (77, 8)).astype(np.float32)
    magnitudes = (10.0 ** np.linspace(-38, 38, 77)).astype(np.float32)[:, None]
    codes = omp(X * magnitudes, dictionary, n_nonzero_coefs=3)
    assert_well_formed(codes, 77, 40, np.float32, 3)
    expected = oracle.omp_codes((X * magnitudes).astype(np.float64), dictionary, 3)
    relative = np.abs(dense(codes) - expected) / magnitudes
    assert relative.max() < 1e-4


def test_denormal_rows(rng):
    X = np.array([[1e-45, 0, 0], [0, 3e-42, 0], [0, 0, -1e-40]], np.float32)
    codes = omp(X, np.eye(3, dtype=np.float32), n_nonzero_coefs=2)
    np.testing.assert_array_equal(codes.to_dense(), X)


# --- bad input

X_OK = np.ones((4, 3), np.float32)
ATOMS_OK = np.eye(3, dtype=np.float32)
DTYPES = "must have dtype float16, bfloat16, float32 or float64 in native byte order, got "


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (X_OK.astype(np.int32), "int32"),
        (X_OK.astype(bool), "bool"),
        (X_OK.astype(np.complex64), "complex64"),
        (X_OK.astype(np.longdouble), "float128|longdouble"),
        (X_OK.astype(">f4" if np.little_endian else "<f4"), "[<>]f4"),
        (X_OK.astype(object), "object"),
        (X_OK.astype(str), "<U"),
        ([["a", "b", "c"]], "<U"),
        ([[1, 2, 3]], "int"),
        (None, "object"),
    ],
)
@pytest.mark.parametrize("name", ["X", "dictionary"])
def test_wrong_dtypes(name, bad, said):
    operands = {"X": X_OK, "dictionary": ATOMS_OK, name: bad}
    with pytest.raises(TypeError, match=f"^{name} {DTYPES}({said})"):
        omp(**operands)


@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "O", "U1"])
def test_wrong_dtypes_of_gram(dtype):
    with pytest.raises(TypeError, match=f"^gram {DTYPES}"):
        omp(X_OK, ATOMS_OK, gram=np.eye(3).astype(dtype))


@pytest.mark.parametrize("name", ["X", "dictionary", "gram"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3, 3)])
def test_wrong_ranks(name, shape):
    operands = {"X": X_OK, "dictionary": ATOMS_OK, name: np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=rf"^{name} must have 2 dimensions, got shape \("):
        omp(**operands)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        (
            {"X": np.ones((4, 2), np.float32)},
            r"X must have as many columns as the dictionary, 3, got shape \(4, 2\)",
        ),
        (
            {"X": np.ones((4, 0), np.float32)},
            r"X must have as many columns as the dictionary, 3, got shape \(4, 0\)",
        ),
        (
            {"gram": np.eye(4, dtype=np.float32)},
            r"gram must have shape \(3, 3\), got \(4, 4\)",
        ),
        (
            {"gram": np.ones((3, 2), np.float32)},
            r"gram must have shape \(3, 3\), got \(3, 2\)",
        ),
        (
            {"dictionary": np.ones((0, 3), np.float32)},
            r"dictionary must have at least one atom and one feature, got shape \(0, 3\)",
        ),
        (
            {"dictionary": np.ones((3, 0), np.float32)},
            r"dictionary must have at least one atom and one feature, got shape \(3, 0\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(operands, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        omp(**{"X": X_OK, "dictionary": ATOMS_OK, **operands})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "dictionary", "gram"])
def test_nan_and_infinity(rng, name, value, dtype):
    operands = {
        "X": rng.standard_normal((2000, 5)).astype(dtype),
        "dictionary": rng.standard_normal((90, 5)).astype(dtype),
    }
    if name == "gram":
        wide = operands["dictionary"].astype(np.float32)
        operands["gram"] = (wide @ wide.T).astype(dtype)
    rows, columns = operands[name].shape
    for at in [(0, 0), (rows - 1, columns - 1), (rows // 2, 3)]:
        broken = operands[name].copy()
        broken[at] = value
        place = rf"\[{at[0]}, {at[1]}\]"
        with pytest.raises(ValueError, match=rf"^{name} must be finite, got {value} at {place}$"):
            omp(**{**operands, name: broken}, n_nonzero_coefs=2, n_threads=2)


def test_a_limit_of_magnitude_is_named():
    with pytest.raises(ValueError, match=r"^dictionary must have a finite squared norm in row 0"):
        omp(np.ones((1, 2)), np.full((2, 2), 1e200), n_nonzero_coefs=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_nonzero_coefs": 0}, ValueError, "n_nonzero_coefs must be at least 1, got 0"),
        ({"n_nonzero_coefs": -1}, ValueError, "n_nonzero_coefs must be at least 1, got -1"),
        ({"n_nonzero_coefs": 1.5}, TypeError, "n_nonzero_coefs must be an integer .*, got 1.5"),
        ({"n_nonzero_coefs": 2.0}, TypeError, "n_nonzero_coefs must be an integer .*, got 2.0"),
        ({"n_nonzero_coefs": True}, TypeError, "n_nonzero_coefs must be an integer .*, got True"),
        ({"n_nonzero_coefs": "3"}, TypeError, "n_nonzero_coefs must be an integer .*, got '3'"),
        ({"tol": -1e-9}, ValueError, "tol must be zero or more, got -1e-09"),
        ({"tol": np.nan}, ValueError, "tol must be zero or more, got nan"),
        ({"tol": -np.inf}, ValueError, "tol must be zero or more, got -inf"),
        ({"tol": "much"}, TypeError, "tol must be a number .*, got 'much'"),
        ({"tol": "0.5"}, TypeError, "tol must be a number .*, got '0.5'"),
        ({"tol": [1.0]}, TypeError, r"tol must be a number .*, got \[1.0\]"),
        ({"tol": 1j}, TypeError, "tol must be a number .*, got 1j"),
        ({"selection": "lars"}, ValueError, "selection must be one of 'omp', 'ols', got 'lars'"),
        ({"selection": None}, TypeError, "selection must be one of 'omp', 'ols', got None"),
        ({"n_threads": 0}, ValueError, r"n_threads must be in \[1, 1024\], got 0"),
        ({"n_threads": -1}, ValueError, r"n_threads must be in \[1, 1024\], got -1"),
        ({"n_threads": 1025}, ValueError, r"n_threads must be in \[1, 1024\], got 1025"),
        ({"n_threads": 1.5}, TypeError, "n_threads must be an integer .*, got 1.5"),
        ({"n_threads": True}, TypeError, "n_threads must be an integer .*, got True"),
        ({"n_threads": "2"}, TypeError, "n_threads must be an integer .*, got '2'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        omp(X_OK, ATOMS_OK, **options)


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        omp(X_OK, ATOMS_OK, 2)


def test_numpy_integers_and_floats_are_numbers():
    codes = omp(
        X_OK, ATOMS_OK, n_nonzero_coefs=np.int16(2), tol=np.float32(0), n_threads=np.uint8(1)
    )
    np.testing.assert_array_equal(np.diff(codes.indptr), 2)

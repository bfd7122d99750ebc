"""kmeans against the oracle step by step, against scikit-learn from the same start; its rules."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import assign, kmeans
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from problems import HARD, SHAPES, bits, few_distinct_centroids, rows_on_centroids
from scipy import stats
from sklearn.cluster import KMeans

SIZES = [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65]
FLOATS = [np.float32, np.float64]


def blobs(rng, n_samples, n_features, n_blobs, spread=0.05):
    centres = rng.uniform(-1, 1, (n_blobs, n_features))
    return centres[rng.integers(n_blobs, size=n_samples)] + spread * rng.standard_normal(
        (n_samples, n_features)
    )


def assert_same_bits(one, other):
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert np.asarray(getattr(one, name)).dtype == np.asarray(getattr(other, name)).dtype


def assert_consistent(result, X, n_clusters, weights=None):
    """What holds for every result: shapes, labels as exact as promised, inertia as defined."""
    n_samples, n_features = X.shape
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    assert result.centroids.shape == (n_clusters, n_features)
    assert result.centroids.dtype == dtype
    assert result.labels.shape == (n_samples,)
    assert result.labels.dtype == np.int32
    assert np.isfinite(result.centroids).all()
    assert ((result.labels >= 0) & (result.labels < n_clusters)).all()
    assert oracle.label_excess(X, result.centroids, result.labels, np.finfo(dtype).eps) <= 1
    expected = oracle.inertia(X, result.centroids, result.labels, weights)
    assert result.inertia == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert isinstance(result.inertia, float)
    assert isinstance(result.n_iter, int)


# --- Lloyd, step by step


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(500, 3, 8), (301, 17, 33), (64, 1, 5), (1000, 65, 20)])
def test_each_step_is_the_oracles(rng, dtype, shape):
    n_samples, n_features, n_clusters = shape
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    start = X[rng.choice(n_samples, n_clusters, replace=False)]
    centroids, labels = start, assign(X, start)[0]
    for step in range(1, 7):
        result = kmeans(X, n_clusters, init=start, max_iter=step, tol=0)
        expected = oracle.lloyd_update(X, labels, centroids)
        tolerance = 2 * np.finfo(dtype).eps
        np.testing.assert_allclose(result.centroids, expected, rtol=tolerance, atol=tolerance)
        assert_consistent(result, X, n_clusters)
        assert result.n_iter == step
        centroids, labels = result.centroids, result.labels


@given(
    data=st.data(),
    n_samples=st.integers(1, 20),
    n_features=st.integers(1, 4),
    n_clusters=st.integers(1, 12),
    dtype=st.sampled_from(FLOATS),
    weighted=st.booleans(),
)
def test_one_step_of_any_integer_problem(data, n_samples, n_features, n_clusters, dtype, weighted):
    """Full of ties, duplicates and empty clusters, and every distance exact."""

    def matrix(rows):
        row = st.lists(st.integers(-5, 5), min_size=n_features, max_size=n_features)
        drawn = data.draw(st.lists(row, min_size=rows, max_size=rows))
        return np.array(drawn, dtype).reshape(rows, n_features)

    X, start = matrix(n_samples), matrix(n_clusters)
    weights = None
    if weighted:
        drawn = st.lists(st.integers(0, 3), min_size=n_samples, max_size=n_samples)
        weights = np.array(data.draw(drawn.filter(any)))
    result = kmeans(X, n_clusters, init=start, sample_weight=weights, max_iter=1)
    expected = oracle.lloyd_update(X, oracle.nearest(X, start)[0], start, weights)
    np.testing.assert_allclose(result.centroids, expected, rtol=2 * np.finfo(dtype).eps, atol=1e-15)
    assert_consistent(result, X, n_clusters, weights)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 10])
def test_the_oracles_iterations_from_the_same_start(rng, max_iter):
    X = rng.standard_normal((400, 5))
    start = X[:12]
    result = kmeans(X, 12, init=start, max_iter=max_iter, tol=0)
    centroids, labels = oracle.lloyd(X, start, max_iter)
    np.testing.assert_allclose(result.centroids, centroids, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inertia_never_rises(rng, dtype):
    X = rng.standard_normal((2000, 6)).astype(dtype)
    start = X[:40]
    inertias = [kmeans(X, 40, init=start, max_iter=m, tol=0).inertia for m in [*range(1, 30), 300]]
    slack = 1 + 10 * np.finfo(dtype).eps
    assert all(after <= before * slack for before, after in pairwise(inertias))
    assert inertias[-1] < 0.95 * inertias[0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tol", [0.0, 1e-4, 1e-2])
def test_scikit_learn_from_the_same_start(rng, dtype, tol):
    X = blobs(rng, 3000, 10, 12).astype(dtype)
    start = X[rng.choice(len(X), 12, replace=False)]
    theirs = KMeans(12, init=start, n_init=1, tol=tol, max_iter=100, algorithm="lloyd").fit(X)
    ours = kmeans(X, 12, init=start, tol=tol, max_iter=100)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.n_iter == theirs.n_iter_
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_scikit_learn_with_weights(rng):
    X = rng.standard_normal((1500, 4))
    weights = rng.uniform(0, 3, 1500)
    start = X[:9]
    theirs = KMeans(9, init=start, n_init=1, tol=1e-5, max_iter=200).fit(X, sample_weight=weights)
    ours = kmeans(X, 9, init=start, tol=1e-5, max_iter=200, sample_weight=weights)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    assert ours.n_iter == theirs.n_iter_
    np.testing.assert_array_equal(ours.labels, theirs.labels_)


def test_tol_is_the_squared_shift_over_the_mean_variance(rng):
    X = rng.standard_normal((800, 3)) * [1, 5, 0.1]
    start = X[:7]
    shifts, centroids = [], start
    for _ in range(12):
        moved = oracle.lloyd(X, centroids, 1)[0]
        shifts.append(((moved - centroids) ** 2).sum() / X.var(axis=0).mean())
        centroids = moved
    for step in (1, 4, 7):
        assert shifts[step] < min(shifts[:step])  # so that this step is the first within its shift
        at = {"max_iter": 1000, "init": start}
        assert kmeans(X, 7, tol=shifts[step] * 1.0001, **at).n_iter == step + 1
        assert kmeans(X, 7, tol=shifts[step] * 0.9999, **at).n_iter > step + 1
    assert kmeans(X, 7, tol=np.inf, init=start).n_iter == 1


def test_without_tol_it_runs_until_no_label_changes(rng):
    X = blobs(rng, 600, 4, 6, spread=0.3)
    result = kmeans(X, 6, init=X[:6], tol=0, max_iter=10**6)
    assert 2 < result.n_iter < 1000
    again = kmeans(X, 6, init=result.centroids, tol=0, max_iter=10)
    np.testing.assert_array_equal(again.labels, result.labels)
    assert kmeans(X, 6, init=X[:6], tol=0, max_iter=2**70).n_iter == result.n_iter


# --- weights


@pytest.mark.parametrize("dtype", FLOATS)
def test_integer_weights_are_repeated_rows(rng, dtype):
    X = rng.standard_normal((300, 5)).astype(dtype)
    weights = rng.integers(0, 5, 300)
    start = X[np.flatnonzero(weights)[:8]]
    weighted = kmeans(X, 8, init=start, sample_weight=weights, max_iter=10, tol=0)
    repeated = kmeans(np.repeat(X, weights, axis=0), 8, init=start, max_iter=10, tol=0)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(
        weighted.centroids, repeated.centroids, rtol=tolerance, atol=tolerance
    )
    np.testing.assert_array_equal(np.repeat(weighted.labels, weights), repeated.labels)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-6)
    assert_consistent(weighted, X, 8, weights)


def test_rows_without_weight_move_nothing_but_are_labelled(rng):
    X = rng.standard_normal((200, 3))
    weights = (np.arange(200) % 3 > 0).astype(float)
    start = X[weights > 0][:5]
    result = kmeans(X, 5, init=start, sample_weight=weights, tol=0)
    without = kmeans(X[weights > 0], 5, init=start, tol=0)
    np.testing.assert_allclose(result.centroids, without.centroids, rtol=1e-12)
    np.testing.assert_array_equal(result.labels[weights > 0], without.labels)
    np.testing.assert_array_equal(result.labels, oracle.nearest(X, result.centroids)[0])


def test_the_scale_of_the_weights_does_not_matter(rng):
    X, weights = rng.standard_normal((250, 3)), rng.uniform(0, 1, 250)
    base = kmeans(X, 6, init=X[:6], sample_weight=weights)
    for scale in (2.0**-900, 2.0**40, 2.0**900):
        scaled = kmeans(X, 6, init=X[:6], sample_weight=weights * scale)
        np.testing.assert_array_equal(scaled.centroids, base.centroids)
        np.testing.assert_array_equal(scaled.labels, base.labels)


def test_weights_of_one_change_no_bit_of_the_labels(rng):
    X = rng.standard_normal((500, 4)).astype(np.float32)
    weighted = kmeans(X, 9, init=X[:9], sample_weight=np.ones(500, np.float32))
    assert_same_bits(weighted, kmeans(X, 9, init=X[:9]))


def test_weights_whose_sum_overflows_are_refused():
    with pytest.raises(ValueError, match=r"^sample_weight must have a finite sum .*, got inf"):
        kmeans(np.arange(4.0)[:, None], 2, sample_weight=np.full(4, 1e308))


# --- groups


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("init", ["linear", "density", "array", "arrays"])
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_are_problems_of_their_own(rng, dtype, init, weighted):
    n_features = 1 if init in ("linear", "density") else 6
    X = rng.standard_normal((9, 200, n_features)).astype(dtype)
    weights = rng.uniform(0, 1, (9, 200)) if weighted else None
    start = {"array": X[0, :7], "arrays": X[:, 3:10]}.get(init, init)
    together = kmeans(X, 7, init=start, sample_weight=weights, max_iter=20)
    assert together.centroids.shape == (9, 7, n_features)
    assert together.labels.shape == (9, 200)
    assert together.inertia.shape == together.n_iter.shape == (9,)
    for g in range(9):
        alone = kmeans(
            X[g],
            7,
            init=start[g] if init == "arrays" else start,
            sample_weight=weights[g] if weighted else None,
            max_iter=20,
        )
        for name in alone._fields:
            np.testing.assert_array_equal(getattr(together, name)[g], getattr(alone, name))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_groups_draw_independently_and_the_first_as_if_alone(rng, init):
    X = np.broadcast_to(rng.standard_normal((100, 3)), (6, 100, 3))
    together = kmeans(X, 5, init=init, random_state=3, max_iter=1)
    alone = kmeans(X[0], 5, init=init, random_state=3, max_iter=1)
    np.testing.assert_array_equal(together.centroids[0], alone.centroids)
    assert len({c.tobytes() for c in together.centroids}) == 6


def test_one_weight_vector_serves_all_groups(rng):
    X, weights = rng.standard_normal((4, 50, 2)), rng.uniform(0, 1, 50)
    assert_same_bits(
        kmeans(X, 3, init=X[:, :3], sample_weight=weights),
        kmeans(X, 3, init=X[:, :3], sample_weight=np.tile(weights, (4, 1))),
    )


def test_no_groups():
    result = kmeans(np.ones((0, 5, 2), np.float32), 3, random_state=0)
    assert result.centroids.shape == (0, 3, 2)
    assert result.labels.shape == (0, 5)
    assert result.inertia.shape == result.n_iter.shape == (0,)


# --- starts


def outcome_of(X, draws, weights=None):
    """What one iteration makes of these draws: the key that the statistics count by."""
    centroids = oracle.lloyd(X, X[list(draws)], 1, weights)[0]
    return tuple(np.round(centroids.ravel(), 6))


def assert_drawn_as(X, n_clusters, init, probabilities, *, weights=None, sort=False):
    """χ² of 20,000 starts, one a group, against the probability of each outcome."""
    draws = 20000
    groups = np.broadcast_to(X, (draws, *X.shape))
    result = kmeans(
        groups, n_clusters, init=init, sample_weight=weights, max_iter=1, random_state=11
    )
    counts = dict.fromkeys(probabilities, 0)
    for centroids in np.round(result.centroids.astype(np.float64), 6):
        key = tuple(np.sort(centroids.ravel())) if sort else tuple(centroids.ravel())
        counts[key] += 1
    observed = np.array(list(counts.values()))
    expected = draws * np.array(list(probabilities.values()))
    assert expected.sum() == pytest.approx(draws)
    assert (observed[expected == 0] == 0).all()
    possible = expected > 0
    assert stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_clusters", [2, 3])
def test_plus_plus_draws_with_the_right_probability(n_clusters, weighted):
    X = np.array([[0.0, 0], [1, 0], [3, 1], [0, 4], [9, 9], [2, 2]])
    weights = np.array([1, 2, 0.5, 1, 0.25, 0]) if weighted else None
    probabilities: dict[tuple, float] = {}
    for draws in permutations(range(6), n_clusters):
        key = outcome_of(X, draws, weights)
        probability = oracle.plus_plus_probability(X, draws, weights)
        probabilities[key] = probabilities.get(key, 0) + probability
    assert len(probabilities) > n_clusters
    assert_drawn_as(X, n_clusters, "k-means++", probabilities, weights=weights)


def test_random_draws_each_set_of_rows_alike():
    X = np.array([[0.0], [1.0], [2.5], [4.5], [7.0], [20.0]])
    probabilities: dict[tuple, float] = {}
    for draws in combinations(range(6), 3):
        key = tuple(np.sort(outcome_of(X, draws)))
        probabilities[key] = probabilities.get(key, 0) + 1 / 20
    assert_drawn_as(X, 3, "random", probabilities, sort=True)


def test_random_draws_in_proportion_to_weight():
    X = np.array([[0.0], [1.0], [2.5], [4.5], [7.0]])
    weights = np.array([3.0, 0.0, 1.0, 2.0, 0.5])
    probabilities: dict[tuple, float] = {}
    for draws in permutations(range(5), 2):
        probability = weights[draws[0]] / weights.sum()
        probability *= weights[draws[1]] / (weights.sum() - weights[draws[0]])
        key = tuple(np.sort(outcome_of(X, draws, weights)))
        probabilities[key] = probabilities.get(key, 0) + probability
    assert_drawn_as(X, 2, "random", probabilities, weights=weights, sort=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_plus_plus_starts_are_as_good_as_plain_ones_draw_by_draw(dtype):
    """More centroids than one refresh takes: a start's cost after one step, over many starts."""
    rng = np.random.default_rng(5)
    X = blobs(rng, 1500, 3, 60, spread=0.02).astype(dtype)
    ours = [kmeans(X, 90, max_iter=1, random_state=seed).inertia for seed in range(40)]
    theirs = []
    for _ in range(40):
        centroids, labels = oracle.lloyd(X, oracle.plus_plus(X.astype(np.float64), 90, rng), 1)
        theirs.append(oracle.inertia(X, centroids, labels))
    assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 1e-3
    worse = [kmeans(X, 90, init="random", max_iter=1, random_state=s).inertia for s in range(40)]
    assert np.mean(ours) < 0.7 * np.mean(worse)  # so that the comparison above can tell


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("n_samples", [2, 5, 33, 100])
def test_as_many_clusters_as_rows_takes_every_row(rng, init, n_samples):
    X = rng.standard_normal((n_samples, 3)).astype(np.float32)
    result = kmeans(X, n_samples, init=init, random_state=1)
    assert result.inertia == 0
    np.testing.assert_array_equal(np.sort(result.labels), np.arange(n_samples))
    np.testing.assert_array_equal(result.centroids[result.labels], X)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_clusters", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("init", ["linear", "density"])
def test_starts_on_a_line(rng, dtype, init, n_clusters):
    values = np.concatenate([rng.standard_normal(301), rng.exponential(5, 100)]).astype(dtype)
    build = {"linear": oracle.init_linear, "density": oracle.init_density}[init]
    start = build(values, n_clusters).astype(dtype)
    expected = kmeans(values[:, None], n_clusters, init=start, max_iter=1)
    result = kmeans(values[:, None], n_clusters, init=init, max_iter=1)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(result.centroids, expected.centroids, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(result.labels, expected.labels)


def test_starts_on_a_line_heed_the_weights():
    values = np.arange(20.0)
    weights = np.where(values < 5, 0, 1 + values)
    for init, build in [("linear", oracle.init_linear), ("density", oracle.init_density)]:
        extra = {"weights": weights[5:]} if init == "density" else {}
        start = build(values[5:], 4, **extra)
        expected = kmeans(values[:, None], 4, init=start, sample_weight=weights, max_iter=1)
        result = kmeans(values[:, None], 4, init=init, sample_weight=weights, max_iter=1)
        np.testing.assert_allclose(result.centroids, expected.centroids, rtol=1e-14)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_more_runs_are_never_worse(rng, init):
    X = blobs(rng, 300, 2, 15)
    best = [kmeans(X, 15, init=init, n_init=m, random_state=4).inertia for m in range(1, 9)]
    assert all(after <= before for before, after in pairwise(best))
    assert best[-1] < best[0]


def test_n_init_is_one_where_the_start_is_given(rng):
    X = rng.standard_normal((200, 1))
    for init in (X[:5], "linear", "density"):
        assert_same_bits(kmeans(X, 5, init=init, n_init=7), kmeans(X, 5, init=init))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_random_state(rng, init):
    X = rng.standard_normal((400, 3))

    def run(state):
        return kmeans(X, 6, init=init, random_state=state, max_iter=1)

    for state in (0, 7, np.int64(7), 2**63, 2**64 - 1):
        assert_same_bits(run(state), run(state))
    assert_same_bits(run(7), run(np.uint8(7)))
    assert_same_bits(run(np.random.default_rng(3)), run(np.random.default_rng(3)))
    assert_same_bits(run(np.random.RandomState(3)), run(np.random.RandomState(3)))
    assert len({run(state).centroids.tobytes() for state in range(10)}) == 10
    generator = np.random.default_rng(3)
    assert run(generator).centroids.tobytes() != run(generator).centroids.tobytes()
    assert len({run(None).centroids.tobytes() for _ in range(5)}) > 1


def test_numpys_global_generator_is_left_alone(rng):
    before = np.random.get_state()[1].copy()
    kmeans(rng.standard_normal((50, 2)), 3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


# --- empty clusters


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_far", [1, 3, 10])
def test_empty_clusters_are_refilled_by_the_documented_rule(rng, dtype, n_far):
    X = rng.standard_normal((60, 2)).astype(dtype)
    far = rng.uniform(1e3, 2e3, (n_far, 2)).astype(dtype)  # nearest to no row
    start = np.concatenate([X[:2], far, X[2:4]])
    result = kmeans(X, n_far + 4, init=start, max_iter=1)
    labels = oracle.nearest(X, start)[0]
    expected = oracle.lloyd_update(X, labels, start)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result.centroids, expected, rtol=tolerance, atol=tolerance)
    assert len(np.unique(result.labels)) == n_far + 4


def test_refill_of_equals_takes_the_lowest_index_and_leaves_no_cluster_empty():
    # Rows 1 and 2 are equally far from centroid 0; row 4 is farther but alone in its cluster.
    X = np.array([[0.0], [2], [-2], [0], [50]])
    start = np.array([[0.0], [100], [1000], [2000]])
    result = kmeans(X, 4, init=start, max_iter=1)
    # Cluster 1 holds row 4, far from it but alone; 2 takes row 1, 3 takes row 2.
    np.testing.assert_array_equal(result.centroids.ravel(), [0, 50, 2, -2])


def test_refill_heeds_weights():
    X = np.array([[0.0], [1], [3], [9]])
    result = kmeans(X, 2, init=[[0.0], [100.0]], sample_weight=[1, 1, 2, 0], max_iter=1)
    np.testing.assert_array_equal(result.centroids.ravel(), [0.5, 3])


def test_refill_from_a_cluster_of_very_uneven_weights():
    # What is left of cluster 0 weighs next to nothing against the row that leaves it.
    X = np.array([[0.0], [1], [10]])
    result = kmeans(X, 2, init=[[0.0], [100.0]], sample_weight=[1, 1, 1e20], max_iter=1)
    np.testing.assert_allclose(result.centroids.ravel(), [0.5, 10])


@pytest.mark.parametrize("init", ["k-means++", "random", "array"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_more_clusters_than_distinct_rows(rng, init, dtype):
    X = np.repeat(rng.standard_normal((4, 3)), 10, axis=0).astype(dtype)
    start = np.concatenate([X[:5], X[:5] + 1]) if init == "array" else init
    result = kmeans(X, 10, init=start, random_state=0)
    assert_consistent(result, X, 10)
    assert result.inertia == pytest.approx(0, abs=1e-9)
    assert len(np.unique(result.labels)) == 4


@pytest.mark.parametrize("init", ["k-means++", "random", "array"])
def test_more_clusters_than_rows(rng, init):
    X = rng.standard_normal((3, 2)).astype(np.float32)
    start = rng.standard_normal((50, 2)).astype(np.float32) if init == "array" else init
    result = kmeans(X, 50, init=start, random_state=0)
    assert_consistent(result, X, 50)
    assert result.inertia == 0


@pytest.mark.parametrize("init", ["k-means++", "random", "linear", "density"])
@pytest.mark.parametrize("n_clusters", [1, 2, 40])
@pytest.mark.parametrize("value", [0.0, -3.25, 1e6, 1e-30, 1e30])
def test_constant_data(init, n_clusters, value):
    X = np.full((30, 1), value, np.float32)
    result = kmeans(X, n_clusters, init=init, random_state=0, tol=np.inf)
    np.testing.assert_array_equal(result.centroids, X[:1].repeat(n_clusters, axis=0))
    np.testing.assert_array_equal(result.labels, 0)
    assert result.inertia == 0


@pytest.mark.parametrize("n_clusters", [1, 2, 5])
@pytest.mark.parametrize("n_features", [1, 3, 70])
def test_one_row(rng, n_clusters, n_features):
    X = rng.standard_normal((1, n_features))
    result = kmeans(X, n_clusters, random_state=0)
    np.testing.assert_array_equal(result.centroids, X.repeat(n_clusters, axis=0))
    np.testing.assert_array_equal(result.labels, [0])
    assert result.inertia == 0


# --- ties


@given(
    data=st.data(),
    n_features=st.integers(1, 5),
    n_clusters=st.integers(1, 40),
    offset=st.sampled_from([0, 1, -37, 1000, 65537]),
    dtype=st.sampled_from(FLOATS),
)
def test_exact_ties_go_to_the_lowest_index(data, n_features, n_clusters, offset, dtype):
    """On a grid of integers equal distances are equal, and duplicates of a centroid common."""
    row = st.lists(st.integers(-4, 4), min_size=n_features, max_size=n_features)
    X = np.array(data.draw(st.lists(row, min_size=1, max_size=30)), dtype) + dtype(offset)
    centroids = np.array(
        data.draw(st.lists(row, min_size=n_clusters, max_size=n_clusters)), dtype
    ) + dtype(offset)
    labels, distances = assign(X, centroids)
    expected_labels, expected_distances = oracle.nearest(X, centroids)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(distances, expected_distances)


@pytest.mark.parametrize("n_copies", [2, 16, 33])
def test_of_duplicated_centroids_the_first_is_named(rng, n_copies):
    X = rng.standard_normal((200, 6)).astype(np.float32)
    centroids = np.tile(X[:5], (n_copies, 1))
    np.testing.assert_array_equal(assign(X, centroids)[0], assign(X, X[:5])[0])


def test_a_lattice_keeps_its_ties_through_the_iterations():
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)
    start = np.array([[0.0, 0], [7, 0], [0, 7], [7, 7], [3, 3]])
    for step in (1, 2, 3):
        result = kmeans(grid.astype(np.float32), 5, init=start, max_iter=step, tol=0)
        centroids, labels = oracle.lloyd(grid, start, step)
        np.testing.assert_allclose(result.centroids, centroids, rtol=1e-6)
        np.testing.assert_array_equal(result.labels, labels)


# --- magnitudes and offsets


@pytest.mark.parametrize("offset", [1e3, 1e6, -1e6])
def test_a_small_spread_far_from_the_origin(rng, offset):
    X = (offset + blobs(rng, 2000, 8, 10, spread=0.1) * 50).astype(np.float32)
    result = kmeans(X, 10, init=X[:10], max_iter=30, tol=0)
    assert_consistent(result, X, 10)
    near = X.astype(np.float64) - offset
    exact = kmeans(near, 10, init=near[:10], max_iter=30, tol=0)
    assert result.inertia == pytest.approx(exact.inertia, rel=1e-3)


@pytest.mark.parametrize("init", ["k-means++", "array"])
@pytest.mark.parametrize("power", [-110, -70, -41, -3, 3, 41, 60])
def test_scaling_by_a_power_of_two_scales_the_result(rng, power, init):
    X = rng.standard_normal((500, 5)).astype(np.float32)
    scale = np.float32(2.0**power)
    start, scaled_start = (X[:9], X[:9] * scale) if init == "array" else (init, init)
    base = kmeans(X, 9, init=start, random_state=5, max_iter=15)
    scaled = kmeans(X * scale, 9, init=scaled_start, random_state=5, max_iter=15)
    np.testing.assert_array_equal(scaled.labels, base.labels)
    np.testing.assert_array_equal(scaled.centroids, base.centroids * scale)
    assert scaled.inertia == base.inertia * 4.0**power
    assert scaled.n_iter == base.n_iter


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("magnitude", [1e-37, 1e-20, 1e20, 1e37])
def test_huge_and_tiny_magnitudes(rng, dtype, magnitude):
    X = (blobs(rng, 400, 3, 6) * magnitude).astype(dtype)
    result = kmeans(X, 6, init=X[:6], tol=0)
    assert_consistent(result, X, 6)
    labels, distances = assign(X, result.centroids)
    np.testing.assert_array_equal(labels, result.labels)
    if dtype == np.float64:
        np.testing.assert_allclose(distances, oracle.nearest(X, result.centroids)[1], rtol=1e-9)


@pytest.mark.parametrize("magnitude", [1e-290, 1e-150, 1e140])
def test_float64_far_outside_float32(rng, magnitude):
    X = blobs(rng, 300, 3, 5)
    base = kmeans(X, 5, init=X[:5], tol=0)
    result = kmeans(X * magnitude, 5, init=X[:5] * magnitude, tol=0)
    np.testing.assert_allclose(result.centroids, base.centroids * magnitude, rtol=1e-9)
    np.testing.assert_array_equal(result.labels, base.labels)


def test_values_whose_squares_overflow_are_refused():
    with pytest.raises(ValueError, match=r"^X must have a finite squared norm in row 1"):
        kmeans(np.array([[1.0], [1e200]]), 1)


def test_starts_too_large_for_the_computing_type():
    X = np.array([[0.0], [1.0]], np.float32)
    with pytest.raises(ValueError, match=r"^init must be finite"):
        kmeans(X, 2, init=np.array([[0.0], [1e300]]))


# --- the same bits, however it is called


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("n_samples", "n_features", "n_clusters"), [(20011, 5, 37), (9001, 33, 130), (50000, 1, 16)]
)
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_any_number_of_threads_gives_the_same_bits(
    dtype, n_threads, n_samples, n_features, n_clusters, init
):
    rng = np.random.default_rng(n_samples)
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    weights = rng.uniform(0, 1, n_samples) if n_clusters == 37 else None
    options = {"init": init, "sample_weight": weights, "max_iter": 3, "random_state": 1}
    one = kmeans(X, n_clusters, n_threads=1, **options)
    assert_same_bits(kmeans(X, n_clusters, n_threads=n_threads, **options), one)
    for mine, theirs in zip(
        assign(X, one.centroids, n_threads=n_threads),
        assign(X, one.centroids, n_threads=1),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_threads_and_groups_give_the_same_bits(rng, n_threads):
    for groups in (1, 2, 5, 40):
        X = rng.standard_normal((groups, 400, 4)).astype(np.float32)
        options = {"random_state": 9, "max_iter": 5}
        assert_same_bits(
            kmeans(X, 10, n_threads=n_threads, **options), kmeans(X, 10, n_threads=1, **options)
        )


def test_threads_and_empty_clusters_give_the_same_bits(rng, n_threads):
    X = rng.standard_normal((9000, 3)).astype(np.float32)
    start = np.concatenate([X[:20], X[:20] + 1e4])
    assert_same_bits(
        kmeans(X, 40, init=start, max_iter=4, n_threads=n_threads),
        kmeans(X, 40, init=start, max_iter=4, n_threads=1),
    )


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened_exactly(rng, narrow):
    X = rng.standard_normal((501, 7)).astype(narrow)
    wide = X.astype(np.float32)
    for init in ("k-means++", "random"):
        assert_same_bits(
            kmeans(X, 9, init=init, random_state=2), kmeans(wide, 9, init=init, random_state=2)
        )
    assert_same_bits(kmeans(X, 9, init=X[:9]), kmeans(wide, 9, init=wide[:9]))
    for mine, theirs in zip(assign(X, X[:9]), assign(wide, wide[:9]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_layout_does_not_matter(rng, layout, dtype):
    X = rng.standard_normal((203, 11)).astype(dtype)
    weights = rng.uniform(0, 1, 203)
    assert_same_bits(
        kmeans(layout(X), 6, init=layout(X[:6]), sample_weight=weights[::-1][::-1]),
        kmeans(X, 6, init=X[:6], sample_weight=weights),
    )
    assert_same_bits(kmeans(layout(X), 6, random_state=1), kmeans(X, 6, random_state=1))
    for mine, theirs in zip(assign(layout(X), layout(X[:6])), assign(X, X[:6]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_groups_does_not_matter(rng, layout):
    X = rng.standard_normal((3, 60, 5)).astype(np.float32)
    assert_same_bits(kmeans(layout(X), 4, init=layout(X[:, :4])), kmeans(X, 4, init=X[:, :4]))
    turned = np.ascontiguousarray(X.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert_same_bits(kmeans(turned, 4, init=X[:, :4]), kmeans(X, 4, init=X[:, :4]))


def test_read_only_memory_maps(rng, as_memmap):
    X = rng.standard_normal((700, 6)).astype(np.float32)
    weights = rng.uniform(0, 1, 700)
    mapped = kmeans(as_memmap(X), 8, init=as_memmap(X[:8]), sample_weight=as_memmap(weights))
    assert_same_bits(mapped, kmeans(X, 8, init=X[:8], sample_weight=weights))


def test_operands_are_not_written_to(rng):
    X, weights = rng.standard_normal((300, 4)), rng.uniform(0, 1, 300)
    start = np.concatenate([X[:3], X[:3] + 100])
    copies = X.copy(), start.copy(), weights.copy()
    result = kmeans(X, 6, init=start, sample_weight=weights)
    for array, copy in zip((X, start, weights), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not np.shares_memory(result.centroids, start)


# --- assign


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_clusters", [*SIZES, 1000])
def test_assign_any_number_of_clusters(rng, dtype, n_clusters):
    X = rng.standard_normal((90, 9)).astype(dtype)
    centroids = rng.standard_normal((n_clusters, 9)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert labels.dtype == np.int32
    assert distances.dtype == dtype
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])
    expected = oracle.squared_distances(X, centroids)[np.arange(90), labels]
    np.testing.assert_allclose(distances, expected, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_features", [*SIZES, 255, 256, 257, 784])
def test_assign_any_number_of_features(rng, dtype, n_features):
    X = rng.standard_normal((50, n_features)).astype(dtype)
    centroids = rng.standard_normal((21, n_features)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    expected = oracle.squared_distances(X, centroids)[np.arange(50), labels]
    np.testing.assert_allclose(distances, expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_samples", [0, *SIZES, 769, 4095, 4097])
def test_assign_any_number_of_rows(rng, dtype, n_samples):
    X = rng.standard_normal((n_samples, 4)).astype(dtype)
    centroids = rng.standard_normal((19, 4)).astype(dtype)
    labels, distances = assign(X, centroids)
    assert labels.shape == distances.shape == (n_samples,)
    np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])


def test_assign_groups(rng):
    X = rng.standard_normal((5, 80, 3)).astype(np.float32)
    centroids = rng.standard_normal((5, 12, 3)).astype(np.float32)
    labels, distances = assign(X, centroids)
    shared_labels, shared_distances = assign(X, centroids[0])
    assert labels.shape == distances.shape == shared_labels.shape == (5, 80)
    for g in range(5):
        for mine, alone in [
            ((labels[g], distances[g]), assign(X[g], centroids[g])),
            ((shared_labels[g], shared_distances[g]), assign(X[g], centroids[0])),
        ]:
            np.testing.assert_array_equal(mine[0], alone[0])
            np.testing.assert_array_equal(mine[1], alone[1])


def test_assign_computes_in_float64_where_either_operand_is(rng):
    X = rng.standard_normal((40, 3)).astype(np.float32)
    centroids = rng.standard_normal((6, 3))
    distances = assign(X, centroids)[1]
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, oracle.nearest(X, centroids)[1], rtol=1e-13)
    assert assign(X.astype(np.float64), centroids.astype(np.float32))[1].dtype == np.float64
    assert assign(X, centroids.astype(np.float32))[1].dtype == np.float32


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("problem", HARD)
def test_labels_are_within_the_documented_bound_on_hard_data(rng, problem, shape, dtype):
    X, centroids = (array.astype(dtype) for array in problem(rng, *shape))
    labels, distances = assign(X, centroids)
    assert oracle.label_excess(X, centroids, labels, np.finfo(dtype).eps) <= 1
    own = ((X.astype(np.float64) - centroids[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances, own, rtol=4 * np.finfo(dtype).eps)
    if problem in (bits, few_distinct_centroids, rows_on_centroids):
        # Equal distances are equal in any precision: the first of the duplicates is named.
        first = [np.flatnonzero((centroids == centroids[j]).all(axis=1))[0] for j in labels]
        np.testing.assert_array_equal(labels, first)
    if problem in (bits, rows_on_centroids):
        np.testing.assert_array_equal(labels, oracle.nearest(X, centroids)[0])


@pytest.mark.parametrize("shape", SHAPES[2:])
@pytest.mark.parametrize("problem", HARD)
def test_every_iteration_is_within_the_documented_bound_on_hard_data(rng, problem, shape):
    """Later iterations start from the labels of the one before."""
    X, start = (array.astype(np.float32) for array in problem(rng, *shape))
    for max_iter in (1, 2, 3):
        result = kmeans(X, len(start), init=start, max_iter=max_iter, tol=0)
        assert_consistent(result, X, len(start))
        labels = assign(X, result.centroids)[0]
        eps = np.finfo(np.float32).eps
        assert oracle.label_excess(X, result.centroids, labels, eps) <= 1


def test_the_bound_can_be_missed(rng):
    """The measure above tells a wrong label from rounding."""
    X = rng.standard_normal((100, 4)).astype(np.float32)
    centroids = rng.standard_normal((9, 4)).astype(np.float32)
    second = np.argsort(oracle.squared_distances(X, centroids), axis=1)[:, 1]
    assert oracle.label_excess(X, centroids, second, np.finfo(np.float32).eps) > 1e3


# --- balanced


def cheapest_balanced_cost(X, centroids, weights):
    """By SciPy: ⌊n/k⌋ places a cluster that must be filled, and one more each that may be."""
    from scipy.optimize import linear_sum_assignment

    (n, k), cost = (len(X), len(centroids)), oracle.squared_distances(X, centroids)
    cost = cost * weights[:, None]
    offset = 2 * cost.sum()  # dearer than any plan: so no required place stays free
    places = np.concatenate([np.repeat(cost, n // k, axis=1), cost + offset], axis=1)
    rows, columns = linear_sum_assignment(places)
    extra = columns >= k * (n // k)
    cluster = np.where(extra, columns - k * (n // k), columns // max(n // k, 1))
    return cost[rows, cluster].sum()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n_samples", "n_clusters"), [(60, 6), (61, 6), (65, 6), (9, 9), (90, 1)])
@pytest.mark.parametrize("max_iter", [1, 5])
def test_balanced_assignments_are_the_cheapest(
    rng, dtype, weighted, n_samples, n_clusters, max_iter
):
    X = blobs(rng, n_samples, 3, 4).astype(dtype)
    weights = rng.uniform(0.1, 2, n_samples) if weighted else np.ones(n_samples)
    result = kmeans(
        X,
        n_clusters,
        init=X[:n_clusters],
        balanced=True,
        sample_weight=weights if weighted else None,
        max_iter=max_iter,
        tol=0,
    )
    sizes = np.bincount(result.labels, minlength=n_clusters)
    assert set(sizes) <= {n_samples // n_clusters, -(-n_samples // n_clusters)}
    paid = oracle.inertia(X, result.centroids, result.labels, weights)
    assert result.inertia == pytest.approx(paid, rel=1e-9, abs=1e-12)
    cheapest = cheapest_balanced_cost(X, result.centroids, weights)
    assert paid <= cheapest * (1 + 2e-9) + 1e-12
    assert result.n_iter <= max_iter


def test_balanced_more_clusters_than_rows(rng):
    X = rng.standard_normal((5, 2))
    result = kmeans(X, 8, balanced=True, random_state=0)
    assert np.bincount(result.labels, minlength=8).max() == 1


def test_balanced_groups_are_problems_of_their_own(rng):
    X = rng.standard_normal((6, 50, 2)).astype(np.float32)
    together = kmeans(X, 7, init=X[:, :7], balanced=True, max_iter=6)
    for g in range(6):
        alone = kmeans(X[g], 7, init=X[g, :7], balanced=True, max_iter=6)
        for name in alone._fields:
            np.testing.assert_array_equal(getattr(together, name)[g], getattr(alone, name))


def test_balanced_any_number_of_threads_gives_the_same_bits(rng, n_threads):
    X = blobs(rng, 3001, 4, 5).astype(np.float32)
    options = {"balanced": True, "max_iter": 4, "random_state": 3}
    assert_same_bits(
        kmeans(X, 11, n_threads=n_threads, **options), kmeans(X, 11, n_threads=1, **options)
    )


# --- bad input

X_OK = np.arange(12, dtype=np.float32).reshape(6, 2)
DTYPES = "must have dtype float16, bfloat16, float32 or float64 in native byte order, got "


@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "g", "O", "U1", "M8[s]"])
def test_wrong_dtypes(dtype):
    bad = np.zeros((6, 2)).astype(dtype)
    for name, call in [
        ("X", lambda: kmeans(bad, 2)),
        ("init", lambda: kmeans(X_OK, 6, init=bad)),
        ("X", lambda: assign(bad, X_OK)),
        ("centroids", lambda: assign(X_OK, bad)),
    ]:
        with pytest.raises(TypeError, match=f"^{name} {DTYPES}"):
            call()


def test_foreign_byte_order():
    foreign = X_OK.astype(X_OK.dtype.newbyteorder())
    with pytest.raises(TypeError, match=f"^X {DTYPES}[<>]f4"):
        kmeans(foreign, 2)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones(3), r"X must have 2 or 3 dimensions, got shape \(3,\)"),
        (np.ones((1, 2, 3, 4)), r"X must have 2 or 3 dimensions, got shape \(1, 2, 3, 4\)"),
        (np.float64(3), r"X must have 2 or 3 dimensions, got shape \(\)"),
        (np.ones((0, 2)), r"X must have at least one row and one column, got shape \(0, 2\)"),
        (np.ones((2, 0)), r"X must have at least one row and one column, got shape \(2, 0\)"),
        (np.ones((3, 0, 2)), r"X must have at least one row and one column, got shape \(3, 0, 2\)"),
    ],
)
def test_wrong_shapes_of_samples(X, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kmeans(X, 1)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("kmeans++", ValueError, "init must be one of 'k-means.*', got 'kmeans.*'"),
        ("linear", ValueError, r"init='linear' needs X to have one column, got shape \(6, 2\)"),
        ("density", ValueError, r"init='density' needs X to have one column, got shape \(6, 2\)"),
        (None, TypeError, "init must "),
        (3.0, ValueError, r"init must have 2 dimensions, got shape \(\)"),
        (np.ones((3, 2)), ValueError, r"init must have n_clusters = 2 rows, got \(3, 2\)"),
        (
            np.ones((2, 3)),
            ValueError,
            r"init must have the columns and groups of X, \(6, 2\), got ",
        ),
        (np.ones((1, 2, 2)), ValueError, r"init must have 2 dimensions, got shape \(1, 2, 2\)"),
        (np.array([[0, 1], [np.nan, 1]]), ValueError, r"init must be finite, got nan at \[1, 0\]"),
        (np.array([[0, np.inf], [0, 1]]), ValueError, r"init must be finite, got inf at \[0, 1\]"),
    ],
)
def test_bad_starts(init, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kmeans(X_OK, 2, init=init)


def test_bad_starts_of_groups():
    X = np.stack([X_OK] * 3)
    with pytest.raises(ValueError, match=r"^init must have the columns and groups of X"):
        kmeans(X, 2, init=np.ones((4, 2, 2)))
    with pytest.raises(ValueError, match=r"^init must have n_clusters = 2 rows"):
        kmeans(X, 2, init=np.ones((3, 5, 2)))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(5), ValueError, r"sample_weight must have shape \(6,\), got \(5,\)"),
        (np.ones((6, 1)), ValueError, r"sample_weight must have shape \(6,\), got \(6, 1\)"),
        (2.0, ValueError, r"sample_weight must have shape \(6,\), got \(\)"),
        (
            [1, 1, 1, 1, 1, -1],
            ValueError,
            "sample_weight must be finite and zero or more, got .*-1",
        ),
        ([1, 1, 1, 1, 1, np.nan], ValueError, "sample_weight must be finite and zero or more, got"),
        ([1, 1, 1, 1, 1, np.inf], ValueError, "sample_weight must be finite and zero or more, got"),
        (
            np.zeros(6),
            ValueError,
            "sample_weight must have a finite sum greater than zero, got 0.0",
        ),
        (["a"] * 6, TypeError, "sample_weight must hold real numbers, got dtype <U1"),
        (np.ones(6, complex), TypeError, "sample_weight must hold real numbers, got dtype complex"),
        (np.ones(6, object), TypeError, "sample_weight must hold real numbers, got dtype object"),
    ],
)
def test_bad_weights(weights, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kmeans(X_OK, 2, sample_weight=weights)


def test_a_group_without_weight_is_refused():
    weights = np.array([[1.0] * 6, [0.0] * 6])
    with pytest.raises(
        ValueError, match=r"^sample_weight must have a finite sum greater than zero, got 0.0"
    ):
        kmeans(np.stack([X_OK] * 2), 2, sample_weight=weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, r"n_clusters must be in \[1, \d+\], got 0"),
        ({"n_clusters": -3}, ValueError, r"n_clusters must be in \[1, \d+\], got -3"),
        ({"n_clusters": 2**31}, ValueError, r"n_clusters must be in \[1, \d+\], got 2147483648"),
        ({"n_clusters": 1.5}, TypeError, "n_clusters must be an integer .*, got 1.5"),
        ({"n_clusters": True}, TypeError, "n_clusters must be an integer .*, got True"),
        ({"n_clusters": "3"}, TypeError, "n_clusters must be an integer .*, got '3'"),
        ({"n_clusters": None}, TypeError, "n_clusters must be an integer .*, got None"),
        ({"n_init": 0}, ValueError, "n_init must be at least 1, got 0"),
        ({"n_init": 1.0}, TypeError, "n_init must be an integer .*, got 1.0"),
        ({"n_init": "auto"}, TypeError, "n_init must be an integer .*, got 'auto'"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1, got 0"),
        ({"max_iter": 2.5}, TypeError, "max_iter must be an integer .*, got 2.5"),
        ({"tol": -1.0}, ValueError, "tol must be zero or more, got -1.0"),
        ({"tol": np.nan}, ValueError, "tol must be zero or more, got nan"),
        ({"tol": "small"}, TypeError, "tol must be a number .*, got 'small'"),
        ({"tol": "0.5"}, TypeError, "tol must be a number .*, got '0.5'"),
        ({"tol": None}, TypeError, "tol must be a number .*, got None"),
        ({"balanced": "yes"}, TypeError, "balanced must be True or False, got 'yes'"),
        ({"balanced": 1}, TypeError, "balanced must be True or False, got 1"),
        ({"random_state": -1}, ValueError, r"random_state must be in \[0, 2\*\*64\), got -1"),
        ({"random_state": 2**64}, ValueError, r"random_state must be in \[0, 2\*\*64\), got "),
        ({"random_state": 1.5}, TypeError, "random_state must be None, an integer, .* got 1.5"),
        ({"random_state": "a"}, TypeError, "random_state must be None, an integer, .* got 'a'"),
        ({"n_threads": 0}, ValueError, r"n_threads must be in \[1, 1024\], got 0"),
        ({"n_threads": -2}, ValueError, r"n_threads must be in \[1, 1024\], got -2"),
        ({"n_threads": 1.5}, TypeError, "n_threads must be an integer .*, got 1.5"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kmeans(X_OK, **{"n_clusters": 2, **options})


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        kmeans(X_OK, 2, "random")
    with pytest.raises(TypeError, match="positional"):
        assign(X_OK, X_OK, 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(rng, value, dtype):
    X = rng.standard_normal((9000, 3)).astype(dtype)
    for at in [(0, 0), (4500, 1), (8999, 2)]:
        broken = X.copy()
        broken[at] = value
        message = rf"^X must be finite, got {value} at \[{at[0]}, {at[1]}\]$"
        for init in ("k-means++", "random", X[:4]):
            with pytest.raises(ValueError, match=message):
                kmeans(broken, 4, init=init, n_threads=2)
        with pytest.raises(ValueError, match=message):
            assign(broken, X[:4], n_threads=2)
        with pytest.raises(ValueError, match=r"^X must be finite"):
            kmeans(broken.reshape(3, 3000, 3), 4, n_threads=2)


@pytest.mark.parametrize(
    ("X", "centroids", "message"),
    [
        (np.ones((2, 0)), np.ones((1, 0)), r"X must have at least one column, got shape \(2, 0\)"),
        (X_OK, np.ones((0, 2)), r"centroids must have at least one row, got shape \(0, 2\)"),
        (X_OK, np.ones((3, 5)), r"centroids must have the columns and groups of X, \(6, 2\), got"),
        (X_OK, np.ones((1, 3, 2)), r"centroids must have 2 dimensions, got shape \(1, 3, 2\)"),
        (X_OK, np.ones(2), r"centroids must have 2 dimensions, got shape \(2,\)"),
        (X_OK, [[0.0, np.nan]], r"centroids must be finite, got nan at \[0, 1\]"),
        (np.ones(3), np.ones((1, 3)), r"X must have 2 or 3 dimensions, got shape \(3,\)"),
        (
            np.ones((2, 6, 2)),
            np.ones((3, 1, 2)),
            r"centroids must have the columns and groups of X, \(2, 6, 2\), got shape \(3, 1, 2\)",
        ),
    ],
)
def test_bad_operands_of_assign(X, centroids, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        assign(X, centroids)


@pytest.mark.parametrize("n_threads", [0, -1, 1025])
def test_bad_threads_of_assign(n_threads):
    with pytest.raises(ValueError, match=rf"^n_threads must be in \[1, 1024\], got {n_threads}"):
        assign(X_OK, X_OK, n_threads=n_threads)

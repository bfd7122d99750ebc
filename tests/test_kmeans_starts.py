"""Where kmeans starts: each draw as likely as promised, lines, several runs, seeds."""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise, permutations

import numpy as np
import oracle
import pytest
from fastfactor import kmeans
from kmeans_checks import FLOATS, assert_same_bits, blobs
from scipy import stats


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


@cache
def rows_and_starts_draw_by_draw(n_features, outlier):
    """Rows in 60 heaps, and what each of 30 plain starts costs after one step."""
    rng = np.random.default_rng(5)
    X = blobs(rng, 1500, n_features, 60, spread=0.02)
    X[7, 0] += outlier
    costs = []
    for _ in range(30):
        centroids, labels = oracle.lloyd(X, oracle.plus_plus(X, 90, rng), 1)
        costs.append(oracle.inertia(X, centroids, labels))
    return X, costs


# Rows in lanes or tiles, rows behind a filter, and a filter that tells nothing: the outlier is
# always drawn, and makes the scale so coarse that every centroid may be nearer.
@pytest.mark.heavy
@pytest.mark.parametrize(("n_features", "outlier"), [(3, 0), (21, 0), (21, 1e4)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_plus_plus_starts_are_as_good_as_plain_ones_draw_by_draw(dtype, n_features, outlier):
    """More centroids than one refresh takes: a start's cost after one step, over many starts."""
    X, theirs = rows_and_starts_draw_by_draw(n_features, outlier)
    X = X.astype(dtype)
    ours = [kmeans(X, 90, max_iter=1, random_state=seed).inertia for seed in range(30)]
    assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 1e-3
    worse = [kmeans(X, 90, init="random", max_iter=1, random_state=s).inertia for s in range(30)]
    assert np.mean(ours) < 0.7 * np.mean(worse)  # so that the comparison above can tell


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("n_samples", [2, 5, 33, 100, 1100])
@pytest.mark.parametrize("n_features", [3, 11, 32, 65])
def test_as_many_clusters_as_rows_takes_every_row(rng, init, n_features, n_samples):
    X = rng.standard_normal((n_samples, n_features)).astype(np.float32)
    result = kmeans(X, n_samples, init=init, random_state=1)
    assert result.inertia == 0
    np.testing.assert_array_equal(np.sort(result.labels), np.arange(n_samples))
    np.testing.assert_array_equal(result.centroids[result.labels], X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_features", [3, 17, 40])
def test_plus_plus_takes_every_distinct_row_before_it_repeats_one(rng, dtype, n_features):
    """Rows on a centroid are at distance zero exactly."""
    distinct = (rng.standard_normal((90, n_features)) * 64).round().astype(dtype) / dtype(64)
    distinct[:30] *= dtype(0.25)
    distinct[30:60] *= dtype(4)
    X = distinct[rng.permutation(np.repeat(np.arange(90), rng.integers(1, 40, 90)))]
    result = kmeans(X, 90, max_iter=1, random_state=2)
    found = np.unique(result.centroids, axis=0)
    np.testing.assert_array_equal(found, np.unique(distinct.astype(found.dtype), axis=0))
    assert result.inertia == 0


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

"""kmeans against the oracle step by step, against scikit-learn from the same start; its rules."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import oracle
import pytest
from fastfactor import assign, kmeans
from hypothesis import given
from hypothesis import strategies as st
from kmeans_checks import FLOATS, assert_consistent, assert_same_bits, blobs
from sklearn.cluster import KMeans

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
    X = np.array([[0.0], [2], [-2], [0], [60]])
    start = np.array([[0.0], [100], [1000], [2000]])
    result = kmeans(X, 4, init=start, max_iter=1)
    # Cluster 1 keeps row 4; 2 takes row 1, 3 takes row 2.
    np.testing.assert_array_equal(result.centroids.ravel(), [0, 60, 2, -2])


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

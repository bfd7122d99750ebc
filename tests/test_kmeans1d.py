"""kmeans1d: the optimum against dynamic programming, and what every answer obeys."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest
import scalar_oracle
from fastfactor import kmeans1d
from hypothesis import given
from hypothesis import strategies as st

FLOATS = [np.float32, np.float64]


def normal(rng, n):
    return rng.standard_normal(n)


def few_values(rng, n):
    return rng.integers(0, 8, n).astype(float)


def even(rng, n):
    """Nothing but ties: f(k) is linear between the divisors of n."""
    return np.arange(n, dtype=float)


def clumps(rng, n):
    return rng.choice([0.0, 100.0, 1e4], n) + 1e-2 * rng.standard_normal(n)


def heavy_tails(rng, n):
    return rng.standard_cauchy(n)


def far_out(rng, n):
    return 1e8 + 64.0 * rng.integers(0, 30, n)


def tiny(rng, n):
    return 1e-30 * rng.standard_normal(n)


def huge(rng, n):
    return 1e30 * rng.standard_normal(n)


def all_magnitudes(rng, n):
    return 10.0 ** rng.uniform(-18, 18, n) * rng.choice([-1, 1], n)


DATA = [normal, few_values, even, clumps, heavy_tails, far_out, tiny, huge, all_magnitudes]


def inertia_of(x, centroids, weights=None):
    """Σ w (x − c)² with the nearest centroid."""
    distances = (x.astype(np.float64)[:, None] - centroids.ravel().astype(np.float64)) ** 2
    weights = np.ones(len(x)) if weights is None else weights
    return float(weights @ distances.min(axis=1))


def check(result, x, n_clusters, weights=None, fixed=()):
    """What holds for every result."""
    assert result.centroids.shape == (n_clusters, 1)
    assert result.labels.shape == x.shape
    assert result.labels.dtype == np.int32
    assert isinstance(result.inertia, float)
    assert isinstance(result.n_iter, int)
    centroids = result.centroids.ravel().astype(np.float64)
    assert (np.diff(centroids) >= 0).all()
    assert np.isin(np.asarray(fixed, np.float64), centroids).all()
    distances = np.abs(x.astype(np.float64)[:, None] - centroids)
    mine = distances[np.arange(len(x)), result.labels]
    assert (mine <= distances.min(axis=1)).all()
    ties = (distances == distances.min(axis=1, keepdims=True)).argmax(axis=1)
    exact_sums = np.abs(centroids).max(initial=0) < 1e15 and x.dtype == np.float32
    if exact_sums and (np.abs(x) > 1e-9).all():
        np.testing.assert_array_equal(result.labels, ties)
    assert result.inertia == pytest.approx(inertia_of(x, centroids, weights), rel=1e-9, abs=1e-290)


def rounding(x, weights=None):
    """What centroids in the result's type, instead of the means, may cost."""
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    weights = np.ones(len(x)) if weights is None else weights
    return 4 * float(weights @ (np.finfo(dtype).eps * x.astype(np.float64)) ** 2)


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_is_the_optimum(rng, make, dtype, weighted):
    for n in (1, 2, 3, 7, 8, 9, 16, 31, 61):
        x = make(rng, n).astype(dtype)
        weights = rng.integers(0, 4, n) + (np.arange(n) == 0) if weighted else None
        least = scalar_oracle.least_inertias(x, n + 3, weights)
        for k in {1, 2, 3, 5, 8, n - 1, n, n + 3} & set(range(1, n + 4)):
            result = kmeans1d(x, k, sample_weight=weights)
            check(result, x, k, weights)
            assert result.inertia <= least[k] * (1 + 1e-9) + rounding(x, weights)


def test_exact_is_the_best_of_all_labellings(rng):
    for _ in range(10):
        x = rng.standard_normal(6)
        for k in (1, 2, 3):
            least = scalar_oracle.least_inertia_of_all(x, k)
            assert kmeans1d(x, k).inertia == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("n", [211, 700])
@pytest.mark.parametrize("make", [normal, few_values, clumps, heavy_tails])
def test_exact_where_blocks_have_many_columns(rng, n, make):
    x = make(rng, n)
    least = scalar_oracle.least_inertias(x, 60)
    for k in (2, 3, 6, 17, 60):
        assert kmeans1d(x, k).inertia <= least[k] * (1 + 1e-9) + rounding(x)


@pytest.mark.parametrize("make", DATA[:6])
@pytest.mark.parametrize("dtype", FLOATS)
def test_exact_around_fixed_centroids(rng, make, dtype):
    for n in (1, 2, 9, 30):
        x = make(rng, n).astype(dtype)
        weights = rng.integers(1, 4, n) if n == 9 else None
        for k in (1, 2, 4, 7):
            for n_fixed in {0, 1, min(3, k), k}:
                fixed = rng.choice([*x, *(x / 2), 0], n_fixed).astype(dtype)
                result = kmeans1d(x, k, fixed=fixed, sample_weight=weights)
                check(result, x, k, weights, fixed)
                least = scalar_oracle.least_inertia(x, k, weights, fixed)
                assert result.inertia <= least * (1 + 1e-9) + rounding(x, weights)


def test_fixed_zero_of_pruned_weights(rng):
    x = np.where(rng.random(5000) < 0.6, 0, rng.standard_normal(5000)).astype(np.float32)
    result = kmeans1d(x, 16, fixed=[0])
    zero = np.flatnonzero(result.centroids.ravel() == 0)
    assert len(zero) == 1
    assert (result.labels[x == 0] == zero[0]).all()
    assert result.inertia <= kmeans1d(x, 16, fixed=[0], method="lloyd").inertia
    assert result.inertia >= kmeans1d(x, 16).inertia


@pytest.mark.parametrize("centroid_dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_centroids_are_chosen_among_those_of_the_type(rng, centroid_dtype, dtype):
    for scale in (1, 1e-7, 300):
        for n in (1, 2, 12, 25):
            x = (scale * (3 + rng.standard_normal(n))).astype(dtype)
            if centroid_dtype != "int8":  # so near each other that the type is the coarser one
                x = (scale * (1 + 2e-3 * rng.random(n))).astype(dtype)
            places = scalar_oracle.representable(centroid_dtype, x)
            for k in (1, 2, 4):
                result = kmeans1d(x, k, centroid_dtype=centroid_dtype)
                check(result, x, k)
                assert np.isin(result.centroids.astype(np.float64), places).all()
                least = scalar_oracle.least_inertia(x, k, places=places)
                assert result.inertia == pytest.approx(least, rel=1e-9, abs=1e-300)


def test_centroid_dtype_is_better_than_rounding_after(rng):
    x = (1 + 0.02 * rng.standard_normal(2000)).astype(np.float32)
    chosen = kmeans1d(x, 12, centroid_dtype="bfloat16")
    assert chosen.centroids.dtype == ml_dtypes.bfloat16
    rounded = kmeans1d(x, 12).centroids.astype(ml_dtypes.bfloat16)
    assert chosen.inertia < 0.999 * inertia_of(x, rounded)


def test_int8_centroids_are_multiples_of_the_documented_scale(rng):
    x = rng.standard_normal((5, 300)).astype(np.float32)
    centroids = kmeans1d(x, 16, centroid_dtype="int8").centroids
    scale = np.abs(x).max(axis=1)[:, None, None] / np.float32(127)
    codes = np.rint(centroids / scale).astype(np.int8)
    np.testing.assert_array_equal(codes * scale, centroids)
    assert kmeans1d(np.zeros(3, np.float32), 2, centroid_dtype="int8").inertia == 0


def test_centroids_beyond_the_type_lie_at_its_limit():
    result = kmeans1d(np.array([-1e9, -1e6, 1.0, 1e9]), 3, centroid_dtype="float16")
    np.testing.assert_array_equal(result.centroids.ravel(), [-65504, 1, 65504])


@pytest.mark.parametrize("init", ["linear", "density", "given"])
@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_follows_lloyd(rng, init, weighted):
    for n, k in ((1, 1), (2, 3), (50, 4), (400, 9)):
        x = rng.standard_normal(n)
        weights = rng.uniform(0, 1, n) if weighted else None
        for fixed in ((), (0.0,)):
            free = k - len(fixed)
            start = np.sort(rng.standard_normal(free))
            if init == "linear":
                start = np.linspace(x.min(), x.max(), free)
                start = start if free > 1 else np.array([(x.min() + x.max()) / 2])[:free]
            elif init == "density":
                start = oracle.init_density(x, free, weights).ravel()
            given_init = start if init == "given" else init
            result = kmeans1d(
                x, k, method="lloyd", init=given_init, sample_weight=weights, fixed=fixed
            )
            check(result, x, k, weights, fixed)
            centroids, labels, n_iter = scalar_oracle.lloyd(x, start, weights, fixed)
            np.testing.assert_allclose(result.centroids.ravel(), centroids, rtol=1e-12, atol=1e-14)
            if len(np.unique(centroids)) == k:
                np.testing.assert_array_equal(result.labels, labels)
            assert result.n_iter == (n_iter if free else 0)


def test_lloyd_with_a_centroid_dtype_stays_on_it(rng):
    x = rng.standard_normal(1000).astype(np.float32)
    for centroid_dtype in ("float16", "bfloat16", "int8"):
        options = {"method": "lloyd", "centroid_dtype": centroid_dtype}
        result = kmeans1d(x, 8, **options)
        places = scalar_oracle.representable(centroid_dtype, x)
        assert np.isin(result.centroids.astype(np.float64), places).all()
        assert kmeans1d(x, 8, centroid_dtype=centroid_dtype).inertia <= result.inertia


values = st.lists(
    st.one_of(st.integers(-20, 20).map(float), st.floats(-1e6, 1e6, width=32)),
    min_size=1,
    max_size=40,
)


@given(values=values, n_clusters=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_no_other_answer_is_better(values, n_clusters, seed):
    x, rng = np.array(values), np.random.default_rng(seed)
    least = kmeans1d(x, n_clusters).inertia
    slack = 1e-9 * least + rounding(x)
    assert least <= kmeans1d(x, n_clusters, method="lloyd").inertia + slack
    assert least <= inertia_of(x, rng.choice(x, n_clusters)) + slack
    assert least <= kmeans1d(x, n_clusters, fixed=[x[0]]).inertia + slack
    assert kmeans1d(x, n_clusters + 1).inertia <= least + slack


@given(values=values, n_clusters=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_order_does_not_matter_and_weights_count_copies(values, n_clusters, seed):
    x, rng = np.array(values), np.random.default_rng(seed)
    turn = rng.permutation(len(x))
    one, other = kmeans1d(x, n_clusters), kmeans1d(x[turn], n_clusters)
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.labels[turn], other.labels)
    assert one.inertia == other.inertia
    copies = rng.integers(0, 4, len(x))
    copies[0] += 1
    weighted = kmeans1d(x, n_clusters, sample_weight=copies)
    repeated = kmeans1d(np.repeat(x, copies), n_clusters)
    np.testing.assert_array_equal(weighted.centroids, repeated.centroids)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-12)


def test_data_far_from_zero_loses_nothing(rng):
    near = np.round(rng.standard_normal(300) * 1e5) / 2**20
    for dtype, offset in ((np.float64, 1e8), (np.float64, -1e9)):
        far = (near + offset).astype(dtype)
        for k in (2, 7, 50):
            moved = far - offset  # exact
            assert kmeans1d(far, k).inertia == pytest.approx(kmeans1d(moved, k).inertia, rel=1e-6)
            np.testing.assert_array_equal(kmeans1d(far, k).labels, kmeans1d(moved, k).labels)


def test_scaling_by_a_power_of_two_changes_nothing_else(rng):
    x = rng.standard_normal(500)
    one = kmeans1d(x, 9)
    for exponent in (-1000, -400, 300, 500):
        other = kmeans1d(np.ldexp(x, exponent), 9)
        np.testing.assert_array_equal(other.centroids, np.ldexp(one.centroids, exponent))
        np.testing.assert_array_equal(other.labels, one.labels)
    np.testing.assert_array_equal(kmeans1d(np.ldexp(x, 1021), 9).labels, one.labels)


def test_more_clusters_than_values():
    x = np.array([3.0, -1, 3, 3, -1])
    result = kmeans1d(x, 4)
    np.testing.assert_array_equal(result.centroids.ravel(), [-1, 3, 3, 3])
    np.testing.assert_array_equal(result.labels, [1, 0, 1, 1, 0])
    assert result.inertia == 0


def test_zeros_of_both_signs_are_one_value():
    x = np.array([0.0, -0.0, 1.0, -0.0], np.float32)
    result = kmeans1d(x, 2)
    np.testing.assert_array_equal(result.labels, [0, 0, 1, 0])
    assert result.inertia == 0

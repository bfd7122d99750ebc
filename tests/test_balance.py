"""Balanced assignment: sizes, optimality by other solvers and by duality, bits, worst cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from balanced_oracle import balanced_cost, balanced_cost_linear, balanced_gap, squared_distances
from fastfactor.kernels.balancing import _balanced_assign
from hypothesis import given, settings
from hypothesis import strategies as st

GAP = 1e-9


def check(X, centroids, sample_weight=None, **options):
    """Assign; what must hold whatever the data: sizes, the cost as told, the gap as told."""
    result = _balanced_assign(X, centroids, sample_weight=sample_weight, **options)
    costs = squared_distances(X, centroids, sample_weight)
    n, k = costs.shape
    sizes = np.bincount(result.labels, minlength=k)
    assert result.labels.dtype == np.int32
    assert result.labels.shape == (n,)
    assert len(sizes) == k
    assert n // k <= sizes.min() <= sizes.max() <= -(-n // k)
    paid = costs[np.arange(n), result.labels].sum()
    np.testing.assert_allclose(result.cost, paid, rtol=1e-12, atol=1e-300)
    assert 0 <= result.gap <= GAP
    if paid > 0:
        magnitude = paid + np.abs(result.prices).sum() * (n / k + 1)
        gap = balanced_gap(costs, result.labels, result.prices)
        assert gap <= GAP * paid + 1e-14 * magnitude
    return result


def problem(seed, *, n_most=60, k_most=25):
    """A small problem, often a degenerate one."""
    rng = np.random.default_rng(seed)
    n, k, d = rng.integers(1, n_most), rng.integers(1, k_most), rng.integers(1, 5)
    X, centroids = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    kind = seed % 7
    if kind == 1:
        X, centroids = np.round(X), np.round(centroids)
    elif kind == 2:
        X = X[rng.integers(0, n, n) % 3 % n]
    elif kind == 3:
        centroids = centroids[rng.integers(0, k, k) % 2 % k]
    elif kind == 4:
        centroids = centroids + 5
    elif kind == 5:
        X[0] *= 1e4
    weight = None
    if seed % 3 == 1:
        weight = rng.random(n)
    elif seed % 3 == 2:
        weight = np.where(rng.random(n) < 0.4, 0, rng.random(n) ** 6)
    return X, centroids, weight


@pytest.mark.parametrize("block", range(10))
def test_least_cost_by_assignment(block):
    for seed in range(45 * block, 45 * block + 45):
        X, centroids, weight = problem(seed)
        best = balanced_cost(squared_distances(X, centroids, weight))
        assert check(X, centroids, weight).cost == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_least_cost_by_linear_programme():
    for seed in range(40):
        X, centroids, weight = problem(seed + 1000, n_most=30, k_most=12)
        best = balanced_cost_linear(squared_distances(X, centroids, weight))
        assert check(X, centroids, weight).cost == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("n", "k"), [(200, 20), (331, 13), (600, 30), (257, 8), (160, 19)])
def test_least_cost_where_all_stages_run(n, k):
    rng = np.random.default_rng(n)
    X, centroids = rng.standard_normal((n, 3)), rng.standard_normal((k, 3)) + 1
    best = balanced_cost(squared_distances(X, centroids))
    assert check(X, centroids).cost == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_least_cost_on_integers(data):
    n, k = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 30))
    values = st.integers(-3, 3)
    X = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), np.float32)[:, None]
    centroids = np.array(data.draw(st.lists(values, min_size=k, max_size=k)), np.float32)[:, None]
    prices = data.draw(st.none() | st.lists(st.floats(-1e6, 1e6), min_size=k, max_size=k))
    best = balanced_cost(squared_distances(X, centroids))
    assert check(X, centroids, prices=prices).cost == best


LARGE = {
    "normal": lambda r: (r.standard_normal((5003, 8)), r.standard_normal((32, 8))),
    "all in one region": lambda r: (
        r.standard_normal((4096, 4)),
        np.concatenate([r.standard_normal((1, 4)), 1000 + r.standard_normal((31, 4))]),
    ),
    "far point": lambda r: (
        np.concatenate([r.standard_normal((4000, 4)), np.full((1, 4), 1e6)]),
        r.standard_normal((16, 4)),
    ),
    "far centroid": lambda r: (
        r.standard_normal((4000, 4)),
        np.concatenate([r.standard_normal((15, 4)), np.full((1, 4), 1e5)]),
    ),
    "blobs fewer than clusters": lambda r: (
        np.repeat(100 * r.standard_normal((5, 4)), 800, axis=0) + r.standard_normal((4000, 4)),
        100 * r.standard_normal((32, 4)),
    ),
    "blobs, centroids in one": lambda r: (
        np.repeat(100 * r.standard_normal((5, 4)), 800, axis=0) + r.standard_normal((4000, 4)),
        r.standard_normal((32, 4)),
    ),
    "few distinct points": lambda r: (
        r.standard_normal((6, 3))[r.integers(0, 6, 4000)],
        r.standard_normal((20, 3)),
    ),
    "equal centroids": lambda r: (
        r.standard_normal((4000, 3)),
        np.repeat(r.standard_normal((6, 3)), 5, axis=0),
    ),
    "all zero": lambda r: (np.zeros((4001, 3)), np.zeros((32, 3))),
    "half duplicates, a line": lambda r: (
        np.concatenate([np.zeros((2000, 1)), 64 * r.random((2000, 1))]),
        np.arange(32.0)[:, None],
    ),
    "beside a line": lambda r: (r.random((1500, 1)), 10 + r.random((50, 1))),
    "binary": lambda r: (
        r.integers(0, 2, (4000, 8)).astype(float),
        r.integers(0, 2, (32, 8)).astype(float),
    ),
    "many clusters": lambda r: (r.standard_normal((2000, 8)), r.standard_normal((200, 8))),
    "as many clusters as points": lambda r: (
        r.standard_normal((300, 4)),
        r.standard_normal((300, 4)),
    ),
    "more clusters than points": lambda r: (
        r.standard_normal((100, 4)),
        r.standard_normal((3000, 4)),
    ),
    "heavy tails": lambda r: (
        np.exp(4 * r.standard_normal((4000, 2))),
        np.exp(4 * r.standard_normal((32, 2))),
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("weighted", [False, True])
def test_duality_gap_warm_as_cold_and_bits(name, weighted):
    rng = np.random.default_rng(7)
    X, centroids = LARGE[name](rng)
    weight = np.where(rng.random(len(X)) < 0.3, 0, 10 ** rng.uniform(-6, 0, len(X)))
    weight = weight if weighted else None
    cold = check(X, centroids, weight, n_threads=1)
    moved = centroids * 1.01
    for prices in (cold.prices, rng.standard_normal(len(centroids)), 1e9 * cold.prices):
        warm = check(X, centroids, weight, prices=prices, n_threads=2)
        assert warm.cost == pytest.approx(cold.cost, rel=1e-9, abs=1e-300)
    near = check(X, moved, weight, prices=cold.prices, n_threads=1)
    for n_threads in (2, 3, 7):
        again = check(X, centroids, weight, n_threads=n_threads)
        also = check(X, moved, weight, prices=cold.prices, n_threads=n_threads)
        for a, b in ((cold, again), (near, also)):
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(a.prices, b.prices)
            assert (a.cost, a.gap) == (b.cost, b.gap)


def test_prices_explain_the_labels():
    rng = np.random.default_rng(3)
    X, centroids = rng.standard_normal((2000, 4)), rng.standard_normal((16, 4))
    result = check(X, centroids)
    paid = squared_distances(X, centroids) + result.prices
    assert result.prices.min() == 0
    chosen = paid[np.arange(2000), result.labels]
    np.testing.assert_allclose(chosen, paid.min(axis=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", [-500, -300, -60, 60, 300, 500])
def test_any_magnitude(exponent):
    rng = np.random.default_rng(5)
    X, centroids = rng.standard_normal((700, 3)), rng.standard_normal((9, 3))
    plain = _balanced_assign(X, centroids)
    scaled = _balanced_assign(np.ldexp(X, exponent), np.ldexp(centroids, exponent))
    np.testing.assert_array_equal(plain.labels, scaled.labels)
    assert scaled.cost == np.ldexp(plain.cost, 2 * exponent)
    assert scaled.gap == plain.gap
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = _balanced_assign(
            np.ldexp(X, exponent), np.ldexp(centroids, exponent), prices=scaled.prices
        )
    assert again.cost == pytest.approx(scaled.cost, rel=1e-12)


def test_dtypes_and_strides():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(6)
    base = rng.standard_normal((501, 10))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        X = base.astype(dtype)
        centroids = X[:12]
        wide = _balanced_assign(X.astype(np.float64), centroids.astype(np.float64))
        for view, centres in (
            (X, centroids),
            (np.asfortranarray(X), np.asfortranarray(centroids)),
            (X[::-1][::-1], centroids),
        ):
            result = _balanced_assign(view, centres)
            np.testing.assert_array_equal(result.labels, wide.labels)
            assert result.cost == wide.cost
    half = _balanced_assign(base[::-2, 1::3], base[:7, 1::3])
    np.testing.assert_array_equal(
        half.labels,
        _balanced_assign(base[::-2, 1::3].copy(), base[:7, 1::3].copy()).labels,
    )


def test_small_shapes():
    assert check(np.ones((5, 2)), np.zeros((1, 2))).labels.tolist() == [0] * 5
    assert check(np.ones((1, 1)), np.array([[3.0], [1.0]])).labels.tolist() == [1]
    for k in (1, 3):
        empty = _balanced_assign(np.zeros((0, 4)), np.zeros((k, 4)))
        assert empty.labels.shape == (0,)
        assert (empty.cost, empty.gap) == (0, 0)
        assert empty.prices.shape == (k,)
    assert check(np.zeros((7, 0)), np.zeros((3, 0))).cost == 0


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("n", [1, 11, 12, 13, 1019, 1024, 1025])
def test_sizes_around_vectors_tiles_and_chunks(n, k):
    rng = np.random.default_rng(n * 100 + k)
    check(rng.standard_normal((n, 3)).astype(np.float32), rng.standard_normal((k, 3)))


def test_refusals():
    X, centroids = np.zeros((4, 2)), np.zeros((2, 2))
    bad = X.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"X must be finite, got nan at \[2, 1\]"):
        _balanced_assign(bad, centroids)
    bad[2, 1] = -np.inf
    with pytest.raises(ValueError, match=r"centroids must be finite, got -inf at \[2, 1\]"):
        _balanced_assign(X, bad)
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="sample_weight must be finite and zero or more, got"):
            _balanced_assign(X, centroids, sample_weight=[1, value, 1, 1])
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(4,\), got \(3,\)"):
        _balanced_assign(X, centroids, sample_weight=[1, 1, 1])
    with pytest.raises(ValueError, match=r"prices must have shape \(2,\), got \(3,\)"):
        _balanced_assign(X, centroids, prices=[1, 1, 1])
    with pytest.raises(ValueError, match="centroids must have at least one row"):
        _balanced_assign(X, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="centroids must have at least one row and 2 columns"):
        _balanced_assign(X, np.zeros((2, 3)))
    with pytest.raises(TypeError, match="X must have dtype"):
        _balanced_assign(np.zeros((4, 2), int), centroids)


def test_more_memory_than_there_is():
    X = np.broadcast_to(np.float32(0), (2_000_000, 1))
    centroids = np.broadcast_to(np.float32(0), (1_000_000, 1))
    with pytest.raises(MemoryError, match=r"balanced clusters need .* GiB for the costs"):
        _balanced_assign(X, centroids)


def test_not_finite_prices_are_a_cold_start():
    rng = np.random.default_rng(8)
    X, centroids = rng.standard_normal((500, 2)), rng.standard_normal((10, 2))
    cold = check(X, centroids)
    for value in (np.nan, np.inf):
        same = check(X, centroids, prices=np.full(10, value))
        np.testing.assert_array_equal(cold.labels, same.labels)


@pytest.mark.parametrize("e", [-1074, -1060, -1024, -1023, -1000, 500, 1000, 1020])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_magnitude_is_assigned_alike(rng, e, weighted):
    """Scaling by a power of two is exact: so are the labels, whether or not 2^-e is finite."""
    X, centroids = rng.integers(-8, 9, (200, 2)), rng.integers(-8, 9, (9, 2))
    weight = np.ldexp(rng.integers(0, 4, 200), -1074 if e < 0 else 1000) if weighted else None
    plain = _balanced_assign(X * 1.0, centroids * 1.0, sample_weight=weight)
    found = _balanced_assign(
        np.ldexp(X, e), np.ldexp(centroids, e), sample_weight=weight, prices=np.full(9, np.nan)
    )
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert not np.isnan([found.cost, found.gap, *found.prices]).any()


def test_the_least_numbers_there_are():
    X = np.array([[0], [1], [2], [3]]) * 5e-324
    np.testing.assert_array_equal(_balanced_assign(X, X[1:3]).labels, [0, 0, 1, 1])

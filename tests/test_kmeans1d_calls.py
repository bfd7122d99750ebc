"""kmeans1d however it is called: threads, sizes, dtypes, layouts, memory, and bad input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import kmeans1d
from kmeans_checks import assert_same_bits
from layouts import LAYOUTS

HALVES = [np.float16, ml_dtypes.bfloat16]
METHODS = ["exact", "lloyd"]


# --- the same bits, however it is called


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_number_of_threads_gives_the_same_bits(rng, n_threads, method, dtype, weighted):
    """Over groups; and within one, where values are many enough to be sorted and cut by several."""
    for shape in ((23, 300), (2, 300_007)):
        x = rng.standard_normal(shape).astype(dtype)
        weights = rng.uniform(0, 1, shape) if weighted else None
        options = {"method": method, "sample_weight": weights}
        one = kmeans1d(x, 7, n_threads=1, **options)
        assert_same_bits(kmeans1d(x, 7, n_threads=n_threads, **options), one)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_that_count_halves_give_the_same_bits(rng, n_threads, dtype, weighted):
    x = rng.standard_normal(2_200_001).astype(dtype)
    weights = rng.uniform(0, 1, len(x)) if weighted else None
    one = kmeans1d(x, 40, sample_weight=weights, n_threads=1)
    assert_same_bits(kmeans1d(x, 40, sample_weight=weights, n_threads=n_threads), one)


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_problems_of_their_own(rng, method):
    x = rng.standard_normal((9, 257)).astype(np.float32)
    weights, fixed = rng.uniform(0, 1, x.shape), rng.standard_normal((9, 2))
    options = {"method": method}
    together = kmeans1d(x, 6, sample_weight=weights, fixed=fixed, **options)
    assert together.centroids.shape == (9, 6, 1)
    for g in range(9):
        alone = kmeans1d(x[g], 6, sample_weight=weights[g], fixed=fixed[g], **options)
        for mine, theirs in zip(together, alone, strict=True):
            np.testing.assert_array_equal(mine[g], theirs)
    shared = kmeans1d(x, 6, sample_weight=weights[0], fixed=fixed[0], **options)
    alone = kmeans1d(x[3], 6, sample_weight=weights[0], fixed=fixed[0], **options)
    np.testing.assert_array_equal(shared.centroids[3], alone.centroids)


def test_initial_values_a_group(rng):
    x, start = rng.standard_normal((3, 80)), rng.standard_normal((3, 5))
    together = kmeans1d(x, 5, method="lloyd", init=start)
    for g in range(3):
        alone = kmeans1d(x[g], 5, method="lloyd", init=start[g])
        np.testing.assert_array_equal(together.labels[g], alone.labels)


@pytest.mark.parametrize("narrow", HALVES)
@pytest.mark.parametrize("n", [501, 40_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_narrow_floats_are_widened_exactly(rng, narrow, n, weighted):
    """Sorted where few, counted by pattern where many: the answers of float32."""
    x = rng.standard_normal(n).astype(narrow)
    x[:7] = -0.0
    weights = rng.integers(0, 3, n) if weighted else None
    for k in (1, 9, 60):
        narrow_result = kmeans1d(x, k, sample_weight=weights)
        assert_same_bits(narrow_result, kmeans1d(x.astype(np.float32), k, sample_weight=weights))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*HALVES, np.float32, np.float64])
def test_layout_does_not_matter(rng, layout, dtype):
    for shape in ((5, 203), (1, 33_001)):
        x = rng.standard_normal(shape).astype(dtype)
        weights = rng.uniform(0, 1, shape)
        expected = kmeans1d(x, 6, sample_weight=weights)
        assert_same_bits(kmeans1d(layout(x), 6, sample_weight=layout(weights)), expected)
    assert_same_bits(kmeans1d(x[0, ::-3], 6), kmeans1d(np.ascontiguousarray(x[0, ::-3]), 6))


def test_read_only_memory_maps(rng, as_memmap):
    x, weights = rng.standard_normal((3, 700)).astype(np.float32), rng.uniform(0, 1, (3, 700))
    mapped = kmeans1d(as_memmap(x), 8, sample_weight=as_memmap(weights))
    assert_same_bits(mapped, kmeans1d(x, 8, sample_weight=weights))


def test_operands_are_not_written_to(rng):
    x, weights, fixed = rng.standard_normal(300), rng.uniform(0, 1, 300), np.array([0.5, -1])
    copies = x.copy(), weights.copy(), fixed.copy()
    kmeans1d(x, 6, sample_weight=weights, fixed=fixed)
    for array, copy in zip((x, weights, fixed), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 131_071, 131_072, 131_073, 262_144, 2_097_153])
def test_sizes_at_which_another_way_is_taken(rng, n):
    """How values are sorted and shared out changes with their number; labels must fit them."""
    x = np.round(rng.standard_normal(n) * 40)
    result = kmeans1d(x, 5)
    values, counts = np.unique(x, return_counts=True)
    few = kmeans1d(values, 5, sample_weight=counts)
    np.testing.assert_array_equal(result.centroids, few.centroids)
    np.testing.assert_array_equal(result.labels, few.labels[np.searchsorted(values, x)])


# --- bad input

X_OK = np.arange(6, dtype=np.float32)
DTYPES = "must have dtype float16, bfloat16, float32 or float64 in native byte order, got "


@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "g", "O", "U1", "M8[s]", ">f4"])
def test_wrong_dtypes(dtype):
    with pytest.raises(TypeError, match=f"^x {DTYPES}"):
        kmeans1d(np.zeros(3).astype(dtype), 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 2, 3)), r"x must have 1 or 2 dimensions, got shape \(1, 2, 3\)"),
        (np.float64(3), r"x must have 1 or 2 dimensions, got shape \(\)"),
        (np.ones(0), r"x must have at least one value, got shape \(0,\)"),
        (np.ones((3, 0)), r"x must have at least one value, got shape \(3, 0\)"),
    ],
)
def test_wrong_shapes(x, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kmeans1d(x, 1)


def test_no_groups():
    result = kmeans1d(np.ones((0, 3)), 2)
    assert [part.shape for part in result] == [(0, 2, 1), (0, 3), (0,), (0,)]


@pytest.mark.parametrize("dtype", [*HALVES, np.float32, np.float64])
@pytest.mark.parametrize("n", [10, 40_000])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(dtype, n, bad):
    x = np.linspace(-1, 1, n).astype(dtype)
    x[7] = bad
    for weights in (None, (np.arange(n) != 7).astype(float)):
        with pytest.raises(ValueError, match=r"^x must be finite, got -?(nan|inf) at \[7\]$"):
            kmeans1d(x, 3, sample_weight=weights)
        with pytest.raises(ValueError, match=r"^x must be finite, got -?(nan|inf) at \[1, 7\]$"):
            kmeans1d(np.stack([np.zeros_like(x), x]), 3, sample_weight=weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, r"n_clusters must be in \[1, 2147483647\], got 0"),
        ({"n_clusters": 2.0}, TypeError, "n_clusters must be an integer .*, got 2.0"),
        ({"method": "best"}, ValueError, "method must be one of 'exact', 'lloyd', got 'best'"),
        ({"init": "random"}, ValueError, "init must be one of 'linear', 'density', got 'random'"),
        ({"init": [1.0]}, ValueError, "init must hold 3 values, one for .*, got 1"),
        ({"init": [1.0, np.nan, 2]}, ValueError, r"init must be finite, got nan at \[1\]"),
        ({"init": ["a", "b", "c"]}, TypeError, "init must hold real numbers, got dtype <U1"),
        ({"fixed": [1, 2, 3, 4]}, ValueError, "fixed must hold at most n_clusters = 3 .*, got 4"),
        ({"fixed": np.ones((2, 1))}, ValueError, r"fixed must have shape \(m,\) or \(1, m\).*"),
        ({"fixed": [np.inf]}, ValueError, r"fixed must be finite, got inf at \[0\]"),
        ({"fixed": [1e300]}, ValueError, r"fixed must be finite in float32, got 1e\+300 at \[0\]"),
        (
            {"fixed": [0.1], "centroid_dtype": "bfloat16"},
            ValueError,
            "fixed must hold bfloat16 values, got 0.1.*",
        ),
        (
            {"fixed": [0.1], "centroid_dtype": "int8"},
            ValueError,
            "fixed must hold int8 values, got 0.1.*",
        ),
        ({"centroid_dtype": "int4"}, ValueError, "centroid_dtype must be one of .*, got 'int4'"),
        ({"centroid_dtype": np.int8}, TypeError, "centroid_dtype must be one of .*, got .*int8.*"),
        ({"sample_weight": np.ones(5)}, ValueError, r"sample_weight must have shape .*\(5,\)"),
        ({"sample_weight": ["a"] * 6}, TypeError, "sample_weight must hold real numbers, .*"),
        (
            {"sample_weight": [1, 1, -1.5, 1, 1, 1]},
            ValueError,
            r"sample_weight must be finite and zero or more, got -1.500000 at \[2\]",
        ),
        (
            {"sample_weight": [1, 1, 1, np.nan, 1, 1]},
            ValueError,
            r"sample_weight must be finite and zero or more, got nan at \[3\]",
        ),
        (
            {"sample_weight": np.zeros(6)},
            ValueError,
            "sample_weight must have a finite sum greater than zero, got 0.000000",
        ),
        (
            {"sample_weight": np.full(6, 1e308)},
            ValueError,
            "sample_weight must have a finite sum greater than zero, got inf",
        ),
        ({"n_threads": 0}, ValueError, r"n_threads must be in \[1, 1024\], got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        kmeans1d(X_OK, **{"n_clusters": 3, **options})


def test_fixed_zero_is_of_every_type():
    for centroid_dtype in ("float16", "bfloat16", "int8"):
        result = kmeans1d(X_OK - 2, 3, fixed=[0], centroid_dtype=centroid_dtype)
        assert (result.centroids == 0).sum() == 1

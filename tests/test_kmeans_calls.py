"""kmeans and assign however they are called: threads, dtypes, layouts, and bad input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import assign, kmeans
from kmeans_checks import FLOATS, assert_same_bits
from layouts import LAYOUTS

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
        ("linear", ValueError, r"X must have one column for init='linear', got shape \(6, 2\)"),
        ("density", ValueError, r"X must have one column for init='density', got shape \(6, 2\)"),
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

"""Selection by magnitude: against sorting, exact counts, ties, layouts, bits, refusals."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import magnitude_threshold, nm_sparsity_mask, prune_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from processes import built_levels, output_of

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHARES = [0, 0.1, 0.5, 0.9, 0.999, 1]
SHARED = 2**18  # candidates from which on threads share a selection
CHUNK = 2**16


def check(W, sparsity, **options):
    """Threshold and mask of W are the oracle's; a mean, up to the order of its sum."""
    expected_mask, expected_threshold = oracle.prune(W, sparsity, **options)
    threshold = magnitude_threshold(W, sparsity, **options)
    mask = prune_mask(W, sparsity, **options)
    assert mask.dtype == np.bool_
    assert mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, expected_mask)
    assert threshold.dtype == expected_threshold.dtype
    if "block_shape" not in options or options.get("pool") == "max":
        np.testing.assert_array_equal(threshold, expected_threshold)
    else:
        precise = options.get("pool") == "mean" or W.dtype == np.float64
        rtol = 1e-13 if precise else 1e-6
        np.testing.assert_allclose(threshold, expected_threshold, rtol=rtol)


# --- against the oracle


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "n", [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 1031, 5003, CHUNK + 1]
)
def test_any_size(rng, dtype, n):
    W = rng.standard_normal(n).astype(dtype)
    for sparsity in SHARES:
        check(W, sparsity)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [SHARED - 1, SHARED, SHARED + 1, 5 * CHUNK + 17])
def test_sizes_that_threads_share(rng, dtype, n):
    W = rng.standard_normal(n).astype(dtype)
    for sparsity in SHARES:
        check(W, sparsity)


@settings(max_examples=200)
@given(st.data())
def test_any_bits(data):
    """Every pattern of bits that is a finite number, few of them, so that ties are common."""
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    values = data.draw(
        st.lists(
            st.floats(allow_nan=False, allow_infinity=False, width=8 * np.dtype(dtype).itemsize),
            min_size=1,
            max_size=9,
        )
    )
    picks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=70))
    sparsity = data.draw(st.floats(0, 1))
    W = np.array(values, dtype)[picks]
    check(W, sparsity)
    m = data.draw(st.integers(1, len(W)))
    W = W[: len(W) // m * m]
    n = data.draw(st.integers(0, m))
    np.testing.assert_array_equal(nm_sparsity_mask(W, n, m), oracle.nm_sparsity(W, n, m))
    check(W.reshape(-1, m), sparsity, scope="row")
    block = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    check(W.reshape(-1, m), sparsity, block_shape=block, pool="max")


HARD = {
    "one value": lambda r, n: np.full(n, -2.5),
    "zeros of either sign": lambda r, n: np.where(r.random(n) < 0.5, 0.0, -0.0),
    "two values": lambda r, n: r.integers(0, 2, n) - 0.25,
    "ternary": lambda r, n: r.integers(-1, 2, n).astype(float),
    "90 % zeros": lambda r, n: np.where(r.random(n) < 0.9, 0, r.standard_normal(n)),
    "sorted": lambda r, n: np.sort(r.standard_normal(n)),
    "reversed": lambda r, n: np.sort(r.random(n))[::-1],
    "heavy tails": lambda r, n: np.exp(2 * r.standard_normal(n)),
    "denormals": lambda r, n: np.ldexp(r.integers(-200, 200, n).astype(float), -149),
    "every second half as large": lambda r, n: (
        r.standard_normal(n) * np.where(np.arange(n) % 2, 1, 0.01)
    ),
    "rows of different size": lambda r, n: (
        r.standard_normal(n) * np.exp2(-(np.arange(n) // 512 % 9))
    ),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n", [1500, 3 * SHARED // 2])
def test_hard_data(rng, name, n):
    with np.errstate(under="ignore"):
        W = HARD[name](rng, n).astype(np.float32)
    for sparsity in SHARES:
        check(W, sparsity)
    check(W.reshape(-1, 500) if n == 1500 else W.reshape(2, -1), 0.7, scope="row")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["low", "high", "inside"])
def test_data_that_deceives_a_sample(dtype, kind):
    """Where the sample looks, all is one size; the rest, almost everything, is another."""
    n = 3 * SHARED // 2
    looked_at = sampled_places(n)
    assert 0 < looked_at.sum() < n // 20
    rng = np.random.default_rng(1)
    W = rng.standard_normal(n)
    if kind == "inside":  # two keys far apart, and all others between them
        W[looked_at] = np.where(np.arange(looked_at.sum()) % 2, 1e-3, 9)
        W[~looked_at] = np.clip(abs(W[~looked_at]), 2e-3, 8)
    else:
        W[looked_at] = 1e-3 if kind == "low" else 9
    for sparsity in (0.3, 0.5, 0.77):
        check(W.astype(dtype), sparsity)


def sampled_places(n):
    """The kernel's plan of its sample, written down a second time."""
    mask64 = (1 << 64) - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask64
        return z ^ (z >> 31)

    n_pieces = min(2**17, int(n ** (2 / 3))) // 8
    step = n // n_pieces
    places = np.zeros(n, bool)
    for piece in range(n_pieces):
        bits = mix(mix(mix(n) ^ piece) ^ mix(0))
        at = piece * step + (bits * (step - 7) >> 64)
        places[at : at + 8] = True
    return places


@pytest.mark.parametrize("pool", ["square", "max", "mean"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((64, 64), (16, 16)),
        ((37, 53), (4, 4)),
        ((37, 53), (1, 9)),
        ((37, 53), (5, 1)),
        ((5, 9001), (2, 7)),
        ((40, 30), (100, 8)),
        ((40, 30), (40, 30)),
        ((33, 4100), (33, 4097)),
    ],
)
def test_blocks(rng, dtype, shape, block, pool):
    W = rng.standard_normal(shape).astype(dtype)
    for sparsity in SHARES:
        check(W, sparsity, block_shape=block, pool=pool)


@pytest.mark.parametrize("pool", ["square", "mean"])
def test_mean_of_blocks_neither_overflows_nor_vanishes(pool):
    W = np.full((4, 8), 1.5e308)
    W[:2, :4] = 1e-320
    threshold = magnitude_threshold(W, 0.25, block_shape=(2, 4), pool=pool)
    np.testing.assert_allclose(threshold, 1.5e308, rtol=1e-15)
    least = magnitude_threshold(W[:2, :4], 0.0, block_shape=(2, 4), pool=pool)
    np.testing.assert_allclose(least, 1e-320, rtol=1e-3)
    expected = np.ones((4, 8), bool)
    expected[:2, :4] = False
    np.testing.assert_array_equal(prune_mask(W, 0.25, block_shape=(2, 4), pool=pool), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 16, 17, 32, 100])
def test_n_of_m(rng, dtype, m):
    for W in (
        rng.standard_normal((7, 3, 5 * m)).astype(dtype),
        rng.integers(-2, 3, (41, 3 * m)).astype(dtype),
        rng.integers(-1, 2, m).astype(dtype),
    ):
        for n in {0, 1, m // 2, m - 1, m}:
            mask = nm_sparsity_mask(W, n, m)
            np.testing.assert_array_equal(mask, oracle.nm_sparsity(W, n, m))
            assert (mask.reshape(-1, m).sum(axis=1) == n).all()


# --- what is promised


@pytest.mark.parametrize("n", [10, 1000, 4001, SHARED + 5])
def test_the_count_is_exact_whatever_the_ties(rng, n):
    W = rng.integers(-3, 4, n).astype(np.float16)
    for sparsity in (*SHARES, 0.25, 1 / 3, 0.5 / n, 1.5 / n, 2.5 / n):
        mask = prune_mask(W, sparsity)
        assert n - mask.sum() == round(sparsity * n)
        assert (abs(W) >= magnitude_threshold(W, sparsity))[mask].all()


def test_halves_round_to_even():
    assert prune_mask(np.arange(1.0, 6.0), 0.5).sum() == 3  # 2.5 to 2 dropped
    assert prune_mask(np.arange(1.0, 8.0), 0.5).sum() == 3  # 3.5 to 4 dropped


def test_of_equals_those_of_lower_index_stay():
    ones = np.ones((3, 4))
    np.testing.assert_array_equal(
        prune_mask(ones, 0.5).astype(int), [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(prune_mask(np.asfortranarray(ones), 0.5), prune_mask(ones, 0.5))
    np.testing.assert_array_equal(prune_mask(ones, 0.5, scope="row").sum(axis=0), [3, 3, 0, 0])
    np.testing.assert_array_equal(nm_sparsity_mask(ones, 1, 4).sum(axis=0), [3, 0, 0, 0])
    assert prune_mask(ones, 0.5, block_shape=(1, 2)).ravel().tolist() == [True] * 6 + [False] * 6


def test_threshold_where_nothing_or_everything_is_kept(rng):
    W = rng.standard_normal((5, 6)).astype(np.float32)
    assert magnitude_threshold(W, 1.0) == np.inf
    assert magnitude_threshold(W, 0.0) == abs(W).min()
    assert not prune_mask(W, 1.0).any()
    assert prune_mask(W, 0.0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
def test_empty(shape):
    W = np.zeros(shape, np.float16)
    assert magnitude_threshold(W, 0.5) == np.inf
    assert magnitude_threshold(W, 0.5).dtype == np.float16
    assert prune_mask(W, 0.5).shape == shape
    assert nm_sparsity_mask(W, 1, 1).shape == shape
    if len(shape) == 2:
        np.testing.assert_array_equal(
            magnitude_threshold(W, 0.5, scope="row"), np.full(shape[0], np.inf, np.float16)
        )
        assert magnitude_threshold(W, 0.5, block_shape=(2, 2)) == np.inf
        assert prune_mask(W, 0.5, scope="row").shape == shape
        assert prune_mask(W, 0.5, block_shape=(2, 2)).shape == shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(203, 12), (523, 504)])
def test_layout_does_not_matter(rng, layout, dtype, shape):
    W = np.round(4 * rng.standard_normal(shape)).astype(dtype)
    for options in ({}, {"scope": "row"}, {"block_shape": (8, 3)}):
        check(layout(W), 0.6, **options)
        check(layout(W).T, 0.6, **options)
    np.testing.assert_array_equal(nm_sparsity_mask(layout(W), 2, 4), oracle.nm_sparsity(W, 2, 4))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0), (0, 3, 2, 1)])
def test_more_dimensions(rng, axes):
    W = np.round(4 * rng.standard_normal((8, 20, 36, 52))).astype(np.float32)
    for view in (W, W[::2, ::-1, 3:, ::3], W[:, :1]):
        check(view.transpose(axes), 0.6)
    repeated = np.broadcast_to(W[:, :1], (8, 20, 36, 52))
    check(repeated, 0.6)


def test_read_only_maps_of_files(rng, as_memmap):
    W = rng.standard_normal((300, 40)).astype(np.float32)
    for options in ({}, {"scope": "row"}, {"block_shape": (4, 8)}):
        check(as_memmap(W), 0.8, **options)


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads_gives_the_same_bits(rng, dtype, n_threads):
    smooth = rng.standard_normal((523, 504))
    assert smooth.size > SHARED
    blocks = [{"block_shape": (7, 5), "pool": pool} for pool in ("square", "max", "mean")]
    for W in (smooth.astype(dtype), np.round(3 * smooth).astype(dtype)):
        for options in ({}, {"scope": "row"}, *blocks):
            np.testing.assert_array_equal(
                magnitude_threshold(W, 0.8, n_threads=n_threads, **options),
                magnitude_threshold(W, 0.8, n_threads=1, **options),
            )
            np.testing.assert_array_equal(
                prune_mask(W, 0.8, n_threads=n_threads, **options),
                prune_mask(W, 0.8, n_threads=1, **options),
            )
        np.testing.assert_array_equal(
            nm_sparsity_mask(W, 2, 4, n_threads=n_threads), nm_sparsity_mask(W, 2, 4, n_threads=1)
        )


@pytest.mark.heavy
def test_every_level_gives_the_same_bits():
    code = """
        import hashlib
        import numpy as np
        from fastfactor import nm_sparsity_mask, prune_mask, magnitude_threshold

        rng = np.random.default_rng(5)
        found = hashlib.sha256()
        for dtype in (np.float16, np.float32, np.float64):
            W = rng.standard_normal((700, 416)).astype(dtype)
            for competing in (
                {}, {"scope": "row"}, {"block_shape": (3, 13)}, {"block_shape": (16, 16)}
            ):
                for pool in ("square", "max", "mean"):
                    options = {**competing, "pool": pool}
                    found.update(np.asarray(magnitude_threshold(W, 0.83, **options)).tobytes())
                    found.update(prune_mask(W, 0.83, **options).tobytes())
            for n, m in ((1, 2), (2, 4), (3, 8), (5, 16), (3, 13), (7, 32)):
                found.update(nm_sparsity_mask(W, n, m).tobytes())
        print(found.hexdigest())
    """
    found = {output_of(code, environment={"FASTFACTOR_LEVEL": level}) for level in built_levels()}
    assert len(found) == 1


# --- refusals


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bad", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("shape", [(3, 4), (40, 64), (520, 600)])
def test_nan_and_infinity_are_named(rng, dtype, bad, name, shape):
    W = rng.standard_normal(shape).astype(dtype)
    row, column = shape[0] - 2, shape[1] - 1
    W[row, column] = W[shape[0] - 1, 1] = bad
    message = rf"W must be finite, got {name} at \[{row}, {column}\]"
    large = W.size > SHARED
    for view in (W,) if large else (W, W[::-1][::-1], np.asfortranarray(W)):
        for options in ({}, {"scope": "row"}, {"block_shape": (2, 2)}):
            for call in (prune_mask,) if large else (magnitude_threshold, prune_mask):
                with pytest.raises(ValueError, match=message):
                    call(view, 0.5, **options)
        for m in (4,) if large else (1, 2, 4):
            with pytest.raises(ValueError, match=message):
                nm_sparsity_mask(view, 1, m)


def test_the_first_of_several_in_any_shape():
    W = np.zeros((2, 3, 4))
    W[1, 0, 2] = W[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"W must be finite, got nan at \[1, 0, 2\]"):
        prune_mask(W, 0.0)
    with pytest.raises(ValueError, match=r"W must be finite, got nan at \[5\]"):
        magnitude_threshold(np.where(np.arange(9) == 5, np.nan, 1), 1.0)


@pytest.mark.parametrize("call", [magnitude_threshold, prune_mask])
def test_arguments_are_checked(call):
    W = np.ones((4, 6))
    for bad, kind in ((-0.1, ValueError), (1.5, ValueError), (np.nan, ValueError)):
        with pytest.raises(kind, match=r"sparsity must be in \[0, 1\], got"):
            call(W, bad)
    for bad in ("0.5", None, True, [0.5]):
        with pytest.raises(TypeError, match=r"sparsity must be a number in \[0, 1\], got"):
            call(W, bad)
    with pytest.raises(ValueError, match="scope must be one of 'global', 'row', got 'column'"):
        call(W, 0.5, scope="column")
    with pytest.raises(TypeError, match=r"scope must be one of 'global', 'row', got \(2, 2\)"):
        call(W, 0.5, scope=(2, 2))
    for bad in (3, "row", (1, 2, 3), np.ones(2)):
        with pytest.raises(TypeError, match="block_shape must be a pair of integers, got"):
            call(W, 0.5, block_shape=bad)
    with pytest.raises(ValueError, match=r"block_shape\[1\] must be at least 1, got 0"):
        call(W, 0.5, block_shape=(2, 0))
    with pytest.raises(TypeError, match=r"block_shape\[0\] must be an integer at least 1, got 2.0"):
        call(W, 0.5, block_shape=(2.0, 2))
    with pytest.raises(ValueError, match="scope must be 'global' where block_shape is given, got"):
        call(W, 0.5, scope="row", block_shape=(2, 2))
    with pytest.raises(ValueError, match="pool must be one of 'square', 'max', 'mean', got 'sum'"):
        call(W, 0.5, block_shape=(2, 2), pool="sum")
    for options in ({"scope": "row"}, {"block_shape": (2, 2)}):
        with pytest.raises(ValueError, match=r"W must have 2 dimensions, got shape \(24,\)"):
            call(W.ravel(), 0.5, **options)
    with pytest.raises(ValueError, match=r"W must have at least one dimension, got shape \(\)"):
        call(np.float32(1), 0.5)
    with pytest.raises(TypeError, match=r"W must have dtype .*, got int64"):
        call(np.ones(4, np.int64), 0.5)
    with pytest.raises(TypeError, match=r"W must have dtype .* in native byte order, got >f4"):
        call(np.ones(4, ">f4"), 0.5)
    with pytest.raises(ValueError, match=r"n_threads must be in \[1, 1024\], got 0"):
        call(W, 0.5, n_threads=0)


def test_n_and_m_are_checked():
    W = np.ones((4, 6))
    with pytest.raises(ValueError, match="m must be at least 1, got 0"):
        nm_sparsity_mask(W, 0, 0)
    with pytest.raises(ValueError, match=r"n must be in \[0, 2\], got 3"):
        nm_sparsity_mask(W, 3, 2)
    with pytest.raises(TypeError, match=r"n must be an integer in \[0, 2\], got 1.0"):
        nm_sparsity_mask(W, 1.0, 2)
    with pytest.raises(
        ValueError, match=r"W must have rows whose length is a multiple of 4, got shape \(4, 6\)"
    ):
        nm_sparsity_mask(W, 2, 4)
    with pytest.raises(ValueError, match=r"W must have at least one dimension, got shape \(\)"):
        nm_sparsity_mask(np.float64(1), 1, 1)

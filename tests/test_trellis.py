"""Levels by the Viterbi algorithm, against the obvious NumPy."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import trellis_oracle as oracle
from fastfactor.kernels.trellis import MAX_WEIGHT, N_BUCKETS, Classes, trellis_quantize
from layouts import LAYOUTS

SHAPES = [(0, 5), (3, 0), (1, 1), (5, 1), (17, 7), (3, 63), (5, 64), (2, 65), (7, 131), (40, 67)]


def problem(rng, shape, *, count=3, shift=1, scale=2.0):
    """Values of several scales, classes of them, made-up costs and centres."""
    n_rows, n_columns = shape
    columns = rng.integers(-6, 7, n_columns).astype(np.int8)
    row_logs = rng.integers(-3, 7, n_rows)
    classes = Classes(columns, shift, count)
    values = scale * rng.standard_normal(shape) * 2.0 ** (row_logs[:, None] / 4)
    bits = np.cumsum(rng.random((2 * count, N_BUCKETS)), axis=1).astype(np.float32)
    centers = (0.2 * rng.standard_normal((2 * count, 3))).astype(np.float32)
    weights = (rng.random(shape) + 0.5).astype(np.float32)
    return values.astype(np.float32), weights, row_logs, classes, bits, centers


def check(values, step, weights, row_logs, classes, bits, centers, rate, **options):
    found = trellis_quantize(values, step, weights, row_logs, classes, bits, centers, rate)
    twice = oracle.twice_classes(classes.columns, row_logs, classes.shift, classes.count)
    exact = np.asarray(values, np.float32)
    expected = oracle.quantize(exact, step, weights, twice, bits, centers, rate)
    assert found.levels.dtype == np.int32
    np.testing.assert_array_equal(found.levels, expected)
    contexts = oracle.contexts_of(expected, twice)
    counts, sums = oracle.sums(exact, step, weights, expected, contexts, classes.count)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.sums, sums, rtol=1e-12, atol=1e-12 * np.abs(sums).max())
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_like_the_oracle(rng, shape):
    check(*with_step(problem(rng, shape), 0.7), 0.3)


def with_step(made, step):
    return made[0], step, *made[1:]


@pytest.mark.parametrize("count", [1, 2, 128])
@pytest.mark.parametrize("shift", [0, 3, 8])
def test_classes(rng, count, shift):
    made = problem(rng, (11, 30), count=count, shift=shift)
    check(*with_step(made, 1.0), 0.2)


@pytest.mark.parametrize("scale", [1e-30, 0.01, 30, 100, 20000, 1e9])
def test_small_and_large_values(rng, scale):
    values, *rest = problem(rng, (6, 70))
    check((values * np.float32(scale)), 1.0, *rest, 0.2)


def test_values_beyond_the_largest_level_get_it_or_the_one_below(rng):
    values, weights, row_logs, classes, _, centers = problem(rng, (3, 9))
    values = np.sign(values) * np.float32(1e30)
    free = np.zeros((6, N_BUCKETS), np.float32)
    found = trellis_quantize(values, 1.0, weights, row_logs, classes, free, centers, 0.2).levels
    np.testing.assert_array_equal(np.sign(found), np.sign(values))
    assert np.abs(found).min() >= 65534
    assert np.abs(found).max() == 65535


def test_values_that_leave_float32_in_steps(rng):
    values, *others = problem(rng, (4, 6))
    values[1, 2], values[3, 5] = 3e38, -3e38
    levels = trellis_quantize(values, 1e-3, *others, 0.2).levels
    assert 65534 <= levels[1, 2] <= 65535
    assert -65535 <= levels[3, 5] <= -65534
    values[values > 1e37], values[values < -1e37] = 1e30, -1e30
    np.testing.assert_array_equal(trellis_quantize(values, 1e-3, *others, 0.2).levels, levels)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_zeros_and_weights_of_zero(rng, rate):
    values, weights, *rest = problem(rng, (5, 40))
    check(np.zeros_like(values), 1.0, weights, *rest, rate)
    check(values, 1.0, np.zeros_like(weights), *rest, rate)
    weights[:, ::2] = MAX_WEIGHT
    check(values, 1.0, weights, *rest, rate)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_of_values(rng, dtype):
    values, *rest = problem(rng, (9, 33))
    check(values.astype(dtype), 0.7, *rest, 0.3)


def test_strided_and_read_only_input(rng):
    values, weights, *rest = problem(rng, (9, 33))
    expected = trellis_quantize(values, 0.7, weights, *rest, 0.3).levels
    for layout in LAYOUTS:
        found = trellis_quantize(layout(values), 0.7, layout(weights), *rest, 0.3).levels
        np.testing.assert_array_equal(found, expected)
    one = np.broadcast_to(weights[:1], weights.shape)
    check(values, 0.7, one, *rest, 0.3)


def test_the_same_bits_for_any_number_of_threads(rng, n_threads):
    values, *rest = problem(rng, (701, 40))
    one = trellis_quantize(values, 0.7, *rest, 0.3, n_threads=1)
    several = trellis_quantize(values, 0.7, *rest, 0.3, n_threads=n_threads)
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)
    without = trellis_quantize(values, 0.7, *rest, 0.3, n_threads=n_threads, with_levels=False)
    assert without.levels is None
    np.testing.assert_array_equal(without.sums, one.sums)


def test_the_levels_are_the_best_of_all(rng):
    n_columns = 4
    values, weights, row_logs, classes, bits, centers = problem(rng, (4, n_columns), scale=0.7)
    found = trellis_quantize(values, 1.0, weights, row_logs, classes, bits, centers, 0.3).levels
    twice = oracle.twice_classes(classes.columns, row_logs, classes.shift, classes.count)

    def costs(row, candidates):
        repeated = np.repeat(twice[row : row + 1], len(candidates), axis=0)
        contexts = oracle.contexts_of(candidates, repeated)
        away = values[row] - oracle.reconstruct(candidates, contexts, centers)
        rates = bits[contexts, oracle.bucket_of(np.abs(candidates))]
        return np.sum(weights[row] * away.astype(float) ** 2 + 0.3 * rates, axis=1)

    every = np.array(list(itertools.product(range(-4, 5), repeat=n_columns)))
    assert np.abs(found).max() <= 4
    for row in range(len(values)):
        assert costs(row, found[row : row + 1])[0] <= costs(row, every).min() * (1 + 1e-5)


def test_what_does_not_fit_is_named(rng):
    values, weights, row_logs, classes, bits, centers = problem(rng, (4, 6))

    def call(**changed):
        given = {
            "values": values,
            "step": 1.0,
            "weights": weights,
            "row_logs": row_logs,
            "classes": classes,
            "bits": bits,
            "centers": centers,
            "rate_weight": 0.2,
        }
        return trellis_quantize(**(given | changed))

    values[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"values must be finite, got nan at \[2, 3\]"):
        call()
    values[2, 3] = np.inf
    with pytest.raises(ValueError, match=r"values must be finite, got inf at \[2, 3\]"):
        call()
    values[2, 3] = 1
    for name, wrong, message in (
        ("values", values.astype(int), "values must have dtype"),
        ("weights", weights[:3], "weights must have shape"),
        ("weights", -weights, "weights must be in"),
        ("weights", weights * np.float32(np.nan), "weights must be in"),
        ("weights", weights * np.float32(1e21), "weights must be in"),
        ("row_logs", row_logs[:3], "row_logs must be 4 integers"),
        ("row_logs", row_logs / 2, "row_logs must be 4 integers"),
        ("row_logs", row_logs + 70000, "row_logs must be in"),
        ("rate_weight", 1e21, r"rate_weight must be in \[0, 1e\+20\], got 1e\+21"),
        ("bits", bits - np.float32(1e11), r"bits must be within ±1e\+10, got ±1e\+11"),
        ("step", 0.0, "step must be in"),
        ("step", 1e-60, "step must be in"),
        ("step", 1e60, "step must be in"),
        ("bits", bits[:5], "bits must have shape"),
        ("bits", bits * np.float32(np.inf), "bits must be finite"),
        ("centers", centers[:, :2], "centers must have shape"),
        ("rate_weight", -1.0, "rate_weight must be zero or more"),
        ("classes", Classes(classes.columns[:3], 0, 3), "columns must have length 6, got 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call(**{name: wrong})
    for arguments, message in (
        ((classes.columns.astype(int), 0, 1), "columns must be int8"),
        ((classes.columns, 9, 1), "shift must be in"),
        ((classes.columns, 0, 0), "count must be in"),
        ((classes.columns, 0, 129), "count must be in"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Classes(*arguments)

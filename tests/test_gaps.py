from __future__ import annotations

import re

import coding_oracle
import numpy as np
import pytest
from fastfactor import CorruptDataError, GapCodes, gap_decode, gap_encode
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 2**16  # entries that the kernel takes at a time


def without_fillers(coded):
    entries = gap_decode(coded.gaps, coded.gap_bits, coded.size)
    return np.delete(entries, coded.fillers)


@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.floats(0, 1), st.integers(1, 16))
def test_like_the_oracle_and_back(seed, size, density, gap_bits):
    mask = np.random.default_rng(seed).random(size) < density
    positions = np.flatnonzero(mask)
    coded = gap_encode(mask, gap_bits=gap_bits)
    fields, fillers = coding_oracle.gap_fields(positions, gap_bits)
    assert coded.gaps.tolist() == fields
    assert coded.fillers.tolist() == fillers
    assert coded.gaps.dtype == (np.uint8 if gap_bits <= 8 else np.uint16)
    assert (coded.gap_bits, coded.size) == (gap_bits, size)
    assert np.array_equal(without_fillers(coded), positions)


@given(st.lists(st.integers(0, 10**7), unique=True, max_size=30), st.integers(4, 16))
def test_wide_gaps(positions, gap_bits):
    positions = np.sort(np.array(positions, np.int64))
    coded = gap_encode(positions, size=10**7 + 1, gap_bits=gap_bits)
    assert np.array_equal(without_fillers(coded), positions)
    assert np.all(coded.gaps[coded.fillers] == 2**gap_bits - 1)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2000),
    st.floats(0, 1),
    st.integers(0, 64),
)
def test_the_width_takes_least(seed, size, density, value_bits):
    mask = np.random.default_rng(seed).random(size) < density**3
    chosen = gap_encode(mask, value_bits=value_bits)
    bits = [
        len(coding_oracle.gap_fields(np.flatnonzero(mask), b)[0]) * (b + value_bits)
        for b in range(1, 17)
    ]
    assert chosen.gap_bits == 1 + int(np.argmin(bits))


@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.floats(0, 1), st.integers(1, 16))
def test_escapes_like_the_oracle_and_back(seed, size, density, gap_bits):
    positions = np.flatnonzero(np.random.default_rng(seed).random(size) < density**4)
    coded = gap_encode(positions, size=size, gap_bits=gap_bits, escape=True)
    fields, escapes = coding_oracle.gap_fields_with_escapes(positions, gap_bits)
    assert coded.gaps.tolist() == fields
    assert coded.fillers.tolist() == escapes
    assert np.array_equal(gap_decode(coded.gaps, gap_bits, size, escape=True), positions)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2000), st.floats(0, 1), st.integers(0, 64))
def test_the_width_takes_least_with_escapes(seed, size, density, value_bits):
    mask = np.random.default_rng(seed).random(size) < density**3
    chosen = gap_encode(mask, value_bits=value_bits, escape=True)
    positions = np.flatnonzero(mask)
    bits = [
        len(coding_oracle.gap_fields_with_escapes(positions, b)[0]) * (b + value_bits)
        for b in range(1, 17)
    ]
    assert chosen.gap_bits == 1 + int(np.argmin(bits))


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
@pytest.mark.parametrize("gap_bits", [None, 1, 3, 9])
def test_many_escapes_for_any_number_of_threads(rng, n_threads, n, gap_bits):
    positions = np.cumsum(rng.geometric(0.1, n)) - 1
    size = int(positions[-1]) + 1 if n else 5
    coded = gap_encode(positions, size=size, gap_bits=gap_bits, escape=True, n_threads=1)
    parallel = gap_encode(positions, size=size, gap_bits=gap_bits, escape=True, n_threads=n_threads)
    assert coded.gap_bits == parallel.gap_bits
    assert np.array_equal(coded.gaps, parallel.gaps)
    assert np.array_equal(coded.fillers, parallel.fillers)
    fields, escapes = coding_oracle.gap_fields_with_escapes(positions, coded.gap_bits)
    assert np.array_equal(coded.gaps, fields)
    assert np.array_equal(coded.fillers, escapes)
    for threads in (1, n_threads):
        decoded = gap_decode(coded.gaps, coded.gap_bits, size, escape=True, n_threads=threads)
        assert np.array_equal(decoded, positions)


def test_an_escape_passes_over_one_less_than_its_power_of_two():
    for gap, fields in ((3, [2]), (4, [3, 0]), (6, [3, 2]), (7, [3, 3, 0])):
        coded = gap_encode([gap - 1], size=20, gap_bits=2, escape=True)
        assert coded.gaps.tolist() == fields
        assert coded.fillers.tolist() == list(range(len(fields) - 1))


def test_escapes_that_leave_the_array_are_corrupt():
    gaps = np.array([3, 3, 1], np.uint8)
    assert gap_decode(gaps, 2, 8, escape=True).tolist() == [7]
    for size in (0, 6, 7):
        with pytest.raises(CorruptDataError, match=rf"positions in \[0, {size}\), got 7"):
            gap_decode(gaps, 2, size, escape=True)
    many = np.full(3 * CHUNK, 3, np.uint8)
    assert gap_decode(many, 2, 9 * CHUNK, escape=True).size == 0
    with pytest.raises(CorruptDataError, match="gaps must lead to positions"):
        gap_decode(many, 2, 9 * CHUNK - 1, escape=True)
    with pytest.raises(
        CorruptDataError, match=re.escape("gaps must be in [0, 4), got a larger one")
    ):
        gap_decode(np.array([4], np.uint8), 2, 99, escape=True)


def test_a_field_bridges_exactly_its_power_of_two():
    for gap, fields in ((4, [3]), (5, [3, 0]), (8, [3, 3]), (9, [3, 3, 0])):
        coded = gap_encode([gap - 1], size=20, gap_bits=2)
        assert coded.gaps.tolist() == fields
        assert coded.fillers.tolist() == list(range(len(fields) - 1))


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
@pytest.mark.parametrize("gap_bits", [None, 1, 3, 8, 9])
def test_large_and_for_any_number_of_threads(rng, n_threads, n, gap_bits):
    positions = np.cumsum(rng.geometric(0.1, n)) - 1
    size = int(positions[-1]) + 1 if n else 5
    coded = gap_encode(positions, size=size, gap_bits=gap_bits, n_threads=1)
    parallel = gap_encode(positions, size=size, gap_bits=gap_bits, n_threads=n_threads)
    assert coded.gap_bits == parallel.gap_bits
    assert np.array_equal(coded.gaps, parallel.gaps)
    assert np.array_equal(coded.fillers, parallel.fillers)
    fields, fillers = coding_oracle.gap_fields(positions, coded.gap_bits)
    assert np.array_equal(coded.gaps, fields)
    assert np.array_equal(coded.fillers, fillers)
    for threads in (1, n_threads):
        decoded = gap_decode(coded.gaps, coded.gap_bits, size, n_threads=threads)
        assert np.array_equal(np.delete(decoded, coded.fillers), positions)


def test_the_expected_number_of_fillers():
    """q / (1 − q) fillers an entry, q = (1 − p)^(2^b), where entries are even (Han et al.)."""
    p, gap_bits = 0.1, 4
    mask = np.random.default_rng(3).random(2_000_000) < p
    coded = gap_encode(mask, gap_bits=gap_bits)
    q = (1 - p) ** (2**gap_bits)
    assert coded.fillers.size / mask.sum() == pytest.approx(q / (1 - q), rel=0.02)


def test_a_sparse_matrix_with_values_comes_back(rng):
    W = np.where(rng.random((40, 50)) < 0.04, rng.standard_normal((40, 50)), 0)
    coded = gap_encode(W != 0, gap_bits=4)
    values = np.zeros(coded.gaps.size)
    values[np.delete(np.arange(coded.gaps.size), coded.fillers)] = W[W != 0]
    dense = np.zeros(W.size)
    dense[gap_decode(coded.gaps, coded.gap_bits, coded.size)] = values
    assert np.array_equal(dense.reshape(W.shape), W)


def test_strided_masks_positions_and_memory_maps(rng, as_memmap):
    mask = rng.random((30, 40)) < 0.2
    for view in (mask[::2, ::-3], mask.T, np.asfortranarray(mask), as_memmap(mask)):
        coded = gap_encode(view)
        assert np.array_equal(without_fillers(coded), np.flatnonzero(np.ascontiguousarray(view)))
    positions = np.arange(0, 100, 3, dtype=np.int32)
    coded = gap_encode(positions[::2], size=100)
    assert isinstance(coded, GapCodes)
    assert np.array_equal(without_fillers(coded), positions[::2])
    assert np.array_equal(
        gap_decode(as_memmap(coded.gaps), coded.gap_bits, 100),
        gap_decode(coded.gaps, coded.gap_bits, 100),
    )


def test_gaps_that_leave_the_array_are_corrupt():
    gaps = np.full(3 * CHUNK, 3, np.uint8)
    assert gap_decode(gaps, 2, 12 * CHUNK)[-1] == 12 * CHUNK - 1
    message = f"gaps must lead to positions in [0, {12 * CHUNK - 1}), got {12 * CHUNK - 1}"
    with pytest.raises(CorruptDataError, match=re.escape(message)):
        gap_decode(gaps, 2, 12 * CHUNK - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gaps_that_are_too_wide_are_corrupt(dtype):
    for at in (0, CHUNK, 2 * CHUNK - 1):
        gaps = np.zeros(2 * CHUNK, dtype)
        gaps[at] = 4
        with pytest.raises(
            CorruptDataError, match=re.escape("gaps must be in [0, 4), got a larger one")
        ):
            gap_decode(gaps, 2, 10**9)
        assert gap_decode(gaps, 3, 10**9)[-1] == 2 * CHUNK + 3


BAD = [
    (lambda: gap_encode([1], size=3, escape=1), TypeError, "escape must be True or False, got 1"),
    (lambda: gap_decode(np.zeros(1, np.uint8), 1, 1, escape=None), TypeError, "escape must be"),
    (lambda: gap_encode([1.5], size=3), TypeError, "positions must be booleans or integers, .*64"),
    (lambda: gap_encode([[1]], size=3), ValueError, "positions must have 1 dimension, got shape"),
    (lambda: gap_encode([1]), TypeError, "size must be given with positions, got None"),
    (lambda: gap_encode([True], size=3), ValueError, "size must be that of the mask, 1, got 3"),
    (lambda: gap_encode([3], size=3), ValueError, r"positions must rise .* \[0, 3\), got 3 at \[0"),
    (lambda: gap_encode([-1], size=3), ValueError, r"positions must rise .* got -1 at \[0\]"),
    (lambda: gap_encode([1, 1], size=3), ValueError, r"got 1 at \[1\] after 1"),
    (lambda: gap_encode([2, 1], size=3), ValueError, r"got 1 at \[1\] after 2"),
    (lambda: gap_encode([1], size=-1), ValueError, "size must be in .* got -1"),
    (
        lambda: gap_encode([1], size=3, gap_bits=0),
        ValueError,
        r"gap_bits must be in \[1, 16\], got 0",
    ),
    (lambda: gap_encode([1], size=3, gap_bits=17), ValueError, r"gap_bits must be in \[1, 16\]"),
    (lambda: gap_encode([1], size=3, value_bits=65), ValueError, r"value_bits must be in \[0, 64"),
    (lambda: gap_decode(np.zeros(1), 1, 1), TypeError, "gaps must have dtype uint8 or uint16"),
    (lambda: gap_decode(np.zeros((1, 1), np.uint8), 1, 1), ValueError, "gaps must have 1 dim"),
    (lambda: gap_decode(np.zeros(4, np.uint8)[::2], 1, 9), ValueError, "gaps must be contiguous"),
    (lambda: gap_decode(np.zeros(1, np.uint8), 9, 1), ValueError, r"gap_bits must be in \[1, 8\]"),
    (lambda: gap_decode(np.zeros(1, np.uint8), 1, -1), ValueError, "size must be in .* got -1"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_arguments_are_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_a_position_out_of_order_is_found_in_any_chunk():
    positions = np.arange(3 * CHUNK)
    for at in (1, CHUNK, 2 * CHUNK + 5):
        wrong = positions.copy()
        wrong[at] = wrong[at - 1]
        with pytest.raises(ValueError, match=re.escape(f"got {at - 1} at [{at}] after {at - 1}")):
            gap_encode(wrong, size=3 * CHUNK)

"""Schedules: α and sparsity by step, against loops over the steps."""

from __future__ import annotations

import warnings

import pytest
from fastfactor.training import Schedule, SparsityRamp
from hypothesis import given
from hypothesis import strategies as st


def walked(schedule, n_steps):
    """α at every step, by lowering it where that is due: the published rule, step by step."""
    alpha, found, last = 1.0, [], schedule.begin
    for step in range(n_steps):
        inside = schedule.end == -1 or step <= schedule.end
        if step > schedule.begin and inside and step - last == schedule.frequency:
            alpha, last = max(alpha - schedule.alpha_decrement, 0.0), step
        found.append(alpha if alpha > 1e-9 else 0.0)
    return found


@given(
    begin=st.integers(0, 40),
    length=st.one_of(st.none(), st.integers(0, 80)),
    frequency=st.integers(1, 12),
    decrement=st.sampled_from([0.005, 0.01, 0.1, 0.25, 0.3, 1 / 3, 0.7, 1.0]),
)
def test_alpha_falls_when_it_is_due_and_at_no_other_step(begin, length, frequency, decrement):
    end = -1 if length is None else begin + length
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = Schedule(begin, end, frequency, decrement)
    expected = walked(schedule, 200)
    assert [schedule.alpha(step) for step in range(200)] == pytest.approx(expected, abs=1e-12)
    zeros = [step for step, alpha in enumerate(expected) if alpha == 0]
    if zeros or (schedule.zero_step is not None and schedule.zero_step < 200):
        assert schedule.zero_step == zeros[0]
        assert schedule.alpha(zeros[0]) == 0.0
        assert schedule.alpha(zeros[0] - 1) > 0


def test_the_published_schedule_ends_where_it_was_published():
    schedule = Schedule(begin=40_000, end=100_000, frequency=100, alpha_decrement=0.005)
    assert schedule.zero_step == 60_000
    assert (schedule.alpha(39_999), schedule.alpha(40_099)) == (1.0, 1.0)
    assert schedule.alpha(50_000) == pytest.approx(0.5)
    assert schedule.alpha(120_000) == 0.0


def test_an_end_of_minus_one_is_none():
    """The original compared `step < end`, so that -1 meant never."""
    assert Schedule(frequency=1, alpha_decrement=0.5).alpha(10**12) == 0.0
    assert Schedule().zero_step == 1000


def test_a_dense_matrix_that_would_stay_is_said_when_the_schedule_is_made():
    message = r"α never reaches 0: 9 falls of 0\.1 leave it at 0\.1 .* end must be at least 110"
    with pytest.warns(UserWarning, match=message) as caught:
        schedule = Schedule(begin=10, end=109, frequency=10, alpha_decrement=0.1)
    assert caught[0].filename == __file__
    assert schedule.zero_step is None
    assert schedule.alpha(10**9) == pytest.approx(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Schedule(begin=10, end=110, frequency=10, alpha_decrement=0.1).zero_step == 110


@given(
    total=st.integers(1, 3000),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    frequency=st.one_of(st.none(), st.integers(1, 500)),
)
def test_by_fractions_alpha_is_zero_in_time(total, fractions, frequency):
    begin, end = sorted(fractions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = Schedule.over(total, begin=begin, end=end, frequency=frequency)
    first, last = round(begin * total), round(end * total)
    assert schedule.begin == first
    each = schedule.frequency
    assert max(last - each, first) < schedule.zero_step <= max(last, first + each)
    if frequency is None:
        assert (schedule.zero_step - first) // each <= 400


def test_schedules_by_fractions_that_are_published_ones():
    assert Schedule.over(120_000, begin=1 / 3, end=0.5) == Schedule(40_000, 60_000, 100, 0.005)
    assert Schedule.over(10, begin=0, end=1) == Schedule(0, 10, 1, 0.1)
    assert Schedule.over(1, begin=1, end=1).zero_step == 2


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"begin": -1}, ValueError, "begin must be at least 0, got -1"),
        ({"begin": 1.0}, TypeError, "begin must be an integer at least 0, got 1.0"),
        ({"end": -2}, ValueError, "end must be at least -1, got -2"),
        ({"begin": 5, "end": 4}, ValueError, "end must be -1 or at least begin, 5, got 4"),
        ({"frequency": 0}, ValueError, "frequency must be at least 1, got 0"),
        ({"alpha_decrement": 0}, ValueError, r"alpha_decrement must be in \(0, 1\], got 0"),
        ({"alpha_decrement": 1.5}, ValueError, r"alpha_decrement must be in \(0, 1\], got 1.5"),
        ({"alpha_decrement": "1"}, TypeError, "alpha_decrement must be a number in"),
    ],
)
def test_arguments_of_a_schedule_are_checked(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"total_steps": 9, "begin": -0.1}, r"begin must be in \[0, 1\], got -0.1"),
        ({"total_steps": 9, "end": 1.1}, r"end must be in \[0, 1\], got 1.1"),
        ({"total_steps": 9, "begin": 0.6}, "end must be at least begin, 0.6, got 0.5"),
        ({"total_steps": 9, "frequency": 0}, "frequency must be at least 1, got 0"),
    ],
)
def test_arguments_by_fractions_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule.over(**arguments)


# --- sparsity


@given(
    final=st.floats(0, 1),
    initial=st.floats(0, 1),
    begin=st.integers(0, 30),
    length=st.integers(0, 60),
    frequency=st.integers(1, 9),
    power=st.sampled_from([1, 2.5, 3]),
)
def test_the_mask_is_chosen_when_due_and_stays_between(
    final, initial, begin, length, frequency, power
):
    end = begin + length
    ramp = SparsityRamp(final, begin, end, initial, frequency, power)
    held = initial
    for step in range(120):
        due = step in range(begin, end + 1, frequency) or step == end
        assert ramp.is_due(step) == due
        if due:
            progress = (step - begin) / length if length else 1
            held = final + (initial - final) * (1 - progress) ** power
        assert ramp.sparsity(step) == pytest.approx(held, abs=1e-12)
    assert ramp.sparsity(120) == final


def test_a_ramp_grows_fast_first():
    ramp = SparsityRamp(0.9, 0, 100)
    assert ramp.sparsity(50) == pytest.approx(0.9 - 0.9 / 8)
    assert SparsityRamp.over(1000, 0.9) == SparsityRamp(0.9, 100, 700, 0.0, 6)
    assert SparsityRamp.over(5, 0.5, begin=0, end=1).frequency == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final": 1.1}, r"final must be in \[0, 1\], got 1.1"),
        ({"final": 0.5, "initial": -1}, r"initial must be in \[0, 1\], got -1"),
        ({"final": 0.5, "begin": 3, "end": 2}, "end must be at least begin, 3, got 2"),
        ({"final": 0.5, "frequency": 0}, "frequency must be at least 1, got 0"),
        ({"final": 0.5, "power": 0}, "power must be positive, got 0"),
    ],
)
def test_arguments_of_a_ramp_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsityRamp(**arguments)

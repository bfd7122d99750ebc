"""Messages of checks: one line of bounded length that begins with the argument's name."""

from __future__ import annotations

import math
from fractions import Fraction

import fastfactor as ff
import numpy as np
import pytest
from fastfactor import _checks
from fastfactor.kernels.selection import integer_pair, n_dropped


class Lines:
    """A value that is shown on several lines."""

    def __repr__(self):
        return "first\n  second"


WRONG = {
    "matrix": np.eye(9),
    "objects": np.array([None, "text"]),
    "nested lists": [[1.5] * 200] * 200,
    "text": "first\nsecond" * 100,
    "several lines": Lines(),
    "large integer": -(10**5000),
    "complex": 1j,
    "array of one": np.array([0.5]),
    "dict": {"a": np.eye(20)},
}
CHECKS = {
    "n": lambda value: _checks.integer(value, "n", 1, 9),
    "tol": lambda value: _checks.nonnegative(value, "tol"),
    "share": lambda value: _checks.fraction(value, "share"),
    "init": lambda value: _checks.choice(value, "init", ("linear", "density")),
    "exchange": lambda value: _checks.boolean(value, "exchange"),
    "random_state": _checks.random_state,
    "shape": lambda value: _checks.sparse_shape(value, "shape"),
    "block_shape": lambda value: integer_pair(value, "block_shape"),
    "sparsity": lambda value: n_dropped(value, 10),
    "balanced": lambda value: ff.kmeans(np.eye(4), 2, balanced=value),
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", WRONG)
def test_messages_are_one_short_line(name, kind):
    with pytest.raises((TypeError, ValueError)) as caught:
        CHECKS[name](WRONG[kind])
    text = str(caught.value)
    assert text.startswith(name)
    assert " must be " in text
    assert "\n" not in text
    assert len(text) < 350


def test_what_came_is_shown():
    for value, shown in (
        (np.eye(9), "an array of dtype float64 and shape (9, 9)"),
        (np.array(0.5), "array(0.5)"),
        (2**70, "1180591620717411303424"),
        (-(10**5000), "an integer of 16610 bits"),
        (Lines(), "first second"),
        ("a" * 1000, "'" + "a" * 199 + "…"),
    ):
        assert _checks.shown(value) == shown


@pytest.mark.parametrize("large", [10**400, Fraction(10**400, 3)])
def test_numbers_beyond_floats_are_infinite(large):
    assert _checks.nonnegative(large, "tol") == math.inf
    with pytest.raises(ValueError, match=r"^tol must be zero or more, got "):
        _checks.nonnegative(-large, "tol")
    with pytest.raises(ValueError, match=r"^share must be in \(0, 1\], got "):
        _checks.fraction(large, "share")
    with pytest.raises(ValueError, match=r"^sparsity must be in \[0, 1\], got "):
        n_dropped(large, 10)

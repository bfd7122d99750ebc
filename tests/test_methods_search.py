"""The bisection of levels against trying all of them."""

from __future__ import annotations

from math import ceil, log2
from types import SimpleNamespace

import numpy as np
import pytest
from fastfactor.methods.search import Goal, Problem, bisect_levels, n_fitting
from fastfactor.metrics import Frobenius

PROBLEM = Problem(np.ones((10, 10), np.float32), Frobenius(), None)


def factors(level, n_levels):
    """Sizes rise by 7 bytes a level, and errors fall to 1 / n_levels."""
    error = (n_levels - level) / n_levels
    return SimpleNamespace(level=level, nbytes=7 * (level + 1), _error=lambda *_: error)


@pytest.mark.parametrize("n_levels", [1, 2, 3, 7, 8, 9, 31])
@pytest.mark.parametrize("is_size", [True, False])
def test_the_best_level_that_fits_is_found_in_few_compressions(n_levels, is_size):
    every = [factors(level, n_levels) for level in range(n_levels)]
    for limit in range(7 * n_levels + 9) if is_size else np.linspace(0, 1.1, 57):
        goal = Goal(PROBLEM, limit, is_size)
        tried = []

        def compress(level, tried=tried):
            tried.append(level)
            return factors(level, n_levels)

        found = bisect_levels(range(n_levels), compress, goal)
        fitting = [each for each in every if goal.allows(goal.measure(each))]
        assert len(tried) <= ceil(log2(n_levels + 1))
        if fitting:
            assert found.factors.level == fitting[-1 if is_size else 0].level
        else:
            assert found.factors is None
            assert found.nearest == min(goal.measure(each) for each in every)
        if is_size:
            assert n_fitting(range(n_levels), lambda i: every[i].nbytes, goal) == len(fitting)


def test_a_ratio_of_two_sizes_allows_the_size_that_it_was_made_of():
    for nbytes in range(1, 401):
        goal = Goal.of_ratio(PROBLEM, 400 / nbytes)
        assert goal.allows(nbytes)
        assert not goal.allows(nbytes + 1)

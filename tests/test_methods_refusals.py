"""What methods refuse: by name, in one line, and before any work where the shape decides."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)
from fastfactor.methods.base import Method
from fastfactor.metrics import Covariance, Diagonal

QUICK = {"max_iter": 1, "exchange": False, "criterion": "correlation"}
METHODS = (
    BlockDiagonal(n_blocks=2),
    BlockProjection(reduction=2),
    BlockProjection(reduction=2, block_in=4, block_out=4, learned=True, shared=False),
    Codebook(n_bits=2),
    Codebook(n_bits=2, granularity="row"),
    Codebook(n_bits=2, vector_dim=2),
    DeepCompression(sparsity=0.5),
    Dictionary(n_nonzero_coefs=1, **QUICK),
    Dictionary(n_nonzero_coefs=1, n_atoms=64, **QUICK),
    Dictionary(n_nonzero_coefs=1, block_size=4, **QUICK),
    EntropyCoded(bits_per_weight=2),
    EntropyCoded(bits_per_weight=2, block_rows=4),
    LowRank(rank=1),
    MixedBlock(rank=1),
    MixedBlock(rank=1, block_shape=(2, 2)),
    Prune(nm_sparsity=(2, 4)),
    Prune(sparsity=0.5),
    Prune(sparsity=0.5, block_shape=(2, 2)),
    Prune(sparsity=0.5, scope="row"),
    PruneCodebook(sparsity=0.5, n_bits=6),
    Simhash(n_hashes=8),
    Simhash(n_hashes=8, axis=1),
)
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (8, 12), (17, 31), (64, 48), (300, 24)]
RATIOS = [0.5, 1, 3.3, 8, 12, 40, 1e4]
EMPTY = [(0, 8), (8, 0), (0, 0), (0, 199)]


def refusal(do):
    try:
        do()
    except ValueError as error:
        return str(error)
    return None


def asking(method, **goal):
    cleared = dict.fromkeys((method.parameter, *method.alternatives))
    return dataclasses.replace(method, **cleared, **goal)


def both(method, shape):
    """The refusals of the plan and of the compression, or None."""
    W = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    planned = refusal(lambda: method.planned_size(shape, np.float32))
    return planned, refusal(lambda: method.compress(W))


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_settings_that_do_not_fit_a_shape_are_refused_before(method, shape):
    planned, real = both(method, shape)
    assert planned == real


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_ratios_that_a_shape_forbids_are_refused_before(method, shape):
    for ratio in RATIOS:
        planned, real = both(asking(method, ratio=ratio), shape)
        if planned is not None:
            assert planned == real
        elif real is not None:  # by the values; the shape decides it within a factor
            most = float(re.search(r"ratio must be at most ([^ ]+) for this matrix", real)[1])
            assert ratio < 4 * most


def test_a_dictionary_that_outweighs_the_ratio_is_refused_at_once():
    with pytest.raises(ValueError, match=r"ratio must be at most 8\.\d+ for this matrix, got 12"):
        Dictionary(ratio=12).planned_size((96, 192), np.float32)


@pytest.mark.parametrize("shape", EMPTY)
def test_an_empty_matrix_is_named(shape):
    message = rf"^W must not be empty for EntropyCoded, got shape {re.escape(str(shape))}$"
    with pytest.raises(ValueError, match=message):
        EntropyCoded(bits_per_weight=3).compress(np.zeros(shape, np.float32))


def test_the_whole_shape_is_in_the_message():
    for method in (Prune(nm_sparsity=(2, 4)), DeepCompression(nm_sparsity=(1, 8))):
        with pytest.raises(ValueError, match=r"multiple of \d, got shape \(64, 199\)"):
            method.planned_size((64, 199), np.float32)


SETTINGS = [
    (method, field.name)
    for method in METHODS
    for field in dataclasses.fields(method)
    if field.name not in ("random_state", "permute", "learned", "shared")
]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -1, 10**400, "x", (np.inf, 1)])
@pytest.mark.parametrize(("method", "name"), SETTINGS, ids=str)
def test_settings_that_are_no_numbers_are_named_in_one_line(method, name, value):
    settings = {name: value}
    if name in ("ratio", "max_error", *method.alternatives):
        settings[method.parameter] = None
        settings |= {other: None for other in method.alternatives if other != name}
    with pytest.raises((TypeError, ValueError), match=rf"^[^\n]*{name}[^\n]*$"):
        refuse_when_used(dataclasses.replace(method, **settings))


def refuse_when_used(method: Method) -> None:
    """Numbers that are merely large are refused where they meet a shape, or taken."""
    method.planned_size((8, 8), np.float32)
    raise ValueError(f"{method} is taken")


def test_extreme_goals_are_met_or_refused():
    W = np.random.default_rng(0).standard_normal((24, 16))
    for method in METHODS:
        for goal in ({"ratio": 5e-324}, {"ratio": 1e308}, {"max_error": 1e308}):
            try:
                factors = asking(method, **goal).compress(W)
            except ValueError as error:
                if "\n" in str(error):
                    raise
                continue
            assert factors.nbytes <= W.nbytes / goal.get("ratio", 1e-9)


def test_metrics_of_another_shape_are_named():
    W = np.ones((6, 4))
    factors = LowRank(rank=1).compress(W)
    with pytest.raises(ValueError, match=r"importance must have the shape of W, \(6, 4\), got"):
        factors._error(W, Diagonal(np.ones((4, 6))))
    with pytest.raises(ValueError, match=r"input_covariance must have shape \(4, 4\), got \(6, 6"):
        factors._error(W, Covariance(np.eye(6)))


def test_an_error_that_no_number_of_hashes_reaches_is_refused_at_once():
    W = np.ones((2000, 2000), np.float32)
    for axis in (0, 1):
        with pytest.raises(ValueError, match=r"max_error must be at least about 0\.047"):
            Simhash(max_error=1e-4, axis=axis).compress(W)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_foretold_error_of_hashes_is_the_real_one(rng, axis):
    W = rng.standard_normal((64, 80)).astype(np.float16)
    most = 16 * W.shape[axis]
    real = Simhash(n_hashes=most, axis=axis).compress(W).error(W)
    with pytest.raises(ValueError, match="max_error must be at least about") as refused:
        Simhash(max_error=real / 3, axis=axis).compress(W)
    foretold = float(re.search(r"about ([^ ]+)", str(refused.value))[1])
    assert foretold == pytest.approx(real, rel=0.1)
    assert Simhash(max_error=1e-9).compress(np.zeros_like(W)).error(W * 0) == 0

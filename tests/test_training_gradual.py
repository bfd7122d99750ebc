"""Pruning by a ramp, without a framework: scores, masks and stages against plain NumPy."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
from fastfactor import CorruptDataError
from fastfactor.methods import LowRank, Prune, PruneCodebook
from fastfactor.training import (
    CompressedMatrix,
    GradualPrune,
    Schedule,
    SparsityRamp,
    State,
    compress,
)

RAMP = SparsityRamp(0.75, begin=2, end=10, frequency=3)
SCORES = ("magnitude", "gradient", "taylor", "second_order")


@pytest.fixture(name="W")
def some_weights(rng):
    return rng.standard_normal((8, 12)).astype(np.float32)


def running(new, decay):
    mean = 0.0
    for each in new:
        mean = decay * mean + (1 - decay) * np.float64(each)
    return mean


def oracle_scores(score, W, history, decay):
    """The published formulas; history has the weights and the gradients of all steps."""
    if score == "magnitude":
        return np.abs(W)
    if score == "gradient":
        return np.abs(W * running([g for _, g in history], decay))
    if score == "taylor":
        return running([np.abs(w * g) for w, g in history], decay)
    return 0.5 * running([g**2 for _, g in history], decay) * np.float64(W) ** 2


def observed(prune, mean, W, g):
    """One more step of a running mean, as an adapter takes it."""
    new = prune.measure(W, g)
    return (1 - prune.decay) * new + (0 if mean is None else prune.decay * mean)


def best(scores, n):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, axis=None, kind="stable")[:n]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scope", ["global", "row"])
def test_masks_keep_the_best_by_the_published_scores(W, rng, score, scope):
    prune = GradualPrune(RAMP, score=score, decay=0.8, scope=scope)
    history, mean = [], None
    for _ in range(6):
        w = W + 0.1 * rng.standard_normal(W.shape)
        history.append((w, rng.standard_normal(W.shape) * rng.random(W.shape) ** 4))
        if score != "magnitude":
            mean = observed(prune, mean, *history[-1])
    scores = oracle_scores(score, W, history, 0.8)
    found = prune.mask(W, 0.75, mean)
    if scope == "row":
        expected = np.stack([best(row, 3) for row in scores])
    else:
        expected = best(scores, W.size // 4)
    assert np.array_equal(found, expected)
    # Multiplying all gradients changes nothing, however small they become.
    if mean is not None:
        for factor in (1e-30, 1e-150):
            tiny = None
            for w, g in history:
                tiny = observed(prune, tiny, w, g * factor)
            assert np.array_equal(prune.mask(W, 0.75, tiny), expected)


@pytest.mark.parametrize("score", SCORES[1:])
@pytest.mark.parametrize("settings", [{}, {"nm_sparsity": (1, 4)}, {"block_shape": (2, 3)}])
def test_a_mask_that_keeps_all_needs_no_gradient(W, rng, score, settings):
    matrix = CompressedMatrix(GradualPrune(RAMP, score=score, **settings))
    assert matrix.advance(RAMP.begin, lambda: W).mask_changed
    assert matrix.mask.shape == W.shape
    assert matrix.mask.all()
    with pytest.raises(ValueError, match="a gradient must come before the first choice"):
        matrix.advance(5, lambda: W)
    matrix.advance(5, lambda: W, lambda: np.abs(rng.standard_normal(W.shape)))
    assert 0 < matrix.sparsity < 0.75


@pytest.mark.parametrize("pool", ["square", "max", "mean"])
@pytest.mark.parametrize("score", SCORES)
def test_blocks_are_ranked_by_their_pooled_scores(W, rng, score, pool):
    prune = GradualPrune(RAMP, score=score, decay=0, block_shape=(2, 3), pool=pool)
    g = rng.standard_normal(W.shape)
    mean = None if score == "magnitude" else observed(prune, None, W, g)
    scores = oracle_scores(score, W, [(W, g)], 0)
    scores = np.sqrt(scores) if score == "second_order" else scores
    blocks = scores.reshape(4, 2, 4, 3).swapaxes(1, 2).reshape(4, 4, 6)
    pooled = {
        "square": (blocks**2).mean(axis=2),
        "max": blocks.max(axis=2),
        "mean": blocks.mean(axis=2),
    }
    expected = best(pooled[pool], 4).repeat(2, axis=0).repeat(3, axis=1)
    assert np.array_equal(prune.mask(W, 0.75, mean), expected)


@pytest.mark.parametrize("score", SCORES)
def test_patterns_of_n_in_m_keep_fewer_step_by_step(W, rng, score):
    prune = GradualPrune(
        SparsityRamp(0.75, begin=0, end=9), score=score, decay=0.5, nm_sparsity=(1, 4)
    )
    g = rng.standard_normal(W.shape)
    mean = None if score == "magnitude" else observed(prune, None, W, g)
    scores = oracle_scores(score, W, [(W, g)], 0.5).reshape(8, 3, 4)
    counts = []
    for step in range(10):
        sparsity = prune.ramp.sparsity(step)
        counts.append(max(1, round((1 - sparsity) * 4)))
        expected = np.stack([[best(group, counts[-1]) for group in row] for row in scores])
        assert np.array_equal(prune.mask(W, sparsity, mean), expected.reshape(W.shape))
    assert sorted(set(counts)) == [1, 2, 3, 4]


def test_weights_that_never_had_a_gradient_go_first(W):
    g = np.zeros(W.shape)
    g[3:5] = 1e-12
    W[4, 0] = 0
    for score in ("gradient", "taylor", "second_order"):
        prune = GradualPrune(RAMP, score=score)
        mask = prune.mask(W, 0.75, observed(prune, None, W, g))
        assert mask[3:5].sum() == 23
        assert not mask[4, 0]
        assert mask.sum() == W.size // 4


def least_squares(rng):
    """Inputs of which some columns are large, and the weights that fit the outputs best."""
    x = rng.standard_normal((4000, 12)) * np.geomspace(0.01, 10, 12)
    W = rng.standard_normal((3, 12)) / np.geomspace(0.01, 10, 12) ** 0.8
    return x, W, x @ W.T


def test_second_order_removes_the_right_weights_where_magnitude_fails(rng):
    x, W, y = least_squares(rng)
    # The loss ½ (w x − y)² has the second derivative x² by every w, whatever its output.
    noisy = y + rng.standard_normal(y.shape)
    prune = GradualPrune(SparsityRamp(0.5), score="second_order", decay=0.999)
    mean = None
    for inputs, outputs in zip(x, noisy, strict=True):
        mean = observed(prune, mean, W, (W @ inputs - outputs)[:, None] * inputs)

    def lost(mask):
        return np.mean((x @ (W * mask).T - y) ** 2)

    growth = 0.5 * np.mean(x**2, axis=0) * W**2
    by_growth, by_size = best(growth, 18), best(np.abs(W), 18)
    found = prune.mask(W, 0.5, mean)
    assert np.mean(found == by_growth) > 0.9
    assert lost(found) < 1.5 * lost(by_growth) < 0.1 * lost(by_size)


# --- the stages of a matrix


def test_the_ramp_is_followed_step_by_step(W, rng):
    matrix, seen = CompressedMatrix(GradualPrune(RAMP)), []
    weights = W.copy()
    for step in range(14):
        change = matrix.advance(step, lambda weights=weights: weights)
        assert change.mask_changed == (step in (2, 5, 8))
        assert change.factored == change.finished == change.alpha_changed == (step == 10)
        assert matrix.sparsity == pytest.approx(RAMP.sparsity(step), abs=0.51 / W.size)
        if change.mask_changed:
            assert np.array_equal(matrix.mask, best(np.abs(weights), round(matrix.mask.sum())))
            seen.append(matrix.mask)
        assert matrix.alpha == (step < 10)
        if step < 10:
            weights = weights + rng.standard_normal(W.shape).astype(np.float32)
    assert any((later & ~earlier).any() for earlier, later in pairwise(seen))
    assert (matrix.state, matrix.mask, matrix.trainable) == (State.FACTORS, None, ("values",))
    kept = best(np.abs(weights), W.size // 4)
    assert np.array_equal(matrix.factors.to_dense(), np.where(kept, weights, 0))


def test_the_mask_is_chosen_where_a_step_that_names_it_was_left_out(W):
    matrix = CompressedMatrix(GradualPrune(RAMP))
    assert not matrix.advance(1, lambda: W)
    assert matrix.advance(4, lambda: W).mask_changed
    assert not matrix.advance(4, lambda: W)
    assert matrix.advance(9, lambda: W).mask_changed
    assert matrix.sparsity == pytest.approx(RAMP.sparsity(8), abs=1 / W.size)
    assert matrix.advance(20, lambda: W).finished
    assert not matrix.advance(21, lambda: W)


def test_a_ramp_without_length_prunes_at_once(W):
    matrix = CompressedMatrix(GradualPrune(SparsityRamp(0.5, begin=1, end=1)))
    assert not matrix.advance(0, lambda: W)
    assert matrix.advance(1, lambda: W).finished
    expected = Prune(sparsity=0.5).compress(W)
    assert np.array_equal(matrix.factors.to_dense(), expected.to_dense())
    assert compress(GradualPrune(SparsityRamp(0.5)), W).nbytes == expected.nbytes


@pytest.mark.parametrize("settings", [{"block_shape": (2, 3)}, {"nm_sparsity": (1, 4)}])
def test_factors_are_those_of_the_method(W, settings):
    matrix = CompressedMatrix(GradualPrune(SparsityRamp(0.75), **settings))
    matrix.advance(0, lambda: W)
    own = {"nm_sparsity": (1, 4)} if "nm_sparsity" in settings else {"sparsity": 0.75} | settings
    expected = Prune(**own).compress(W)
    for name, tensor in expected.tensors().items():
        assert np.array_equal(matrix.factors.tensors()[name], tensor)
    assert matrix.factors.config() == expected.config()


@pytest.mark.parametrize("score", SCORES)
def test_gradients_are_wanted_from_some_time_before_the_ramp_to_its_end(W, score):
    ramp = SparsityRamp(0.5, begin=60, end=64)
    matrix, wanted = CompressedMatrix(GradualPrune(ramp, score=score, decay=0.9)), []
    for step in range(70):
        if matrix.wants_gradients:
            wanted.append(step)
        matrix.advance(step, lambda: W, lambda: np.abs(W))
    assert wanted == ([] if score == "magnitude" else list(range(10, 65)))
    assert not CompressedMatrix(LowRank(rank=1)).wants_gradients


@pytest.mark.parametrize("stop", [-1, 1, 2, 4, 8, 9, 10, 12])
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_a_resumed_matrix_goes_on_as_if_it_had_not_stopped(W, rng, stop, score):
    weights = [W + rng.standard_normal(W.shape).astype(np.float32) for _ in range(14)]
    means = [np.abs(each) ** 3 for each in weights]

    def advance(matrix, step):
        return matrix.advance(step, lambda: weights[step], lambda: means[step])

    straight, first, resumed = (CompressedMatrix(GradualPrune(RAMP, score=score)) for _ in range(3))
    for step in range(stop + 1):
        advance(first, step)
    resumed.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for step in range(14):
        expected = advance(straight, step)
        if step >= stop:
            assert (advance(resumed, step) == expected) or step == stop
            assert repr(resumed) == repr(straight)
            assert np.array_equal(resumed.mask, straight.mask)
    assert np.array_equal(resumed.factors.to_dense(), straight.factors.to_dense())


def test_states_without_a_mask_are_written_as_they_always_were(W):
    matrix = CompressedMatrix(GradualPrune(RAMP))
    fields = {"version", "state", "alpha", "last_step", "factors"}
    for step in range(12):
        matrix.advance(step, lambda: W)
        state = matrix.state_dict()
        assert (state["version"] == 2) == (matrix.state is State.MASKED) == (2 <= step < 10)
        assert state.keys() - {"mask"} == fields


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["state"], "dense"),
        (["state"], "blended"),
        (["state"], "factors"),
        (["alpha"], 0.5),
        (["mask"], None),
        (["mask"], {}),
        (["mask", "more"], 1),
        (["mask", "shape"], [8]),
        (["mask", "shape"], [8, 13]),
        (["mask", "shape"], [-8, -12]),
        (["mask", "shape"], [2**40, 2**40]),
        (["mask", "shape"], ["8", "12"]),
        (["mask", "bits"], np.zeros(11, np.uint8)),
        (["mask", "bits"], np.zeros(12, np.int8)),
        (["mask", "bits"], "bits"),
        (["factors"], {}),
    ],
)
def test_a_hostile_state_is_refused_and_changes_nothing(W, path, value):
    matrix = CompressedMatrix(GradualPrune(RAMP))
    matrix.advance(5, lambda: W)
    state = copy.deepcopy(matrix.state_dict())
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    before, mask = repr(matrix), matrix.mask
    with pytest.raises(CorruptDataError):
        matrix.load_state_dict(state)
    assert repr(matrix) == before
    assert matrix.mask is mask


def test_a_state_of_another_compressor_is_refused(W):
    gradual, blended = (
        CompressedMatrix(GradualPrune(RAMP)),
        CompressedMatrix(LowRank(rank=2), Schedule(begin=0)),
    )
    gradual.advance(5, lambda: W)
    blended.advance(5, lambda: W)
    with pytest.raises(
        CorruptDataError, match="its compressor, LowRank, got a matrix that is masked"
    ):
        blended.load_state_dict(gradual.state_dict())
    with pytest.raises(CorruptDataError, match="GradualPrune, got a matrix that is blended"):
        gradual.load_state_dict(blended.state_dict())
    state = gradual.state_dict()
    del state["mask"]
    with pytest.raises(CorruptDataError, match="must have a mask in the stage masked"):
        gradual.load_state_dict(state)


def test_what_is_refused(W):
    def refused(kind, text, *arguments, **settings):
        with pytest.raises(kind, match=text):
            GradualPrune(*arguments, **settings)

    refused(TypeError, "ramp must be a SparsityRamp, got 0.5", 0.5)
    refused(ValueError, "score must be one of 'magnitude', 'gradient'", RAMP, score="hessian")
    refused(ValueError, "decay must be less than 1", RAMP, decay=1)
    refused(ValueError, "decay must be", RAMP, decay=-0.1)
    refused(ValueError, "scope must be", RAMP, scope="column")
    refused(ValueError, "block_shape", RAMP, scope="row", block_shape=(2, 2))
    refused(ValueError, "final of the ramp must be 1 − n / m, 0.5", RAMP, nm_sparsity=(2, 4))
    refused(
        ValueError,
        "scope must be 'global' where nm_sparsity",
        RAMP,
        nm_sparsity=(1, 4),
        scope="row",
    )
    with pytest.raises(ValueError, match="schedule must be None for a GradualPrune"):
        CompressedMatrix(GradualPrune(RAMP), Schedule())
    by_gradients = GradualPrune(RAMP, score="gradient")
    with pytest.raises(
        ValueError, match="score must be 'magnitude' where a matrix is pruned at once"
    ):
        compress(by_gradients, W)
    matrix = CompressedMatrix(by_gradients, name="head")
    before = repr(matrix)
    for weights, mean, text in (
        (W, None, "head: a gradient must come before the first choice by 'gradient'"),
        (W, W[1:], "head: mean must have the shape of W"),
        (W, W * np.nan, "head: W must be finite"),
        (W * np.nan, W, "head: W must be finite"),
    ):
        with pytest.raises(ValueError, match=text):
            matrix.advance(5, lambda weights=weights: weights, lambda mean=mean: mean)
    assert repr(matrix) == before
    assert matrix.sparsity == 0.0


def test_the_sparsity_of_other_methods(W):
    for method, sparsity in (
        (Prune(sparsity=0.75), 0.75),
        (PruneCodebook(sparsity=0.5, n_bits=2), 0.5),
        (LowRank(rank=1), None),
    ):
        matrix = CompressedMatrix(method)
        assert matrix.sparsity is None
        matrix.advance(0, lambda: W)
        assert matrix.sparsity == sparsity
    empty = CompressedMatrix(Prune(sparsity=0.5))
    empty.advance(0, lambda: W[:0])
    assert empty.sparsity == 1.0

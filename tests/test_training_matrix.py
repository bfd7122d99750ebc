"""The stages of a matrix in training, without a framework; compressors of one's own; resuming."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from fastfactor import CorruptDataError
from fastfactor.methods import (
    Codebook,
    Dictionary,
    EntropyCoded,
    LowRank,
    Prune,
    PruneCodebook,
    Simhash,
)
from fastfactor.methods.forward import NUMPY
from fastfactor.training import CompressedMatrix, Schedule, State, compress

METHODS = (
    LowRank(rank=3),
    Codebook(n_bits=3),
    Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
    Prune(sparsity=0.8),
    PruneCodebook(n_bits=3, sparsity=0.7),
    Simhash(n_hashes=16),
    EntropyCoded(bits_per_weight=3),
)
SCHEDULE = Schedule(begin=3, frequency=2, alpha_decrement=0.4)


@pytest.fixture(name="W")
def some_weights(rng):
    return rng.standard_normal((24, 32)).astype(np.float32)


class Weights:
    """A matrix that changes at every step, and counts how often it is read."""

    def __init__(self, W):
        self.W, self.reads = W, []

    def at(self, step):
        def read():
            self.reads.append(step)
            return self.W + step

        return read


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_matrix_is_factored_once_from_the_weights_of_that_step(W, method):
    weights, matrix = Weights(W), CompressedMatrix(method, SCHEDULE)
    seen = []
    for step in range(14):
        change = matrix.advance(step, weights.at(step))
        seen.append((matrix.state, matrix.alpha))
        assert matrix.alpha == SCHEDULE.alpha(step)
        assert change.factored == (step == 3)
        assert change.alpha_changed == (step in (5, 7, 9))
        assert change.finished == (step == 9)
        assert bool(change) == (step in (3, 5, 7, 9))
    assert weights.reads == [3]
    expected = method.compress(W + 3)
    assert matrix.factors.to_dense().tobytes() == expected.to_dense().tobytes()
    states = [State.DENSE] * 3 + [State.BLENDED] * 6 + [State.FACTORS] * 5
    assert [state for state, _ in seen] == states
    assert set(matrix.trainable) <= set(matrix.factors.tensors())


def test_steps_may_be_left_out_or_come_twice_but_not_fall(W):
    weights, matrix = Weights(W), CompressedMatrix(LowRank(rank=2), SCHEDULE)
    assert matrix.advance(4, weights.at(4)).factored
    assert not matrix.advance(4, weights.at(4))
    assert matrix.advance(6, weights.at(6)).alpha_changed
    with pytest.raises(ValueError, match="step must be at least that of the last call, 6, got 5"):
        matrix.advance(5, weights.at(5))
    change = matrix.advance(1000, weights.at(1000))
    assert (change.finished, matrix.alpha, matrix.state) == (True, 0.0, State.FACTORS)
    assert weights.reads == [4]


def test_without_a_schedule_the_dense_matrix_goes_at_once(W):
    matrix = CompressedMatrix(Prune(sparsity=0.5))
    change = matrix.advance(0, lambda: W)
    assert (change.factored, change.finished, matrix.alpha) == (True, True, 0.0)


def test_a_failure_changes_nothing_and_names_the_matrix(W):
    matrix = CompressedMatrix(LowRank(rank=2), SCHEDULE, name="fc.weight")
    matrix.advance(1, lambda: W)
    bad = W.copy()
    bad[2, 3] = np.nan
    for weights, message in (
        (bad, r"fc.weight: W must be finite, got nan at \[2, 3\]"),
        (W[0], "fc.weight: W must have 2 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            matrix.advance(3, lambda weights=weights: weights)
        assert (matrix.state, matrix.alpha, matrix.last_step) == (State.DENSE, 1.0, 1)
        assert matrix.factors is None
    assert matrix.advance(3, lambda: W).factored


class ByHand:
    """A schedule of one's own: α by a callback."""

    def __init__(self, begin, values):
        self.begin, self.values = begin, values

    def alpha(self, step):
        return self.values[step]


def test_alpha_may_come_from_anything_that_does_not_raise_it(W):
    matrix = CompressedMatrix(LowRank(rank=2), ByHand(1, [1, 0.9, 0.3, 0.3, 0.5]))
    for step in range(4):
        matrix.advance(step, lambda: W)
    assert matrix.alpha == 0.3
    with pytest.raises(ValueError, match=r"alpha of the schedule must be in \[0, 0.3\] at step 4"):
        matrix.advance(4, lambda: W)
    assert (matrix.alpha, matrix.last_step) == (0.3, 3)


# --- compressors of one's own


class Halves:
    def compress(self, W):
        half = W.shape[1] // 2
        return W[:, :half], np.eye(half, W.shape[1])


class OwnProduct:
    """Factors that are none of ours: W ≈ scale · signs."""

    trainable = ("scale",)

    def __init__(self, W):
        self.W = W

    def tensors(self):
        return {"scale": np.abs(self.W).mean(keepdims=True), "signs": np.sign(self.W)}

    def forward(self, xp, tensors, x):
        return tensors["scale"] * (x @ np.sign(self.W).T)


class Signs:
    def compress(self, W):
        return OwnProduct(W)


def test_a_pair_of_arrays_is_a_product(W):
    factors = compress(Halves(), W)
    np.testing.assert_allclose(factors.to_dense()[:, :16], W[:, :16])
    assert (factors.to_dense()[:, 16:] == 0).all()
    assert factors.trainable == ("B", "C")


def test_factors_may_bring_their_own_product(W):
    matrix = CompressedMatrix(Signs(), SCHEDULE)
    matrix.advance(3, lambda: W)
    assert matrix.trainable == ("scale",)
    x = np.ones((2, 32), np.float32)
    product = matrix.factors.forward(NUMPY, matrix.factors.tensors(), x)
    np.testing.assert_allclose(product, np.abs(W).mean() * (x @ np.sign(W).T), rtol=1e-5)
    with pytest.raises(TypeError, match=r"must be fastfactor\.methods\.Factors to be saved"):
        matrix.state_dict()
    with pytest.raises(TypeError, match=r"must be fastfactor\.methods\.Factors to be rebuilt"):
        matrix.trained({})
    OwnProduct.trainable, before = ("signs", "codes"), OwnProduct.trainable
    try:
        with pytest.raises(ValueError, match=r"tensors of floats \(scale, signs\), got 'codes'"):
            _ = matrix.trainable
    finally:
        OwnProduct.trainable = before


def test_a_compressor_cannot_change_the_weights(W):
    class Greedy:
        def compress(self, W):
            W[:] = 0

    before = W.copy()
    with pytest.raises(ValueError, match="read-only"):
        compress(Greedy(), W)
    np.testing.assert_array_equal(W, before)
    W[0, 0] = 1  # which it could before, and can still


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (None, TypeError, r"compress must return Factors, a pair of arrays \(B, C\), or an"),
        ((np.ones((24, 2)),), ValueError, r"must return a pair of arrays \(B, C\), got 1 values"),
        ((np.ones((24, 2)), np.ones((3, 32))), ValueError, r"B and C must have shapes \(out, k\)"),
        ((np.ones((24, 2)), np.ones(32)), ValueError, "B and C must have shapes"),
        ((np.ones((24, 2), int), np.ones((2, 32))), TypeError, "B must be an array of floats"),
        ((np.full((24, 2), np.inf), np.ones((2, 32))), ValueError, "tensor 'B' of the factors"),
        (LowRank(rank=1).compress(np.ones((3, 4))), ValueError, r"shape \(24, 32\), got \(3, 4\)"),
    ],
)
def test_what_a_compressor_returns_is_checked(W, result, kind, message):
    class Wrong:
        def compress(self, W):
            return result

    with pytest.raises(kind, match=message):
        compress(Wrong(), W)


@pytest.mark.parametrize("wrong", [None, "low_rank", 3, LowRank, object()])
def test_what_is_no_compressor_is_refused_when_it_is_given(wrong):
    """The original took any unknown option for low rank."""
    with pytest.raises(TypeError, match="compressor must be a method's settings or an object with"):
        CompressedMatrix(wrong)


@pytest.mark.parametrize("wrong", [3, "schedule", object(), Schedule])
def test_what_is_no_schedule_is_refused_when_it_is_given(wrong):
    with pytest.raises(TypeError, match="schedule must have begin and alpha"):
        CompressedMatrix(LowRank(rank=1), wrong)


# --- going on with trained numbers, and after a stop


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_trained_tensors_become_factors_again(W, method):
    matrix = CompressedMatrix(method)
    matrix.advance(0, lambda: W)
    own = matrix.factors.tensors()
    moved = {name: own[name] * np.asarray(1.5, own[name].dtype) for name in matrix.trainable}
    trained = matrix.trained(moved)
    assert type(trained) is type(matrix.factors)
    for name, tensor in trained.tensors().items():
        np.testing.assert_array_equal(tensor, moved.get(name, own[name]))
    for name in own.keys() - set(matrix.trainable):
        with pytest.raises(ValueError, match=f"names of tensors must be .*, got '{name}'"):
            matrix.trained({name: own[name]})
    for name in matrix.trainable:
        with pytest.raises(ValueError, match=f"tensor '{name}' must have shape"):
            matrix.trained({name: own[name][:-1]})
        with pytest.raises(ValueError, match=f"tensor '{name}' must be finite"):
            matrix.trained({name: np.full_like(own[name], np.nan)})


def test_a_dense_matrix_has_no_trained_factors():
    matrix = CompressedMatrix(LowRank(rank=1), SCHEDULE)
    assert matrix.trainable == ()
    with pytest.raises(ValueError, match="W must be factored first"):
        matrix.trained({})


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("stop", [-1, 2, 3, 6, 9, 12])
def test_a_resumed_matrix_goes_on_as_if_it_had_not_stopped(W, method, stop):
    straight, first = CompressedMatrix(method, SCHEDULE), CompressedMatrix(method, SCHEDULE)
    for step in range(stop + 1):
        first.advance(step, lambda step=step: W + step)
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    resumed = CompressedMatrix(method, SCHEDULE)
    resumed.load_state_dict(saved)
    for step in range(14):
        expected = straight.advance(step, lambda step=step: W + step)
        if step > stop:
            assert resumed.advance(step, lambda step=step: W + step) == expected
            assert repr(resumed) == repr(straight)
    for name, tensor in straight.factors.tensors().items():
        np.testing.assert_array_equal(resumed.factors.tensors()[name], tensor)


def changed(state, path, value):
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 0),
        (["version"], "1"),
        (["state"], "done"),
        (["state"], "dense"),
        (["state"], "factors"),
        (["state"], ["blended"]),
        (["alpha"], 0.0),
        (["alpha"], -1),
        (["alpha"], float("nan")),
        (["alpha"], "1"),
        (["last_step"], -2),
        (["last_step"], 1.5),
        (["more"], 1),
        (["factors"], None),
        (["factors"], 3),
        (["factors", "kind"], "none"),
        (["factors", "kind"], "prune"),
        (["factors", "kind"], ["low_rank"]),
        (["factors", "shape"], [24, 31]),
        (["factors", "shape"], [24]),
        (["factors", "shape"], None),
        (["factors", "shape"], [2**40, 0]),
        (["factors", "dtype"], "int8"),
        (["factors", "dtype"], None),
        (["factors", "config"], []),
        (["factors", "tensors"], []),
        (["factors", "tensors"], {}),
        (["factors", "tensors", "B"], np.ones((3, 3))),
        (["factors", "tensors", "B"], "B"),
        (["factors", "tensors", "D"], np.ones(3)),
    ],
)
def test_a_hostile_state_is_refused_and_changes_nothing(W, path, value):
    matrix = CompressedMatrix(LowRank(rank=2), SCHEDULE)
    matrix.advance(5, lambda: W)
    before, factors = repr(matrix), matrix.factors
    with pytest.raises(CorruptDataError):
        matrix.load_state_dict(changed(matrix.state_dict(), path, value))
    assert repr(matrix) == before
    assert matrix.factors is factors


def test_a_state_of_a_newer_version_is_said():
    matrix = CompressedMatrix(LowRank(rank=2))
    with pytest.raises(ValueError, match="a newer fastfactor made it"):
        matrix.load_state_dict({**matrix.state_dict(), "version": 3})
    with pytest.raises(CorruptDataError, match="state must have alpha, factors"):
        matrix.load_state_dict(None)

"""Pruning step by step on the backend that KERAS_BACKEND names; test_keras.py runs this."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from fastfactor.errors import CorruptDataError
from fastfactor.keras import CompressionCallback, apply_compression
from fastfactor.kernels.selection import prune_mask
from fastfactor.methods import LowRank, Prune
from fastfactor.training import GradualPrune, Schedule, SparsityRamp
from keras import layers, ops

# Of Keras, when its variables on PyTorch become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RAMP = SparsityRamp(0.75, begin=2, end=10, frequency=3)  # chosen at 2, 5, 8 and 10
RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((64, n)).astype(np.float32) for n in (8, 4))


@pytest.fixture(autouse=True)
def same_numbers():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def new_net():
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, name="first"), layers.Dense(4, name="last")],
        name="net",
    )


def net(optimizer=None):
    model = new_net()
    jit = keras.backend.backend() == "jax"  # which takes long elsewhere
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=jit)
    return model


def number(variable):
    return np.array(ops.convert_to_numpy(variable))


def train(model, steps, after=lambda step: None):
    """Train on the same batches whatever the steps before were."""
    for step in steps:
        at = step % 8 * 8
        model.train_on_batch(X[at : at + 8], Y[at : at + 8])
        after(step)


def test_masks_are_those_of_a_loop_by_hand():
    """A plain model whose weights are set to zero by hand has the same numbers at each step."""
    model, plain = net(), net()
    plain.set_weights(model.get_weights())
    compression = apply_compression(model, GradualPrune(RAMP), targets="first")
    kernel, kept, held = plain.layers[0].kernel, None, None
    for step in range(10):
        train(plain, [step])
        W = number(kernel)
        if kept is not None:
            W = np.where(kept, W, held)
        if RAMP.is_due(step):
            kept, held = prune_mask(W.T, RAMP.sparsity(step)).T, W
        if kept is not None:
            kernel.assign(np.where(kept, W, 0))
        train(model, [step], lambda step: compression.step())
        np.testing.assert_allclose(number(model.layers[0].kernel), number(kernel), atol=1e-6)
        (row,) = compression.report()
        assert row.sparsity == pytest.approx(0 if kept is None else 1 - kept.mean())
    assert row.stage.value == "masked"
    assert 0.5 < row.sparsity < 0.75


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01), keras.optimizers.Adam(0.01)],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_fit_prunes_to_the_end(optimizer):
    model = net(type(optimizer).from_config(optimizer.get_config()))
    compression = apply_compression(model, GradualPrune(RAMP))
    pruned = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pruned.append([row.sparsity for row in compression.report()])
            for layer in self.model.layers:
                if layer._kernel is not None:
                    share = float((number(layer._kernel) == 0).mean())
                    assert share == pytest.approx(pruned[-1][self.model.layers.index(layer)])

    callbacks = [CompressionCallback(compression), Look()]
    losses = model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    wanted = [RAMP.sparsity(step) if step >= RAMP.begin else 0 for step in range(24)]
    np.testing.assert_allclose(pruned, np.transpose([wanted, wanted]), atol=0.02)
    assert np.isfinite(losses.history["loss"]).all()
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    compression.finalize()
    assert [variable.path.partition("/")[2] for variable in model.trainable_variables] == [
        "first/bias",
        "first/kernel_values",
        "last/bias",
        "last/kernel_values",
    ]


def test_a_pruned_weight_returns_with_its_value():
    model = net()
    ramp = SparsityRamp(0.5, begin=0, end=9, initial=0.5)
    compression = apply_compression(model, GradualPrune(ramp), targets="last")
    kernel, before = model.layers[1].kernel, number(model.layers[1].kernel)
    compression.step()
    masked = number(kernel)
    assert (masked == 0).mean() == 0.5
    kernel.assign(masked * 1e-6)  # the kept ones become smaller than those that were pruned
    compression.step()
    np.testing.assert_array_equal(number(kernel), np.where(masked == 0, before, 0))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (layers.Embedding(20, 8), RNG.integers(0, 20, (3, 4)).astype("int32")),
        (layers.Conv2D(12, (2, 3)), RNG.standard_normal((2, 5, 6, 8)).astype(np.float32)),
        (layers.LSTM(8), RNG.standard_normal((2, 5, 8)).astype(np.float32)),
    ],
    ids=["Embedding", "Conv2D", "LSTM"],
)
def test_other_layers_compute_with_zeros(layer, x):
    """The matrices are those of PyTorch: rows of a table, else (out, in · window)."""
    model = keras.Sequential([type(layer).from_config(layer.get_config())])
    model(x)
    plain = keras.models.clone_model(model)
    plain(x)
    for weight, own in zip(plain.weights, model.weights, strict=True):
        weight.assign(pruned(number(own), own.path))
    ramp = SparsityRamp(0.5, begin=0, end=3, initial=0.25)
    compression = apply_compression(model, GradualPrune(ramp, nm_sparsity=(4, 8)))
    compression.step()
    np.testing.assert_allclose(number(model(x)), number(plain(x)), atol=1e-5)
    compression.step(3)
    assert {row.sparsity for row in compression.report()} == {0.5}


def pruned(W, path):
    """A weight of which 6 of every 8 neighbours in a row of its matrix are kept."""
    if W.ndim < 2:
        return W
    order = {2: (0, 1) if "embeddings" in path else (1, 0), 4: (3, 2, 0, 1)}[W.ndim]
    matrix = W.transpose(order)
    groups = matrix.reshape(-1, 8).copy()
    for group in groups:
        group[np.argsort(np.abs(group))[:2]] = 0
    return groups.reshape(matrix.shape).transpose(np.argsort(order))


@pytest.mark.parametrize("stop", [1, 6, 12])
def test_a_stopped_training_goes_on_to_the_same_numbers(stop, tmp_path):
    prune = GradualPrune(RAMP, block_shape=(2, 1))
    model = net()
    compression = apply_compression(model, prune)
    train(model, range(stop), lambda step: compression.step())
    model.save(tmp_path / "part.keras")
    model.save_weights(tmp_path / "part.weights.h5")
    loaded = keras.models.load_model(tmp_path / "part.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    again = apply_compression(loaded, prune)
    # Keras gives paths without the model's name to a model that was loaded.
    assert [*again.state().values()] == [*compression.state().values()]
    for each, own in ((model, compression), (loaded, again)):
        train(each, range(stop, 14), lambda step, own=own: own.step())
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6, atol=1e-6
    )
    assert {row.sparsity for row in again.report()} == {0.75}
    fresh = new_net()
    own = apply_compression(fresh, prune)
    own.step(3)
    fresh.load_weights(tmp_path / "part.weights.h5")
    assert own.last_step == stop - 1
    if stop == 6:
        zeros = number(fresh.layers[0].kernel) == 0
        assert zeros.mean() == pytest.approx(RAMP.sparsity(5), abs=0.02)
        own.step(14)
        assert number(fresh.layers[0].variables[1]).all()  # with the values of before, not zeros


class Saved(dict):
    """A layer's saved numbers that a test may change."""


def damaged(saved, change):
    other = Saved(saved)
    change(other)
    return other


def shorter_mask(saved):
    saved["kernel.mask"] = saved["kernel.mask"][:-1]


def other_shape(saved):
    states = json.loads(saved["fastfactor"].tobytes())
    states["_kernel"]["mask"]["shape"] = [4, 32]
    saved["fastfactor"] = np.frombuffer(json.dumps(states).encode(), np.uint8)


def not_finite(saved):
    saved["kernel.pruned"] = np.full_like(saved["kernel.pruned"], np.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("kernel.mask"), "mask"),
        (shorter_mask, "bits of the mask must be 16 bytes"),
        (other_shape, "mask of net/first/kernel must be of a matrix of shape \\(16, 8\\)"),
        (lambda saved: saved.pop("kernel.pruned"), "'kernel.pruned' must be saved"),
        (not_finite, "kernel.pruned must be finite"),
    ],
    ids=["no mask", "shorter mask", "other shape", "no numbers", "not finite"],
)
def test_damaged_masks_are_refused_and_change_nothing(change, message):
    model = net()
    compression = apply_compression(model, GradualPrune(RAMP), targets="first")
    compression.step(5)
    layer, saved = model.layers[0], Saved()
    layer.save_own_variables(saved)
    before = number(layer.kernel)
    with pytest.raises(CorruptDataError, match=message):
        layer.load_own_variables(damaged(saved, change))
    np.testing.assert_array_equal(number(layer.kernel), before)
    layer.load_own_variables(saved)
    compression.step(8)
    assert (number(layer.kernel) == 0).mean() > (before == 0).mean()


def test_what_keras_cannot_rank_by_is_refused_by_name():
    model = net()
    for score in ("gradient", "taylor", "second_order"):
        with pytest.raises(ValueError, match=f"net/first/kernel: score .*, got '{score}'"):
            apply_compression(model, GradualPrune(RAMP, score=score))
    with pytest.raises(ValueError, match="schedule must be None where all weights are pruned"):
        apply_compression(model, GradualPrune(RAMP), Schedule())
    two_of_five = GradualPrune(SparsityRamp(0.6, begin=0, end=3), nm_sparsity=(2, 5))
    with pytest.raises(ValueError, match=r"net/first/kernel: .* multiple of 5"):
        apply_compression(model, two_of_five)
    assert type(model.layers[0]) is layers.Dense


def test_pruning_and_factoring_go_side_by_side():
    model = net()
    schedule = Schedule(begin=1, frequency=1, alpha_decrement=0.5)
    methods = {"first": GradualPrune(RAMP), "last": LowRank(rank=2)}
    compression = apply_compression(model, methods, schedule)
    stages = []
    train(
        model,
        range(11),
        lambda step: stages.append((bool(compression.step()), *compression.state().values())),
    )
    names = [tuple(state["stage"] for state in states) for _, *states in stages]
    assert names == [
        *[("dense", "dense")],
        *[("dense", "blended")],
        *[("masked", "blended")],
        *[("masked", "factors")] * 7,
        ("factors", "factors"),
    ]
    expected = Prune(sparsity=0.75).compress(np.ones((16, 8), np.float32)).values.size
    assert model.layers[0].variables[1].shape == (expected,)
    assert compression.finalize() is model

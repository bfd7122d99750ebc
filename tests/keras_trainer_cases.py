"""Trainings of compressed models by what Keras offers, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fastfactor.keras import CompressionCallback, apply_compression, load_compressed
from fastfactor.methods import Codebook, LowRank
from fastfactor.training import Schedule
from keras import layers, ops

# Of Keras, when its variables on PyTorch become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
SCHEDULE = Schedule(begin=3, frequency=2, alpha_decrement=0.5)  # factored at 3, done at 7
RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((64, n)).astype(np.float32) for n in (8, 4))


@pytest.fixture(autouse=True)
def same_numbers():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def net():
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", name="first"),
            layers.Dense(4, name="last"),
        ],
        name="net",
    )


def prepared(optimizer, schedule=SCHEDULE):
    model = net()
    model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")  # which takes long elsewhere
    return model, apply_compression(model, LowRank(rank=2), schedule)


def fitted(model, compression, *callbacks, epochs=2):
    """Fit 8 steps an epoch, in order."""
    own = [CompressionCallback(compression), *callbacks]
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=own
    ).history


def number(variable):
    return np.array(ops.convert_to_numpy(variable))


class EachStep(keras.callbacks.Callback):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_train_batch_end(self, batch, logs=None):
        self.function(self.model)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.01),
        keras.optimizers.Nadam(0.01),  # which has a running number of its own
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_the_optimizer_stays_the_same_object(optimizer):
    optimizer = type(optimizer).from_config(optimizer.get_config())  # of this session
    model, compression = prepared(optimizer)
    losses = fitted(model, compression)["loss"]
    compression.finalize()
    assert model.optimizer is optimizer
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    paths = [variable.path for variable in optimizer.variables]
    assert len(paths) == len(set(paths))
    assert not any(path.endswith("kernel_momentum") for path in paths)
    assert [v.path for v in inner._trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


@pytest.mark.parametrize("by", ["names", "variables"])
def test_what_has_no_weight_decay_still_has_none(by):
    model = net()
    bias, kernel = model.layers[0].bias, model.layers[1].kernel
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    if by == "names":
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    else:
        optimizer.exclude_from_weight_decay(var_list=[bias, kernel])
    model.compile(optimizer, "mse")
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    fitted(model, compression)
    decays = {
        v.path.partition("/")[2]: optimizer._use_weight_decay(v) for v in model.trainable_variables
    }
    assert decays == {
        "first/bias": False,
        "first/kernel_B": True,
        "first/kernel_C": True,
        "last/bias": by == "variables",
        "last/kernel_B": by == "names",
        "last/kernel_C": by == "names",
    }


def test_averages_of_factors_begin_at_the_factors():
    """Keras puts the averages in the place of the variables when ``fit`` ends."""
    begun = {}

    def look(model):
        for variable in model.trainable_variables:
            begun.setdefault(variable.path, number(variable))

    model, compression = prepared(
        keras.optimizers.SGD(1e-5, use_ema=True, ema_momentum=0.9),
        Schedule(begin=10, frequency=1, alpha_decrement=0.5),
    )
    fitted(model, compression, EachStep(look))
    for variable in model.trainable_variables:
        np.testing.assert_allclose(number(variable), begun[variable.path], rtol=0.02, atol=2e-3)


class NoConfig(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule as tutorials have it, which cannot be serialized."""

    def __call__(self, step):
        return 0.01 / (1 + ops.cast(step, "float32"))


def test_a_schedule_that_has_no_configuration_goes_on():
    model, compression = prepared(keras.optimizers.Adam(NoConfig()))
    fitted(model, compression)
    compression.finalize()
    assert int(model.optimizer.iterations) == 16
    np.testing.assert_allclose(number(model.optimizer.learning_rate), 0.01 / 17, rtol=1e-6)


def test_reports_can_be_made_after_any_step():
    model, compression = prepared("adam")
    rows = []
    fitted(model, compression, EachStep(lambda _: rows.append(compression.report()[0])))
    assert [row.stage.value for row in rows] == ["dense"] * 3 + ["blended"] * 4 + ["factors"] * 9
    assert all(0 < row.relative_error < 1 for row in rows[3:7])


@pytest.mark.parametrize("stop", [2, 5, 9])
def test_a_training_that_was_interrupted_goes_on(stop, tmp_path):
    backup = keras.callbacks.BackupAndRestore
    model, compression = prepared(keras.optimizers.Adam(0.01))

    def interrupt(model):
        if compression.last_step == stop:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fitted(model, compression, backup(tmp_path, save_freq=1), EachStep(interrupt))
    again, second = prepared(keras.optimizers.Adam(0.01))
    expected = {v.path.partition("/")[2]: number(v) for v in model.optimizer.variables}
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.update({v.path.partition("/")[2]: number(v) for v in again.optimizer.variables})
            again.stop_training = True

    fitted(again, second, backup(tmp_path), Look(), epochs=3)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(seen[name], value, err_msg=name)
    fitted(again, second)
    second.finalize()


def test_early_stopping_restores_weights_of_the_last_stage():
    model, compression = prepared("adam")
    losses = fitted(
        model,
        compression,
        keras.callbacks.EarlyStopping(
            "loss", mode="max", patience=9, restore_best_weights=True, start_from_epoch=1
        ),
        epochs=4,
    )["loss"]
    compression.finalize()
    assert losses[3] < losses[2] < losses[1]
    assert losses[2] < model.evaluate(X, Y, verbose=0) < losses[1]


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no loops with gradients of variables")
def test_a_loop_of_your_own_names_its_optimizer():
    model, optimizer = net(), keras.optimizers.Adam(0.01)
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    losses = []
    for _ in range(12):
        loss, gradients = gradients_of(model)
        optimizer.apply(gradients, model.trainable_variables)
        losses.append(loss)
        compression.step(optimizer=optimizer)
    compression.finalize()
    assert losses[-1] < losses[0]
    assert int(optimizer.iterations) == 12


def gradients_of(model):
    if BACKEND == "tensorflow":
        import tensorflow

        with tensorflow.GradientTape() as tape:
            loss = ops.mean((model(X) - ops.convert_to_tensor(Y)) ** 2)
        return number(loss), tape.gradient(loss, model.trainable_variables)
    model.zero_grad()
    loss = ops.mean((model(X) - ops.convert_to_tensor(Y)) ** 2)
    loss.backward()
    return number(loss.detach()), [variable.value.grad for variable in model.trainable_variables]


def test_a_frozen_layer_can_be_trained_again():
    model = net()
    model.get_layer("first").trainable = False
    model.compile("adam", "mse")
    compression = apply_compression(model, Codebook(n_bits=3), SCHEDULE)
    fitted(model, compression)
    assert [v.name for v in model.trainable_variables] == ["bias", "kernel_codebook"]
    model.get_layer("first").trainable = True
    names = [v.name for v in model.trainable_variables]
    assert names == ["bias", "kernel_codebook"] * 2


def test_layers_without_names_of_their_own_are_found_in_a_file(tmp_path):
    def unnamed():
        return keras.Sequential([keras.Input((8,)), *(layers.Dense(8) for _ in range(12))])

    model = unnamed()
    compression = apply_compression(model, LowRank(rank=8))
    compression.step()
    compression.to_store(tmp_path / "small.safetensors")
    fresh = unnamed()
    assert fresh.layers[0].name != model.layers[0].name
    loaded = load_compressed(fresh, tmp_path / "small.safetensors")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
    more = keras.Sequential([keras.Input((8,)), *(layers.Dense(8) for _ in range(13))])
    with pytest.raises(ValueError, match=r"got 'sequential_2/dense_\d+/bias', .* missing and none"):
        load_compressed(more, tmp_path / "small.safetensors")


def test_attention_is_compressed_and_its_weights_load(tmp_path):
    x = RNG.standard_normal((3, 5, 8)).astype(np.float32)

    def attention():
        inputs = keras.Input((5, 8))
        return keras.Model(inputs, layers.MultiHeadAttention(2, 4, name="att")(inputs, inputs))

    model = attention()
    compression = apply_compression(model, Codebook(n_bits=3))
    assert len(compression.names) == 4
    compression.step()
    expected = model.predict(x, verbose=0)
    model.save_weights(tmp_path / "a.weights.h5")
    other = attention()
    apply_compression(other, Codebook(n_bits=3))
    other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, atol=1e-6)
    compression.to_store(tmp_path / "small.safetensors")
    loaded = load_compressed(attention(), tmp_path / "small.safetensors")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="SavedModel is TensorFlow's")
def test_a_finished_model_is_exported(tmp_path):
    import tensorflow

    model = net()
    model.compile("adam", "mse")
    methods = {"first": Codebook(n_bits=3), "last": LowRank(rank=2)}
    compression = apply_compression(model, methods, SCHEDULE)
    fitted(model, compression)
    model.export(tmp_path / "saved", verbose=False)
    saved = tensorflow.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(X), model.predict(X, verbose=0), atol=1e-5)

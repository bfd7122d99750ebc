"""Compressed layers of Keras on the backend that KERAS_BACKEND names; test_keras.py runs this."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import keras
import numpy as np
import pages
import pytest
from fastfactor import store
from fastfactor.errors import CorruptDataError
from fastfactor.keras import CompressionCallback, apply_compression, load_compressed
from fastfactor.keras.layers import EinsumPlan, of_einsum
from fastfactor.methods import Codebook, Dictionary, LowRank, Prune
from fastfactor.training import Schedule
from keras import layers

# Of Keras, when its variables on PyTorch become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BLEND = Schedule(begin=0, frequency=1, alpha_decrement=0.25)
STEPS = (0, 1, 4)  # blended with α = 1 and 0.75, then factors alone
SCHEDULE = Schedule(begin=3, frequency=2, alpha_decrement=0.5)  # factored at 3, done at 7
METHODS = (
    LowRank(rank=3),
    Codebook(n_bits=3),
    Prune(sparsity=0.6),
    Dictionary(n_nonzero_coefs=2, block_size=4, n_atoms=12, max_iter=2),
)
# Other backends compile every program, which takes seconds; there a case of each idea must do.
IS_QUICK = keras.backend.backend() == "torch"
FEW_METHODS = METHODS if IS_QUICK else METHODS[1:2]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def cases():
    ids = RNG.integers(0, 20, (3, 4)).astype("int32")
    return {
        "dense": (layers.Dense(12, activation="tanh"), floats(3, 2, 8)),
        "dense without bias": (layers.Dense(12, use_bias=False), floats(3, 8)),
        "einsum": (
            layers.EinsumDense("btc,chd->bthd", (None, 3, 4), bias_axes="d"),
            floats(2, 5, 8),
        ),
        "einsum of two axes": (
            layers.EinsumDense("...hd,hde->...e", 12, activation="relu"),
            floats(2, 5, 2, 4),
        ),
        "embedding": (layers.Embedding(20, 8), ids),
        "embedding, masked": (layers.Embedding(20, 8, mask_zero=True), ids),
        "conv1d": (layers.Conv1D(12, 2, strides=2, activation="relu"), floats(2, 8, 8)),
        "conv2d": (layers.Conv2D(12, (2, 3), padding="same", groups=2), floats(2, 5, 6, 8)),
        "lstm": (layers.LSTM(8, return_sequences=True, return_state=True), floats(2, 5, 8)),
        "lstm, backwards, not fused": (
            layers.LSTM(8, go_backwards=True, unroll=True),
            floats(2, 5, 8),
        ),
        "gru": (layers.GRU(8, return_sequences=True), floats(2, 5, 8)),
        "gru, reset before": (layers.GRU(8, reset_after=False), floats(2, 5, 8)),
        "both ways": (layers.Bidirectional(layers.LSTM(8)), floats(2, 5, 8)),
    }


KINDS = tuple(cases())


def arrays(result):
    results = result if isinstance(result, list | tuple) else [result]
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in results]


def prepared(kind, method):
    layer, x = cases()[kind]
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype.name), layer])
    plain, _ = cases()[kind]
    keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype.name), plain])
    plain.set_weights(layer.get_weights())
    return layer, plain, x, apply_compression(model, method, BLEND)


def blended(compression):
    """The dense weights that a plain layer must have, in the order of the compressed ones."""
    found = []
    for weight in compression._weights:
        W = np.asarray(weight.trained_factors().to_dense())
        kernel = weight.layout.to_tensor(W)
        if weight.dense is not None:
            alpha = weight.matrix.alpha
            kernel = alpha * keras.ops.convert_to_numpy(weight.dense) + (1 - alpha) * kernel
        found.append(kernel)
    return found


@pytest.mark.parametrize("method", FEW_METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_a_plain_one_with_the_blended_weights(kind, method):
    layer, plain, x, compression = prepared(kind, method)
    assert isinstance(layer, type(plain))
    for given, wanted in zip(arrays(layer(x)), arrays(plain(x)), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-6)
    kernels = kernels_of(plain)
    for step in STEPS:
        compression.step(step)
        for variable, value in zip(kernels, blended(compression), strict=True):
            variable.assign(value)
        for given, wanted in zip(arrays(layer(x)), arrays(plain(x)), strict=True):
            np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-4)
    left = {v.name for v in layer.trainable_variables}
    assert not left & {"kernel", "recurrent_kernel", "embeddings"}


def kernels_of(plain):
    """The dense weights of a layer, in the order of the compression's."""
    found = [v for v in plain.trainable_variables if len(v.shape) > 1 and "bias" not in v.name]
    return sorted(found, key=lambda variable: "backward" not in variable.path)


@pytest.mark.parametrize("kind", ["dense", "einsum", "embedding", "conv2d", "gru"])
def test_gradients_are_those_of_the_weights_by_the_factors(kind):
    layer, plain, x, compression = prepared(kind, LowRank(rank=3))
    compression.step(1)
    for variable, value in zip(kernels_of(plain), blended(compression), strict=True):
        variable.assign(value)
    kernels = {id(variable) for variable in kernels_of(plain)}
    by_weight = [taken for variable, taken in one_step(plain, x) if id(variable) in kernels]
    found = {variable.path: taken for variable, taken in one_step(layer, x)}
    for weight, taken in zip(compression._weights, by_weight, strict=True):
        name, G = weight.matrix.name, weight.layout.to_matrix(taken)
        B, C = weight.matrix.factors.B, weight.matrix.factors.C
        close = {"rtol": 1e-2, "atol": 2e-5}
        np.testing.assert_allclose(found[name], 0.75 * taken, **close)
        np.testing.assert_allclose(found[f"{name}_B"], 0.25 * G @ C.T, **close)
        np.testing.assert_allclose(found[f"{name}_C"], 0.25 * B.T @ G, **close)


def one_step(layer, x):
    """The variables of a layer and their gradients: what one step of SGD takes away."""
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype.name), layer])
    before = [keras.ops.convert_to_numpy(v).copy() for v in layer.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse", jit_compile=False)
    wanted = RNG.standard_normal(arrays(model(x))[0].shape) * 0
    model.fit(x, wanted, epochs=1, batch_size=len(x), verbose=0)
    after = [keras.ops.convert_to_numpy(v) for v in layer.trainable_variables]
    return list(
        zip(
            layer.trainable_variables,
            (a - b for a, b in zip(before, after, strict=True)),
            strict=True,
        )
    )


# --- training


def net():
    words = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(20, 12, name="table")(words)
    x = layers.Conv1D(16, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.LSTM(8, name="rnn")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(words, layers.Dense(5, name="head")(x))


WORDS = RNG.integers(0, 20, (64, 6)).astype("int32")
LABELS = RNG.integers(0, 5, 64)
NAMES = (
    "table/embeddings",
    "conv/kernel",
    "rnn/lstm_cell/kernel",
    "rnn/lstm_cell/recurrent_kernel",
    "head/kernel",
)


def compiled(model, optimizer=None, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer or keras.optimizers.Adam(0.01), loss=loss, jit_compile=False, **settings
    )
    return model


def fitted(model, compression, *, epochs=1, callbacks=()):
    """Fit 8 steps an epoch, in order."""
    return model.fit(
        WORDS,
        LABELS,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[CompressionCallback(compression), *callbacks],
    )


class Watch(keras.callbacks.Callback):
    def __init__(self, compression):
        super().__init__()
        self.compression, self.rows = compression, []

    def on_train_batch_end(self, batch, logs=None):
        (state, *_) = self.compression.state().values()
        self.rows.append((state["stage"], state["alpha"], len(self.model.trainable_variables)))


@pytest.mark.parametrize(
    "method",
    [LowRank(rank=3), Codebook(n_bits=3)][: 2 if IS_QUICK else 1],
    ids=lambda method: type(method).__name__,
)
def test_fit_goes_through_the_stages_in_the_middle_of_an_epoch(method):
    model = net()
    n = len(model.trainable_variables)
    more = 5 * (2 if isinstance(method, LowRank) else 1)
    compression = apply_compression(model, method, SCHEDULE)
    assert compression.names == NAMES
    watch = Watch(compression)
    history = fitted(compiled(model), compression, epochs=3, callbacks=[watch])
    expected = [("dense", 1.0, n)] * 3 + [("blended", 1.0, n + more)] * 2
    expected += [("blended", 0.5, n + more)] * 2 + [("factors", 0.0, n - 5 + more)] * 17
    assert watch.rows == expected
    assert int(model.optimizer.iterations) == 24
    assert len(model.optimizer.variables) == 2 + 2 * (n - 5 + more)
    losses = history.history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert compression.finalize() is model
    assert model.evaluate(WORDS, LABELS, verbose=0) < losses[0]


@pytest.mark.skipif(not IS_QUICK, reason="keras_trainer_cases.py has some for all backends")
def test_numbers_of_an_optimizer_outlive_the_changes():
    model = compiled(net(), keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01))
    compression = apply_compression(model, LowRank(rank=3), SCHEDULE)
    fitted(model, compression)  # 8 steps
    old = {
        v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in model.optimizer.variables
    }
    again = compiled(net(), keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01))
    again.set_weights(model_start())
    second = apply_compression(again, LowRank(rank=3), SCHEDULE)
    for step in range(8):
        again.train_on_batch(WORDS[step * 8 : step * 8 + 8], LABELS[step * 8 : step * 8 + 8])
        second.step()
    new = {
        v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in again.optimizer.variables
    }
    assert old.keys() == new.keys()
    assert any("norm" in name and np.abs(value).max() > 0 for name, value in old.items())
    for name, value in old.items():
        np.testing.assert_allclose(new[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def model_start():
    keras.utils.set_random_seed(0)
    return net().get_weights()


@pytest.mark.parametrize("policy", ["mixed_bfloat16"] if IS_QUICK else ["mixed_float16"])
def test_mixed_precision(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = net()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    compression = apply_compression(model, Codebook(n_bits=3), SCHEDULE)
    history = fitted(compiled(model), compression, epochs=2)
    assert np.isfinite(history.history["loss"]).all()
    compression.finalize()
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")


def test_dense_weights_are_freed():
    model = compiled(net())
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    held = [weakref.ref(weight.dense) for weight in compression._weights]
    fitted(model, compression)
    gc.collect()
    assert all(variable() is None for variable in held)


def test_several_steps_at_once():
    if keras.backend.backend() == "torch":
        pytest.skip("Keras has no steps_per_execution on PyTorch")
    model = compiled(net(), steps_per_execution=4)
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    fitted(model, compression)
    assert compression.last_step == 7
    compression.finalize()


# --- files


@pytest.mark.parametrize("stop", [1, 5, 8] if IS_QUICK else [5])
def test_a_saved_model_goes_on_with_equal_numbers(stop, tmp_path):
    def steps(model, compression, numbers):
        for step in numbers:
            part = slice(step % 8 * 8, step % 8 * 8 + 8)
            model.train_on_batch(WORDS[part], LABELS[part])
            compression.step()

    whole = compiled(net())
    compression = apply_compression(whole, Codebook(n_bits=3), SCHEDULE)
    steps(whole, compression, range(stop))
    whole.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    second = apply_compression(loaded, Codebook(n_bits=3), SCHEDULE)
    assert second.state() == compression.state()
    steps(whole, compression, range(stop, 12))
    steps(loaded, second, range(stop, 12))
    for one, other in zip(whole.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(other), keras.ops.convert_to_numpy(one), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(
        loaded.predict(WORDS, verbose=0), whole.predict(WORDS, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("step", [None, 5, 7])
def test_weights_alone_load_into_a_prepared_model(step, tmp_path):
    model = net()
    compression = apply_compression(
        model,
        Dictionary(n_nonzero_coefs=2, block_size=4, n_atoms=12, max_iter=2),
        SCHEDULE,
        ignore="rnn",
    )
    if step:
        compression.step(step)
    model.save_weights(tmp_path / "a.weights.h5")
    fresh = net()
    second = apply_compression(
        fresh,
        Dictionary(n_nonzero_coefs=2, block_size=4, n_atoms=12, max_iter=2),
        SCHEDULE,
        ignore="rnn",
    )
    fresh.load_weights(tmp_path / "a.weights.h5")
    assert second.state() == compression.state()
    np.testing.assert_array_equal(fresh.predict(WORDS, verbose=0), model.predict(WORDS, verbose=0))


def test_plain_weights_load_into_a_prepared_model(tmp_path):
    plain = net()
    plain.save_weights(tmp_path / "a.weights.h5")
    expected = plain.predict(WORDS, verbose=0)
    for step in (None, 5, 7):
        model = net()
        compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
        if step:
            compression.step(step)
        model.load_weights(tmp_path / "a.weights.h5")
        assert {row["stage"] for row in compression.state().values()} == {"dense"}
        np.testing.assert_allclose(model.predict(WORDS, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("method", FEW_METHODS, ids=lambda method: type(method).__name__)
def test_a_finished_model_goes_to_a_compressed_file_and_back(method, tmp_path):
    model = net()
    compression = apply_compression(model, method)
    compression.step()
    compression.to_store(tmp_path / "small.safetensors")
    with store.open_store(tmp_path / "small.safetensors") as opened:
        assert set(NAMES) <= set(opened)
        assert opened.info("conv/kernel").shape == (3, 12, 16)
        dense = {name: np.asarray(opened.to_dense(name)) for name in opened}
    expected = model.predict(WORDS, verbose=0)
    loaded = load_compressed(net(), tmp_path / "small.safetensors")
    np.testing.assert_allclose(loaded.predict(WORDS, verbose=0), expected, atol=1e-2)
    plain = net()
    for variable in plain.weights:
        variable.assign(dense[variable.path])
    np.testing.assert_allclose(
        loaded.predict(WORDS, verbose=0), plain.predict(WORDS, verbose=0), atol=1e-3
    )
    other = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head")])
    with pytest.raises(ValueError, match="names in the file must be the paths"):
        load_compressed(other, tmp_path / "small.safetensors")


def test_a_file_has_what_other_calls_have_compressed(tmp_path):
    model = net()
    first = apply_compression(model, Codebook(n_bits=3), targets="head")
    second = apply_compression(model, Codebook(n_bits=2), targets="rnn")
    second.step()
    with pytest.raises(ValueError, match="the dense weight 'head/kernel' must be dropped before"):
        second.to_store(tmp_path / "small.safetensors")
    first.step()
    second.to_store(tmp_path / "small.safetensors")
    loaded = load_compressed(net(), tmp_path / "small.safetensors")
    np.testing.assert_allclose(
        loaded.predict(WORDS, verbose=0), model.predict(WORDS, verbose=0), atol=1e-5
    )


def test_a_model_in_a_model(tmp_path):
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(12, name="first")], name="inner")
    model = keras.Sequential([keras.Input((8,)), inner, layers.Dense(4, name="last")])
    compression = apply_compression(model, {"first": LowRank(rank=2), "last": Prune(sparsity=0.5)})
    compression.step()
    x = floats(5, 8)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_a_clone_has_no_codes_until_its_weights_are_loaded(tmp_path):
    model = net()
    compression = apply_compression(model, Codebook(n_bits=2))
    compression.step()
    clone = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="table/embeddings must have its codes"):
        clone.get_layer("table")(WORDS)
    model.save_weights(tmp_path / "a.weights.h5")
    clone.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(clone.predict(WORDS, verbose=0), model.predict(WORDS, verbose=0))


@pytest.mark.parametrize(
    "structure",
    [
        3,
        {"_kernel": 3},
        {"_kernel": {"stage": "gone", "shapes": {}}},
        {"_kernel": {"stage": "dense"}},
        {"_bias": {"stage": "dense", "shapes": {}}},
        {"_kernel": {"stage": "factors", "shapes": {"B": 3}}},
        {"_kernel": {"stage": "factors", "shapes": {"B": [-1, 2]}}},
        {"_kernel": {"stage": "factors", "shapes": {"a/b": [2]}}},
    ],
)
def test_configurations_that_contradict_themselves_are_refused(structure):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    apply_compression(model, LowRank(rank=2)).step()
    config = {**model.layers[0].get_config(), "compressed": structure}
    layer = type(model.layers[0]).from_config(config)
    with pytest.raises(CorruptDataError):
        layer.build((None, 8))


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.update(fastfactor=np.zeros(3, np.float32)),
        lambda saved: saved.update(fastfactor=np.frombuffer(b"[1]", np.uint8)),
        lambda saved: saved.update(fastfactor=np.frombuffer(b"{", np.uint8)),
        lambda saved: saved.update(fastfactor=changed(saved, "state", "gone")),
        lambda saved: saved.update(fastfactor=changed(saved, "alpha", 7)),
        lambda saved: saved.update(fastfactor=changed(saved, "factors", None)),
        lambda saved: saved.pop("kernel.fixed.codes"),
        lambda saved: saved.update({"kernel.fixed.codes": np.zeros(3, np.uint8)}),
        lambda saved: saved.pop("kernel"),
        lambda saved: saved.update(kernel=np.zeros((8, 3), np.float32)),
        lambda saved: saved.update({"kernel.fixed.codebook": saved.pop("kernel.codebook")}),
        lambda saved: saved.pop("0"),
        lambda saved: saved.update({"0": np.zeros(3, np.float32)}),
    ],
)
def test_saved_numbers_that_contradict_themselves_are_refused(damage):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    apply_compression(model, Codebook(n_bits=2), BLEND).step(1)
    saved = {}
    model.layers[0].save_own_variables(saved)
    saved = {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in saved.items()}
    before = model.layers[0](np.ones((1, 8), np.float32))
    model.layers[0].load_own_variables(dict(saved))
    damage(saved)
    with pytest.raises(CorruptDataError):
        model.layers[0].load_own_variables(saved)
    np.testing.assert_array_equal(*arrays([before, model.layers[0](np.ones((1, 8), np.float32))]))


def changed(saved, field, value):
    states = json.loads(saved["fastfactor"].tobytes())
    states["_kernel"][field] = value
    return np.frombuffer(json.dumps(states).encode(), np.uint8)


# --- which layers, and what is refused


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"compressor": "low_rank"}, TypeError, "compressor must be a method's settings"),
        ({"targets": "third"}, ValueError, "patterns must match names of layers or weights"),
        ({"targets": "norm"}, TypeError, "layer 'norm' must be one of Conv1D, .*, got BatchNorm"),
        (
            {"compressor": Prune(nm_sparsity=(2, 5))},
            ValueError,
            "table/embeddings: .* multiple of 5",
        ),
        ({"schedule": 3}, TypeError, "schedule must have begin and alpha"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_anything_changes(arguments, kind, message):
    model = net()
    before = [type(layer) for layer in model.layers]
    with pytest.raises(kind, match=message):
        apply_compression(model, **{"compressor": LowRank(rank=2), **arguments})
    assert [type(layer) for layer in model.layers] == before


def test_layers_that_cannot_be_compressed_say_why():
    unbuilt = keras.Sequential([layers.Dense(3, name="x")])
    with pytest.raises(TypeError, match="layer 'x' must be built"):
        apply_compression(unbuilt, LowRank(rank=2))
    model = net()
    model.get_layer("head").enable_lora(2)
    with pytest.raises(TypeError, match="layer 'head' must have a plain kernel"):
        apply_compression(model, LowRank(rank=2))
    assert apply_compression(model, LowRank(rank=2), ignore="head").names == NAMES[:4]
    with pytest.raises(ValueError, match="layer 'table' must have a plain kernel for LoRA"):
        model.get_layer("table").enable_lora(2)
    per_head = keras.Sequential([keras.Input((2, 4)), layers.EinsumDense("bhc,hcd->bhd", (2, 3))])
    with pytest.raises(TypeError, match="equation must be a product with a matrix"):
        apply_compression(per_head, LowRank(rank=2))
    with pytest.raises(ValueError, match="must be dropped before"):
        apply_compression(net(), LowRank(rank=2)).finalize()
    with pytest.raises(ValueError, match="the model must be that of the compression"):
        fitted(compiled(net()), apply_compression(net(), LowRank(rank=2)))
    with pytest.raises(TypeError, match="compression must be a Compression, got 3"):
        CompressionCallback(3)


def test_names_stand_for_layers_and_for_single_weights():
    rank = LowRank(rank=2)
    assert apply_compression(net(), rank, targets="rnn").names == NAMES[2:4]
    assert apply_compression(net(), rank, targets="*/recurrent_kernel").names == NAMES[3:4]
    assert apply_compression(net(), {"table": rank, "head": rank}).names == (NAMES[0], NAMES[4])


def test_the_report_says_what_is_stored():
    model = net()
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE, targets="head")
    (row,) = compression.report()
    assert (row.stage.value, row.bytes_dense, row.bytes_factors) == ("dense", 8 * 5 * 4, None)
    compression.step(5)
    (row,) = compression.report()
    assert (row.alpha, row.bytes_factors) == (0.5, 2 * (8 + 5) * 4)
    assert 0 < row.relative_error < 1
    compression.step(9)
    (row,) = compression.report()
    assert (row.stage.value, row.relative_error) == ("factors", None)


@pytest.mark.parametrize(
    ("equation", "given", "kernel"),
    [
        ("ab,bc->ac", (2, 3), (3, 4)),
        ("abc,cde->abde", (2, 3, 4), (4, 5, 6)),
        ("abcd,cde->abe", (2, 3, 4, 5), (4, 5, 6)),
        ("abcd,dce->eab", (2, 3, 4, 5), (5, 4, 6)),
        ("...x,xy->...y", (2, 3, 4), (4, 5)),
        ("...hd,dhe->...e", (2, 3, 4, 5), (5, 4, 6)),
    ],
)
def test_equations_are_products_with_matrices(equation, given, kernel):
    x, K = floats(*given), floats(*kernel)
    plan, layout = EinsumPlan(equation, x.ndim), of_einsum(equation, x.ndim, K.shape)
    permuted = x.transpose(plan.input_order)
    lead = permuted.shape[: plan.n_lead]
    y = permuted.reshape(-1, layout.matrix[1]) @ layout.to_matrix(K).T
    y = y.reshape(*lead, *(K.shape[axis] for axis in plan.out_axes)).transpose(plan.output_order)
    np.testing.assert_allclose(y, np.einsum(equation, x, K), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not IS_QUICK, reason="one backend must do")
def test_the_page_about_keras(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(pages.blocks_of(Path(__file__).parent.parent / "docs" / "keras.md"), capsys)

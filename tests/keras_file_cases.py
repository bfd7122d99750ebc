"""Files of compressed Keras models, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from fastfactor import store
from fastfactor.errors import CorruptDataError
from fastfactor.keras import apply_compression, load_compressed
from fastfactor.methods import Codebook, Dictionary, LowRank, Prune
from fastfactor.training import Schedule
from keras import layers
from keras_models import (
    FEW_METHODS,
    IS_QUICK,
    LABELS,
    NAMES,
    SCHEDULE,
    WORDS,
    arrays,
    compiled,
    floats,
    net,
)

# Of Keras, when its variables on PyTorch become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BLEND = Schedule(begin=0, frequency=1, alpha_decrement=0.25)


@pytest.fixture(autouse=True)
def same_numbers():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


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

"""Methods for convolutions in layers of Keras, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fastfactor import store
from fastfactor.keras import apply_compression, load_compressed
from fastfactor.methods import (
    ConvBicluster,
    ConvCP,
    ConvMonochromatic,
    ConvSeparable,
    ConvSVD,
    LowRank,
)
from fastfactor.training import Schedule
from keras import layers

# Of Keras, when its variables on PyTorch become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BLEND = Schedule(begin=0, frequency=1, alpha_decrement=0.25)
STEPS = (0, 1, 4)  # blended with α = 1 and 0.75, then factors alone
METHODS = (
    ConvBicluster(ranks=(2, 2)),
    ConvSVD(ranks=(3, 4)),
    ConvSeparable(rank=3),
    ConvCP(rank=4),
    ConvMonochromatic(n_colors=4),
)
# Other backends compile every program, which takes seconds: there one method must do.
FEW_METHODS = METHODS if keras.backend.backend() == "torch" else METHODS[:1]
methods = pytest.mark.parametrize("method", FEW_METHODS, ids=lambda m: type(m).__name__)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def net():
    """A convolution of one group, one of two and one over one axis, and a layer without window."""
    images = keras.Input((10, 9, 4))
    x = layers.Conv2D(8, (3, 2), strides=(2, 1), activation="relu", name="first")(images)
    x = layers.Conv2D(16, 3, padding="same", groups=2, dilation_rate=(1, 2), name="second")(x)
    x = layers.Reshape((32, 16), name="rows")(x)
    x = layers.Conv1D(8, 5, padding="causal", name="third")(x)
    return keras.Model(images, layers.Dense(3, name="head")(layers.Flatten(name="flat")(x)))


IMAGES = floats(5, 10, 9, 4)
KERNELS = ("first/kernel", "second/kernel", "third/kernel")
GROUPS = (1, 2, 1)


def numbers(value):
    return np.asarray(keras.ops.convert_to_numpy(value))


def outputs(model):
    return model.predict(IMAGES, verbose=0)


def as_kernel(W, shape):
    """A matrix of filters by channels and window, as a kernel of Keras of this shape."""
    return np.moveaxis(W.reshape(shape[-1], shape[-2], *shape[:-2]), (0, 1), (-1, -2))


@methods
def test_layers_are_plain_ones_with_the_blended_kernels(method):
    model, plain = net(), net()
    plain.set_weights(model.get_weights())
    kernels = [plain.get_layer(name.partition("/")[0])._kernel for name in KERNELS]
    before = [numbers(kernel) for kernel in kernels]
    compression = apply_compression(model, method, BLEND)
    assert compression.names == KERNELS
    for step in STEPS:
        compression.step(step)
        for kernel, W, weight, groups in zip(
            kernels, before, compression._weights, GROUPS, strict=True
        ):
            factors = weight.trained_factors()
            assert factors.groups == groups
            assert factors.weight_shape[2:] == (1, *W.shape[:-2])[-2:]
            by_factors = as_kernel(factors.to_dense(), W.shape)
            alpha = weight.matrix.alpha
            kernel.assign(alpha * W + (1 - alpha) * by_factors)
        np.testing.assert_allclose(outputs(model), outputs(plain), rtol=1e-3, atol=1e-4)
    assert not {"kernel"} & {v.name for v in model.layers[1].trainable_variables}


@methods
def test_factors_are_those_of_the_kernel_with_four_axes(method):
    model = net()
    W = numbers(model.get_layer("first")._kernel).transpose(3, 2, 0, 1)
    compression = apply_compression(model, method, targets="first")
    compression.step()
    found = compression._weights[0].trained_factors()
    np.testing.assert_array_equal(found.to_dense(), method.compress(W).to_dense())


@methods
def test_factors_train(method):
    model = net()
    compression = apply_compression(model, method, BLEND)
    model.compile(keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
    wanted = floats(5, 3)
    compression.step(4)
    before = [numbers(v).copy() for w in compression._weights for v in w.variables.values()]
    losses = [float(model.train_on_batch(IMAGES, wanted)) for _ in range(10)]
    assert losses[-1] < losses[0]
    after = [numbers(v) for w in compression._weights for v in w.variables.values()]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


@methods
@pytest.mark.parametrize("step", [1, 4])
def test_saved_models_are_equal(method, step, tmp_path):
    model = net()
    apply_compression(model, method, BLEND).step(step)
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    compressions = [apply_compression(each, method, BLEND) for each in (model, loaded)]
    assert compressions[0].state() == compressions[1].state()
    for compression in compressions:
        compression.step(5)
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


@methods
def test_a_compressed_file_goes_into_a_fresh_model(method, tmp_path):
    model = net()
    compression = apply_compression(model, method)
    compression.step()
    compression.to_store(tmp_path / "small.safetensors")
    with store.open_store(tmp_path / "small.safetensors") as opened:
        assert opened.info("second/kernel").shape == (3, 3, 4, 16)
        kernel = np.asarray(opened.to_dense("second/kernel"))
        factors = opened["second/kernel"]
    np.testing.assert_array_equal(kernel, as_kernel(factors.to_dense(), kernel.shape))
    loaded = load_compressed(net(), tmp_path / "small.safetensors")
    np.testing.assert_allclose(outputs(loaded), outputs(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"targets": "head"}, TypeError, "'head' must be a convolution over one axis or two"),
        (
            {"compressor": ConvSVD(ranks=(1, 1), groups=4), "targets": "second"},
            ValueError,
            "second/kernel: groups must be those of the layer, 2, got 4",
        ),
        (
            {"compressor": ConvSVD(ranks=(1, 1), kernel_size=(3, 3)), "targets": "first"},
            ValueError,
            r"first/kernel: kernel_size must be that of W, \(3, 2\), got \(3, 3\)",
        ),
        (
            {"compressor": ConvMonochromatic(n_colors=3), "targets": "third"},
            ValueError,
            "third/kernel: n_colors must divide the 8 filters",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_changes(arguments, kind, message):
    model = net()
    before = [type(layer) for layer in model.layers]
    with pytest.raises(kind, match=message):
        apply_compression(model, **{"compressor": ConvSVD(ranks=(1, 1)), **arguments})
    assert [type(layer) for layer in model.layers] == before


def test_other_layers_have_methods_of_their_own():
    both = {"*": ConvSVD(ranks=(2, 2)), "head": LowRank(rank=2)}
    assert apply_compression(net(), both).names == (*KERNELS, "head/kernel")

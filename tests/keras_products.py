"""Products of factors on the backend of Keras that KERAS_BACKEND names: values, gradients, layers.

Run by test_adapters.py in a process for each backend.
"""

from __future__ import annotations

import keras
import numpy as np
from fastfactor.adapters import KerasNamespace
from product_cases import CASES, FEW, MANY, SHAPE, check_gradients, dense, factors_of, trained

IDS = np.array([[5, 5, 20], [4, 0, 5]])


def main():
    for case in CASES:
        factors = factors_of(case)
        for n in (FEW, MANY):
            check_forward(factors, n)
        check_rows(factors)
        if "-" not in case:  # one case of a kind, because models are compiled
            check_layers(factors)
    print(f"{len(CASES)} cases on {keras.backend.backend()}")


def check_forward(factors, n):
    rng = np.random.default_rng(1)
    x, wanted = (rng.standard_normal((n, size)) for size in SHAPE[::-1])
    W = dense(factors)

    def loss(tensors, x, wanted):
        y = factors.forward(KerasNamespace(), tensors, x)
        return keras.ops.sum(y * wanted), y

    gradients, y = differentiated(loss, trained(factors, "float64"), x, wanted)
    np.testing.assert_allclose(y, x @ W.T, rtol=0, atol=1e-5)
    check_gradients(factors, gradients, wanted.T @ x)


def check_rows(factors):
    wanted = np.random.default_rng(2).standard_normal((*IDS.shape, SHAPE[1]))

    def loss(tensors, ids, wanted):
        rows = factors.forward_rows(KerasNamespace(), tensors, ids)
        return keras.ops.sum(rows * wanted), rows

    gradients, rows = differentiated(loss, trained(factors, "float64"), IDS, wanted)
    np.testing.assert_allclose(rows, dense(factors)[IDS], rtol=0, atol=1e-5)
    of_dense = np.zeros(SHAPE)
    np.add.at(of_dense, IDS, wanted)
    check_gradients(factors, gradients, of_dense)


def differentiated(loss, tensors, *arrays):
    """The gradients of a loss, which gives a second result beside it, and that result."""
    arrays = [keras.ops.convert_to_tensor(array) for array in arrays]
    backend = keras.backend.backend()
    if backend == "torch":
        tensors = {n: keras.ops.convert_to_tensor(t).requires_grad_() for n, t in tensors.items()}
        value, other = loss(tensors, *arrays)
        value.backward()
        gradients = {name: tensor.grad for name, tensor in tensors.items()}
    elif backend == "jax":
        import jax

        gradients, other = jax.jit(jax.grad(loss, has_aux=True))(tensors, *arrays)
    else:
        import tensorflow

        tensors = {name: tensorflow.Variable(tensor) for name, tensor in tensors.items()}
        with tensorflow.GradientTape() as tape:
            value, other = loss(tensors, *arrays)
        found = tape.gradient(value, list(tensors.values()))
        dense_found = map(tensorflow.convert_to_tensor, found)
        gradients = dict(zip(tensors, dense_found, strict=True))
    gradients = {name: keras.ops.convert_to_numpy(g) for name, g in gradients.items()}
    return gradients, keras.ops.convert_to_numpy(other)


class Product(keras.layers.Layer):
    def __init__(self, factors, by_ids):
        super().__init__()
        self.factors, self.by_ids = factors, by_ids
        self.trained = {
            name: self.add_weight(
                shape=tensor.shape,
                name=name,
                initializer=lambda shape, dtype, tensor=tensor: keras.ops.convert_to_tensor(tensor),
            )
            for name, tensor in trained(factors, "float32").items()
        }

    def call(self, x):
        product = self.factors.forward_rows if self.by_ids else self.factors.forward
        return product(KerasNamespace(), self.trained, x)


def check_layers(factors):
    """A model built and trained with an unknown number of inputs, each a sequence of three."""
    W, rng = dense(factors), np.random.default_rng(3)
    x = rng.standard_normal((4, 3, SHAPE[1])).astype(np.float32)
    ids = rng.integers(0, SHAPE[0], (4, 3)).astype(np.int32)
    for given, by_ids, expected in ((x, False, x @ W.T), (ids, True, W[ids])):
        inputs = keras.Input(given.shape[1:], dtype=str(given.dtype))
        model = keras.Model(inputs, Product(factors, by_ids)(inputs))
        assert model.output_shape[1:] == expected.shape[1:]
        np.testing.assert_allclose(model.predict(given, verbose=0), expected, rtol=0, atol=1e-4)
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        losses = model.fit(given, np.zeros(expected.shape), epochs=3, verbose=0).history["loss"]
        assert losses[2] < losses[0]

"""The layers of Keras whose weights are compressed: the same classes, with other products.

They have the names of Keras's classes, because Keras's files name layers by them: numbers that were
saved before a model was prepared are found after it.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..files.layout import Layout
from ..training import State
from .compressed_layer import CompressedLayer, rebuilt, shape_of

register = keras.saving.register_keras_serializable(package="fastfactor")


@register
class Dense(CompressedLayer, keras.layers.Dense):
    """A dense layer that blends its kernel with factors, or has factors alone."""

    kernel = rebuilt("_kernel")

    def layouts(self) -> dict[str, Layout]:
        return {"_kernel": transposed(shape_of(self, "_kernel"))}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        stage = self.stage_of("_kernel")
        if stage is State.DENSE:
            return super().call(inputs, training)
        weight = self.compressed["_kernel"]
        y = weight.product(inputs)
        if stage is State.BLENDED:
            y = weight.blend(ops.matmul(inputs, weight.dense), y)
        return with_bias(self, y)


@register
class EinsumDense(CompressedLayer, keras.layers.EinsumDense):
    """A product along any axes, whose kernel is blended with factors, or has factors alone."""

    kernel = rebuilt("_kernel")

    def layouts(self) -> dict[str, Layout]:
        return {
            "_kernel": of_einsum(self.equation, self.input_spec.ndim, shape_of(self, "_kernel"))
        }

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        stage = self.stage_of("_kernel")
        if stage is State.DENSE:
            return super().call(inputs, training)
        weight = self.compressed["_kernel"]
        y = self._by_factors(inputs)
        if stage is State.BLENDED:
            y = weight.blend(ops.einsum(self.equation, inputs, weight.dense), y)
        return with_bias(self, y)

    def _by_factors(self, inputs: Any) -> Any:
        plan = EinsumPlan(self.equation, len(inputs.shape))
        weight = self.compressed["_kernel"]
        shape = weight.layout.shape
        x = ops.transpose(inputs, plan.input_order)
        lead = [ops.shape(x)[axis] for axis in range(plan.n_lead)]
        y = weight.product(ops.reshape(x, (-1, weight.layout.matrix[1])))
        y = ops.reshape(y, (*lead, *(shape[axis] for axis in plan.out_axes)))
        return ops.transpose(y, plan.output_order)


class EinsumPlan:
    """How an equation of EinsumDense is a product with a matrix.

    Attributes
    ----------
    out_axes, in_axes : tuple of int
        Axes of the kernel that the output has, and that are summed over.
    n_lead : int
        Axes of the input that are not summed over.
    input_order : tuple of int
        The input's axes: first those, then those that are summed over, as the kernel has them.
    output_order : tuple of int
        The place of each axis of the output among those of the input that stay, then the kernel's.

    Raises
    ------
    ValueError
        For an equation that is no product with a matrix: the kernel has an axis in common with both
        input and output, or an axis twice.
    """

    def __init__(self, equation: str, n_input_axes: int) -> None:
        given, result = equation.replace(" ", "").split("->")
        inputs, kernel = given.split(",")
        if "..." in inputs:
            n = n_input_axes - len(inputs.replace("...", ""))
            free = "".join(sorted(set(map(chr, range(65, 91))) - set(inputs + kernel + result)))[:n]
            inputs, result = (text.replace("...", free) for text in (inputs, result))
        self.in_axes = tuple(i for i, c in enumerate(kernel) if c in inputs)
        self.out_axes = tuple(i for i, c in enumerate(kernel) if c not in inputs)
        summed, made = ("".join(kernel[i] for i in axes) for axes in (self.in_axes, self.out_axes))
        lead = "".join(c for c in inputs if c not in summed)
        if sorted(result) != sorted(lead + made) or len(set(inputs)) != len(inputs):
            raise ValueError(f"equation must be a product with a matrix, got {equation!r}")
        self.n_lead = len(lead)
        self.input_order = tuple(inputs.index(c) for c in lead + summed)
        self.output_order = tuple((lead + made).index(c) for c in result)


@register
class Embedding(CompressedLayer, keras.layers.Embedding):
    """A table of rows that is blended with factors, or has factors alone."""

    embeddings = rebuilt("_embeddings")

    def layouts(self) -> dict[str, Layout]:
        return {"_embeddings": Layout.of(shape_of(self, "_embeddings"))}

    def call(self, inputs: Any) -> Any:
        stage = self.stage_of("_embeddings")
        if stage is State.DENSE:
            return super().call(inputs)
        weight = self.compressed["_embeddings"]
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        rows = weight.rows(inputs)
        if stage is State.BLENDED:
            rows = weight.blend(ops.take(weight.dense, inputs, axis=0), rows)
        return ops.cast(rows, self.compute_dtype)


@register
class Conv1D(CompressedLayer, keras.layers.Conv1D):
    """A convolution over one axis. Its kernel is rebuilt in each call."""

    kernel = rebuilt("_kernel")

    def layouts(self) -> dict[str, Layout]:
        return {"_kernel": of_convolution(shape_of(self, "_kernel"))}


@register
class Conv2D(CompressedLayer, keras.layers.Conv2D):
    """A convolution over two axes. Its kernel is rebuilt in each call."""

    kernel = rebuilt("_kernel")

    def layouts(self) -> dict[str, Layout]:
        return {"_kernel": of_convolution(shape_of(self, "_kernel"))}


def with_bias(layer: Any, y: Any) -> Any:
    """Return a product with the layer's bias and activation, which come after all of it."""
    if layer.bias is not None:
        y = ops.add(y, layer.bias)
    return y if layer.activation is None else layer.activation(y)


def transposed(shape: tuple[int, ...]) -> Layout:
    """Return the layout of a kernel (in, out)."""
    return Layout(shape, (1, 0), (shape[1], shape[0]))


def of_convolution(shape: tuple[int, ...]) -> Layout:
    """Return the layout of a kernel (*window, in, out) as (out, in · window)."""
    n = len(shape)
    axes = (n - 1, n - 2, *range(n - 2))
    size = 1
    for length in shape[:-1]:
        size *= length
    return Layout(shape, axes, (shape[-1], size))


def of_einsum(equation: str, n_input_axes: int, shape: tuple[int, ...]) -> Layout:
    """Return the layout of an EinsumDense's kernel."""
    plan = EinsumPlan(equation, n_input_axes)
    sides = [1, 1]
    for side, axes in enumerate((plan.out_axes, plan.in_axes)):
        for axis in axes:
            sides[side] *= shape[axis]
    return Layout(shape, (*plan.out_axes, *plan.in_axes), (sides[0], sides[1]))

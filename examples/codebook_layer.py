"""A layer in 4-bit codes, made from the kernels alone, as the author of a framework would.

For every row of the weight the best 16 values, the codes packed into half a byte each, and the
layer's product straight from them.
"""

from importlib import resources

import fastfactor
import numpy as np
from fastfactor import store


class CodebookLayer:
    """y = x @ W.T + b, with W as packed codes and a table of 16 values for each row."""

    def __init__(self, weight, bias):
        found = fastfactor.kmeans1d(weight, 16)
        self.codes = fastfactor.PackedCodes.pack(found.labels, 4)
        self.tables = found.centroids  # (out_features, 16, 1)
        self.bias = bias

    def __call__(self, x):
        return fastfactor.codebook_matmul(x, self.codes, self.tables) + self.bias

    @property
    def nbytes(self):
        return self.codes.nbytes + self.tables.nbytes + self.bias.nbytes


def main():
    model = resources.files("fastfactor.demo") / "data" / "lenet-300-100.safetensors"
    with resources.as_file(model) as path, store.open_store(path) as net:
        weight, bias = net["fc1.weight"], net["fc1.bias"]
    layer = CodebookLayer(weight, bias)

    x = np.random.default_rng(0).random((64, 784), np.float32)
    exact = x @ weight.T + bias
    lost = np.square(layer(x) - exact).sum() / np.square(exact).sum()
    print(f"dense:  {weight.nbytes + bias.nbytes:,} bytes")
    print(f"4 bits: {layer.nbytes:,} bytes, outputs differ by {lost:.2%} of their squares")


if __name__ == "__main__":
    main()

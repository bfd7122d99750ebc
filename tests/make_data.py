"""Write what is missing of tests/data: a stored file for each kind of factors, and for other forms.
What is there stays, so that files of old versions are read for ever.

    PYTHONPATH=python python tests/make_data.py

The matrices and methods are those of the contract tests. Beside factors ``NUMBER`` a file has the
matrix that they gave when they were written, ``NUMBER dense``. A form that is no longer written,
coded_network, is there too.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import ml_dtypes
import numpy as np
from contract import MethodContract
from fastfactor import store
from fastfactor.files.index import NEWER_VERSION
from fastfactor.files.layout import Layout
from fastfactor.methods import (
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    PruneCodebook,
)

TESTS = Path(__file__).parent
DATA = TESTS / "data"
COMPACT_METHODS = (
    DeepCompression(sparsity=0.9),
    PruneCodebook(sparsity=0.9),
    EntropyCoded(bits_per_weight=2),
    LowRank(rank=2),
)


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for contract in contracts():
        factors = [method.compress(contract().matrix()) for method in contract.METHODS]
        for kind in sorted({each.kind for each in factors}):
            path = DATA / f"{kind}.{store.FORMAT_VERSION}.safetensors"
            if not path.exists():
                write(path, [each for each in factors if each.kind == kind])
    for name, factors in rarer_forms():
        path = DATA / f"{name}.{store.FORMAT_VERSION}.safetensors"
        if not path.exists():
            write(path, factors)
    path = DATA / f"plain.{store.FORMAT_VERSION}.safetensors"
    if not path.exists():
        store.save(path, plain(), metadata={"made by": "tests/make_data.py"})
    for name in ("layouts", "compact"):
        path = DATA / f"{name}.{NEWER_VERSION}.safetensors"
        if not path.exists():
            write_layouts(path, compact=name == "compact")
    for name in ("ties", "compact_ties"):
        path = DATA / f"{name}.{NEWER_VERSION}.safetensors"
        if not path.exists():
            write_ties(path, compact=name == "compact_ties")
    path = DATA / f"compact.{store.FORMAT_VERSION}.safetensors"
    if not path.exists():
        W = MethodContract().matrix()
        factors = [method.compress(W) for method in COMPACT_METHODS]
        write(path, factors, compact=True, metadata={"made by": "tests/make_data.py"})


def write_layouts(path, *, compact):
    """Factors of transposed tensors, and a tensor that was converted to float16."""
    W = MethodContract().matrix()
    out, columns = W.shape
    shapes = ((columns, out), (1, columns, out))
    with store.Writer(path, compact=compact) as writer:
        for number, shape in enumerate(shapes):
            axes = (len(shape) - 1, *range(len(shape) - 1))
            factors = Codebook(n_bits=4).compress(W)
            writer.add(str(number), factors, shape=Layout(shape, axes, W.shape))
            writer.add(f"{number} dense", factors.to_dense())
        writer.add("bias", np.ones(3, np.float16), dtype=np.dtype(np.float32))


def write_ties(path, *, compact):
    """Factors and a plain tensor, each under two names."""
    factors = Codebook(n_bits=4).compress(MethodContract().matrix())
    with store.Writer(path, compact=compact) as writer:
        writer.add("in", factors)
        writer.add_same("out", "in")
        writer.add("in dense", factors.to_dense())
        writer.add_same("out dense", "in dense")


def contracts():
    """Every class of tests that names the methods that it tests."""
    for path in sorted(TESTS.glob("test_methods_*.py")):
        for value in vars(importlib.import_module(path.stem)).values():
            if isinstance(value, type) and issubclass(value, MethodContract) and value.METHODS:
                yield value


def rarer_forms():
    """Tensors that a kind has for some matrices only, by the name of the file."""
    rng = np.random.default_rng(0)
    rows, columns = np.exp(rng.standard_normal((256, 1)) - 3), np.geomspace(1, 1 / 64, 24)
    axes = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    W = rng.standard_normal((256, 24)) * rows * columns
    turned = (W @ axes).astype(np.float32)
    covariance = axes.T * np.geomspace(100, 0.01, 24) @ axes
    coded = EntropyCoded(bits_per_weight=3)
    yield (
        "entropy_coded_turned",
        [
            coded.compress(turned),
            coded.compress(turned, input_covariance=covariance),
            coded.compress(W.astype(np.float32)),
        ],
    )
    counted = Dictionary(block_error=0.1, block_size=8, n_atoms=8, max_iter=3)
    yield "dictionary_counts", [counted.compress(turned[:64])]


def write(path, factors, **options):
    entries, shapes = {}, {}
    for number, each in enumerate(factors):
        dense = each.to_dense()
        entries |= {f"{number}": each, f"{number} dense": dense}
        if number == 0:  # as if it had been a convolution
            shapes[f"{number}"] = (dense.shape[0], 2, dense.shape[1] // 2)
    store.save(path, entries, shapes=shapes, **options)


def plain():
    """A tensor of each dtype that NumPy and ml_dtypes have, and shapes of all sorts."""
    values = np.arange(6).reshape(2, 3)
    names = ("float64", "float32", "float16", "int64", "int32", "int16", "int8")
    names += ("uint64", "uint32", "uint16", "uint8", "bool", "complex64")
    arrays = {name: values.astype(name) for name in names}
    arrays["bfloat16"] = values.astype(ml_dtypes.bfloat16)
    arrays["float8_e4m3fn"] = values.astype(ml_dtypes.float8_e4m3fn)
    arrays["float8_e5m2"] = values.astype(ml_dtypes.float8_e5m2)
    return arrays | {"scalar": np.array(3.0), "empty": np.zeros((0, 4), np.float32)}


if __name__ == "__main__":
    main()

"""Small models with every kind of tensor, alone and in shards."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

RECIPE = {"default": {"method": "codebook", "n_bits": 4}}
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def network(rng):
    """Every kind of tensor that a model may have."""

    def normal(*shape):
        return rng.standard_normal(shape)

    return {
        **{f"fc.{np.dtype(t).name}": normal(64, 48).astype(t) for t in FLOATS},
        "conv": normal(40, 16, 3, 3).astype(np.float32),
        "bias": normal(64).astype(np.float32),
        "norm.weight": normal(64, 64).astype(np.float32),
        "small": normal(4, 64).astype(np.float32),
        "ids": np.arange(4096).reshape(64, 64),
        "flag": np.array(True),
        "empty": np.zeros((0, 64), np.float32),
    }


def saved(folder, rng):
    """The model as one file, and its tensors."""
    tensors = network(rng)
    path = folder / "net.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


def shard(folder, tensors, n_shards=3):
    """The same tensors in shards with an index; returns the index."""
    names = list(tensors)
    placed = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        own = names[i::n_shards]
        save_file({name: tensors[name] for name in own}, folder / file)
        placed.update(dict.fromkeys(own, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return index


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

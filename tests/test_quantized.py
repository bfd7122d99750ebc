"""Layers that another library has quantized are kept whole: recognised by names and dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import compress_file, store
from fastfactor.files.checkpoint import Stored
from fastfactor.models.inspect import inspect_file
from fastfactor.models.quantized import quantized_layers
from models import same
from safetensors.numpy import save_file

RECIPE = {"default": {"method": "codebook", "n_bits": 4}}
FP8 = ml_dtypes.float8_e4m3fn

# By library: the codes, and the tensors that go with them. All are of one layer, "l".
FORMATS = {
    "GPTQ": (
        ("l.qweight", (128, 1024), np.int32),
        {
            "l.scales": ((8, 1024), np.float16),
            "l.qzeros": ((8, 128), np.int32),
            "l.g_idx": ((1024,), np.int32),
        },
    ),
    "AWQ": (
        ("l.qweight", (1024, 128), np.int32),
        {"l.scales": ((8, 1024), np.float16), "l.qzeros": ((8, 128), np.int32)},
    ),
    "FP8": (("l.weight", (512, 512), FP8), {"l.weight_scale_inv": ((64, 64), np.float32)}),
    "compressed-tensors": (
        ("l.weight_packed", (512, 64), np.int32),
        {"l.weight_scale": ((512, 4), np.float16), "l.weight_zero_point": ((512, 4), np.int8)},
    ),
    "LLM.int8": (("l.weight", (512, 512), np.int8), {"l.SCB": ((512,), np.float32)}),
    "bitsandbytes": (
        ("l.weight", (131072, 1), np.uint8),
        {
            "l.weight.absmax": ((4096,), np.float32),
            "l.weight.quant_map": ((16,), np.float32),
            "l.weight.nested_absmax": ((16,), np.float32),
        },
    ),
    "quanto": (
        ("l.weight._data", (512, 512), np.int8),
        {"l.weight._scale": ((512, 1), np.float16)},
    ),
    "EETQ": (("l.qweight", (512, 512), np.int8), {"l.weight_scales": ((512, 4), np.float16)}),
    "HQQ": (("l.W_q", (64, 4096), np.uint8), {"l.scale": ((64, 64), np.float16)}),
    "MXFP4": (("l_blocks", (4, 64, 4, 16), np.uint8), {"l_scales": ((4, 64, 4), np.uint8)}),
}


@pytest.mark.parametrize("library", FORMATS)
def test_codes_and_what_goes_with_them_are_found(library):
    (codes, shape, dtype), others = FORMATS[library]
    tensors = {name: Stored(s, np.dtype(t)) for name, (s, t) in others.items()}
    tensors[codes] = Stored(shape, np.dtype(dtype))
    tensors["l.bias"] = Stored((512,), np.dtype(np.float32))
    tensors["embed.weight"] = Stored((512, 64), np.dtype(np.float32))
    assert quantized_layers(tensors) == dict.fromkeys((codes, *others), codes)


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        # The names of GPTQ, but floats: an ordinary layer with strange names.
        (("l.qweight", (64, 64), np.float32), ("l.scales", (64, 64), np.float32)),
        # Of another layer.
        (("k.qweight", (64, 64), np.int32), ("l.scales", (64, 64), np.float32)),
        # Codes are no fewer than their scales.
        (("l.weight", (4, 4), np.int32), ("l.scale", (64, 64), np.float32)),
        # A count beside a norm, as in batch norm.
        (("l.n", (), np.int64), ("l.scale", (64, 64), np.float32)),
    ],
)
def test_a_name_alone_decides_nothing(codes, scales):
    tensors = {name: Stored(shape, np.dtype(dtype)) for name, shape, dtype in (codes, scales)}
    assert quantized_layers(tensors) == {}


@pytest.fixture
def gptq(tmp_path, rng):
    tensors = {
        "l.qweight": rng.integers(0, 9, (128, 512)).astype(np.int32),
        "l.scales": rng.random((32, 512)).astype(np.float16),
        "head.weight": rng.standard_normal((64, 64)).astype(np.float32),
    }
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    return path, tensors


def test_a_quantized_layer_is_kept_whole_and_the_report_says_why(gptq, tmp_path):
    path, tensors = gptq
    recipe = {**RECIPE, "keep_dtype": "float16", "patterns": {"*scales": RECIPE["default"]}}
    report = compress_file(path, tmp_path / "out.safetensors", recipe)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons == {
        "l.qweight": "codes of a quantized layer",
        "l.scales": "goes with the codes l.qweight",
        "head.weight": "",
    }
    with store.open_store(tmp_path / "out.safetensors") as opened:
        for name in ("l.qweight", "l.scales"):
            assert same(opened[name], tensors[name])
    seen = {record["name"]: record["seen_as"] for record in inspect_file(path).records}
    assert seen == {
        "l.qweight": "codes of a quantized layer",
        "l.scales": "goes with the codes l.qweight",
        "head.weight": "64 × 64",
    }


def test_scales_are_compressed_if_the_recipe_names_them(gptq, tmp_path):
    path, _ = gptq
    recipe = {"names": {"l.scales": RECIPE["default"]}}
    report = compress_file(path, tmp_path / "out.safetensors", recipe)
    assert [row.name for row in report.compressed] == ["l.scales"]

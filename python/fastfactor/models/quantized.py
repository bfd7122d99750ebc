"""Tensors of layers that another library has quantized, which must stay together as they are.

Such a layer is a tensor of codes (integers, or floats of one byte) and tensors that say what the
codes mean, such as scales. An error of 5 % in a scale is one of 5 % in every weight of its group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from ..files.checkpoint import Stored

# Ends of the names of tensors that go with codes. GPTQ and AWQ: scales, qzeros, g_idx. FP8 and
# compressed-tensors: weight_scale, weight_scale_inv, weight_zero_point. LLM.int8: SCB.
# bitsandbytes: weight.absmax, weight.quant_map, weight.nested_absmax. quanto: weight._scale.
COMPANION = re.compile(
    r"(?P<stem>.*?)[._/]*"
    r"(?:q?scales?(?:_inv|_\d+)?|s?zeros?|zero_?points?|qzeros|SCB|absmax|quant_map"
    r"|nested_absmax|nested_quant_map|g_idx|perm|(?:q|quant_?)?(?:min|max)_?val)$"
)
# What the names of codes add to the stem that they share with their companions.
CODES = (
    *("", "weight", "qweight", "q_weight", "weight_q", "W_q", "packed", "q", "codes"),
    *("quantized", "weight_quantized", "data", "qdata", "int_data", "int_weight", "blocks"),
    *("weight_packed", "B", "kernel", "embeddings"),
)
SEPARATORS = (".", "_", "/", "._", "")


def quantized_layers(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Return the tensors of quantized layers, each with the name of its layer's codes.

    Parameters
    ----------
    tensors : mapping of names to Stored
        All tensors of a model.

    Returns
    -------
    dict of str
        By name: of the codes themselves, and of every tensor that says what they mean. A name alone
        decides nothing: there must be codes, of a type for codes, with as many entries or more.
    """
    found: dict[str, str] = {}
    for name, stored in tensors.items():
        match = COMPANION.match(name)
        if match is None:
            continue
        for other in _names_of_codes(match["stem"]):
            if other != name and other in tensors and _has_codes(tensors[other], stored):
                found[name] = found[other] = other
                break
    return found


def quantized_text(name: str, codes: str) -> str:
    """Return why a tensor of a quantized layer is kept."""
    return "codes of a quantized layer" if codes == name else f"goes with the codes {codes}"


def _names_of_codes(stem: str) -> Iterator[str]:
    yield stem
    for word in CODES[1:]:
        for separator in SEPARATORS if stem else ("",):
            yield f"{stem}{separator}{word}"
    if stem.endswith("weight"):  # weight_scales beside qweight
        yield f"{stem.removesuffix('weight')}qweight"


def _has_codes(codes: Stored, companion: Stored) -> bool:
    """Return whether a tensor may hold the codes that another one goes with."""
    dtype = codes.dtype
    narrow = dtype.itemsize == 1 and dtype.name.startswith("float")
    large = math.prod(codes.shape) >= math.prod(companion.shape)
    return len(codes.shape) > 1 and (dtype.kind in "iu" or narrow) and large

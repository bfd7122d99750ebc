"""The index of a stored file, which describes its entries: how it is built and read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _checks
from .._arrays import Array, as_array
from ..errors import CorruptDataError
from ..methods.factors import FLOAT_NAMES, Factors, matrix_shape
from .container import CHECKSUM, CODES, INDEX, MAX_SIZE, TensorInfo, dtype_of, sizes

FORMAT_VERSION = 1
PLAIN = "plain"  # the kind of an uncompressed tensor

Path = str | os.PathLike[str]
Value = Factors | Array


@dataclass(frozen=True)
class Entry:
    """The description of one entry in a file.

    Attributes
    ----------
    name : str
    kind : str
        The ``Factors.kind`` of its factors; ``"plain"`` for an uncompressed tensor.
    shape : tuple of int
        Shape of the original tensor. Its factors are those of a matrix of shape
        (shape[0], product of the rest).
    dtype : dtype
        Dtype of the original tensor.
    nbytes : int
        Bytes of its tensors in the file.
    tensors : dict
        Names of its tensors in the file, by their names in the factors; a plain tensor has ``""``.
    config : dict
        Numbers that the factors are stored with beside tensors.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    tensors: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)


def described_entry(
    name: str, value: Any, shape: Sequence[int] | None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return an entry of the index, without checksums, and its tensors by their names in a file."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise ValueError(
            f"an entry's name must be text, but not empty or '__metadata__', got {name!r}"
        )
    check_text(name, "an entry's name")
    if not isinstance(value, Factors):
        if type(value).__module__ == "builtins":  # the dtype of lists and numbers would be a guess
            raise TypeError(
                f"entry {name!r} must be Factors or an array, got {type(value).__name__}"
            )
        array = as_array(value, f"entry {name!r}")
        if shape is not None:
            raise ValueError(
                f"shape must be given for factors only, got {shape} for array {name!r}"
            )
        return {"name": name}, {name: array}
    full = value.shape if shape is None else tuple(shape)
    full = tuple(_checks.integer(n, f"shape of {name!r}", 0) for n in full)
    if not full or matrix_shape(full) != value.shape:
        raise ValueError(
            f"shape of {name!r} must flatten to the matrix shape {value.shape}, got {full}"
        )
    entry = {
        "name": name,
        "kind": value.kind,
        "shape": full,
        "dtype": value.dtype.name,
        "config": value.config(),
        "tensors": list(value.tensors()),
    }
    return entry, {f"{name}.{part}": array for part, array in value.tensors().items()}


def build_index(described: Iterable[dict[str, Any]], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return the index of the described entries, with the checksums of their tensors."""
    entries = {}
    for each in described:
        entry = dict(each)
        name = entry.pop("name")
        parts = entry.pop("tensors", None)
        if parts is None:
            entry["crc32"] = sums[name]
        else:
            entry["crc32"] = {part: sums[f"{name}.{part}"] for part in parts}
        entries[name] = entry
    return {"version": FORMAT_VERSION, "entries": entries}


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Check that metadata map names to text and use no reserved name; return them as a dict."""
    texts = dict(metadata or {})
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata must map names to text, got {name!r}: {text!r:.200}")
        if name in (INDEX, CHECKSUM):
            raise ValueError(f"metadata must not use the reserved name {name!r}, got {text!r:.200}")
        check_text(name, "metadata")
        check_text(text, f"metadata {name!r}")
    return texts


def check_text(text: str, what: str) -> None:
    """Check that text can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be valid Unicode text, got {text!r:.200}") from None


def read_index(
    index: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> tuple[dict[str, Entry], dict[str, int]]:
    """Read the index of a file; return its entries and the checksums of its tensors.

    Raises
    ------
    CorruptDataError
        If the index contradicts itself or the tensors.
    ValueError
        If a newer version of fastfactor wrote it.
    """
    version = index.get("version")
    if type(version) is not int or version < 1:
        raise CorruptDataError(f"version must be a positive integer, got {version!r:.200}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format version must be at most {FORMAT_VERSION} for this fastfactor, "
            f"got {version}: a newer fastfactor wrote the file"
        )
    listed = index.get("entries")
    if not isinstance(listed, dict):
        raise CorruptDataError(f"entries must be a JSON object, got {type(listed).__name__}")
    entries: dict[str, Entry] = {}
    all_sums: dict[str, int] = {}
    for name, value in listed.items():
        sums = _sums(name, value)
        parts = {part: f"{name}.{part}" if part else name for part in sums}
        for part, long in parts.items():
            if long not in infos:
                raise CorruptDataError(f"tensor {long!r} is missing")
            if long in all_sums:
                raise CorruptDataError(f"tensor {long!r} must belong to one entry, got two")
            all_sums[long] = sums[part]
        if isinstance(value["crc32"], dict):
            entries[name] = _factors_entry(name, value, parts, infos)
        else:
            entries[name] = plain_entry(name, infos[name])
    if len(all_sums) != len(infos):
        stray = next(name for name in infos if name not in all_sums)
        raise CorruptDataError(f"tensor {stray!r} must belong to an entry, got none")
    return entries, all_sums


def plain_entry(name: str, info: TensorInfo) -> Entry:
    """Return the entry of an uncompressed tensor."""
    nbytes = info.end - info.begin
    return Entry(name, PLAIN, info.shape, dtype_of(info.code), nbytes, {"": name})


def _sums(name: str, value: Any) -> dict[str, int]:
    """Return the checksums of an entry's tensors by part; a plain tensor is the part ``""``."""
    sums = value.get("crc32") if isinstance(value, dict) else None
    fields = {"kind", "shape", "dtype", "config", "crc32"} if isinstance(sums, dict) else {"crc32"}
    if not isinstance(value, dict) or value.keys() != fields:
        raise CorruptDataError(
            f"entry {name!r} must be a JSON object with the keys {', '.join(sorted(fields))}, "
            f"got {value!r:.200}"
        )
    found: dict[str, Any] = sums if isinstance(sums, dict) else {"": sums}
    for part, number in found.items():
        if type(number) is not int or not 0 <= number < 2**32:
            raise CorruptDataError(
                f"crc32 of {name!r} {part!r} must be an integer in [0, 2**32), got {number!r:.200}"
            )
    return found


def _factors_entry(
    name: str, value: Mapping[str, Any], parts: dict[str, str], infos: Mapping[str, TensorInfo]
) -> Entry:
    kind, shape, dtype, config = (value[key] for key in ("kind", "shape", "dtype", "config"))
    if not isinstance(kind, str) or kind == PLAIN or not isinstance(config, dict):
        raise CorruptDataError(
            f"entry {name!r} must have a name as kind and a JSON object as config, "
            f"got {kind!r:.200} and {config!r:.200}"
        )
    if dtype not in FLOAT_NAMES:
        raise CorruptDataError(
            f"dtype of entry {name!r} must be {' or '.join(FLOAT_NAMES)}, got {dtype!r:.200}"
        )
    if not sizes(shape) or not shape or math.prod(max(n, 1) for n in shape) >= MAX_SIZE:
        raise CorruptDataError(
            f"shape of entry {name!r} must be a list of sizes with fewer than 2**59 elements, "
            f"got {shape!r:.200}"
        )
    nbytes = sum(infos[long].end - infos[long].begin for long in parts.values())
    return Entry(name, kind, tuple(shape), dtype_of(CODES[dtype]), nbytes, parts, config)

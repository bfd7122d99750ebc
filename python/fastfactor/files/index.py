"""The index of a stored file: what it says of its entries, written and read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from ..errors import CorruptDataError
from ..methods.factors import FLOAT_NAMES, Factors, matrix_shape
from .container import CHECKSUM, CODES, INDEX, MAX_SIZE, TensorInfo, dtype_of, sizes

FORMAT_VERSION = 1
PLAIN = "plain"  # the kind of what is not factors

Path = str | os.PathLike[str]
Value = Factors | Array


@dataclass(frozen=True)
class Entry:
    """What a file says of one entry.

    Attributes
    ----------
    name : str
    kind : str
        As in ``Factors.kind``; ``"plain"`` for a tensor that is not compressed.
    shape : tuple of int
        Of the tensor as it was; factors are of (shape[0], all else).
    dtype : dtype
        Of the tensor as it was.
    nbytes : int
        Bytes of its tensors in the file.
    tensors : dict
        Name in the file by the name that the factors have for it; ``""`` for a plain tensor.
    config : dict
        What the factors are stored with beside tensors.
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
    """An entry as the index has it, without checksums, and its tensors by their names in a file."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise ValueError(f"an entry's name must be text, not empty or '__metadata__', got {name!r}")
    check_text(name, "an entry's name")
    if not isinstance(value, Factors):
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"entry {name!r} must be Factors or a NumPy array, got {type(value).__name__}"
            )
        if shape is not None:
            raise ValueError(f"shape must be given for factors only, got {shape} for {name!r}")
        return {"name": name}, {name: value}
    full = value.shape if shape is None else tuple(shape)
    full = tuple(_checks.integer(n, f"shape of {name!r}", 0) for n in full)
    if not full or matrix_shape(full) != value.shape:
        raise ValueError(
            f"shape of {name!r} must be that of a tensor with {value.shape} as a matrix, got {full}"
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
    """The index of entries that were described, with the checksums of their tensors."""
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
    """Names and text, none of them the store's own."""
    texts = dict(metadata or {})
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata must hold text by name, got {name!r}: {text!r:.200}")
        if name in (INDEX, CHECKSUM):
            raise ValueError(f"metadata must not hold the store's own {name!r}, got {text!r:.200}")
        check_text(name, "metadata")
        check_text(text, f"metadata {name!r}")
    return texts


def check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be Unicode text, got {text!r:.200}") from None


def read_index(
    index: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> tuple[dict[str, Entry], dict[str, int]]:
    """The entries of a file, and the checksums of its tensors, from its index.

    Raises
    ------
    CorruptDataError
        Where the index contradicts itself or the tensors.
    ValueError
        Where a newer version of the format wrote it.
    """
    version = index.get("version")
    if type(version) is not int or version < 1:
        raise CorruptDataError(f"version must be a positive integer, got {version!r:.200}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the file must have format version {FORMAT_VERSION} at most, which this version of "
            f"fastfactor reads, got {version}: a newer fastfactor wrote it"
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
    """A tensor that is not compressed."""
    nbytes = info.end - info.begin
    return Entry(name, PLAIN, info.shape, dtype_of(info.code), nbytes, {"": name})


def _sums(name: str, value: Any) -> dict[str, int]:
    """Checksums of an entry's tensors by their names in the factors; "" for a plain tensor."""
    sums = value.get("crc32") if isinstance(value, dict) else None
    fields = {"kind", "shape", "dtype", "config", "crc32"} if isinstance(sums, dict) else {"crc32"}
    if not isinstance(value, dict) or value.keys() != fields:
        raise CorruptDataError(
            f"entry {name!r} must be a JSON object with {', '.join(sorted(fields))}, "
            f"got {value!r:.200}"
        )
    found: dict[str, Any] = sums if isinstance(sums, dict) else {"": sums}
    for part, number in found.items():
        if type(number) is not int or not 0 <= number < 2**32:
            raise CorruptDataError(
                f"crc32 of {name!r} {part!r} must be an integer of 32 bits, got {number!r:.200}"
            )
    return found


def _factors_entry(
    name: str, value: Mapping[str, Any], parts: dict[str, str], infos: Mapping[str, TensorInfo]
) -> Entry:
    kind, shape, dtype, config = (value[key] for key in ("kind", "shape", "dtype", "config"))
    if not isinstance(kind, str) or kind == PLAIN or not isinstance(config, dict):
        raise CorruptDataError(
            f"entry {name!r} must have a word as kind and a JSON object as config, "
            f"got {kind!r:.200} and {config!r:.200}"
        )
    if dtype not in FLOAT_NAMES:
        raise CorruptDataError(
            f"entry {name!r} must have dtype {' or '.join(FLOAT_NAMES)}, got {dtype!r:.200}"
        )
    if not sizes(shape) or not shape or math.prod(max(n, 1) for n in shape) >= MAX_SIZE:
        raise CorruptDataError(f"entry {name!r} must have a shape, got {shape!r:.200}")
    nbytes = sum(infos[long].end - infos[long].begin for long in parts.values())
    return Entry(name, kind, tuple(shape), dtype_of(CODES[dtype]), nbytes, parts, config)

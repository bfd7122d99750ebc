"""The index of a stored file, which describes its entries: how it is built and read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import _checks
from .._arrays import Array, as_array
from ..errors import CorruptDataError
from ..methods.factors import FLOAT_NAMES, Factors
from .container import (
    CHECKSUM,
    CODES,
    INDEX,
    MAX_SIZE,
    OpaqueTensor,
    OpaqueType,
    TensorInfo,
    dtype_of,
    sizes,
)
from .layout import Layout

FORMAT_VERSION = 1
# Of files with an entry that is `same_as` another, factors with a `layout`, or a plain `dtype`.
NEWER_VERSION = 2
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
        Shape of the original tensor. Its factors are those of a matrix: see `layout`.
    dtype : dtype
        Dtype of the original tensor.
    nbytes : int
        Bytes of its tensors in the file.
    tensors : dict
        Names of its tensors in the file, by their names in the factors; a plain tensor has ``""``.
    config : dict
        Numbers that the factors are stored with beside tensors.
    given_layout : Layout or None
        How the tensor is seen as a matrix, if not as (shape[0], product of the rest).
    same_as : str or None
        The entry whose tensors this one shares, such as tied weights do. It has no bytes then.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    tensors: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    given_layout: Layout | None = None
    same_as: str | None = None

    @property
    def layout(self) -> Layout:
        """How the tensor is seen as a matrix."""
        return self.given_layout or Layout.of(self.shape)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the original tensor."""
        if isinstance(self.dtype, OpaqueType):
            return self.nbytes
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def counted_dense_nbytes(self) -> int:
        """The same with sides of length 0 counted as 1: what a limit on sizes is compared with."""
        return math.prod(max(n, 1) for n in self.shape) * self.dtype.itemsize


def described_entry(
    name: str, value: Any, shape: Sequence[int] | Layout | None, dtype: np.dtype[Any] | None = None
) -> tuple[dict[str, Any], dict[str, Array | OpaqueTensor]]:
    """Return an entry of the index, without checksums, and its tensors by their names in a file.

    `dtype` is that of the original of a plain tensor which was converted.
    """
    check_entry_name(name)
    if not isinstance(value, Factors):
        if type(value).__module__ == "builtins":  # the dtype of lists and numbers would be a guess
            raise TypeError(
                f"entry {name!r} must be Factors or an array, got {type(value).__name__}"
            )
        opaque = isinstance(value, OpaqueTensor)
        array: Any = value if opaque else as_array(value, f"entry {name!r}")
        if shape is not None:
            raise ValueError(
                f"shape must be given for factors only, got {shape} for array {name!r}"
            )
        plain = {"name": name}
        if dtype is not None and dtype != array.dtype:
            plain["dtype"] = dtype.name
        return plain, {name: array}
    layout = _checked_layout(name, value, shape)
    entry = {
        "name": name,
        "kind": value.kind,
        "shape": layout.shape,
        "dtype": _checks.name_of(value.dtype),
        "config": value.config(),
        "tensors": list(value.tensors()),
    }
    if not layout.is_usual:
        entry["layout"] = {"axes": layout.axes, "matrix": layout.matrix}
    return entry, {f"{name}.{part}": array for part, array in value.tensors().items()}


def check_entry_name(name: Any) -> None:
    """Check that an entry may have this name."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise ValueError(
            f"an entry's name must be text, but not empty or '__metadata__', got {name!r}"
        )
    check_text(name, "an entry's name")


def alias(name: str, of: Entry) -> Entry:
    """Return the entry of a tensor that is the same as that of another entry."""
    return replace(of, name=name, nbytes=0, same_as=of.name)


def _checked_layout(name: str, value: Factors, shape: Sequence[int] | Layout | None) -> Layout:
    """Return the layout of a tensor whose matrix has these factors; refuse what does not fit."""
    if isinstance(shape, Layout):
        layout = shape
    else:
        full = value.shape if shape is None else tuple(shape)
        full = tuple(_checks.integer(n, f"shape of {name!r}", 0) for n in full)
        layout = Layout.of(full) if full else Layout((), (), (0, 0))
    if layout.matrix != value.shape or layout.fault():
        raise ValueError(
            f"shape of {name!r} must flatten to the matrix shape {value.shape}, got {layout.shape}"
        )
    return layout


def build_index(described: Iterable[dict[str, Any]], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return the index of the described entries, with the checksums of their tensors."""
    entries = {}
    for each in described:
        entry = dict(each)
        name = entry.pop("name")
        parts = entry.pop("tensors", None)
        if "same_as" in entry:
            pass
        elif parts is None:
            entry["crc32"] = sums[name]
        else:
            entry["crc32"] = {part: sums[f"{name}.{part}"] for part in parts}
        entries[name] = entry
    return {"version": version_of(entries), "entries": entries}


def version_of(entries: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the lowest version of the format that has all members of these entries."""
    newer = any(
        "layout" in entry or "same_as" in entry or ("dtype" in entry and "kind" not in entry)
        for entry in entries.values()
    )
    return NEWER_VERSION if newer else FORMAT_VERSION


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
    if version > NEWER_VERSION:
        raise ValueError(
            f"format version must be at most {NEWER_VERSION} for this fastfactor, "
            f"got {version}: a newer fastfactor wrote the file"
        )
    listed = index.get("entries")
    if not isinstance(listed, dict):
        raise CorruptDataError(f"entries must be a JSON object, got {type(listed).__name__}")
    entries: dict[str, Entry] = {}
    all_sums: dict[str, int] = {}
    for name, value in listed.items():
        if is_alias(value):
            continue
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
            entries[name] = _converted_entry(plain_entry(name, infos[name]), value)
    if len(all_sums) != len(infos):
        stray = next(name for name in infos if name not in all_sums)
        raise CorruptDataError(f"tensor {stray!r} must belong to an entry, got none")
    return {name: _or_alias(name, value, entries) for name, value in listed.items()}, all_sums


def is_alias(value: Any) -> bool:
    """Return whether an index's entry says that it is the same as another."""
    return isinstance(value, dict) and value.keys() == {"same_as"}


def _or_alias(name: str, value: Any, entries: Mapping[str, Entry]) -> Entry:
    """Return the entry of this name, or the one that it is the same as."""
    if not is_alias(value):
        return entries[name]
    of = value["same_as"]
    if not isinstance(of, str) or of not in entries:
        raise CorruptDataError(
            f"entry {name!r} must be the same as an entry with tensors, got {of!r:.200}"
        )
    return alias(name, entries[of])


def factors_of(entry: Entry, tensors: Mapping[str, Array]) -> Factors:
    """Return the factors of an entry, given its tensors by their names in the factors.

    Raises
    ------
    CorruptDataError
        If its kind is unknown, or the tensors are not those of its kind and shape.
    """
    if entry.kind not in Factors.kinds:
        raise CorruptDataError(
            f"kind of entry {entry.name!r} must be one of {', '.join(sorted(Factors.kinds))}, "
            f"got {entry.kind!r}; a kind of your own must be imported before the file is read"
        )
    make = Factors.kinds[entry.kind].from_tensors
    try:
        factors = make(tensors, dict(entry.config), entry.layout.matrix, entry.dtype)
    except (TypeError, ValueError) as error:
        raise CorruptDataError(f"entry {entry.name!r}: {error}") from error
    if factors.tensors().keys() != tensors.keys():
        raise CorruptDataError(
            f"entry {entry.name!r} must have the tensors {', '.join(sorted(factors.tensors()))}, "
            f"got {', '.join(sorted(tensors))}"
        )
    return factors


def plain_entry(name: str, info: TensorInfo) -> Entry:
    """Return the entry of an uncompressed tensor."""
    nbytes = info.end - info.begin
    return Entry(name, PLAIN, info.shape, dtype_of(info.code), nbytes, {"": name})


def _converted_entry(entry: Entry, value: Mapping[str, Any]) -> Entry:
    """Return a plain entry with the dtype of the original, if the index names another."""
    if "dtype" not in value:
        return entry
    stored = entry.dtype.name
    if value["dtype"] not in FLOAT_NAMES or stored not in FLOAT_NAMES:
        raise CorruptDataError(
            f"dtypes of entry {entry.name!r} must be among {', '.join(FLOAT_NAMES)}, "
            f"got {value['dtype']!r:.200} and {stored}"
        )
    return replace(entry, dtype=dtype_of(CODES[value["dtype"]]), config={"stored_as": stored})


def _sums(name: str, value: Any) -> dict[str, int]:
    """Return the checksums of an entry's tensors by part; a plain tensor is the part ``""``."""
    sums = value.get("crc32") if isinstance(value, dict) else None
    of_factors = isinstance(sums, dict)
    fields = {"kind", "shape", "dtype", "config", "crc32"} if of_factors else {"crc32"}
    optional = "layout" if of_factors else "dtype"
    if not isinstance(value, dict) or value.keys() - {optional} != fields - {optional}:
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
    layout = _read_layout(name, value["layout"], tuple(shape)) if "layout" in value else None
    return Entry(name, kind, tuple(shape), dtype_of(CODES[dtype]), nbytes, parts, config, layout)


def _read_layout(name: str, value: Any, shape: tuple[int, ...]) -> Layout:
    fault: str | None = f"must have axes and matrix, got {value!r:.200}"
    if isinstance(value, dict) and value.keys() == {"axes", "matrix"}:
        axes, matrix = value["axes"], value["matrix"]
        if sizes(axes) and sizes(matrix):
            layout = Layout(shape, tuple(axes), tuple(matrix))
            fault = layout.fault()
            if fault is None:
                return layout
    raise CorruptDataError(f"layout of entry {name!r}: {fault}")

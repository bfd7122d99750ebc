"""A network as Deep Compression keeps it: its layers coded, biases as they are, one run of bytes.

The bytes (numbers little-endian, sizes as in `layer`):

    4 bytes   FFDC
    1 byte    version of the format
    4 bytes   CRC-32 of everything else
    size      number of records; each has
      size, …   bytes of its name, the name
      1 byte    0: a layer, whose bytes follow; else a plain tensor, by its dtype
      sizes, …  of a plain tensor, number of dimensions and each of them, then its values
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .._checks import Array, as_bytes
from ..errors import CorruptDataError
from ..files import store, writer
from ..files.container import Place, code_of, cooked, dtype_of, raw
from ..files.index import check_text
from .layer import CodedLayer, LayerSizes
from .stored_bytes import Reader, leb128

MAGIC = b"FFDC"
FORMAT_VERSION = 1
START = struct.Struct("<4sBI")
MAX_NAME = 65_535
ENTRY = "network"

# The number of a dtype is its place here, from 1 on. Never to be reordered.
PLAIN_DTYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"),
    *("BOOL", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
)


@dataclass(frozen=True, eq=False)
class CodedNetwork:
    """Layers by name, ready to be multiplied, and plain tensors.

    Parameters
    ----------
    layers : mapping of names to CodedLayer
    plain : mapping of names to arrays, optional
        Of any dtype that safetensors knows.

    Raises
    ------
    TypeError, ValueError
        For names that are no text, too long or twice there, and what cannot be stored.

    Notes
    -----
    Equal networks have equal bytes, for any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.deep_compression import CodedNetwork, DeepCompression
    >>> W = np.diag(np.arange(1, 65)).astype(np.float32)
    >>> network = CodedNetwork({"fc": DeepCompression(n_bits=4).compress(W)})
    >>> network.sizes["fc"].n_kept, network.nbytes < 250
    (64, True)
    """

    layers: Mapping[str, CodedLayer]
    plain: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.layers, *self.plain):
            if not isinstance(name, str) or len(name.encode("utf-8", "replace")) > MAX_NAME:
                raise ValueError(f"a name must be text of {MAX_NAME} bytes at most, got {name!r}")
            check_text(name, "a name")
        twice = self.layers.keys() & self.plain.keys()
        if twice:
            raise ValueError(f"names must differ, got {min(twice)!r} as layer and as plain tensor")
        for name, layer in self.layers.items():
            if not isinstance(layer, CodedLayer):
                raise TypeError(f"layer {name!r} must be a CodedLayer, got {type(layer).__name__}")
        for name, array in self.plain.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name!r} must be a NumPy array, got {type(array).__name__}")
            code_of(array, repr(name))

    @cached_property
    def _bytes(self) -> bytes:
        parts = [leb128(len(self.layers) + len(self.plain))]
        for name, layer in self.layers.items():
            parts += [_name(name), b"\0", layer.to_bytes()]
        for name, array in self.plain.items():
            code = code_of(array, repr(name))
            numbers = (array.ndim, *array.shape)
            parts += [_name(name), bytes([1 + PLAIN_DTYPES.index(code)])]
            parts += [*map(leb128, numbers), raw(array, code).tobytes()]
        body = b"".join(parts)
        head = MAGIC + bytes([FORMAT_VERSION])
        return START.pack(MAGIC, FORMAT_VERSION, zlib.crc32(body, zlib.crc32(head))) + body

    def to_bytes(self) -> bytes:
        """All of it, as it is stored."""
        return self._bytes

    @property
    def nbytes(self) -> int:
        """Of `to_bytes`: codes, tables, names, plain tensors and headers."""
        return len(self._bytes)

    @property
    def sizes(self) -> dict[str, LayerSizes]:
        """What each layer takes, stage by stage."""
        return {name: layer.sizes for name, layer in self.layers.items()}

    def rows(self) -> list[dict[str, Any]]:
        """A table as in the paper: a row for each layer, one for what is plain, the total.

        The bytes of the first rows and of ``"names and header"`` add up to the total, `nbytes`.
        """
        rows = [{"name": name, **sizes.as_row()} for name, sizes in self.sizes.items()]
        plain = sum(array.nbytes for array in self.plain.values())
        rest = self.nbytes - plain - sum(sizes.nbytes for sizes in self.sizes.values())
        rows.append({"name": "plain tensors", "bytes_dense": plain, "bytes": plain})
        rows.append({"name": "names and header", "bytes_dense": 0, "bytes": rest})
        weights = sum(sizes.n_weights for sizes in self.sizes.values())
        dense = sum(row["bytes_dense"] for row in rows)
        kept = sum(sizes.n_kept for sizes in self.sizes.values())
        total = {
            "name": "total",
            "weights": weights,
            "kept": kept / max(weights, 1),
            "bytes_dense": dense,
            "bytes_shared": sum(row.get("bytes_shared", row["bytes"]) for row in rows),
            "bytes": self.nbytes,
            "share": self.nbytes / max(dense, 1),
        }
        return [*rows, total]

    @classmethod
    def from_bytes(cls, data: Any) -> CodedNetwork:
        """The inverse of `to_bytes`: equal arrays.

        Parameters
        ----------
        data : bytes, or uint8 array of shape (n,)
            Any bytes may be given.

        Raises
        ------
        CorruptDataError
            Where the bytes are no network's, were cut or changed.
        ValueError
            Where a newer version of the format wrote them.
        """
        array = as_bytes(data, "data")
        if array.ndim != 1 or array.size < START.size or array[:4].tobytes() != MAGIC:
            raise CorruptDataError(f"data must begin with {MAGIC!r}, got {array[:4].tobytes()!r}")
        array = np.ascontiguousarray(array)
        _, version, crc32 = START.unpack(array[: START.size].data)
        if zlib.crc32(array[START.size :].data, zlib.crc32(array[:5].data)) != crc32:
            raise CorruptDataError("data must fit their checksum, got another")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"data must have format version {FORMAT_VERSION}, which this version of fastfactor "
                f"reads, got {version}"
            )
        reader = Reader(array[START.size :])
        layers: dict[str, CodedLayer] = {}
        plain: dict[str, Array] = {}
        for _ in range(reader.size()):
            name = _read_name(reader)
            if name in layers or name in plain:
                raise CorruptDataError(f"names must differ, got {name!r} twice")
            (kind,) = reader.take(1).tolist()
            if kind == 0:
                layers[name] = CodedLayer.read(reader)
            else:
                plain[name] = _read_plain(reader, kind, name)
        reader.end()
        return cls(layers, plain)

    def save(
        self, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a file: the bytes as one tensor of a store, ``"network"``."""
        writer.save(path, {ENTRY: np.frombuffer(self._bytes, np.uint8)}, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodedNetwork:
        """Read a file that `save` wrote.

        Raises
        ------
        CorruptDataError
            Where the file was cut or changed, or holds no network.
        ValueError
            Where a newer version of the format wrote it.
        """
        with store.open_store(path) as opened:
            if ENTRY not in opened:
                raise CorruptDataError(f"{opened.path} must hold an entry {ENTRY!r}, got none")
            value = opened[ENTRY]
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
            raise CorruptDataError(f"entry {ENTRY!r} must be bytes, got another kind")
        return cls.from_bytes(value)

    def __repr__(self) -> str:
        return (
            f"CodedNetwork({len(self.layers)} layers, {len(self.plain)} plain tensors, "
            f"{self.nbytes} bytes)"
        )


def _name(name: str) -> bytes:
    coded = name.encode()
    return leb128(len(coded)) + coded


def _read_name(reader: Reader) -> str:
    n = reader.size()
    if n > MAX_NAME:
        raise CorruptDataError(f"a name must have {MAX_NAME} bytes at most, got {n}")
    try:
        return reader.take(n).tobytes().decode()
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"a name must be UTF-8 text, got {error}") from error


def _read_plain(reader: Reader, kind: int, name: str) -> Array:
    if kind > len(PLAIN_DTYPES):
        raise CorruptDataError(f"{name!r} must be of a kind up to {len(PLAIN_DTYPES)}, got {kind}")
    code = PLAIN_DTYPES[kind - 1]
    shape = reader.shape()
    size = int(np.prod(shape, dtype=np.int64)) * dtype_of(code).itemsize
    return cooked(reader.take(size), Place(code, shape, 0, size), name)

"""The form in which the first versions stored Deep Compression networks; it is only read.

Such a file is a safetensors file with one tensor of bytes, ``network``.

Its bytes are as follows. Numbers are little-endian; a size is in LEB128: seven bits a byte, lowest
first, and a set high bit means that more follow.

    4 bytes   FFDC
    1 byte    version, 1
    4 bytes   CRC-32 of everything else
    size      number of records; each has
      size, …   length of its name in bytes, the name
      1 byte    0 for a layer; else the number of a plain tensor's dtype
      sizes, …  for a plain tensor: number of dimensions, each of them, then its values

A layer is what a DeepCompressionFactors holds:

    1 byte    bits 0-1: dtype of the codebook; bit 2: codes are Huffman-coded; bit 3: gaps are
    1 byte    bits of a gap
    sizes     number of dimensions, each of them, number of values in the codebook, of entries
    …         the codebook
    sizes, …  length of the codes in bytes, the codes; length of the gaps in bytes, the gaps

Reading presents these tensors as if they were those of an ordinary file.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

from ..errors import CorruptDataError
from .container import MAX_DIMENSIONS, MAX_SIZE, Header, TensorInfo, tensor_info
from .index import FORMAT_VERSION

NAME, MAGIC, NETWORK_VERSION = "network", b"FFDC", 1
MAX_RECORDS = 100_000  # a record may take only 4 bytes in the file, but takes 1,000 in memory
START = struct.Struct("<4sBI")
CODEBOOK_CODES = ("F32", "F16", "BF16")

# The number of a dtype is its position here, from 1 on, so the order must never change.
PLAIN_CODES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"),
    *("BOOL", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
)


def is_network(header: Header, data: memoryview) -> bool:
    """Return whether a header and its data are those of such a file."""
    if list(header.tensors) != [NAME] or header.tensors[NAME].code != "U8":
        return False
    return data[: len(MAGIC)] == MAGIC


def expanded(header: Header, buffer: memoryview) -> Header:
    """Return the header that such a file would have in the ordinary form.

    Raises
    ------
    CorruptDataError
        If the bytes were cut or changed, or contradict themselves.
    ValueError
        If a newer version of fastfactor wrote them.
    """
    data = buffer[header.size :]
    if len(data) < START.size:
        raise CorruptDataError(f"a network must have at least {START.size} bytes, got {len(data)}")
    _, version, crc32 = START.unpack(data[: START.size])
    computed = zlib.crc32(data[START.size :], zlib.crc32(data[:5]))
    if computed != crc32:
        raise CorruptDataError(
            f"checksum mismatch in a network: expected {crc32:08x}, got {computed:08x}"
        )
    if version != NETWORK_VERSION:
        raise ValueError(
            f"format version of a network must be {NETWORK_VERSION} for this fastfactor, "
            f"got {version}: a newer fastfactor wrote it"
        )
    reader = _Reader(data, START.size)
    n_records = reader.size()
    if n_records > MAX_RECORDS:
        raise CorruptDataError(
            f"a network must have at most {MAX_RECORDS} records, got {n_records}"
        )
    entries: dict[str, Any] = {}
    infos: dict[str, TensorInfo] = {}
    for _ in range(n_records):
        name = reader.name()
        kind = reader.byte()
        entry, tensors = _layer(reader, name) if kind == 0 else _plain(reader, name, kind)
        if name in entries or infos.keys() & tensors.keys():
            raise CorruptDataError(f"names must be unique, got {name!r} twice")
        entries[name] = entry
        infos.update(tensors)
    reader.end()
    index = {"version": FORMAT_VERSION, "entries": entries}
    return Header(header.size, infos, header.metadata, index)


def _layer(reader: _Reader, name: str) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Read a layer; return its entry and the descriptions of its tensors."""
    flags, gap_bits = reader.byte(), reader.byte()
    if flags >> 4 or flags & 3 >= len(CODEBOOK_CODES):
        raise CorruptDataError(
            f"flags of layer {name!r} must be in [0, 15] with dtype bits in [0, 2], got {flags}"
        )
    shape = reader.shape()
    n_values, n_entries = reader.size(), reader.size()
    code = CODEBOOK_CODES[flags & 3]
    infos = {"codebook": reader.tensor(f"{name}.codebook", code, [n_values, 1])}
    for part in ("codes", "gaps"):
        infos[part] = reader.tensor(f"{name}.{part}", "U8", [reader.size()])
    entry = {
        "kind": "deep_compression",
        "shape": shape,
        "dtype": "float32",
        "config": {"gap_bits": gap_bits, "n_entries": n_entries, "n_weights": math.prod(shape)},
        "crc32": {part: reader.crc32(info) for part, info in infos.items()},
    }
    return entry, {f"{name}.{part}": info for part, info in infos.items()}


def _plain(reader: _Reader, name: str, number: int) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Read a plain tensor; return its entry and its description."""
    if number > len(PLAIN_CODES):
        raise CorruptDataError(
            f"dtype number of {name!r} must be in [1, {len(PLAIN_CODES)}], got {number}"
        )
    info = reader.tensor(name, PLAIN_CODES[number - 1], reader.shape())
    return {"crc32": reader.crc32(info)}, {name: info}


class _Reader:
    """Bytes that are read one part after the other, never beyond their end."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at

    def byte(self) -> int:
        """Read one byte."""
        return self._take(1)[0]

    def size(self) -> int:
        """Read a number below 2**59 in the fewest bytes that can hold it."""
        number = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                if number >= MAX_SIZE or (shift and not byte):
                    break
                return number
        raise CorruptDataError(f"a size must be below 2**59 and in its fewest bytes, got {number}")

    def name(self) -> str:
        """Read the number of bytes of a text, and the text."""
        try:
            return bytes(self._take(self.size())).decode()
        except UnicodeDecodeError as error:
            raise CorruptDataError(f"a name must be UTF-8 text, got {error}") from error

    def shape(self) -> list[int]:
        """Read the number of dimensions and each of them; callers check the shape as a whole."""
        n = self.size()
        if n > MAX_DIMENSIONS:
            raise CorruptDataError(
                f"a shape must have at most {MAX_DIMENSIONS} dimensions, got {n}"
            )
        return [self.size() for _ in range(n)]

    def tensor(self, name: str, code: str, shape: list[int]) -> TensorInfo:
        """Skip the values of a tensor; return its description."""
        info = tensor_info(self._at, name, code, shape)
        self._take(info.end - info.begin)
        return info

    def crc32(self, info: TensorInfo) -> int:
        """Compute the checksum of a tensor, after the one of the whole network was verified."""
        return zlib.crc32(self._data[info.begin : info.end])

    def end(self) -> None:
        """Check that everything was read."""
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise CorruptDataError(f"data must end at byte {self._at}, got {left} more bytes")

    def _take(self, n: int) -> memoryview:
        begin = self._at
        if n > len(self._data) - begin:
            raise CorruptDataError(
                f"data must have {n} bytes from byte {begin} on, got {len(self._data) - begin}"
            )
        self._at += n
        return self._data[begin : self._at]

"""The bytes of a stored file: a safetensors header with checksums, and files made whole.

    8 bytes   length of the header, little-endian
    header    JSON: name → dtype, shape, data_offsets of each tensor; `__metadata__` → text by name
    data      the tensors, one after the other without holes

Two of the metadata's values are ours. ``fastfactor`` is the index of entries, JSON in a string.
``fastfactor.crc32`` is the CRC-32 of the 8 bytes and the header, with zeros for its own eight
hexadecimal digits. There are two, so that a file in which one of the names was damaged is still
known as ours; without either it is an ordinary safetensors file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import _checks
from .._checks import Array
from ..errors import CorruptDataError

MAX_HEADER = 100_000_000  # as much as the safetensors library reads
MAX_DIMENSIONS = 32  # of an array in any NumPy that is supported
MAX_SIZE = 2**59  # of a tensor, of which NumPy can still say how many bytes it is
INDEX, CHECKSUM = "fastfactor", "fastfactor.crc32"
PLACEHOLDER = "00000000"
STORED_CHECKSUM = re.compile(rb'"fastfactor\.crc32":"([0-9a-f]{8})"')

# What safetensors calls a dtype, and what NumPy and ml_dtypes do.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file's data, and what it is."""

    code: str  # of its dtype, as safetensors has it
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands before the data: tensors by name, the caller's metadata, our index."""

    size: int  # with the 8 bytes before it
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    index: dict[str, Any] | None  # None: an ordinary file


# --- tensors


@cache
def dtype_of(code: str) -> np.dtype[Any]:
    """The NumPy dtype that safetensors calls by this code."""
    dtype = _checks.dtype_named(DTYPES[code])
    # Those of ml_dtypes have no text of their own, nor another order of bytes.
    return np.dtype(dtype.newbyteorder("<").str) if dtype.isbuiltin == 1 else dtype


def code_of(array: Array, what: str) -> str:
    """What safetensors calls the dtype of an array."""
    try:
        return CODES[array.dtype.name]
    except KeyError:
        raise TypeError(
            f"{what} must have a dtype that safetensors knows ({', '.join(CODES)}), "
            f"got {array.dtype}"
        ) from None


def array_to_bytes(array: Array, code: str) -> Array:
    """An array's values in C order as little-endian bytes; copied only where they are not so."""
    plain = np.asarray(array, dtype_of(code), order="C")
    return plain.reshape(-1).view(np.uint8)


def array_from_bytes(data: Array, info: TensorInfo, name: str) -> Array:
    """Return the array that `array_to_bytes` wrote: read-only, copied only where misaligned."""
    dtype = dtype_of(info.code)
    if info.code == "BOOL" and data.size and int(data.max()) > 1:
        raise CorruptDataError(f"tensor {name!r} must hold 0 or 1, got {data.max()}")
    if data.ctypes.data % max(dtype.alignment, 1):
        data = data.copy()
    array = data.view(dtype).reshape(info.shape)
    array.setflags(write=False)
    return array


# --- headers


def header_bytes(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], index: Mapping[str, Any]
) -> bytes:
    """A header with its checksum, padded so that data begin at a multiple of 8."""
    texts = {CHECKSUM: PLACEHOLDER, INDEX: compact(index), **metadata}
    content: dict[str, Any] = {"__metadata__": texts}
    for name, info in infos.items():
        content[name] = {
            "dtype": info.code,
            "shape": info.shape,
            "data_offsets": (info.begin, info.end),
        }
    text = compact(content).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"a header must have at most {MAX_HEADER} bytes, got {len(text)}")
    whole = struct.pack("<Q", len(text)) + text
    found = STORED_CHECKSUM.search(whole)
    assert found is not None
    return whole[: found.start(1)] + b"%08x" % zlib.crc32(whole) + whole[found.end(1) :]


def read_plain_header(buffer: memoryview) -> Header:
    """The header of a whole file, checked against its checksum, its data and itself.

    Files of other forms are ordinary files to this: `forms.read_header` knows all forms.

    Raises
    ------
    CorruptDataError
        Where it is none, or has been changed, or says what cannot be.
    """
    if len(buffer) < 8:
        raise CorruptDataError(f"a stored file must have at least 8 bytes, got {len(buffer)}")
    (length,) = struct.unpack("<Q", buffer[:8])
    if not 2 <= length <= min(MAX_HEADER, len(buffer) - 8):
        raise CorruptDataError(
            f"the header must have at least 2 bytes and at most the file's other "
            f"{len(buffer) - 8}, got {length}"
        )
    whole = bytes(buffer[: 8 + length])
    content = parse(whole[8:], "the header")
    if not isinstance(content, dict):
        raise CorruptDataError(f"the header must be a JSON object, got {type(content).__name__}")
    texts = content.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise CorruptDataError("__metadata__ must hold text by name")
    index = None
    if INDEX in texts or CHECKSUM in texts:
        _check_sum(whole)
        index = parse(texts.get(INDEX, "null").encode(), "the index")
        if not isinstance(index, dict):
            raise CorruptDataError(f"the index must be a JSON object, got {type(index).__name__}")
    metadata = {name: text for name, text in texts.items() if name not in (INDEX, CHECKSUM)}
    infos = {name: _parse_info(name, value) for name, value in content.items()}
    check_no_holes(infos, len(buffer) - len(whole))
    return Header(len(whole), infos, metadata, index)


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse(text: bytes, what: str) -> Any:
    """JSON, in which no name stands twice and every number is finite."""
    try:
        # utf-8 in both directions: a name with half a surrogate pair is no text.
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        compact(value).encode()
    except CorruptDataError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{what} must be JSON, got {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # In one pass: a hostile header may hold millions of names.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise CorruptDataError(f"names must differ, got {twice!r} twice")
    return found


def _no_constant(text: str) -> Any:
    raise CorruptDataError(f"numbers must be finite, got {text}")


def _check_sum(whole: bytes) -> None:
    found = list(STORED_CHECKSUM.finditer(whole))
    if len(found) != 1:
        raise CorruptDataError(f"the header must hold one checksum, got {len(found)}")
    start, end = found[0].span(1)
    plain = whole[:start] + PLACEHOLDER.encode() + whole[end:]
    if b"%08x" % zlib.crc32(plain) != found[0][1]:
        raise CorruptDataError("the header must fit its checksum, got another")


def _parse_info(name: str, value: Any) -> TensorInfo:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptDataError(f"tensor {name!r} must have a dtype, a shape and data_offsets")
    offsets = value["data_offsets"]
    if not sizes(offsets) or len(offsets) != 2:
        raise CorruptDataError(
            f"tensor {name!r} must have a begin and an end, got {offsets!r:.200}"
        )
    info = tensor_info(offsets[0], name, value["dtype"], value["shape"])
    if info.end != offsets[1]:
        raise CorruptDataError(
            f"tensor {name!r} must have the bytes of {info.code} and shape "
            f"{list(info.shape)!r:.200}, got {offsets[1] - offsets[0]}"
        )
    return info


def tensor_info(begin: int, name: str, code: Any, shape: Any) -> TensorInfo:
    """Return the info of a tensor that begins here, after a check of its dtype and shape.

    Raises
    ------
    CorruptDataError
    """
    if not isinstance(code, str) or code not in DTYPES:
        raise CorruptDataError(
            f"tensor {name!r} must have one of the dtypes {', '.join(DTYPES)}, got {code!r:.200}"
        )
    # Where one size is zero the others count for nothing, but NumPy multiplies them.
    if (
        not sizes(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(n, 1) for n in shape) >= MAX_SIZE
    ):
        raise CorruptDataError(
            f"tensor {name!r} must have at most {MAX_DIMENSIONS} sizes as its shape and less than "
            f"2**59 places, got {shape!r:.200}"
        )
    # The code says how wide it is: damage is damage also where the dtype's package is missing.
    bits = re.search(r"\d+", code)
    nbytes = math.prod(shape) * (int(bits[0]) // 8 if bits else 1)
    return TensorInfo(code, tuple(shape), begin, begin + nbytes)


def sizes(value: Any) -> bool:
    """Whether this is a list of integers that are zero or more."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def check_no_holes(infos: Mapping[str, TensorInfo], nbytes: int) -> None:
    at = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            raise CorruptDataError(
                f"tensor {name!r} must begin where the one before it ends, at {at}, "
                f"got {info.begin}"
            )
        at = info.end
    if at != nbytes:
        raise CorruptDataError(f"the file must hold {at} bytes of tensors, got {nbytes}")


# --- files


def check_output_path(path: str | os.PathLike[str]) -> None:
    """That a file may take this place, before the work for it: in a folder, and itself none.

    Raises
    ------
    OSError
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def open_regular_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file to read. What is neither file nor folder is refused: a pipe would wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CorruptDataError(f"{os.fspath(path)} must be a file, got a pipe or device")
    return open(path, "rb")


@contextmanager
def atomic_write(path: str | os.PathLike[str], ending: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` at the end, if nothing was raised.

    It is written beside and renamed when it is on the disk: at every moment the old file or the
    new one is there, whole. Its name has the given ending, or one that no other has; who may read
    and write it is taken over from the old file.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f"{target.name}.{ending or secrets.token_hex(4) + '.tmp'}")
    try:
        beside.unlink(missing_ok=True)
        with open(beside, "xb") as file:
            # Before anything is in it: what only its owner may read stays so.
            if target.exists():
                shutil.copymode(target, beside)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be open_regular_file
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sorted_by_itemsize(named: Iterable[tuple[str, str]]) -> list[str]:
    """Names of tensors, given with their codes, in an order in which each lies aligned.

    Sizes are multiples of the width, so that falling widths need no holes between tensors.
    """
    return [name for name, _ in sorted(named, key=lambda item: -dtype_of(item[1]).itemsize)]

"""The ordinary form of a stored file: a safetensors header with checksums.

    8 bytes   length of the header, little-endian
    header    JSON: name → dtype, shape, data_offsets of each tensor; `__metadata__` → text by name
    data      the tensors, one after the other without holes

The metadata has two values of fastfactor's own. ``fastfactor`` is the index of entries, JSON in a
string. ``fastfactor.crc32`` is the CRC-32 of the 8 bytes and the header, computed with zeros in
place of its own eight hexadecimal digits. If damage destroys one of the two names, the other one
still shows that fastfactor wrote the file. A file with neither is an ordinary safetensors file.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NoReturn

import numpy as np

from .. import _checks
from .._checks import Array
from .._records import refuse_array
from ..errors import CorruptDataError

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_DIMENSIONS = 32  # the most that every supported NumPy allows
MAX_SIZE = 2**59  # elements of a tensor; below it NumPy can count the bytes of any dtype
INDEX, CHECKSUM = "fastfactor", "fastfactor.crc32"
PLACEHOLDER = "00000000"
STORED_CHECKSUM = re.compile(rb'"fastfactor\.crc32":"([0-9a-f]{8})"')

# The name of each dtype in safetensors, and its name in NumPy or ml_dtypes.
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


# Bits of a value of those that NumPy lacks, as far as they are known; newer ones may be added.
OPAQUE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
CODE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


@dataclass(frozen=True)
class OpaqueType:
    """A dtype of safetensors that NumPy does not have: values are only copied, byte for byte.

    Attributes
    ----------
    name : str
        Its name in safetensors.
    """

    name: str
    kind: ClassVar[str] = "V"
    isnative: ClassVar[bool] = True
    itemsize: ClassVar[int] = 1  # of what stands for it in memory: bytes


@dataclass(frozen=True, eq=False)
class OpaqueTensor:
    """A tensor of such a dtype.

    Attributes
    ----------
    dtype : OpaqueType
    shape : tuple of int
        In values, of which several may share a byte.
    data : uint8 array
        The bytes, which are all that can be read of it.
    """

    dtype: OpaqueType
    shape: tuple[int, ...]
    data: Array

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        refuse_array(self, f"its data, the bytes of values of type {self.dtype.name}")


@dataclass(frozen=True)
class TensorInfo:
    """The dtype, shape and byte range of a tensor in a file's data."""

    code: str  # the name of its dtype in safetensors
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The part of a file before its data: tensors by name, the caller's metadata, the index."""

    size: int  # in bytes, including the 8 bytes of its length
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    index: dict[str, Any] | None  # None for a safetensors file that fastfactor did not write


# --- tensors


@cache
def dtype_of(code: str) -> Any:
    """Return the NumPy dtype for the name of a dtype in safetensors, else an OpaqueType."""
    if code not in DTYPES:
        return OpaqueType(code)
    dtype = _checks.dtype_named(DTYPES[code])
    # The dtypes of ml_dtypes have no `str` of their own and no other byte order.
    return np.dtype(dtype.newbyteorder("<").str) if dtype.isbuiltin == 1 else dtype


def code_of(array: Array | OpaqueTensor, what: str) -> str:
    """Return the name of an array's dtype in safetensors."""
    if isinstance(array, OpaqueTensor):
        return array.dtype.name
    try:
        return CODES[_checks.name_of(array.dtype)]
    except KeyError:
        raise TypeError(
            f"{what} must have a dtype that safetensors knows ({', '.join(CODES)}), "
            f"got {array.dtype}"
        ) from None


def array_to_bytes(array: Array | OpaqueTensor, code: str) -> Array:
    """Return the values as little-endian bytes in C order, without a copy if they already are."""
    if isinstance(array, OpaqueTensor):
        return array.data
    plain = np.asarray(array, dtype_of(code), order="C")
    return plain.reshape(-1).view(np.uint8)


def array_from_bytes(data: Array, info: TensorInfo, name: str) -> Any:
    """Return what `array_to_bytes` wrote: read-only, copied only where misaligned."""
    dtype = dtype_of(info.code)
    if isinstance(dtype, OpaqueType):
        data.setflags(write=False)
        return OpaqueTensor(dtype, info.shape, data)
    if info.code == "BOOL" and data.size and int(data.max()) > 1:
        raise CorruptDataError(f"tensor {name!r} must hold 0 or 1, got {data.max()}")
    if data.ctypes.data % max(dtype.alignment, 1):
        data = data.copy()
    array = data.view(dtype).reshape(info.shape)
    array.setflags(write=False)
    return array


def check_checksum(data: Array, expected: int, name: str) -> None:
    """Check that the CRC-32 of a tensor's bytes is the expected one."""
    found = zlib.crc32(data.data)
    if found != expected:
        raise CorruptDataError(
            f"checksum mismatch in tensor {name!r}: expected {expected:08x}, got {found:08x}"
        )


# --- headers


def header_bytes(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], index: Mapping[str, Any]
) -> bytes:
    """Return a header with its checksum, padded so that the data begin at a multiple of 8."""
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
    """Read the header of a file, given as a whole, and check its checksum and its tensors.

    Knows the ordinary form only; `forms.read_header` knows all forms.

    Raises
    ------
    CorruptDataError
        If it is not a header, was changed, or contradicts itself or the size of the file.
    """
    if len(buffer) < 8:
        raise CorruptDataError(f"a stored file must have at least 8 bytes, got {len(buffer)}")
    (length,) = struct.unpack("<Q", buffer[:8])
    if not 2 <= length <= min(MAX_HEADER, len(buffer) - 8):
        raise CorruptDataError(
            f"the header must have between 2 bytes and the {len(buffer) - 8} that follow its "
            f"length, got {length}"
        )
    whole = bytes(buffer[: 8 + length])
    content = parse(whole[8:], "the header")
    if not isinstance(content, dict):
        raise CorruptDataError(f"the header must be a JSON object, got {type(content).__name__}")
    texts = content.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise CorruptDataError("__metadata__ must map names to text")
    index = None
    if INDEX in texts or CHECKSUM in texts:
        _check_checksum(whole)
        index = parse(texts.get(INDEX, "null").encode(), "the index")
        if not isinstance(index, dict):
            raise CorruptDataError(f"the index must be a JSON object, got {type(index).__name__}")
    metadata = {name: text for name, text in texts.items() if name not in (INDEX, CHECKSUM)}
    infos = {name: _parse_info(name, value) for name, value in content.items()}
    check_no_holes(infos, len(buffer) - len(whole))
    return Header(len(whole), infos, metadata, index)


def compact(value: Any) -> str:
    """Return a value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse(text: bytes, what: str) -> Any:
    """Parse JSON; refuse duplicate names and numbers that are not finite."""
    try:
        # Encode it again to refuse half a surrogate pair, which JSON can escape but UTF-8 cannot.
        # Decoded here, because json itself would also take UTF-16 and UTF-32.
        decoded = text.decode()
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
        compact(value).encode()
    except CorruptDataError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{what} must be JSON, got {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # One pass, because a hostile header may hold millions of names.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise CorruptDataError(f"names must be unique, got {twice!r} twice")
    return found


def _no_constant(text: str) -> Any:
    raise CorruptDataError(f"numbers must be finite, got {text}")


def _check_checksum(whole: bytes) -> None:
    found = list(STORED_CHECKSUM.finditer(whole))
    if len(found) != 1:
        raise CorruptDataError(f"the header must hold one checksum, got {len(found)}")
    start, end = found[0].span(1)
    stored = found[0][1].decode()
    computed = f"{zlib.crc32(whole[:start] + PLACEHOLDER.encode() + whole[end:]):08x}"
    if computed != stored:
        raise CorruptDataError(
            f"checksum mismatch in the header: expected {stored}, got {computed}"
        )


def _parse_info(name: str, value: Any) -> TensorInfo:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptDataError(f"tensor {name!r} must have a dtype, a shape and data_offsets")
    offsets = value["data_offsets"]
    if not sizes(offsets) or len(offsets) != 2:
        raise CorruptDataError(
            f"data_offsets of tensor {name!r} must be a begin and an end, got {offsets!r:.200}"
        )
    nbytes = offsets[1] - offsets[0]
    info = tensor_info(offsets[0], name, value["dtype"], value["shape"], nbytes)
    if info.end != offsets[1]:
        raise CorruptDataError(
            f"tensor {name!r} must have {info.end - info.begin} bytes for dtype {info.code} and "
            f"shape {list(info.shape)!r:.200}, got {offsets[1] - offsets[0]}"
        )
    return info


def tensor_info(
    begin: int, name: str, code: Any, shape: Any, nbytes: int | None = None
) -> TensorInfo:
    """Check the dtype and shape of a tensor that begins at byte ``begin``; return its info.

    ``nbytes`` is what a dtype of unknown width takes; of others the width decides.

    Raises
    ------
    CorruptDataError
        If the dtype is none of safetensors, or the shape is not one that NumPy can hold.
    """
    if not isinstance(code, str) or not CODE.fullmatch(code):
        raise CorruptDataError(
            f"dtype of tensor {name!r} must be one of {', '.join(DTYPES)} or a newer one, "
            f"got {code!r:.200}"
        )
    # NumPy limits the product of the other sizes even where one size is zero.
    if (
        not sizes(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(n, 1) for n in shape) >= MAX_SIZE
    ):
        raise CorruptDataError(
            f"shape of tensor {name!r} must be a list of at most {MAX_DIMENSIONS} sizes with fewer "
            f"than 2**59 elements, got {shape!r:.200}"
        )
    known = code in DTYPES or code in OPAQUE_BITS
    if known or nbytes is None:
        nbytes = _counted_nbytes(name, code, math.prod(shape))
    if nbytes < 0:
        raise CorruptDataError(f"tensor {name!r} must have no fewer than 0 bytes, got {nbytes}")
    return TensorInfo(code, tuple(shape), begin, begin + nbytes)


def _counted_nbytes(name: str, code: str, size: int) -> int:
    """Return the bytes of a tensor, from the width that the name of its dtype says."""
    # Taken from the name, so that damage is found even where ml_dtypes is missing.
    bits = re.search(r"\d+", code)
    if bits is None and code != "BOOL":
        raise CorruptDataError(f"dtype of tensor {name!r} must say its width, got {code}")
    total = size * (int(bits[0]) if bits else 8)
    if total % 8:
        raise CorruptDataError(f"tensor {name!r} of {code} must fill its last byte, got {size}")
    return total // 8


def sizes(value: Any) -> bool:
    """Return whether a value is a list of integers that are zero or more."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def check_no_holes(infos: Mapping[str, TensorInfo], nbytes: int) -> None:
    """Check that tensors lie one after the other and fill exactly ``nbytes`` bytes."""
    at = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            raise CorruptDataError(
                f"tensor {name!r} must begin at byte {at}, where the one before it ends, "
                f"got {info.begin}"
            )
        at = info.end
    if at != nbytes:
        raise CorruptDataError(f"the file must hold {at} bytes of tensors, got {nbytes}")


def sorted_by_itemsize(named: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names of tensors, given with their dtypes' names, widest dtype first.

    In this order each tensor is aligned without holes between them, because the bytes of a tensor
    are a multiple of its own width and so of every narrower one.
    """
    return [name for name, _ in sorted(named, key=lambda item: -dtype_of(item[1]).itemsize)]

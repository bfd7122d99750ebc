"""Files of `torch.save`, read without PyTorch: tensors only, and no code of a pickle is executed.

A file is a zip archive with a pickle, ``data.pkl``, and a member for each storage; before PyTorch
1.6 it was some pickles one after the other and then the storages. The pickle may ask for what
rebuilds tensors and for ``OrderedDict``, and gets stand-ins for these; anything else is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from .container import MAX_DIMENSIONS, MAX_SIZE, dtype_of
from .disk import open_regular_file
from .formats import open_archive
from .stored import Stored

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of an old file
MAX_PICKLE = 1 << 28  # bytes
MAX_REPEATED = 1 << 20  # values of a tensor that is larger than its storage
MAX_NAME = 1000  # characters of names of containers within containers
# What a damaged or hostile pickle may raise, also in the stand-ins.
DAMAGED = (
    *(pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(
        OSError,
        EOFError,
        struct.error,
        OverflowError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
    ),
)
# The names of storages and of dtypes in PyTorch, and the name of the dtype in safetensors.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
DTYPES = {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
UNTYPED = "UntypedStorage"


class TorchFile:
    """A file of `torch.save` whose tensors were found.

    Attributes
    ----------
    path : str
    tensors : dict of Stored
        By name; the names of nested mappings and lists are joined by dots.
    metadata : dict of str
        Empty.

    Raises
    ------
    CorruptDataError
        If it contradicts itself or holds other objects than tensors in plain containers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._old_places: dict[str, tuple[int, int]] = {}  # begin and end of storages, by key
        self._sums: dict[str, int] = {}  # of the storages of an archive, by key
        with open_regular_file(path) as file:
            self._is_archive = zipfile.is_zipfile(file)
        content = self._unpickled()
        self._tensors: dict[str, _Tensor] = {}
        left_out = []
        for name, value in _leaves(content, "", set()):
            if not isinstance(value, _Tensor):
                left_out.append(name)
            elif name in self._tensors:
                raise CorruptDataError(f"{path} must hold each name once, got {name!r} twice")
            else:
                self._tensors[name] = value
        if not self._tensors:
            raise CorruptDataError(
                f"{path} must hold tensors by name, as of model.state_dict(), got none"
            )
        if left_out:
            some = ", ".join(map(repr, left_out[:3])) + (", …" if len(left_out) > 3 else "")
            warnings.warn(
                f"{path} holds {len(left_out)} values that are no tensors and are left out: {some}",
                stacklevel=4,
            )
        self.tensors = {
            name: Stored(tensor.shape, dtype_of(tensor.code))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Array:
        """Return a tensor.

        Parameters
        ----------
        name : str

        Returns
        -------
        array

        Raises
        ------
        CorruptDataError
            If the file has fewer values than it says.
        """
        tensor, dtype = self._tensors[name], dtype_of(self._tensors[name].code)
        values = np.frombuffer(self._storage(tensor.key), np.uint8)
        values = values[: values.size - values.size % dtype.itemsize].view(dtype)
        if tensor.last >= values.size:
            raise CorruptDataError(
                f"{self.path}: tensor {name!r} must lie within its storage of {values.size} "
                f"values, got a last one at {tensor.last}"
            )
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            values[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return np.ascontiguousarray(view).reshape(tensor.shape)

    def summary(self, name: str) -> Hashable | None:
        """Return the place of a tensor's values, and the checksum of their storage or its key."""
        tensor = self._tensors[name]
        return self._sums.get(tensor.key, tensor.key), tensor.offset, tensor.strides

    def _unpickled(self) -> Any:
        try:
            if self._is_archive:
                with open_archive(self.path) as archive:
                    return self._unpickled_archive(archive)
            with open_regular_file(self.path) as file:
                return self._unpickled_old(file)
        except _RefusedError as error:
            raise CorruptDataError(f"{self.path} {error}") from error
        except DAMAGED as error:
            raise CorruptDataError(f"{self.path} must be a file of torch.save: {error}") from error

    def _unpickled_archive(self, archive: zipfile.ZipFile) -> Any:
        members = archive.namelist()
        if len(set(members)) < len(members):
            raise ValueError("its archive holds a member twice")
        (pickled,) = (name for name in members if name.split("/")[-1] == "data.pkl")
        self._folder = pickled.removesuffix("data.pkl")
        data = f"{self._folder}data/"
        self._sums = {info.filename.removeprefix(data): info.CRC for info in archive.infolist()}
        order = f"{self._folder}byteorder"
        if order in members and archive.read(order).strip() != b"little":
            raise _RefusedError("must have little-endian values, got others; save it again")
        if archive.getinfo(pickled).file_size > MAX_PICKLE:
            raise ValueError(f"its pickle has more than {MAX_PICKLE} bytes")
        return _Unpickler(io.BytesIO(archive.read(pickled))).load()

    def _unpickled_old(self, file: IO[bytes]) -> Any:
        magic = _Unpickler(file).load()
        if type(magic) is not int or magic != MAGIC:
            raise _RefusedError(
                "must be a file of tensors that is read here, got a pickle of other objects; save "
                "its arrays with safetensors or numpy.savez"
            )
        _Unpickler(file).load()  # the version of the protocol
        _Unpickler(file).load()  # sizes of C types
        unpickler = _Unpickler(file)
        content = unpickler.load()
        keys = _Unpickler(file).load()
        end = os.fstat(file.fileno()).st_size
        for key in keys:
            (count,) = struct.unpack("<Q", file.read(8))
            begin, nbytes = file.tell(), count * unpickler.widths[key]
            if begin + nbytes > end:
                raise ValueError(f"storage {key!r} must end within the file")
            self._old_places[key] = begin, begin + nbytes
            file.seek(begin + nbytes)
        return content

    def _storage(self, key: str) -> bytes:
        if not self._is_archive:
            if key not in self._old_places:
                raise CorruptDataError(f"{self.path} must hold storage {key!r}")
            begin, end = self._old_places[key]
            with open_regular_file(self.path) as file:
                file.seek(begin)
                return file.read(end - begin)
        with open_archive(self.path) as archive:
            try:
                return archive.read(f"{self._folder}data/{key}")
            except DAMAGED as error:
                raise CorruptDataError(f"{self.path}: storage {key!r}: {error}") from error


class _RefusedError(ValueError):
    """The error for a pickle that asks for other objects than tensors."""


class _Tensor(NamedTuple):
    """Where the values of a tensor are in a storage, all in counts of values."""

    key: str
    code: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last(self) -> int:
        """The place of the last value; -1 if there are none."""
        if 0 in self.shape:
            return -1
        steps = ((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + sum(steps)


class _Name(NamedTuple):
    """A class of storages or a dtype that a pickle asked for; "" for one without a dtype."""

    code: str


class _Storage(NamedTuple):
    key: str
    code: str
    n_values: int


class _Rebuild:
    """A stand-in for a function of PyTorch; without attributes that a pickle could set."""

    __slots__ = ("_n_more",)

    def __init__(self, n_more: int) -> None:
        self._n_more = n_more

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(more) < self._n_more:
            raise ValueError("a tensor must be made of a storage")
        code = storage.code
        if self._n_more and isinstance(more[2], _Name):
            code = more[2].code
        lists = [value for value in (shape, strides) if isinstance(value, tuple)]
        if len(lists) != 2 or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("a tensor must have a shape and as many strides")
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)) or not code:
            raise ValueError("a tensor must have sizes that are zero or more and a dtype")
        tensor = _Tensor(storage.key, code, offset, shape, strides)
        # A storage without a dtype counts bytes.
        count = storage.n_values // (1 if storage.code else dtype_of(code).itemsize)
        # Values may be repeated, but a few of them must not make up an endless tensor.
        endless = math.prod(shape) > max(count, MAX_REPEATED)
        if endless or math.prod(max(n, 1) for n in shape) >= MAX_SIZE:
            raise ValueError(f"a tensor of {count} values must not have shape {list(shape)!r:.200}")
        if tensor.last >= count:
            raise ValueError(f"a tensor must lie within its {count} values, got {tensor.last}")
        return tensor


class _RebuildParameter:
    """A stand-in for what wraps a tensor that is trained."""

    __slots__ = ()

    def __call__(self, tensor: Any, *more: Any) -> Any:
        return tensor


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(0),
    ("torch._utils", "_rebuild_tensor_v3"): _Rebuild(3),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch.storage", UNTYPED): _Name(""),
    ("torch", UNTYPED): _Name(""),
    **{("torch", name): _Name(code) for name, code in {**STORAGES, **DTYPES}.items()},
}


class _Unpickler(pickle._Unpickler):
    """Unpickle tensors in plain containers; refuse everything else.

    The base is Python's own version of the class: the one in C takes memory for the largest number
    that a pickle gives to an object, whatever its size.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.widths: dict[str, int] = {}  # bytes of a value of each storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _RefusedError(
                f"must hold tensors in plain containers, got a pickle that asks for {module}."
                f"{name}, which is not loaded; in PyTorch save model.state_dict()"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError(f"a storage must be described as PyTorch does, got {pid!r:.200}")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _Name) or not isinstance(key, str) or type(count) is not int:
            raise ValueError(f"a storage must have a dtype, a key and a size, got {pid!r:.200}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage must not be a part of another")
        self.widths[key] = dtype_of(kind.code).itemsize if kind.code else 1
        return _Storage(key, kind.code, count)


def _leaves(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what is in nested containers, by names joined with dots."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list) or (type(value) is tuple and value):
        items = enumerate(value)
    if items is None:
        yield name, value
        return
    # A container that holds others more than once, or itself, would have endless leaves.
    if id(value) in seen or len(name) > MAX_NAME:
        raise CorruptDataError(
            f"containers must be in one place each, got one twice or too deep in {name!r:.200}"
        )
    seen.add(id(value))
    for key, each in items:
        if not isinstance(key, str | int):
            raise CorruptDataError(f"names of tensors must be text, got {type(key).__name__}")
        yield from _leaves(each, f"{name}.{key}" if name else str(key), seen)

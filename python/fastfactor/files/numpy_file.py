"""Files of NumPy, read one array at a time: .npz archives and .npy files. No pickle is executed."""

from __future__ import annotations

import lzma
import os
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from .container import CODES, sizes
from .disk import open_regular_file
from .formats import open_archive
from .stored import Stored

NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# The exceptions that zipfile and NumPy raise for an archive with a changed byte.
DAMAGED = (
    *(ValueError, TypeError, OverflowError, MemoryError, RuntimeError, EOFError, OSError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


class NpzFile:
    """An .npz archive whose headers of arrays were read. It stays open, with its directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Stored] = {}
        with ExitStack() as opened:
            archive = self._archive = opened.enter_context(open_archive(self.path))
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name == member:
                    raise CorruptDataError(f"{path} must hold only .npy files, got {member!r}")
                if name in self.tensors:
                    raise CorruptDataError(f"{path} must hold each name once, got {member!r} twice")
                self.tensors[name] = self._stored(archive, member)
            weakref.finalize(self, opened.pop_all().close)

    def __reduce__(self) -> tuple[Any, ...]:
        return NpzFile, (self.path,)

    def read(self, name: str) -> Array:
        try:
            with self._archive.open(f"{name}.npy") as file:
                array: Array = np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGED as error:
            raise CorruptDataError(f"{self.path}: tensor {name!r}: {error}") from error
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def summary(self, name: str) -> Hashable | None:
        return self._archive.getinfo(f"{name}.npy").CRC

    def _stored(self, archive: zipfile.ZipFile, member: str) -> Stored:
        try:
            with archive.open(member) as file:
                return _npy_header(file, archive.getinfo(member).file_size)
        except TypeError as error:
            raise TypeError(f"{self.path}: {member!r} {error}") from error
        except DAMAGED as error:
            raise CorruptDataError(f"{self.path}: {member!r}: {error}") from error


class NpyFile:
    """An .npy file, whose one tensor has the name of the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._name = Path(path).stem
        with open_regular_file(path) as file:
            try:
                stored = _npy_header(file, os.fstat(file.fileno()).st_size)
            except TypeError as error:
                raise TypeError(f"{path} {error}") from error
            except DAMAGED as error:
                raise CorruptDataError(f"{path}: {error}") from error
        self.tensors = {self._name: stored}

    def read(self, name: str) -> Array:
        array: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)

    def summary(self, name: str) -> Hashable | None:
        return None


def _npy_header(file: IO[bytes], nbytes: int) -> Stored:
    """Read what an .npy file of ``nbytes`` bytes says of its array."""
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ValueError(f"version of .npy must be (1, 0) or (2, 0), got {version}")
    try:
        shape, _, dtype = NPY_HEADERS[version](file)
    except TypeError as error:
        raise ValueError(str(error)) from error
    left = nbytes - file.tell()
    if dtype.newbyteorder("=").name not in CODES:
        raise TypeError(
            f"must have a dtype that safetensors can hold, got {dtype}; save it apart from the "
            "tensors, or as an array of numbers"
        )
    stored = Stored(tuple(shape), dtype.newbyteorder("="))
    if not sizes(list(shape)) or stored.nbytes != left:
        raise ValueError(
            f"size must match dtype {dtype} and shape {shape!r:.200}, got {left} bytes"
        )
    return stored

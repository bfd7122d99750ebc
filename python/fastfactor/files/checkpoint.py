"""Uncompressed models, read one tensor at a time: .npz, safetensors and its sharded form."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from .container import (
    DTYPES,
    Header,
    TensorInfo,
    array_from_bytes,
    check_checksum,
    dtype_of,
    parse,
)
from .disk import open_regular_file, unknown_name
from .formats import format_of
from .forms import read_header
from .index import read_index
from .numpy_file import NpyFile, NpzFile
from .stored import Stored
from .torch_file import TorchFile

__all__ = ["Checkpoint", "Stored", "is_compressed", "open_checkpoint"]

# Bytes of a tensor up to which reading is faster than mapping. It is read from a place and not from
# the file's position, which threads and forked processes share; not every system can do that.
IN_MEMORY = 1 << 18 if hasattr(os, "pread") else 0
MAX_OPEN = 100  # shards of a model up to which all stay open
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class Checkpoint(Mapping[str, Array]):
    """An uncompressed model: a mapping from names to tensors, in the order of its files.

    A tensor is read at each access and not cached. One of a dtype that NumPy lacks is an
    :class:`fastfactor.files.container.OpaqueTensor`.

    Attributes
    ----------
    path : str
    files : tuple of str
        All files that were read, including the index of shards.
    tensors : dict of Stored
        Shape and dtype of each tensor.
    metadata : dict of str
        Metadata of the safetensors files; where shards disagree, those of the first.
    """

    def __init__(self, path: str, files: list[_File], index: str | None = None) -> None:
        self.path = path
        self.files = (*([index] if index else []), *(file.path for file in files))
        self.tensors: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        self._home: dict[str, _File] = {}
        for file in files:
            for name, stored in file.tensors.items():
                if name in self.tensors:
                    raise CorruptDataError(
                        f"tensor {name!r} must be in one file only, got {self._home[name].path} "
                        f"and {file.path}"
                    )
                self.tensors[name], self._home[name] = stored, file
            self.metadata = {**file.metadata, **self.metadata}

    @property
    def file_nbytes(self) -> int:
        return sum(os.path.getsize(file) for file in self.files)

    def __getitem__(self, name: str) -> Any:
        if name not in self._home:
            raise unknown_name(name, self)
        return self._home[name].read(name)

    def summary(self, name: str) -> Hashable | None:
        """Return what a file says of a tensor's bytes, without reading them.

        It is the same for equal tensors, unless they lie differently in the file. None if the file
        says nothing.
        """
        return self._home[name].summary(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r}, {len(self)} tensors, {self.file_nbytes} bytes)"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open an uncompressed model.

    Parameters
    ----------
    path : path
        A safetensors file; an index of shards (``….index.json``); a folder with one of these; an
        ``.npz`` or ``.npy`` file from NumPy; or a file of tensors from ``torch.save``.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CorruptDataError
        If a file contradicts itself or has another format, which the message names, or an index
        contradicts its shards.
    ValueError
        If the file is a compressed model.
    TypeError
        If a tensor has a dtype that safetensors cannot hold.
    OSError
        If a file is missing or cannot be read.

    Notes
    -----
    Reads headers only. Each large tensor of a safetensors file is a separate memory map, which is
    freed with the tensor; all others are read into memory. No code of a pickle is executed, and
    PyTorch need not be installed. Safetensors files, up to 100 shards, and archives stay open until
    the checkpoint is freed.
    """
    found = Path(path)
    if found.is_dir():
        found = _in_folder(found)
    if found.suffix == ".json":
        return _sharded(str(path), found)
    readers: dict[str, Callable[[str], _File]] = {
        "npz": NpzFile,
        "npy": NpyFile,
        "torch": TorchFile,
        "safetensors": _Safetensors,
    }
    return Checkpoint(str(path), [readers[format_of(found)](str(found))])


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a safetensors file with factors in it."""
    if os.path.isdir(path) or Path(path).suffix == ".json":
        return False
    if format_of(path) != "safetensors":
        return False
    with open_regular_file(path) as file:
        header = _header(file, os.fspath(path))
    if header.index is None:
        return False
    entries, _ = read_index(header.index, header.tensors)
    return any(entry.kind != "plain" for entry in entries.values())


class _File(Protocol):
    path: str
    tensors: dict[str, Stored]
    metadata: dict[str, str]

    def read(self, name: str) -> Any: ...

    def summary(self, name: str) -> Hashable | None: ...


class _Safetensors:
    """A safetensors file whose header was read. It stays open if asked for."""

    def __init__(self, path: str, *, keep_open: bool = True) -> None:
        self.path = path
        with ExitStack() as opened:
            file = opened.enter_context(open_regular_file(path))
            self._read_header(_header(file, path))
            self._file = file if keep_open else None
            if keep_open:
                weakref.finalize(self, opened.pop_all().close)

    def _read_header(self, header: Header) -> None:
        self._sums: dict[str, int] = {}
        aliases: dict[str, str] = {}
        if header.index is not None:
            entries, self._sums = read_index(header.index, header.tensors)
            if any(entry.kind != "plain" for entry in entries.values()):
                raise _compressed(self.path)
            aliases = {name: e.same_as for name, e in entries.items() if e.same_as is not None}
        self.metadata = header.metadata
        self._start = header.size
        ordered = sorted(header.tensors.items(), key=lambda item: item[1].begin)
        self._infos: dict[str, TensorInfo] = dict(ordered)
        for name, of in aliases.items():
            self._infos[name], self._sums[name] = self._infos[of], self._sums[of]
        self.tensors = {
            name: Stored(
                info.shape,
                dtype_of(info.code),
                None if info.code in DTYPES else info.end - info.begin,
            )
            for name, info in self._infos.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or pickle keeps: without the open file, it opens it at each read."""
        return {**vars(self), "_file": None}

    def read(self, name: str) -> Any:
        info = self._infos[name]
        with nullcontext(self._file) if self._file else open_regular_file(self.path) as file:
            data = self._bytes(file, info)
        if data.size < info.end - info.begin:
            raise CorruptDataError(f"{self.path} ends within tensor {name!r}")
        if name in self._sums:
            check_checksum(data, self._sums[name], name)
        return array_from_bytes(data, info, name)

    def _bytes(self, file: IO[bytes], info: TensorInfo) -> Array:
        """Return the bytes of a tensor; fewer if the file was shortened."""
        begin, nbytes = self._start + info.begin, info.end - info.begin
        if nbytes <= IN_MEMORY:
            data = os.pread(file.fileno(), nbytes, begin) if nbytes else b""
            return np.frombuffer(data, np.uint8)
        if nbytes > os.fstat(file.fileno()).st_size - begin:
            return np.zeros(0, np.uint8)
        return np.asarray(np.memmap(file, np.uint8, "r", offset=begin, shape=(nbytes,)))

    def summary(self, name: str) -> Hashable | None:
        return self._sums.get(name)


def _compressed(path: str) -> ValueError:
    return ValueError(
        f"{path} must be an uncompressed model, got a compressed one; decompress it first"
    )


def _header(file: IO[bytes], path: str) -> Header:
    nbytes = os.fstat(file.fileno()).st_size
    content: Any = np.memmap(file, np.uint8, "r") if nbytes else np.zeros(0, np.uint8)
    try:
        return read_header(content.data)
    except CorruptDataError as error:
        raise CorruptDataError(f"{path}: {error}") from error


def _in_folder(folder: Path) -> Path:
    for name in (INDEX_NAME, SINGLE_NAME):
        if (folder / name).exists():
            return folder / name
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold {INDEX_NAME} or one safetensors file, got {len(found)} files"
        )
    return found[0]


def _sharded(path: str, index: Path) -> Checkpoint:
    """Open the shards of an index, which must name no other tensors than those in them."""
    with open_regular_file(index) as file:
        content = parse(file.read(), str(index))
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CorruptDataError(f"weight_map of {index} must map names of tensors to files")
    for name in placed.values():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not name:
            raise CorruptDataError(f"{index} must name files in its own folder, got {name!r}")
    names = dict.fromkeys(placed.values())
    shards = {
        name: _Safetensors(str(index.parent / name), keep_open=len(names) <= MAX_OPEN)
        for name in names
    }
    for tensor, name in placed.items():
        if tensor not in shards[name].tensors:
            raise CorruptDataError(f"tensor {tensor!r} must be in {name} according to {index}")
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if placed.get(tensor, name) != name:
                raise CorruptDataError(
                    f"{index} must assign tensor {tensor!r} to {name}, which holds it"
                )
    unlisted = [
        tensor for shard in shards.values() for tensor in shard.tensors if tensor not in placed
    ]
    if unlisted:
        warnings.warn(
            f"{index} does not list {len(unlisted)} of the tensors that its shards hold, which are "
            f"read too: {', '.join(map(repr, unlisted[:3]))}{', …' if len(unlisted) > 3 else ''}",
            stacklevel=3,
        )
    return Checkpoint(path, list(shards.values()), str(index))

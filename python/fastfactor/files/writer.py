"""Writing stored files: in one call, or entry by entry so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, NoReturn

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from .compact import ChecksumWriter, compact_file, compact_head
from .container import (
    TensorInfo,
    array_to_bytes,
    atomic_write,
    code_of,
    header_bytes,
    sorted_by_itemsize,
    tensor_info,
)
from .index import FORMAT_VERSION, Path, Value, build_index, check_metadata, described_entry
from .layout import Layout

COPY_BYTES = 4 << 20


def save(
    path: Path,
    entries: Mapping[str, Value],
    *,
    metadata: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int] | Layout] | None = None,
    compact: bool = False,
) -> None:
    """Write factors and plain tensors to one file, atomically.

    Parameters
    ----------
    path : path
        The safetensors file to write. An existing file is replaced once the new one is complete.
    entries : mapping of names to Factors or arrays
        Arrays of any shape with a dtype that safetensors knows, bfloat16 included.
    metadata : mapping of names to text, optional
        Metadata to store in the file, as safetensors does.
    shapes : mapping of names to shapes or Layouts, optional
        Original shapes of tensors that were compressed as a matrix of shape
        (shape[0], product of the rest), such as convolutions; for any other matrix a
        :class:`Layout`.
    compact : bool
        Deflate the header and use one checksum for the whole file, which makes small files smaller.
        Other safetensors readers then see one tensor of bytes, and reading one entry reads the
        whole file.

    Raises
    ------
    TypeError, ValueError
        For entries that cannot be stored, and for two tensors of the same name.
    OSError
        If the file cannot be written. An existing file is unchanged then.

    Notes
    -----
    The file is written under another name in the same folder and then renamed. Checksums take one
    pass over the data. The same entries give the same bytes, except that the deflated header of a
    compact file may differ between versions of zlib.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastfactor import store
    >>> from fastfactor.methods import LowRank
    >>> W = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/small.safetensors"
    ...     store.save(path, {"fc": LowRank(rank=1).compress(W), "bias": np.zeros(3)})
    ...     with store.open_store(path) as saved:
    ...         print(list(saved), np.allclose(saved["fc"].to_dense(), W))
    ['fc', 'bias'] True
    """
    shapes = shapes or {}
    for name in shapes:
        if name not in entries:
            raise ValueError(f"shapes must have names of entries only, got {name!r}")
    described = [described_entry(n, value, shapes.get(n)) for n, value in entries.items()]
    texts = check_metadata(metadata)
    pieces: dict[str, tuple[Array, str, tuple[int, ...]]] = {}
    for _, tensors in described:
        for name, array in tensors.items():
            if name in pieces:
                raise ValueError(f"names of tensors must be unique, got {name!r} twice")
            code = code_of(array, f"tensor {name!r}")
            pieces[name] = array_to_bytes(array, code), code, array.shape
    types = {name: (code, shape) for name, (_, code, shape) in pieces.items()}
    infos = _layout(types, compact)
    listed = [entry for entry, _ in described]
    sums = {name: zlib.crc32(data.data) for name, (data, _, _) in pieces.items()}
    index = build_index(listed, sums)
    with atomic_write(path) as file, _write_header(file, infos, texts, index, compact) as rest:
        for name in infos:
            rest.write(pieces[name][0].data)


def unfinished_job(path: Path) -> str | None:
    """Return the job of a killed writer to this path; None if it left no files."""
    try:
        with open(f"{os.path.realpath(path)}.journal", "rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    try:
        head = json.loads(line[9:]) if line == _with_checksum(line[9:]) else {}
        return str(head["job"])
    except (ValueError, TypeError, KeyError):
        return None


class Writer:
    """Write a stored file entry by entry, holding one at a time.

    Each tensor is appended to ``path.partial``, and each entry adds a line to ``path.journal``.
    Closing the writer puts the file together under another name, renames it to ``path`` and removes
    the two side files. If the process is killed at any moment before that, ``path`` is unchanged,
    and a writer with ``resume=True`` continues after the last complete entry.

    Parameters
    ----------
    path : path
        The safetensors file to write. An existing file is replaced once the new one is complete.
    metadata : mapping of names to text, optional
        Metadata to store in the file. Kept as the attribute ``metadata``, which may be changed
        until the writer is closed.
    resume : bool
        Continue from the side files of an earlier writer to this path, and keep the side files if
        this one ends with an exception. Otherwise side files are neither used nor kept.
    job : str
        A text that identifies the work: its settings and its input. Side files are used only if
        they were written for the same job.
    compact : bool
        As for :func:`save`.

    Raises
    ------
    TypeError, ValueError
        For metadata that are not text.
    OSError
        If the side files cannot be written.

    Notes
    -----
    Only one writer may use a path at a time. All data are written twice, and every checksum is
    verified in between. Resuming reads the side files once, to verify them. Entries keep the order
    in which they were added, so the bytes do not depend on interruptions.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastfactor import store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/large.safetensors"
    ...     with store.Writer(path, resume=True) as writer:
    ...         for name in ("a", "b"):
    ...             if name not in writer:
    ...                 writer.add(name, np.zeros((2, 3), np.float32))
    ...     print(store.open_store(path))
    Store('...large.safetensors', 2 entries, ... bytes)
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        resume: bool = False,
        job: str = "",
        compact: bool = False,
    ) -> None:
        self.path = os.path.realpath(path)
        self.metadata = check_metadata(metadata)
        self._keep = bool(resume)
        self._compact = bool(compact)
        self._described: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}  # of entries, as `add` was given them
        self._pieces: dict[str, _Piece] = {}
        self._pieces_of: dict[str, list[str]] = {}  # by the names of entries
        self._end = 0
        head = _line({"version": FORMAT_VERSION, "job": job})
        self._data = _open_side_file(self._side("partial"), keep=resume)
        self._journal = _open_side_file(self._side("journal"), keep=resume)
        kept = self._resume(head) if resume else 0
        self._data.truncate(self._end)
        self._journal.truncate(kept)
        self._journal.seek(kept)
        if not kept:
            self._journal.write(head)
            self._journal.flush()

    def add(
        self,
        name: str,
        value: Value,
        *,
        shape: Sequence[int] | Layout | None = None,
        dtype: np.dtype[Any] | None = None,
        key: str = "",
    ) -> None:
        """Write an entry.

        Parameters
        ----------
        name : str
            A name that no earlier entry has.
        value : Factors or array
            What to store: factors of a matrix, or a plain tensor.
        shape : sequence of int or Layout, optional
            Original shape of a tensor that was compressed as a matrix of shape
            (shape[0], product of the rest); for any other matrix a :class:`Layout`.
        dtype : dtype, optional
            Dtype of the original of a plain tensor of floats that was converted.
        key : str
            A text that identifies how the entry was made. A writer that resumes has it in `keys`.

        Raises
        ------
        TypeError, ValueError
            For an entry that cannot be stored, or a name that is taken. The writer stays usable.
        OSError
            If it cannot be written.
        """
        if self._data.closed:
            raise ValueError(f"the writer must be open to add {name!r}, got a closed writer")
        described, tensors = described_entry(name, value, shape, dtype)
        for long in tensors:
            if name in self or long in self._pieces:
                raise ValueError(f"names of tensors must be unique, got {long!r} twice")
        codes = {long: code_of(array, f"tensor {long!r}") for long, array in tensors.items()}
        pieces, end = [], self._end
        self._data.seek(end)
        for long, array in tensors.items():
            data = array_to_bytes(array, codes[long])
            self._data.write(data.data)
            crc32 = zlib.crc32(data.data)
            pieces.append(_Piece(long, codes[long], array.shape, end, data.size, crc32))
            end += data.size
        self._data.flush()
        listed = [vars(piece) for piece in pieces]
        self._journal.write(_line({"entry": described, "pieces": listed, "key": key}))
        self._journal.flush()
        self._accept(described, pieces, key)

    def discard(self, name: str) -> None:
        """Forget an entry, so that it can be added anew; its bytes stay in ``path.partial``."""
        del self._described[name], self.keys[name]
        for piece in self._pieces_of.pop(name):
            del self._pieces[piece]

    def arrange(self, names: Iterable[str]) -> None:
        """Put all entries into this order, which is otherwise that in which they were added."""
        order = list(names)
        self._described = {name: self._described[name] for name in order}
        pieces = [piece for name in order for piece in self._pieces_of[name]]
        self._pieces = {piece: self._pieces[piece] for piece in pieces}

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the entries written so far, resumed ones included."""
        return iter(self._described)

    def close(self) -> None:
        """Complete the file at ``path``; no more entries can be added.

        Raises
        ------
        CorruptDataError
            If ``path.partial`` was changed since it was written.
        OSError
            If the file cannot be written. ``path`` is unchanged then, and closing may be tried
            again.
        """
        if self._data.closed:
            return
        types = {name: (piece.code, piece.shape) for name, piece in self._pieces.items()}
        infos = _layout(types, self._compact)
        texts = check_metadata(self.metadata)
        sums = {name: piece.crc32 for name, piece in self._pieces.items()}
        index = build_index(self._described.values(), sums)
        # A fixed name, so that the next run overwrites what a killed one left.
        with (
            atomic_write(self.path, "whole") as file,
            _write_header(file, infos, texts, index, self._compact) as rest,
        ):
            for name in infos:
                self._copy(self._pieces[name], rest)
        self._end_files(keep=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Writer must not be copied or pickled, because it holds open files")

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if not self._data.closed:
                self._end_files(keep=self._keep)

    def _side(self, ending: str) -> str:
        return f"{self.path}.{ending}"

    def _accept(self, described: dict[str, Any], pieces: list[_Piece], key: str) -> None:
        name = described["name"]
        if name in self._described:  # it was discarded and added anew
            self.discard(name)
        self._described[name], self.keys[name] = described, key
        self._pieces.update((piece.name, piece) for piece in pieces)
        self._pieces_of[name] = [piece.name for piece in pieces]
        self._end += sum(piece.nbytes for piece in pieces)

    def _resume(self, head: bytes) -> int:
        """Accept the journal's entries up to the first incomplete one; return their bytes in it."""
        if self._journal.readline() != head:
            return 0
        kept = len(head)
        for line in self._journal:
            try:
                found = json.loads(line[9:]) if line == _with_checksum(line[9:]) else {}
                described, pieces = found["entry"], [_Piece(**piece) for piece in found["pieces"]]
                if any(self._read_sum(piece) != piece.crc32 for piece in pieces):
                    break
                self._accept(described, pieces, found["key"])
            except (ValueError, TypeError, KeyError):
                break
            kept += len(line)
        return kept

    def _read_sum(self, piece: _Piece) -> int:
        return self._copy(piece, None)

    def _copy(self, piece: _Piece, file: IO[bytes] | ChecksumWriter | None) -> int:
        """Copy a piece of the side file to ``file``, if given; return its checksum, -1 if cut."""
        self._data.seek(piece.begin)
        found, left = 0, piece.nbytes
        while left:
            data = self._data.read(min(left, COPY_BYTES))
            if not data:
                break
            found = zlib.crc32(data, found)
            left -= len(data)
            if file is not None:
                file.write(data)
        if file is not None and (left or found != piece.crc32):
            raise CorruptDataError(
                f"{self._side('partial')} must hold tensor {piece.name!r} as it was written, "
                "got changed data"
            )
        return -1 if left else found

    def _end_files(self, *, keep: bool) -> None:
        self._data.close()
        self._journal.close()
        if not keep:
            for ending in ("journal", "partial"):
                os.unlink(self._side(ending))


@dataclass(frozen=True)
class _Piece:
    """A tensor in the side file."""

    name: str
    code: str
    shape: Sequence[int]
    begin: int
    nbytes: int
    crc32: int


def _layout(types: Mapping[str, tuple[str, Sequence[int]]], compact: bool) -> dict[str, TensorInfo]:
    """Return the byte ranges of tensors from their dtypes and shapes, in the order of writing."""
    codes = ((name, code) for name, (code, _) in types.items())
    infos: dict[str, TensorInfo] = {}
    at = 0
    for name in types if compact else sorted_by_itemsize(codes):
        code, shape = types[name]
        infos[name] = tensor_info(at, name, code, list(shape))
        at = infos[name].end
    return infos


@contextmanager
def _write_header(
    file: IO[bytes],
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    index: Mapping[str, Any],
    compact: bool,
) -> Iterator[IO[bytes] | ChecksumWriter]:
    """Write the part of a file before its tensors; give the file to write the tensors to."""
    if not compact:
        file.write(header_bytes(infos, metadata, index))
        yield file
        return
    head = compact_head(infos, metadata, index)
    with compact_file(file, head, sum(info.end - info.begin for info in infos.values())) as rest:
        yield rest


def _open_side_file(path: str, *, keep: bool) -> IO[bytes]:
    """Open a side file for reading and writing; with ``keep``, do not empty an existing one."""
    if keep and os.path.exists(path):
        return open(path, "r+b")
    return open(path, "w+b")


def _line(value: Any) -> bytes:
    return _with_checksum(json.dumps(value).encode() + b"\n")


def _with_checksum(text: bytes) -> bytes:
    """Return a journal's line with its checksum in front."""
    return b"%08x " % zlib.crc32(text) + text

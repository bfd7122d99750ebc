"""Writing stored files: at once, or entry by entry, to be taken up again after a kill."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Any, NoReturn

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

COPY_BYTES = 4 << 20


def save(
    path: Path,
    entries: Mapping[str, Value],
    *,
    metadata: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    compact: bool = False,
) -> None:
    """Write factors and plain tensors to one file, beside it first and then renamed.

    Parameters
    ----------
    path : path
        A safetensors file; one that is there is replaced when the new one is whole.
    entries : mapping of names to Factors or arrays
        Arrays of any shape with a dtype that safetensors knows, bfloat16 included.
    metadata : mapping of names to text, optional
        What else to write in the file, as safetensors has it.
    shapes : mapping of names to shapes, optional
        Of tensors that were compressed as a matrix of (shape[0], all else), convolutions say.
    compact : bool
        Keep small files small: names, shapes and all else beside the tensors are deflated, and one
        checksum is for all. Other readers of safetensors see one tensor of bytes then, and reading
        one entry reads the whole file.

    Raises
    ------
    TypeError, ValueError
        For entries that cannot be stored, and names that would mean two tensors.
    OSError
        Where the file cannot be written. The old one is whole then.

    Notes
    -----
    Takes a pass over the data for checksums. The same bytes for the same entries; in compact files
    what is deflated may differ between versions of zlib.

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
            raise ValueError(f"shapes must name entries, got {name!r}")
    described = [described_entry(n, value, shapes.get(n)) for n, value in entries.items()]
    texts = check_metadata(metadata)
    pieces: dict[str, tuple[Array, str, tuple[int, ...]]] = {}
    for _, tensors in described:
        for name, array in tensors.items():
            if name in pieces:
                raise ValueError(f"names of tensors must differ, got {name!r} twice")
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
    """The job of a writer to this path that was killed; None where nothing was left behind."""
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

    Tensors go to ``path.partial`` as they come, with a line for each entry in ``path.journal``.
    When the writer is closed the file is put together beside ``path`` and renamed, and those two
    are removed. After a kill, at whatever moment, ``path`` is what it was, and a writer with
    ``resume=True`` takes up the entries that were complete.

    Parameters
    ----------
    path : path
        A safetensors file; one that is there is replaced when the new one is whole.
    metadata : mapping of names to text, optional
        What else to write in the file. Kept as the attribute ``metadata``, which may be changed
        until the writer is closed.
    resume : bool
        Take up what an earlier writer to this path left behind, and leave behind what there is
        if this one ends with an exception. Otherwise nothing is taken up or left.
    job : str
        Says what is being done: settings, and what the input is. Only what was left behind by a
        writer with the same job is taken up.
    compact : bool
        As for :func:`save`.

    Raises
    ------
    TypeError, ValueError
        For metadata that are not text.
    OSError
        Where files cannot be written beside ``path``.

    Notes
    -----
    Not for two writers of one path at a time. Writes all data twice; every checksum is verified
    in between. What is taken up is read once, to verify it. The order of entries is that in which
    they were added, so that a file does not depend on how often its making was interrupted.

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
        self._pieces: dict[str, _Piece] = {}
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

    def add(self, name: str, value: Value, *, shape: Sequence[int] | None = None) -> None:
        """Write an entry.

        Parameters
        ----------
        name : str
            Not yet used.
        value : Factors or array
        shape : sequence of int, optional
            Of the tensor that was compressed as a matrix of (shape[0], all else).

        Raises
        ------
        TypeError, ValueError
            For an entry that cannot be stored, or a name that would mean two tensors. The writer
            may be used on.
        OSError
            Where it cannot be written.
        """
        if self._data.closed:
            raise ValueError(f"the writer must be open to add {name!r}, got a closed one")
        described, tensors = described_entry(name, value, shape)
        for long in tensors:
            if name in self or long in self._pieces:
                raise ValueError(f"names of tensors must differ, got {long!r} twice")
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
        self._journal.write(_line({"entry": described, "pieces": [asdict(p) for p in pieces]}))
        self._journal.flush()
        self._accept(described, pieces)

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def __iter__(self) -> Iterator[str]:
        """Names of the entries that are written, those taken up among them."""
        return iter(self._described)

    def close(self) -> None:
        """Put the file together and rename it; nothing more can be added.

        Raises
        ------
        CorruptDataError
            Where ``path.partial`` does not hold what was written to it.
        OSError
            Where the file cannot be written. ``path`` is what it was, and closing may be tried
            again.
        """
        if self._data.closed:
            return
        types = {name: (piece.code, piece.shape) for name, piece in self._pieces.items()}
        infos = _layout(types, self._compact)
        texts = check_metadata(self.metadata)
        sums = {name: piece.crc32 for name, piece in self._pieces.items()}
        index = build_index(self._described.values(), sums)
        # A name of its own, so that what a kill leaves is written over by the next run.
        with (
            atomic_write(self.path, "whole") as file,
            _write_header(file, infos, texts, index, self._compact) as rest,
        ):
            for name in infos:
                self._copy(self._pieces[name], rest)
        self._end_files(keep=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Writer must not be copied or pickled, as it holds an open file")

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

    def _accept(self, described: dict[str, Any], pieces: list[_Piece]) -> None:
        self._described[described["name"]] = described
        self._pieces.update((piece.name, piece) for piece in pieces)
        self._end += sum(piece.nbytes for piece in pieces)

    def _resume(self, head: bytes) -> int:
        """Entries of the journal whose data are there; returns the bytes of its lines for them."""
        if self._journal.readline() != head:
            return 0
        kept = len(head)
        for line in self._journal:
            try:
                found = json.loads(line[9:]) if line == _with_checksum(line[9:]) else {}
                described, pieces = found["entry"], [_Piece(**piece) for piece in found["pieces"]]
                if any(self._read_sum(piece) != piece.crc32 for piece in pieces):
                    break
                self._accept(described, pieces)
            except (ValueError, TypeError, KeyError):
                break
            kept += len(line)
        return kept

    def _read_sum(self, piece: _Piece) -> int:
        return self._copy(piece, None)

    def _copy(self, piece: _Piece, file: IO[bytes] | ChecksumWriter | None) -> int:
        """The checksum of a piece in the side file, which is copied to ``file``."""
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
                f"{self._side('partial')} must hold {piece.name!r} as written, got other data"
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
    """Where tensors lie, given their dtypes and shapes, in the order in which they are written."""
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
    """Write what stands before the tensors; give what they are to be written to."""
    if not compact:
        file.write(header_bytes(infos, metadata, index))
        yield file
        return
    head = compact_head(infos, metadata, index)
    with compact_file(file, head, sum(info.end - info.begin for info in infos.values())) as rest:
        yield rest


def _open_side_file(path: str, *, keep: bool) -> IO[bytes]:
    # A file that is there must not be truncated, one that is not must be made.
    if keep and os.path.exists(path):
        return open(path, "r+b")
    return open(path, "w+b")


def _line(value: Any) -> bytes:
    return _with_checksum(json.dumps(value).encode() + b"\n")


def _with_checksum(text: bytes) -> bytes:
    """A journal's line: its checksum, and itself."""
    return b"%08x " % zlib.crc32(text) + text

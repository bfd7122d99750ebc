"""Writing stored files entry by entry, so that a killed run can be resumed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, NoReturn

import numpy as np

from ..errors import CorruptDataError
from .assembly import tensor_ranges, write_header
from .compact import ChecksumWriter
from .container import array_to_bytes, code_of
from .disk import atomic_write, check_output_path
from .index import (
    FORMAT_VERSION,
    Entry,
    Path,
    Value,
    alias,
    build_index,
    check_entry_name,
    check_metadata,
    described_entry,
)
from .journal import Piece, check_factors, journal_entry, journal_line, read_entry, read_line
from .layout import Layout
from .side_files import MAX_HEAD, START, SideFiles, open_side_file, side_path

COPY_BYTES = 4 << 20


def unfinished_job(path: Path) -> str | None:
    """Return the job of a killed writer to this path; None if it left no files."""
    try:
        with open_side_file(side_path(os.path.realpath(path), "journal"), new=False) as file:
            head = read_line(file.readline(MAX_HEAD))
    except (FileNotFoundError, CorruptDataError):
        return None
    job = head.get("job") if isinstance(head, dict) else None
    return job if isinstance(job, str) else None


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
        If the side files cannot be written: BlockingIOError while another writer has them,
        FileExistsError if files of these names were not left by a writer.

    Notes
    -----
    ``path`` must be new or a regular file. The journal is locked, so that only one writer uses a
    path at a time; the lock of a process that ended is free. All data are written twice, and every
    checksum is verified in between. Resuming reads the side files once, to verify them. Entries
    keep the order in which they were added, so the bytes do not depend on interruptions.

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
        self._pieces: dict[str, Piece] = {}
        self._pieces_of: dict[str, list[str]] = {}  # by the names of entries
        self._same_as: dict[str, str] = {}  # of the entries that have no tensors of their own
        self._end = len(START)
        check_output_path(self.path)
        head = journal_line({"version": FORMAT_VERSION, "job": job})
        self._files = SideFiles(self.path, head, resume=self._keep)
        self._data, self._journal = self._files.data, self._files.journal
        kept = self._taken_up(len(head))
        self._data.truncate(self._end)
        self._journal.truncate(kept)
        self._journal.seek(kept)

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
        self._check_open(name)
        described, tensors = described_entry(name, value, shape, dtype)
        for long in tensors:
            if name in self or long in self or long in self._pieces:
                raise ValueError(f"names of tensors must be unique, got {long!r} twice")
        codes = {long: code_of(array, f"tensor {long!r}") for long, array in tensors.items()}
        pieces, end = [], self._end
        self._data.seek(end)
        for long, array in tensors.items():
            data = array_to_bytes(array, codes[long])
            self._data.write(data.data)
            crc32 = zlib.crc32(data.data)
            pieces.append(Piece(long, codes[long], array.shape, end, data.size, crc32))
            end += data.size
        self._data.flush()
        self._record(described, pieces, key)

    def add_same(self, name: str, of: str, *, key: str = "") -> None:
        """Write an entry that is the same as an earlier one, such as a tied weight.

        It takes no bytes but its name. Readers get the tensors of the other entry.

        Parameters
        ----------
        name : str
            A name that no earlier entry has.
        of : str
            The name of an earlier entry that has tensors of its own.
        key : str
            As for :meth:`add`.

        Raises
        ------
        ValueError
            For a name that is taken, or another entry that there is not. The writer stays usable.
        OSError
            If it cannot be written.
        """
        self._check_open(name)
        check_entry_name(name)
        if name in self or name in self._pieces:
            raise ValueError(f"names of tensors must be unique, got {name!r} twice")
        if not self._has_tensors(of):
            raise ValueError(f"of must be an entry that has tensors, got {of!r} for {name!r}")
        self._record({"name": name, "same_as": of}, [], key)

    def discard(self, name: str) -> None:
        """Forget an entry and those that are the same as it, so that they can be added anew.

        Their bytes stay in ``path.partial`` until the writer is closed.

        Parameters
        ----------
        name : str
            The name of an entry.
        """
        same = [other for other, of in self._same_as.items() if of == name]
        for each in (name, *same):
            del self._described[each], self.keys[each]
            self._same_as.pop(each, None)
            for piece in self._pieces_of.pop(each):
                del self._pieces[piece]

    def arrange(self, names: Iterable[str]) -> None:
        """Put all entries into this order, which is otherwise that in which they were added.

        Parameters
        ----------
        names : iterable of str
            The name of every entry.
        """
        order = list(names)
        self._described = {name: self._described[name] for name in order}
        pieces = [piece for name in order for piece in self._pieces_of[name]]
        self._pieces = {piece: self._pieces[piece] for piece in pieces}

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the entries written so far, resumed ones included."""
        return iter(self._described)

    def info(self, name: str) -> Entry:
        """Return the description of an entry that was written, resumed ones included.

        Parameters
        ----------
        name : str
            The name of the entry.

        Returns
        -------
        Entry
            What the finished file will say of it.

        Raises
        ------
        KeyError
            If no entry of this name was written.
        """
        if name not in self:
            raise KeyError(f"name must be that of a written entry, got {name!r}")
        if name in self._same_as:
            return alias(name, self.info(self._same_as[name]))
        pieces = [self._pieces[long] for long in self._pieces_of[name]]
        return read_entry(self._described[name], pieces)

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
        types = {p.name: (p.code, p.shape, p.nbytes) for p in self._pieces.values()}
        infos = tensor_ranges(types, self._compact)
        texts = check_metadata(self.metadata)
        sums = {name: piece.crc32 for name, piece in self._pieces.items()}
        index = build_index(self._described.values(), sums)
        # A fixed name, so that the next run overwrites what a killed one left.
        with (
            atomic_write(self.path, "whole") as file,
            write_header(file, infos, texts, index, self._compact) as rest,
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

    def _check_open(self, name: str) -> None:
        if self._data.closed:
            raise ValueError(f"the writer must be open to add {name!r}, got a closed writer")

    def _has_tensors(self, name: str) -> bool:
        return name in self and name not in self._same_as

    def _record(self, described: dict[str, Any], pieces: list[Piece], key: str) -> None:
        listed = [vars(piece) for piece in pieces]
        self._journal.write(journal_line({"entry": described, "pieces": listed, "key": key}))
        self._journal.flush()
        self._accept(described, pieces, key)

    def _accept(self, described: dict[str, Any], pieces: list[Piece], key: str) -> None:
        name = described["name"]
        if name in self._described:  # it was discarded and added anew
            self.discard(name)
        self._described[name], self.keys[name] = described, key
        if "same_as" in described:
            self._same_as[name] = described["same_as"]
        self._pieces.update((piece.name, piece) for piece in pieces)
        self._pieces_of[name] = [piece.name for piece in pieces]
        self._end += sum(piece.nbytes for piece in pieces)

    def _taken_up(self, head_nbytes: int) -> int:
        """Accept the journal's entries up to the first that is not whole; return its bytes."""
        kept = head_nbytes
        self._journal.seek(kept)
        for line in self._journal:
            try:
                described, pieces, key = journal_entry(read_line(line), self._end)
                if not self._may_add(described["name"], pieces):
                    break
                if "same_as" in described and not self._has_tensors(described["same_as"]):
                    break
                if any(self._read_sum(piece) != piece.crc32 for piece in pieces):
                    break
                check_factors(described, pieces, self._data)
            except CorruptDataError:
                break
            self._accept(described, pieces, key)
            kept += len(line)
        return kept

    def _may_add(self, name: str, pieces: list[Piece]) -> bool:
        """Return whether no other entry has the name of a tensor; its own are replaced."""
        own = self._pieces_of.get(name, [])
        taken = any(p.name in self._pieces and p.name not in own for p in pieces)
        return not taken and (name in self or name not in self._pieces)

    def _read_sum(self, piece: Piece) -> int:
        return self._copy(piece, None)

    def _copy(self, piece: Piece, file: IO[bytes] | ChecksumWriter | None) -> int:
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
                f"{side_path(self.path, 'partial')} must hold tensor {piece.name!r} as it was "
                "written, got changed data"
            )
        return -1 if left else found

    def _end_files(self, *, keep: bool) -> None:
        self._files.close(keep=keep)

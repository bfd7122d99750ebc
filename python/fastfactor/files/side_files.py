"""The files beside a target while it is written: whose they are, and that one writer has them.

A writer to ``path`` fills ``path.partial`` with data and ``path.journal`` with what they are, and
puts the file together as ``path.whole``. The journal is made first, removed last and locked in
between. Files of these names that no writer left are somebody else's, and are never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Iterable
from typing import IO

try:
    import fcntl
except ImportError:  # a system without locks of this kind
    fcntl = None  # type: ignore[assignment]

ENDINGS = ("journal", "partial", "whole")
START = b"fastfactor partial\n"  # with which the data begin
MAX_HEAD = 1 << 20  # bytes of a journal's first line


def side_path(path: str, ending: str) -> str:
    """Return the name of a side file of a target."""
    return f"{path}.{ending}"


def check_sources(target: str | os.PathLike[str], sources: Iterable[str]) -> None:
    """Check that neither a target nor a side file of it is one of the sources, by any name.

    Raises
    ------
    ValueError
        If one is; the message names both.
    """
    path = os.path.realpath(target)
    for source in sources:
        if _is_same(source, path):
            raise ValueError(f"target must not be a source, got {os.fspath(target)!r} for both")
        for ending in ENDINGS:
            if _is_same(source, side_path(path, ending)):
                raise ValueError(
                    f"target must not be written by way of a source, got {os.fspath(target)!r}, "
                    f"whose side file .{ending} is the source {source!r}"
                )


class SideFiles:
    """The open journal and data of one writer.

    Attributes
    ----------
    journal : file
        Locked, open for reading and writing, behind its first line.
    data : file
        Open for reading and writing. It begins with `START`.

    Raises
    ------
    BlockingIOError
        If another writer has them.
    FileExistsError
        If files of these names are not a writer's.
    """

    def __init__(self, path: str, head: bytes, *, resume: bool) -> None:
        self._path, self._head = path, head
        self.journal, created = _open_locked(self._name("journal"), path)
        try:
            self.data = self._data(resume)
        except BaseException:
            if created:
                os.unlink(self._name("journal"))
            self.journal.close()
            raise

    def close(self, *, keep: bool) -> None:
        """Close both files and let go of the lock; remove them unless they are to be kept."""
        self.data.close()
        if not keep:
            self.journal.truncate(len(self._head))  # so that no journal is without its data
            self._remove("partial")
            self._remove("journal")
        self.journal.close()

    def _data(self, resume: bool) -> IO[bytes]:
        line = self.journal.readline(MAX_HEAD)
        if resume and line == self._head:
            self._remove("whole")
            partial = self._name("partial")
            data = open_side_file(partial, new=not os.path.lexists(partial))
        else:
            self._start_anew(line)
            data = open_side_file(self._name("partial"), new=True)
        data.write(START)
        data.flush()
        return data

    def _start_anew(self, line: bytes) -> None:
        """Remove what an earlier writer left, and write the journal's first line."""
        ours = line == with_checksum(line[9:]) or _begins_with_start(self._name("partial"))
        if line and not ours and not _is_beginning(line):
            raise _foreign(self._name("journal"))
        for ending in ("partial", "whole"):
            if not ours and _holds_something(self._name(ending)):
                raise _foreign(self._name(ending))
            self._remove(ending)
        self.journal.seek(0)
        self.journal.truncate()
        self.journal.write(self._head)
        self.journal.flush()

    def _name(self, ending: str) -> str:
        return side_path(self._path, ending)

    def _remove(self, ending: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name(ending))


def open_side_file(path: str, *, new: bool) -> IO[bytes]:
    """Open a side file for reading and writing, without following links or waiting for a pipe.

    Raises
    ------
    FileExistsError
        If it exists and must be new, or is not a regular file of one name.
    """
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0)
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # what this system has
        flags |= getattr(os, name, 0)

    def opener(name: str, _: int) -> int:
        number = os.open(name, flags, 0o666)
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(number)
            raise _foreign(path)
        return number

    try:
        return open(path, "r+b", opener=opener)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _foreign(path) from error
        raise


def with_checksum(text: bytes) -> bytes:
    """Return a journal's line with its checksum in front."""
    return b"%08x " % zlib.crc32(text) + text


def _open_locked(path: str, target: str) -> tuple[IO[bytes], bool]:
    """Return the locked journal, and whether it is new."""
    while True:
        new = not os.path.lexists(path)
        try:
            file = open_side_file(path, new=new)
        except FileNotFoundError:  # removed since
            continue
        except FileExistsError:
            if new:  # made since
                continue
            raise
        if not _locked(file):
            file.close()
            raise BlockingIOError(
                f"{target} must be written by one writer at a time, got a second one while "
                f"{path} is locked"
            )
        with contextlib.suppress(FileNotFoundError):
            named = os.stat(path, follow_symlinks=False)
            if os.path.samestat(named, os.fstat(file.fileno())):
                return file, new
        file.close()  # another writer removed it before it was locked


def _locked(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or its process ends; return False if another has done so."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # file systems without locks
            raise
    return True


def _is_same(one: str, other: str) -> bool:
    """Return whether two names are those of one file, be it through links."""
    if os.path.abspath(one) == os.path.abspath(other):
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _is_beginning(line: bytes) -> bool:
    """Return whether a line may be the beginning of a journal's first, cut by a kill."""
    sample = b'00000000 {"version": '
    masked = bytes(ord("0") if byte in b"0123456789abcdef" else byte for byte in line[:8])
    return not line.endswith(b"\n") and (masked + line[8 : len(sample)]) == sample[: len(line)]


def _holds_something(path: str) -> bool:
    """Return whether there is anything but an empty regular file."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size > 0


def _begins_with_start(path: str) -> bool:
    """Return whether a file is the data of a writer."""
    with (
        contextlib.suppress(FileNotFoundError, FileExistsError),
        open_side_file(path, new=False) as file,
    ):
        return file.read(len(START)) == START
    return False


def _foreign(path: str) -> FileExistsError:
    return FileExistsError(
        f"{path} must be absent or what an earlier writer left, got another file, a link or a "
        "device; move it, or write under another name"
    )

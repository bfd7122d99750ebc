"""Opening and writing files: regular ones only, and whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..errors import CorruptDataError


def check_output_path(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that a file can be written at this path.

    Raises
    ------
    OSError
        If the path is a folder, or its folder is missing or not writable.
    ValueError
        If the path is a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if target.exists() and not target.is_file():
        raise ValueError(
            f"{os.fspath(path)} must be a regular file or a new one to be written, "
            "got a pipe or device"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def open_regular_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read; refuse pipes and devices, on which reading could wait for ever."""

    def opener(name: str, flags: int) -> int:
        number = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            os.close(number)
            raise CorruptDataError(
                f"{os.fspath(path)} must be a regular file, got a pipe or device"
            )
        return number

    return open(path, "rb", opener=opener)


@contextmanager
def atomic_write(path: str | os.PathLike[str], ending: str | None = None) -> Iterator[IO[bytes]]:
    """Give a temporary file to write, which replaces ``path`` when the block ends without error.

    The temporary file lies in the same folder and is renamed once it is on the disk, so that
    ``path`` is a whole file, the old one or the new one, at every moment. Its name is that of
    ``path`` and the given ending, or a random one. It takes over the permissions of the old file.
    """
    target = Path(os.path.realpath(path))
    check_output_path(target)
    beside = target.with_name(f"{target.name}.{ending or secrets.token_hex(4) + '.tmp'}")
    file = open(beside, "xb")  # noqa: SIM115  refuses a file that is there, which is not ours
    try:
        with file:
            # Copy the permissions before the contents, so that nobody else can read a private file.
            if target.exists():
                shutil.copymode(target, beside)
            yield file
            file.flush()
            os.fsync(file.fileno())
        check_output_path(target)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def unknown_name(name: object, file: Mapping[str, Any]) -> KeyError:
    """Return the error that an open file has nothing of this name; it shows the first few names."""
    some = ", ".join(repr(known) for known in islice(file, 3))
    more = ", …" if len(file) > 3 else ""
    return KeyError(f"name must be one of the file's {len(file)} ({some}{more}), got {name!r}")

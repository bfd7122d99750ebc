"""Formats of files, told apart by how they begin; those that are not read are named."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CorruptDataError
from .disk import open_regular_file
from .stored import dense_limit

BEGINNING = 512  # bytes, which are enough to tell formats apart
PICKLE = re.compile(rb"\x80[\x02-\x05]")
SAVE_AGAIN = "save its tensors with safetensors or numpy.savez"
GET_SAFETENSORS = "take the model's safetensors files, of which GGUF files are made"
# How files of other formats begin, what they are called, and what to do.
FOREIGN = (
    (rb"GGUF", "GGUF", GET_SAFETENSORS),
    (rb"\x89HDF\r\n\x1a\n", "HDF5", f"load it with Keras or h5py and {SAVE_AGAIN}"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22:]", "ONNX", f"read it with onnx and {SAVE_AGAIN}"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (rb"(?i)\s*<(!doctype html|html|head|\?xml)", "an HTML page", "download the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", "unpack it first"),
    (rb"(?s).{257}ustar", "a tar archive", "unpack it first"),
)


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format of a file of tensors: "safetensors", "npz", "npy" or "torch".

    A file that is none of these and not known is called "safetensors", whose reader says what is
    wrong with it.

    Raises
    ------
    CorruptDataError
        For a file of another format; the message says which, and what to do.
    OSError
        If it cannot be read.
    """
    name = os.fspath(path)
    with open_regular_file(path) as file:
        begin = file.read(BEGINNING)
    if begin[8:9] == b"{":
        return "safetensors"
    if begin.startswith(b"\x93NUMPY"):
        return "npy"
    if begin.startswith((b"PK\3\4", b"PK\5\6")) or name.endswith(".npz"):
        return _archive_format(name)
    if PICKLE.match(begin):
        return "torch"
    for pattern, called, advice in FOREIGN:
        if re.match(pattern, begin):
            raise _foreign(name, called, advice)
    return "safetensors"


@contextmanager
def open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive to read; refuse what is none, or would fill the memory."""
    with open_regular_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise CorruptDataError(f"{path} must be an .npz archive: {error}") from error
        for member in archive.infolist():
            limit = dense_limit(member.compress_size)
            if member.file_size > limit:
                raise CorruptDataError(
                    f"{path}: {member.filename!r} must have at most {limit} bytes for the "
                    f"{member.compress_size} that it takes in the archive, got {member.file_size}"
                )
        with archive:
            yield archive


def _archive_format(path: str) -> str:
    with open_archive(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "torch"
    if "model.weights.h5" in names:
        raise _foreign(path, "a Keras model", f"load it with Keras and {SAVE_AGAIN}")
    return "npz"


def _foreign(path: str, called: str, advice: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path} must be a file of tensors that is read here, got {called}; {advice}"
    )

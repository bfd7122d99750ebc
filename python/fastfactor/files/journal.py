"""What a line of a writer's journal says of an entry, checked like anything from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ..errors import CorruptDataError
from .container import TensorInfo, array_from_bytes, parse, tensor_info
from .index import PLAIN, Entry, build_index, factors_of, read_index
from .side_files import with_checksum

PLAIN_FIELDS = {"name"}
ALIAS_FIELDS = {"name", "same_as"}
ENTRY_FIELDS = {"name", "kind", "shape", "dtype", "config", "tensors"}
OPTIONAL = {"dtype"}, {"layout"}  # of a plain tensor and of factors


@dataclass(frozen=True)
class Piece:
    """A tensor in the side file."""

    name: str
    code: str
    shape: Sequence[int]
    begin: int
    nbytes: int
    crc32: int

    @property
    def info(self) -> TensorInfo:
        """The same as it is said of a tensor in a file."""
        return TensorInfo(self.code, tuple(self.shape), self.begin, self.begin + self.nbytes)


def journal_entry(line: Any, begin: int) -> tuple[dict[str, Any], list[Piece], str]:
    """Return the entry of a journal's line, without checksums, its tensors and its key.

    Parameters
    ----------
    line : what JSON may hold
    begin : int
        Where in the data the first of its tensors must begin.

    Raises
    ------
    CorruptDataError
        If it is not what a writer writes.
    """
    if not isinstance(line, dict) or line.keys() != {"entry", "pieces", "key"}:
        raise CorruptDataError("a journal's line must have an entry, its pieces and its key")
    if not isinstance(line["key"], str):
        raise CorruptDataError(f"a key must be text, got {line['key']!r:.200}")
    pieces = _pieces(line["pieces"], begin)
    described = line["entry"]
    if not _is_alias(described):
        read_entry(described, pieces)
    elif pieces or described["same_as"] == described["name"]:
        raise CorruptDataError("an entry must be the same as another one and have no pieces")
    return described, pieces, line["key"]


def check_factors(described: dict[str, Any], pieces: list[Piece], data: IO[bytes]) -> None:
    """Check that the tensors of an entry, read from the data, are factors of its kind and shape.

    Raises
    ------
    CorruptDataError
        If they are not.
    """
    if _is_alias(described):
        return
    entry = read_entry(described, pieces)
    if entry.kind == PLAIN:
        return
    found = {}
    for (part, name), piece in zip(entry.tensors.items(), pieces, strict=True):
        data.seek(piece.begin)
        content = np.frombuffer(data.read(piece.nbytes), np.uint8)
        found[part] = array_from_bytes(content, piece.info, name)
    factors_of(entry, found)


def _pieces(value: Any, begin: int) -> list[Piece]:
    found: list[Piece] = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict) or each.keys() != Piece.__annotations__.keys():
            raise CorruptDataError(f"a piece must have {', '.join(Piece.__annotations__)}")
        piece = Piece(**each)
        at = found[-1].begin + found[-1].nbytes if found else begin
        if not isinstance(piece.name, str) or type(piece.begin) is not int or piece.begin != at:
            raise CorruptDataError(f"piece {piece.name!r:.200} must begin at {at}")
        if type(piece.nbytes) is not int:
            raise CorruptDataError(f"piece {piece.name!r} must have a number of bytes")
        info = tensor_info(at, piece.name, piece.code, piece.shape, piece.nbytes)
        if piece.nbytes != info.end - info.begin:
            raise CorruptDataError(f"piece {piece.name!r} must have {info.end - info.begin} bytes")
        found.append(piece)
    return found


def read_entry(described: Any, pieces: list[Piece]) -> Entry:
    """Return the entry as a reader of the finished file will see it.

    Raises
    ------
    CorruptDataError
        If it contradicts itself or the pieces.
    """
    if not isinstance(described, dict) or not _has_right_fields(described):
        raise CorruptDataError("an entry of a journal must be described as a writer does")
    name, parts = described["name"], described.get("tensors")
    wanted = [name] if parts is None else [f"{name}.{part}" for part in parts]
    if [piece.name for piece in pieces] != wanted:
        raise CorruptDataError(f"entry {name!r:.200} must have the pieces {wanted!r:.200}")
    sums = {piece.name: piece.crc32 for piece in pieces}
    infos = {piece.name: piece.info for piece in pieces}
    entries, _ = read_index(build_index([described], sums), infos)
    return entries[name]


def _is_alias(described: Any) -> bool:
    return (
        isinstance(described, dict)
        and described.keys() == ALIAS_FIELDS
        and all(isinstance(name, str) for name in described.values())
    )


def _has_right_fields(described: dict[str, Any]) -> bool:
    parts = described.get("tensors", [])
    fields = described.keys()
    factored = "tensors" in fields
    least, optional = (ENTRY_FIELDS if factored else PLAIN_FIELDS), OPTIONAL[factored]
    return (
        least <= fields <= least | optional
        and isinstance(parts, list)
        and all(isinstance(name, str) for name in (described["name"], *parts))
    )


def journal_line(value: Any) -> bytes:
    """Return a line that says this value, with its checksum."""
    return with_checksum(json.dumps(value).encode() + b"\n")


def read_line(line: bytes) -> Any:
    """Return what a line says.

    Raises
    ------
    CorruptDataError
        If it is not as it was written.
    """
    if line != with_checksum(line[9:]):
        raise CorruptDataError("a journal's line must have its checksum, got another")
    return parse(line[9:], "a journal's line")

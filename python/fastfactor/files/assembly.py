"""What a stored file is put together from: where its tensors lie, and what comes before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from .compact import ChecksumWriter, compact_file, compact_head
from .container import TensorInfo, header_bytes, sorted_by_itemsize, tensor_info


def tensor_ranges(
    types: Mapping[str, tuple[str, Sequence[int], int]], compact: bool
) -> dict[str, TensorInfo]:
    """Return the byte ranges of tensors from their dtypes, shapes and sizes, in writing order."""
    codes = ((name, code) for name, (code, _, _) in types.items())
    infos: dict[str, TensorInfo] = {}
    at = 0
    for name in types if compact else sorted_by_itemsize(codes):
        code, shape, nbytes = types[name]
        # The compact form says no sizes, so that a dtype must say its width.
        infos[name] = tensor_info(at, name, code, list(shape), None if compact else nbytes)
        if infos[name].end - at != nbytes:
            raise ValueError(f"compact must be False for tensor {name!r} of {code}, got True")
        at = infos[name].end
    return infos


@contextmanager
def write_header(
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

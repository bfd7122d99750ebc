"""Writing a stored file in one call."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from .._checks import Array
from .assembly import tensor_ranges, write_header
from .container import array_to_bytes, code_of
from .disk import atomic_write
from .index import Path, Value, build_index, check_metadata, described_entry
from .layout import Layout


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
    types = {name: (code, shape, data.size) for name, (data, code, shape) in pieces.items()}
    infos = tensor_ranges(types, compact)
    listed = [entry for entry, _ in described]
    sums = {name: zlib.crc32(data.data) for name, (data, _, _) in pieces.items()}
    index = build_index(listed, sums)
    with atomic_write(path) as file, write_header(file, infos, texts, index, compact) as rest:
        for name in infos:
            rest.write(pieces[name][0].data)

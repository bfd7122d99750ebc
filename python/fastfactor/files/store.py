"""Files of matrices, compressed or not: one safetensors file, read lazily through a memory map.

An entry is a plain tensor, under its own name, or the factors of a matrix, whose tensors are named
``entry.tensor``. The file's metadata say which is which (`container` has the bytes), so that any
safetensors reader sees all tensors. Every tensor has a CRC-32, and so has the header: a byte that
was changed anywhere is noticed. Other forms (`compact`, `legacy_network`) are read as if they were
such files.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np

from .._checks import Array
from ..errors import CorruptDataError
from ..methods.factors import Factors, matrix_shape
from .container import array_from_bytes, open_regular_file
from .forms import read_header
from .index import PLAIN, Entry, Path, Value, plain_entry, read_index


def open_store(path: Path) -> Store:
    """Open a stored file, or any safetensors file, to read.

    Parameters
    ----------
    path : path
        What :func:`save` or a Writer wrote, or an ordinary safetensors file, whose tensors are
        plain entries without checksums then.

    Returns
    -------
    Store

    Raises
    ------
    CorruptDataError
        Where the header is cut, changed or contradicts itself or the file's size.
    ValueError
        Where a newer version of the format wrote it.
    OSError
        Where it cannot be read.

    Notes
    -----
    Reads the header; of a compact file all of it, for its one checksum. A file that is cut while it
    is open ends the process when what is no longer there is touched, as with every memory map; one
    that is replaced by renaming does no harm.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastfactor import store
    >>> from fastfactor.methods import Codebook
    >>> W = np.array([[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]], np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/small.safetensors"
    ...     store.save(path, {"fc": Codebook(n_bits=2).compress(W), "bias": np.ones(2)})
    ...     with store.open_store(path) as saved:
    ...         print(saved.info("fc").kind, saved["fc"].linear(np.ones(3)), saved["bias"])
    codebook [6. 6.] [1. 1.]
    """
    return Store(path)


class Store(Mapping[str, Value]):
    """A stored file, open: entries by name, read when they are asked for.

    Arrays are read-only and lie in the file's memory map, also those inside of factors, where their
    addresses allow (in files written here they do, unless these are compact). They stay valid when
    the store is closed. The checksum of a tensor is verified when it is first read. Entries are not
    kept: each time that one is asked for, its factors are made anew. A store cannot be copied or
    pickled; its entries can.

    Attributes
    ----------
    path : str
    metadata : dict of str
        Of the file, without what is the store's own.
    has_checksums : bool
        Whether the file was written here.
    file_nbytes, payload_nbytes : int
        Bytes of the whole file, and of the tensors in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        with open_regular_file(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if nbytes else None
        content = memoryview(self._map or b"")
        self._bytes: Array | None = np.frombuffer(content, np.uint8)
        header = read_header(content)
        infos = header.tensors
        self._start, self._infos = header.size, infos
        self.metadata = header.metadata
        self.has_checksums = header.index is not None
        self.file_nbytes, self.payload_nbytes = nbytes, nbytes - header.size
        self._sums: dict[str, int] = {}
        self._verified: set[str] = set()
        if header.index is None:
            self._entries = {name: plain_entry(name, info) for name, info in header.tensors.items()}
        else:
            self._entries, self._sums = read_index(header.index, header.tensors)

    def __getitem__(self, name: str) -> Value:
        entry = self._entries[name]
        tensors = {short: self._tensor(long) for short, long in entry.tensors.items()}
        if entry.kind == PLAIN:
            return tensors[""]
        if entry.kind not in Factors.kinds:
            raise CorruptDataError(
                f"entry {name!r} must be of one of the kinds {', '.join(sorted(Factors.kinds))}, "
                f"got {entry.kind!r}"
            )
        make = Factors.kinds[entry.kind].from_tensors
        try:
            factors = make(tensors, dict(entry.config), matrix_shape(entry.shape), entry.dtype)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"entry {name!r}: {error}") from error
        if factors.tensors().keys() != tensors.keys():
            raise CorruptDataError(
                f"entry {name!r} must have the tensors {', '.join(sorted(factors.tensors()))}, "
                f"got {', '.join(sorted(tensors))}"
            )
        return factors

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> Entry:
        """What the file says of an entry; nothing of it is read."""
        return self._entries[name]

    def to_dense(self, name: str, *, n_threads: int | None = None) -> Array:
        """An entry as the tensor that it was, in its shape; a plain one as it is stored."""
        value = self[name]
        if isinstance(value, Factors):
            return value.to_dense(n_threads=n_threads).reshape(self.info(name).shape)
        return value

    def verify(self) -> None:
        """Read everything: each checksum, and each entry's factors.

        What factors keep encoded stays so; their own `verify` decodes it.

        Raises
        ------
        CorruptDataError
            For the first entry that is not what it should be.
        """
        self._verified.clear()
        for name in self:
            self[name]

    def release(self) -> None:
        """Give back the memory of what was read so far, where the system can; all stays valid.

        Pages of a memory map count as the process's own while they are there. Who streams through
        a large file calls this now and then; what is touched again is read from the file again.
        """
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file. Entries cannot be read any more; what was read stays valid."""
        self._bytes = self._map = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Store must not be copied or pickled, as it holds an open file: "
            f"open {self.path!r} again with open_store"
        )

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {len(self)} entries, {self.file_nbytes} bytes)"

    def _tensor(self, name: str) -> Array:
        if self._bytes is None:
            raise ValueError(f"the store must be open to read {name!r}, got a closed one")
        info = self._infos[name]
        data = self._bytes[self._start + info.begin : self._start + info.end]
        if name in self._sums and name not in self._verified:
            if zlib.crc32(data.data) != self._sums[name]:
                raise CorruptDataError(f"tensor {name!r} must fit its checksum, got another")
            self._verified.add(name)
        return array_from_bytes(data, info, name)

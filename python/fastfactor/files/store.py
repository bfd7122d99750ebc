"""Reading stored files: safetensors files of compressed matrices and plain tensors, read lazily.

An entry is a plain tensor under its own name, or the factors of a matrix, whose tensors are named
``entry.tensor``. The file's metadata tell the two apart (`container` describes the bytes), and any
safetensors reader sees all tensors. The header and every tensor have a CRC-32, so that a changed
byte is noticed wherever it is. The other forms (`compact`, `legacy_network`) look the same here.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from .. import _checks
from .._checks import Array
from ..errors import CorruptDataError
from ..methods.factors import Factors
from .container import OpaqueTensor, array_from_bytes, check_checksum
from .disk import open_regular_file, unknown_name
from .formats import format_of
from .forms import read_header
from .index import PLAIN, Entry, Path, Value, factors_of, plain_entry, read_index
from .stored import dense_limit


def open_store(path: Path, *, max_dense_nbytes: int | None = None) -> Store:
    """Open a stored file, or any other safetensors file, for reading.

    Parameters
    ----------
    path : path
        A file from :func:`save` or a Writer. In any other safetensors file all tensors are plain
        entries without checksums.
    max_dense_nbytes : int, optional
        The most bytes that the dense form of a compressed entry may have; a larger entry is refused
        when it is read. A side of length 0 counts as 1. Default: 1 GiB, and 4096 bytes more for
        each byte of the file.

    Returns
    -------
    Store
        Open; use it in a ``with`` statement or call its ``close``.

    Raises
    ------
    CorruptDataError
        If the header is cut or changed, or contradicts itself or the size of the file.
    ValueError
        If a newer version of fastfactor wrote it.
    OSError
        If it cannot be read.

    Notes
    -----
    Reads the header only; of a compact file everything, for its one checksum. The file is mapped
    into memory: shortening it while it is open ends the process when a missing part is read.
    Replacing it by renaming another file does no harm.

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
    return Store(path, max_dense_nbytes=max_dense_nbytes)


class Store(Mapping[str, Value]):
    """An open stored file: a mapping from names to entries, each read when it is asked for.

    Arrays, including those inside factors, are read-only views of the file's memory map. They are
    copies where they would be misaligned, as some are in compact files. ``np.array(store["bias"])``
    is a copy that can be changed, bfloat16 included. A plain tensor of a dtype that NumPy lacks is
    an OpaqueTensor: its shape and bytes. Arrays stay valid after the store is closed. The checksum
    of a tensor is verified when it is first read. Entries are not cached: factors are built anew at
    each access. A store cannot be copied or pickled; its entries can.

    Attributes
    ----------
    path : str
    metadata : dict of str
        Metadata of the file, without those that fastfactor adds.
    has_checksums : bool
        Whether fastfactor wrote the file, and so with checksums.
    file_nbytes, payload_nbytes : int
        Bytes of the whole file, and of its tensors.
    max_dense_nbytes : int
        The most bytes that the dense form of a compressed entry may have.
    """

    def __init__(self, path: Path, *, max_dense_nbytes: int | None = None) -> None:
        if max_dense_nbytes is not None:
            _checks.integer(max_dense_nbytes, "max_dense_nbytes", 0)
        self.path = os.fspath(path)
        found = format_of(path)
        if found != "safetensors":
            raise CorruptDataError(
                f"{self.path} must be a safetensors file, got the format {found}; "
                "fastfactor.compress_file reads it"
            )
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
        self.max_dense_nbytes = dense_limit(nbytes, max_dense_nbytes)
        self._sums: dict[str, int] = {}
        self._verified: set[str] = set()
        if header.index is None:
            self._entries = {name: plain_entry(name, info) for name, info in header.tensors.items()}
        else:
            self._entries, self._sums = read_index(header.index, header.tensors)

    def __getitem__(self, name: str) -> Value:
        entry = self.info(name)
        self._check_dense_size(entry)
        tensors = {short: self._tensor(long) for short, long in entry.tensors.items()}
        return tensors[""] if entry.kind == PLAIN else factors_of(entry, tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> Entry:
        """Return the description of an entry, without reading its tensors.

        Parameters
        ----------
        name : str
            The name of the entry.

        Returns
        -------
        Entry
            Its kind, shape, dtype, size, the names of its tensors and its configuration.

        Raises
        ------
        KeyError
            If the file has no entry of this name; the message names some that it has.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(name, self) from None

    def to_dense(self, name: str, *, n_threads: int | None = None) -> Any:
        """Return an entry as a dense tensor in its original shape.

        Parameters
        ----------
        name : str
            The name of the entry.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of the entry's shape and dtype
            A plain entry that was not converted is as it is stored: read-only, in the memory map.
        """
        value, entry = self[name], self.info(name)
        if isinstance(value, Factors):
            return entry.layout.to_tensor(value.to_dense(n_threads=n_threads))
        if isinstance(value, OpaqueTensor):
            return value
        return value.astype(entry.dtype, copy=False)

    def verify(self) -> None:
        """Read everything; check every checksum and that the factors of every entry fit together.

        Data that factors keep encoded are not decoded; the `verify` method of factors does that.

        Raises
        ------
        CorruptDataError
            For the first damaged entry.
        """
        self._verified.clear()
        for name in self:
            self[name]

    def release(self) -> None:
        """Free the memory of what was read so far, where the system can; all arrays stay valid.

        Pages of a memory map that were read count as memory of the process. Call this from time to
        time when streaming through a large file; pages that are used again are read again.
        """
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file. No more entries can be read; those read before stay valid."""
        self._bytes = self._map = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Store must not be copied or pickled, because it holds an open file: "
            f"open {self.path!r} again with open_store"
        )

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {len(self)} entries, {self.file_nbytes} bytes)"

    def _check_dense_size(self, entry: Entry) -> None:
        """Refuse factors of a matrix too large to rebuild: a few bytes may stand for any size."""
        if entry.kind != PLAIN and entry.counted_dense_nbytes > self.max_dense_nbytes:
            raise CorruptDataError(
                f"max_dense_nbytes must be at least {entry.counted_dense_nbytes} for entry "
                f"{entry.name!r} of shape {list(entry.shape)} in a file of {self.file_nbytes} "
                f"bytes, got {self.max_dense_nbytes}; give a larger one if you trust the file"
            )

    def _tensor(self, name: str) -> Any:
        if self._bytes is None:
            raise ValueError(f"the store must be open to read {name!r}, got a closed store")
        info = self._infos[name]
        data = self._bytes[self._start + info.begin : self._start + info.end]
        if name in self._sums and name not in self._verified:
            check_checksum(data, self._sums[name], name)
            self._verified.add(name)
        return array_from_bytes(data, info, name)

"""Deep Compression networks as the first versions wrote them, to test how they are read."""

from __future__ import annotations

import zlib

import numpy as np
from fastfactor import store
from fastfactor.files.container import array_to_bytes, code_of
from fastfactor.files.legacy_network import CODEBOOK_CODES, PLAIN_CODES
from fastfactor.kernels.packing import code_bits_for
from fastfactor.methods.deep_compression.streams import stream_nbytes


def leb128(number):
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def network_bytes(entries, shapes):
    """The bytes of factors and plain arrays by name, with the shapes of those that differ."""
    body = leb128(len(entries))
    for name, entry in entries.items():
        body += leb128(len(name.encode())) + name.encode()
        if isinstance(entry, np.ndarray):
            code = code_of(entry, name)
            body += bytes([1 + PLAIN_CODES.index(code)])
            body += (
                b"".join(map(leb128, (entry.ndim, *entry.shape)))
                + array_to_bytes(entry, code).tobytes()
            )
        else:
            body += b"\0" + layer_of(entry, shapes.get(name, entry.shape))
    return sealed(body)


def layer_of(factors, shape):
    """A layer's bytes, with flags for what is Huffman-coded."""
    code = code_of(factors.codebook, "codebook")
    n = factors.n_entries
    codes_coded = factors.codes.size != stream_nbytes(n, code_bits_for(len(factors.codebook)))
    gaps_coded = factors.gaps.size != stream_nbytes(n, factors.gap_bits)
    return layer_bytes(
        flags=CODEBOOK_CODES.index(code) | codes_coded << 2 | gaps_coded << 3,
        gap_bits=factors.gap_bits,
        shape=shape,
        n_values=len(factors.codebook),
        n_entries=n,
        table=array_to_bytes(factors.codebook, code).tobytes(),
        codes=factors.codes.tobytes(),
        gaps=factors.gaps.tobytes(),
    )


def layer_bytes(
    flags=0,
    gap_bits=3,
    shape=(2, 3),
    n_values=2,
    n_entries=1,
    table=None,
    codes=b"\1",
    gaps=b"\2",
):
    """A layer's bytes from its parts, which may contradict each other."""
    numbers = (len(shape), *shape, n_values, n_entries)
    if table is None:
        table = np.arange(n_values if n_values < 1000 else 2, dtype=np.float32).tobytes()
    streams = b"".join(leb128(len(stream)) + stream for stream in (codes, gaps))
    return bytes([flags, gap_bits]) + b"".join(map(leb128, numbers)) + table + streams


def sealed(body, version=1):
    """A body under a right checksum, so that what reads it must be on its guard."""
    head = b"FFDC" + bytes([version])
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body


def save(path, network, **options):
    """The file that holds a network's bytes."""
    store.save(path, {"network": np.frombuffer(network, np.uint8)}, **options)

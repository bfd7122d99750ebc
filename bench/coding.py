"""Huffman decoding of 16 symbols: two distributions, against zstd on the same symbols.

One thread each, and ours on two. The rivals hold the symbols packed, two in a byte, and one a byte.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cases import Contestant, Job, Target, Workload, at_every_level, burst, level_in_use
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]

DECODE, ENCODE, TWO_THREADS = "decode", "encode", "decode, 2 threads"
PACKED, BYTES = "zstd -1, two symbols a byte", "zstd -1, one symbol a byte"


def workloads(quick: bool) -> list[Workload]:
    return [
        workload("gaussian", "a normal weight in 16 even steps", quick),
        workload("pruned", "what 90 % pruning leaves of it, and fillers", quick),
    ]


def workload(name: str, title: str, quick: bool) -> Workload:
    size = 1 << 18 if quick else 1 << 24
    ours = at_every_level(fastfactor)
    rivals = (Contestant(PACKED, zstd_packed), Contestant(BYTES, zstd_bytes))
    return Workload(
        "coding",
        f"Huffman {name}",
        f"Huffman decode, 16 symbols, {size:,}: {title}",
        {"size": size},
        (*ours, *rivals),
        (
            Target(DECODE, (PACKED,), at_least=1, aim=1.2),
            Target(DECODE, (PACKED,), figure="bits a symbol", at_most=1),
            Target(DECODE, (BYTES,), at_least=3, aim=4),
            Target(TWO_THREADS, ("fastfactor",), rival_measure=DECODE, at_least=1.8),
        ),
    )


def symbols_of(workload: Workload) -> Symbols:
    n = int(workload.sizes["size"])
    return pruned(n) if workload.name.endswith("pruned") else gaussian(n)


def gaussian(n: int) -> Symbols:
    """Normal values in 16 even steps of 0.56 σ, as a linear codebook between the extremes has.

    2.9 bits of entropy.
    """
    values = np.random.default_rng(17).standard_normal(n, dtype=np.float32)
    return np.clip(np.round(values / np.float32(0.56) + np.float32(7.5)), 0, 15).astype(np.uint8)


def pruned(n: int) -> Symbols:
    """The tenth of normal values that is largest, in even steps; 3 % fillers, whose symbol is 0.

    Two humps with nothing between them. 2.6 bits of entropy.
    """
    random = np.random.default_rng(19)
    threshold, step = np.float32(1.645), np.float32(0.4)
    found: list[NDArray[np.float32]] = []
    while sum(map(len, found)) < n:
        values = random.standard_normal(n, dtype=np.float32)
        found.append(values[np.abs(values) > threshold])
    kept = np.concatenate(found)[:n]
    symbols = np.clip(np.round(kept / step + np.float32(7.5)), 1, 15).astype(np.uint8)
    symbols[random.random(n, dtype=np.float32) < np.float32(0.03)] = 0
    return symbols


def fastfactor(workload: Workload) -> Job:
    from fastfactor import huffman_decode, huffman_encode

    symbols = symbols_of(workload)
    data = huffman_encode(symbols, n_threads=1)
    return job(
        symbols,
        data.nbytes,
        {
            DECODE: lambda: huffman_decode(data, n_threads=1),
            TWO_THREADS: lambda: huffman_decode(data, n_threads=2),
            ENCODE: lambda: huffman_encode(symbols, n_threads=1),
        },
        lambda: bool(np.array_equal(huffman_decode(data), symbols)),
        note=level_in_use(),
    )


def zstd_packed(workload: Workload) -> Job:
    symbols = symbols_of(workload)
    return zstd(symbols, (symbols[::2] | symbols[1::2] << 4).tobytes())


def zstd_bytes(workload: Workload) -> Job:
    symbols = symbols_of(workload)
    return zstd(symbols, symbols.tobytes())


def zstd(symbols: Symbols, content: bytes) -> Job:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=1)
    decompressor = zstandard.ZstdDecompressor()
    data = compressor.compress(content)
    return job(
        symbols,
        len(data),
        {
            DECODE: lambda: decompressor.decompress(data),
            ENCODE: lambda: compressor.compress(content),
        },
        lambda: decompressor.decompress(data) == content,
    )


def job(
    symbols: Symbols,
    nbytes: int,
    calls: dict[str, Callable[[], object]],
    is_right: Callable[[], bool],
    *,
    note: str = "",
) -> Job:
    """Times of the calls; beside decoding what the data take, over the entropy too."""
    bits = 8 * nbytes / len(symbols)

    def quality() -> dict[str, dict[str, float]]:
        if not is_right():
            raise ValueError("what was decoded must be what was encoded, got something else")
        return {DECODE: {"bits a symbol": bits, "over entropy": bits / entropy(symbols) - 1}}

    return Job(
        {(name, "cold"): burst(call) for name, call in calls.items()},
        quality,
        {name: {"G symbols": len(symbols) / 1e9} for name in calls},
        note,
    )


def entropy(symbols: Symbols) -> float:
    """Bits a symbol."""
    counts = np.bincount(symbols, minlength=16)
    shares = counts[counts > 0] / len(symbols)
    return float(-(shares * np.log2(shares)).sum())

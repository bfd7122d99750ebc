"""Huffman-coded data read bit by bit, as csrc/kernels/huffman/format.hpp describes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MASK = 2**64 - 1
FACTOR = 0xFFFFFFE5


def sum_step(total, word):
    total ^= word
    return ((total & 0xFFFFFFFF) * FACTOR + (total >> 32)) & MASK


def checksum(data, seed):
    lanes = [(seed + i * 0x9E3779B97F4A7C15) & MASK for i in range(16)]
    at = 0
    while at + 128 <= len(data):
        for i in range(16):
            lanes[i] = sum_step(
                lanes[i], int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little")
            )
        at += 128
    total = sum_step(seed, len(data))
    while at + 8 <= len(data):
        total = sum_step(total, int.from_bytes(data[at : at + 8], "little"))
        at += 8
    total = sum_step(total, int.from_bytes(data[at:], "little"))
    for lane in lanes:
        total = sum_step(total, lane)
    return ((total ^ total >> 32) * 0xD6E8FEB86659FD93 & MASK) >> 32


class Bytes:
    """A place in a string of bytes."""

    def __init__(self, data):
        self.data, self.at = bytes(data), 0

    def take(self, n):
        assert self.at + n <= len(self.data)
        self.at += n
        return self.data[self.at - n : self.at]

    def fixed(self, n):
        return int.from_bytes(self.take(n), "little")

    def varint(self):
        value, shift = 0, 0
        while True:
            byte = self.fixed(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def read_lengths(source, n_letters):
    bits = "".join(format(byte, "08b")[::-1] for byte in source.data[source.at :])
    at = 0

    def gamma():
        nonlocal at
        zeros = bits.index("1", at) - at
        value = int(bits[at + zeros : at + 2 * zeros + 1], 2)
        at += 2 * zeros + 1
        return value - 1

    lengths, last, filled = [], 4, 0
    while filled < 2**20:
        v = gamma()
        if v == 3:
            lengths += [0] * (gamma() + 1)
            continue
        change = {0: 0, 1: 1, 2: -1}.get(v)
        if change is None:
            change = v // 2 if v % 2 == 0 else -(v // 2)
        last += change
        lengths.append(last)
        filled += 2 ** (20 - last)
    assert filled == 2**20
    source.take(-(-at // 8))
    return lengths + [0] * (n_letters - len(lengths))


def words(lengths):
    """Each word, as a string of digits, with its letter."""
    found, code, before = {}, 0, 0
    for length, letter in sorted((n, i) for i, n in enumerate(lengths) if n):
        code <<= length - before
        before = length
        found[format(code, f"0{length}b")] = letter
        code += 1
    return found


@dataclass
class Coded:
    kind: int
    group: int = 1
    symbol_bits: int = 0
    lengths: list[int] = field(default_factory=list)
    raw_blocks: list[bool] = field(default_factory=list)
    symbols: list[int] = field(default_factory=list)


def decode(data):
    source = Bytes(data)
    assert source.take(2) == b"H\x01"
    flags = source.fixed(1)
    n_bytes, kind, group = 1 + (flags & 1), flags >> 1 & 3, 1 << (flags >> 3)
    coded = Coded(kind, group)
    n = source.varint()
    rest, sizes, block_size = [], [], 1
    if n and kind == 2:
        coded.symbols = [source.varint()] * n
        assert source.take(-(-n // 16384)) == bytes(-(-n // 16384))
    elif n:
        block_size = 2 ** source.fixed(1)
        if kind == 0:
            coded.symbol_bits = source.fixed(1)
            rest = [source.fixed(n_bytes) for _ in range(n % group)]
            coded.lengths = read_lengths(source, 2 ** (coded.symbol_bits * group))
        sizes = [source.varint() for _ in range(-(-(n - n % group) // block_size))]
    header = checksum(source.data[: source.at], 0)
    assert source.fixed(4) == header
    letters = words(coded.lengths)
    for i, size in enumerate(sizes):
        expected = source.fixed(4)
        content = source.take(size // 2 - 4)
        assert checksum(content, header << 32 | i) == expected
        n_block = min(block_size, n - n % group - i * block_size)
        coded.raw_blocks.append(bool(size % 2))
        if size % 2:
            coded.symbols += np.frombuffer(content, f"<u{n_bytes}").tolist()
        else:
            coded.symbols += read_block(content, n_block // group, coded, letters)
    assert source.at == len(source.data)
    coded.symbols += rest
    return coded


def read_block(content, n_letters, coded, letters):
    streams = 1 if n_letters < 4096 else 6
    each = -(-n_letters // streams)
    source = Bytes(content)
    sizes = [source.fixed(3) for _ in range(streams - 1)]
    symbols = []
    for k in range(streams):
        n = min(each, n_letters - k * each)
        stream = source.take(sizes[k]) if k < streams - 1 else source.data[source.at :]
        bits = format(int.from_bytes(stream, "little"), "b")[1:]  # behind the mark, the last first
        backward, word = [], ""
        for bit in bits:
            word += bit
            if word in letters:
                backward.append(letters[word])
                word = ""
        assert word == ""
        assert len(backward) == n
        mask = 2**coded.symbol_bits - 1
        for letter in reversed(backward):
            symbols += [letter >> g * coded.symbol_bits & mask for g in range(coded.group)]
    return symbols

"""Changed copies of stored files, checksums wrong or made right, and how they are read."""

from __future__ import annotations

import zlib

import numpy as np
from fastfactor import CorruptDataError, store
from fastfactor.container import header_bytes, read_header
from fastfactor.methods import Factors

# What may stand where it should not.
HOSTILE = (None, 0, -1, 2**31, 10**30, 0.5, [2**40, 2**40])


def cuts(content):
    """Every beginning of it but the whole."""
    return (content[:length] for length in range(len(content)))


def flips(content, flip):
    """It with one byte changed, for each."""
    for at, byte in enumerate(content):
        yield content[:at] + bytes([byte ^ flip]) + content[at + 1 :]


def shifts(content):
    """It with one byte left out or written twice, for each, and with some more at its end."""
    for at in range(len(content)):
        yield content[:at] + content[at + 1 :]
        yield content[: at + 1] + content[at:]
    for more in (b"\0", b" ", b"}", bytes(8), content):
        yield content + more


def forged_headers(content):
    """(name, copy): what is said of an entry changed and checksums made right.

    One entry of each kind is changed, the others differ in numbers only.
    """
    header = read_header(memoryview(content))
    kinds = {entry.get("kind"): name for name, entry in header.index["entries"].items()}
    for name in kinds.values():
        entry = header.index["entries"][name]
        changes = [(entry, key) for key in entry if key != "crc32"]
        changes += [(entry["config"], key) for key in entry.get("config", {})]
        for holder, key in changes:
            before = holder[key]
            near = (before + 1, before - 1) if isinstance(before, int) else ()
            for value in (*HOSTILE, *near):
                holder[key] = value
                data = header_bytes(header.places, header.metadata, header.index)
                yield name, data + content[header.size :]
            holder[key] = before


def forged_tensors(content, places, values=(0, 255)):
    """(name, copy): a byte of a tensor of factors changed and checksums made right.

    ``places(begin, end)`` says which bytes of those of a tensor.
    """
    header = read_header(memoryview(content))
    for name, entry in header.index["entries"].items():
        sums = entry["crc32"]
        if not isinstance(sums, dict):
            continue
        for part in sums:
            place = header.places[f"{name}.{part}"]
            begin, end = header.size + place.begin, header.size + place.end
            before = sums[part]
            for at in places(begin, end) if end > begin else ():
                for byte in values:
                    changed = bytearray(content)
                    changed[at] = byte
                    sums[part] = zlib.crc32(changed[begin:end])
                    data = header_bytes(header.places, header.metadata, header.index)
                    yield name, data + bytes(changed[header.size :])
            sums[part] = before


def refused(path, name):
    """Whether an entry is refused as damaged. Else it must be whole, its products among it.

    Entropy-coded levels are decoded, and refused, when they are multiplied; what `verify` lets pass
    must be whole, and nothing else may.
    """
    try:
        with store.open_store(path) as opened:
            value = opened[name]
    except CorruptDataError:
        return True
    if not isinstance(value, Factors) or value.shape[0] * value.shape[1] >= 1 << 20:
        return False
    x = np.ones(value.shape[1], np.float32)

    def multiply():
        assert value.linear(x).shape == (value.shape[0],)

    def rebuild():
        assert value.to_dense().shape == value.shape

    with np.errstate(all="ignore"):
        found = {refuses(call) for call in (value.verify, multiply, rebuild)}
    assert len(found) == 1
    return found.pop()


def refuses(call):
    """Whether this says that data are damaged."""
    try:
        call()
    except CorruptDataError:
        return True
    return False

"""Changed copies of stored files, checksums wrong or made right, and how they are read."""

from __future__ import annotations

import dataclasses
import io
import math
import zlib

import numpy as np
from fastfactor import CorruptDataError, store
from fastfactor.files import compact, legacy_network
from fastfactor.files.container import DTYPES, TensorInfo, header_bytes, read_plain_header
from fastfactor.files.forms import read_header
from fastfactor.methods import Factors
from legacy_networks import sealed

# What may stand where it should not.
HOSTILE = (None, 0, -1, 2**31, 10**30, 0.5, [2**40, 2**40], [2**50, 0], [0, 2**50], [2**29, 2])


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
    """(name, copy): what is said of an entry or its tensors changed and checksums made right.

    One entry of each kind is changed, the others differ in numbers only. Nothing is for networks of
    the first versions, whose headers are numbers among tensors: test_legacy_networks.py has those.
    """
    if _form(content) == "network":
        return
    header = read_header(memoryview(content))
    entries = header.index["entries"]
    kinds = {e.get("kind", "same" if "same_as" in e else ""): name for name, e in entries.items()}
    for name in kinds.values():
        entry = header.index["entries"][name]
        changes = [(entry, key) for key in entry if key != "crc32"]
        changes += [(entry["config"], key) for key in entry.get("config", {})]
        for holder, key in changes:
            before = holder[key]
            near = (before + 1, before - 1) if isinstance(before, int) else ()
            for value in (*HOSTILE, *near):
                if value == before:
                    continue
                holder[key] = value
                yield name, _forged(content, header)
            holder[key] = before
        sums = entry.get("crc32", {})
        for long in [f"{name}.{part}" for part in sums] if isinstance(sums, dict) else [name]:
            place = header.tensors[long]
            for forged in _forged_places(place):
                header.tensors[long] = forged
                yield name, _forged(content, header)
            header.tensors[long] = place


def forged_tensors(content, places, values=(0, 255)):
    """(name, copy): a byte of a tensor of factors made each value and checksums right.

    ``places(begin, end)`` says which bytes of those of a tensor. None that has the value already.
    """
    header = read_header(memoryview(content))
    for name, entry in header.index["entries"].items():
        sums = entry.get("crc32")
        if not isinstance(sums, dict):
            continue
        for part in sums:
            place = header.tensors[f"{name}.{part}"]
            begin, end = header.size + place.begin, header.size + place.end
            before = sums[part]
            for at in places(begin, end) if end > begin else ():
                for byte in values:
                    if content[at] == byte:
                        continue
                    changed = bytearray(content)
                    changed[at] = byte
                    sums[part] = zlib.crc32(changed[begin:end])
                    yield name, _forged(changed, header)
            sums[part] = before


def refused(path, name):
    """Whether an entry is refused as damaged. Else product and matrix must have its shape.

    Entropy-coded levels are decoded, and refused, when they are multiplied; what `verify` lets pass
    must be whole, and nothing else may. What says that it is a large matrix, and may be one, is
    opened only.
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


def _forged(content, header):
    """The file with this header and right checksums, in the form that it has."""
    data, form = bytes(content[header.size :]), _form(content)
    if form == "compact":
        file = io.BytesIO()
        head = compact.compact_head(header.tensors, header.metadata, header.index)
        with compact.compact_file(file, head, len(data)) as rest:
            rest.write(data)
        return file.getvalue()
    if form == "ordinary":
        return header_bytes(header.tensors, header.metadata, header.index) + data
    data = sealed(data[legacy_network.START.size :])
    places = {legacy_network.NAME: TensorInfo("U8", (len(data),), 0, len(data))}
    index = {"version": 1, "entries": {legacy_network.NAME: {"crc32": zlib.crc32(data)}}}
    return header_bytes(places, header.metadata, index) + data


def _form(content):
    """Which of the forms a stored file has."""
    header = read_plain_header(memoryview(content))
    data = memoryview(content)[header.size :]
    if compact.is_compact(header, data):
        return "compact"
    return "network" if legacy_network.is_network(header, data) else "ordinary"


def _forged_places(place):
    """Other dtypes, shapes and places of a tensor, most of which contradict its bytes."""
    size = math.prod(place.shape)
    codes = [{"code": code} for code in DTYPES]
    shapes = [(), (size,), (1, size), (size, 1), (*place.shape, 1), place.shape[::-1]]
    shapes += [(0,), (-1,), (2**40, 2**40), (2**50, 0), (0, 2**50), (0.5,), (None,)]
    moved = [(place.begin + 1, place.end + 1), (place.begin, place.end - 1)]
    moved += [(place.end, place.begin), (-1, place.end), (0, 2**70)]
    changes = codes + [{"shape": shape} for shape in shapes]
    changes += [{"begin": begin, "end": end} for begin, end in moved]
    for change in changes:
        forged = dataclasses.replace(place, **change)
        if forged != place:
            yield forged

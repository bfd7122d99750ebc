"""Deep Compression: bytes that were cut, changed or made up."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.deep_compression import CodedNetwork, DeepCompression, decode
from fastfactor.deep_compression.stored_bytes import Reader, leb128
from fastfactor.models.inspect import inspect_file
from hypothesis import given
from hypothesis import strategies as st
from models import coded_network


@pytest.fixture
def network(rng):
    return coded_network(rng)


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_every_changed_byte_of_a_network_is_noticed(network, flip):
    data = bytearray(network.to_bytes())
    for at in range(len(data)):
        data[at] ^= flip
        with pytest.raises(CorruptDataError):
            CodedNetwork.from_bytes(bytes(data))
        data[at] ^= flip
    assert CodedNetwork.from_bytes(bytes(data)).to_bytes() == network.to_bytes()


def test_every_cut_and_every_addition_is_noticed(network):
    data = network.to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptDataError):
            CodedNetwork.from_bytes(data[:length])
        with pytest.raises(CorruptDataError):
            CodedNetwork.from_bytes(sealed(data[9:length]))
    for more in (b"\0", b"\xff" * 100):
        with pytest.raises(CorruptDataError):
            CodedNetwork.from_bytes(data + more)
        with pytest.raises(CorruptDataError, match="data must end at"):
            CodedNetwork.from_bytes(sealed(data[9:] + more))


def sealed(body, version=1):
    """A body under a right checksum, so that what reads it must be on its guard."""
    head = b"FFDC" + bytes([version])
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body


def refused_or_read(read):
    """Any bytes may also be right by chance; then they are what they say."""
    try:
        result = read()
    except CorruptDataError:
        return
    if isinstance(result, CodedNetwork):
        result = CodedNetwork.from_bytes(result.to_bytes())


@pytest.mark.parametrize("flip", [0x01, 0x04, 0x20, 0x80, 0xFF])
def test_changed_bytes_under_a_right_checksum_do_no_harm(network, flip):
    body = bytearray(network.to_bytes()[9:])
    for at in range(len(body)):
        body[at] ^= flip
        refused_or_read(lambda: CodedNetwork.from_bytes(sealed(bytes(body))))
        body[at] ^= flip


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data):
    with pytest.raises(CorruptDataError):
        CodedNetwork.from_bytes(data)
    refused_or_read(lambda: CodedNetwork.from_bytes(sealed(data)))
    refused_or_read(lambda: decode(data))


@given(st.data())
def test_bytes_spliced_at_random_do_no_harm(data):
    W = np.arange(24, dtype=np.float32).reshape(4, 6) % 5
    whole = DeepCompression(n_bits=2).compress(W).to_bytes()
    at = data.draw(st.integers(0, len(whole)))
    to = data.draw(st.integers(at, len(whole)))
    middle = data.draw(st.binary(max_size=8))
    refused_or_read(lambda: decode(whole[:at] + middle + whole[to:]))


def layer_bytes(
    flags=0, gap_bits=3, shape=(2, 3), n_values=2, n_entries=1, codes=b"\1", gaps=b"\2"
):
    numbers = (len(shape), *shape, n_values, n_entries)
    table = np.arange(n_values if n_values < 1000 else 2, dtype=np.float32).tobytes()
    streams = b"".join(leb128(len(stream)) + stream for stream in (codes, gaps))
    return bytes([flags, gap_bits]) + b"".join(map(leb128, numbers)) + table + streams


def test_a_layer_made_by_hand_is_read():
    np.testing.assert_array_equal(decode(layer_bytes()).to_dense(), [[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flags": 3}, "begin with its flags"),
        ({"flags": 16}, "begin with its flags"),
        ({"gap_bits": 0}, "begin with its flags"),
        ({"gap_bits": 17}, "begin with its flags"),
        ({"shape": ()}, "must have a shape"),
        ({"shape": (2**40, 2**40)}, "less than 2\\*\\*59 places"),
        ({"shape": (1,) * 40}, "32 sizes at most"),
        ({"shape": (1, 2)}, "gap"),
        ({"shape": (0, 3)}, "no more entries than weights"),
        ({"n_values": 0}, "1 to 256 values"),
        ({"n_values": 2**40}, "1 to 256 values"),
        ({"n_entries": 7}, "no more entries than weights"),
        ({"n_entries": 2**50, "shape": (2**50,)}, "must have their bytes"),
        ({"codes": b"\1\0"}, "must have their bytes, got 2"),
        ({"codes": b"\3"}, "zeros after the last code"),
        ({"codes": b"\1", "n_values": 1}, "codes must be in"),
        ({"flags": 4}, "data must"),
        ({"flags": 8}, "data must"),
    ],
)
def test_layers_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(CorruptDataError, match=message):
        decode(layer_bytes(**change))


def test_a_codebook_must_be_finite():
    data = bytearray(layer_bytes())
    at = data.index(np.float32(1).tobytes())
    data[at : at + 4] = np.float32(np.inf).tobytes()
    with pytest.raises(CorruptDataError, match="codebook must be finite"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (leb128(2**50), "must have 1 bytes from"),
        (b"\1" + leb128(2**40), "a name must have 65535 bytes at most"),
        (b"\1\2\xff\xff\0", "a name must be UTF-8 text"),
        (b"\1\1a\x20\1\1", "'a' must be of a kind up to 17, got 32"),
        (b"\1\1a\x02\2" + leb128(2**30) + leb128(2**30), "less than 2\\*\\*59 places"),
        (b"\1\1a\x02\1" + leb128(2**50), "must have 4503599627370496 bytes from"),
        (b"\2\1a\x0c\0\7\1a\x0c\0\7", "names must differ, got 'a' twice"),
        (b"\1\1a\x0d\0\7", "tensor 'a' must hold 0 or 1, got 7"),
        (b"\0\0", "data must end at 1, got 1 bytes more"),
    ],
)
def test_networks_that_contradict_themselves_are_refused(body, message):
    with pytest.raises(CorruptDataError, match=message):
        CodedNetwork.from_bytes(sealed(body))


def test_looking_at_a_file_decodes_its_layers(tmp_path):
    """Huffman blocks that are none, under right checksums."""
    path = tmp_path / "net.safetensors"
    for flags in (0, 4, 8):
        body = b"\1\1a\0" + layer_bytes(flags=flags)
        store.save(path, {"network": np.frombuffer(sealed(body), np.uint8)})
        if flags:
            with pytest.raises(CorruptDataError, match="data must"):
                inspect_file(path, verify=True)
        else:
            assert inspect_file(path, verify=True).totals["n_layers"] == 1


def test_a_newer_version_is_named(network):
    with pytest.raises(ValueError, match=r"format version 1, .* got 2") as caught:
        CodedNetwork.from_bytes(sealed(network.to_bytes()[9:], version=2))
    assert not isinstance(caught.value, CorruptDataError)


def test_files_without_a_network_are_refused(tmp_path, network):
    path = tmp_path / "other.safetensors"
    store.save(path, {"x": np.ones(3)})
    with pytest.raises(CorruptDataError, match="must hold an entry 'network', got none"):
        CodedNetwork.load(path)
    store.save(path, {"network": np.ones(3)})
    with pytest.raises(CorruptDataError, match="must be bytes"):
        CodedNetwork.load(path)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\0", b"\xff" * 12, leb128(2**59)])
def test_sizes_that_are_none_are_refused(data):
    with pytest.raises(CorruptDataError):
        Reader(data).size()

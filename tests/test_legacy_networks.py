"""Deep Compression networks as the first versions wrote them: read, and refused where damaged."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from fastfactor import CorruptDataError, decompress_file, store
from fastfactor.deep_compression import DeepCompression, compress_network
from fastfactor.files.checkpoint import is_compressed, open_checkpoint
from fastfactor.files.legacy_network import MAX_RECORDS, PLAIN_CODES
from fastfactor.methods import Factors
from fastfactor.models.inspect import inspect_file
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_networks import layer_bytes, leb128, network_bytes, save, sealed
from safetensors.numpy import load_file

SHAPES = {"b": (6, 2, 4)}


@pytest.fixture
def entries(rng):
    W = rng.standard_normal((6, 8)).astype(np.float32)
    return compress_network(
        {"a": W, "b": W.reshape(6, 2, 4)},
        {
            "a": DeepCompression(sparsity=0.6, n_bits=3),
            "b": DeepCompression(sparsity=0, n_bits=1, codebook_dtype="float16"),
        },
        plain={
            "bias": rng.standard_normal(3),
            "half": np.ones((1, 2), ml_dtypes.bfloat16),
            "flag": np.array(True),
            "none": np.zeros((0, 3), np.int32),
        },
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.safetensors"


@pytest.fixture
def network(entries):
    return network_bytes(entries, SHAPES)


def test_it_is_read_as_a_store(path, network, entries):
    save(path, network, metadata={"note": "text"})
    with store.open_store(path) as opened:
        assert list(opened) == list(entries)
        assert opened.metadata == {"note": "text"}
        assert opened.has_checksums
        opened.verify()
        for name, expected in entries.items():
            if not isinstance(expected, Factors):
                assert opened[name].dtype == expected.dtype
                np.testing.assert_array_equal(opened[name], expected)
                continue
            shape = SHAPES.get(name, expected.shape)
            info = opened.info(name)
            assert (info.kind, info.shape, info.dtype) == ("deep_compression", shape, np.float32)
            value = opened[name]
            assert value.config() == expected.config()
            for part, tensor in expected.tensors().items():
                assert value.tensors()[part].dtype == tensor.dtype
                np.testing.assert_array_equal(value.tensors()[part], tensor)
            dense = expected.to_dense().astype(np.float32).reshape(shape)
            np.testing.assert_array_equal(opened.to_dense(name), dense)


def test_commands_take_it(path, network, entries, tmp_path):
    save(path, network)
    assert is_compressed(path)
    with pytest.raises(ValueError, match="decompress it first"):
        open_checkpoint(path)
    table = inspect_file(path, verify=True)
    assert [record["kind"] for record in table.records[:3]] == ["deep_compression"] * 2 + ["plain"]
    assert table.totals["verified"]
    decompress_file(path, tmp_path / "dense.safetensors")
    rebuilt = load_file(tmp_path / "dense.safetensors")
    assert rebuilt.keys() == entries.keys()
    np.testing.assert_array_equal(rebuilt["a"], entries["a"].to_dense())
    np.testing.assert_array_equal(rebuilt["bias"], entries["bias"])


def test_one_of_plain_tensors_alone_is_a_model(path):
    save(path, network_bytes({"bias": np.arange(3.0)}, {}))
    assert not is_compressed(path)
    np.testing.assert_array_equal(open_checkpoint(path)["bias"], np.arange(3.0))


# --- damage


def refused(path, network):
    """Whether it is refused. Else all of it must be read, and have the shapes that are said.

    What is said to be a large matrix, and may be one, is opened only.
    """
    save(path, network)
    try:
        with store.open_store(path) as opened, np.errstate(all="ignore"):
            for name in opened:
                value, shape = opened[name], opened.info(name).shape
                if math.prod(shape) < 1 << 20:
                    assert opened.to_dense(name).shape == shape
                else:
                    assert isinstance(value, Factors)
    except CorruptDataError:
        return True
    return False


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_every_changed_byte_is_refused(path, network, flip):
    """The first bytes make it a network: without them it is a file with bytes in it."""
    data = bytearray(network)
    for at in range(4, len(data)):
        data[at] ^= flip
        assert refused(path, bytes(data))
        data[at] ^= flip
    assert not refused(path, bytes(data))


def test_every_cut_and_every_addition_is_refused(path, network):
    for length in range(4, len(network)):
        assert refused(path, network[:length])
        assert refused(path, sealed(network[9:length]))
    for more in (b"\0", b"\xff" * 100):
        assert refused(path, network + more)
        save(path, sealed(network[9:] + more))
        with pytest.raises(CorruptDataError, match="data must end at"):
            store.open_store(path)


def test_more_records_than_any_network_has_are_refused(path):
    """They would take some 1,000 bytes each in memory, and take only a few in the file."""
    empty_vector = bytes([1 + PLAIN_CODES.index("U8"), 1, 0])

    def with_records(n):
        names = (b"%x" % i for i in range(n))
        return sealed(
            leb128(n) + b"".join(leb128(len(name)) + name + empty_vector for name in names)
        )

    save(path, with_records(MAX_RECORDS))
    with store.open_store(path) as opened:
        assert len(opened) == MAX_RECORDS
    save(path, with_records(MAX_RECORDS + 1))
    with pytest.raises(CorruptDataError, match="at most 100000 records, got 100001"):
        store.open_store(path)


@pytest.mark.parametrize("flip", [0x01, 0x04, 0x20, 0x80, 0xFF])
def test_changed_bytes_under_a_right_checksum_do_no_harm(path, network, flip):
    body = bytearray(network[9:])
    found = set()
    for at in range(len(body)):
        body[at] ^= flip
        found.add(refused(path, sealed(bytes(body))))
        body[at] ^= flip
    assert True in found


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    assert refused(path, b"FFDC" + data)
    refused(path, sealed(data))


@settings(deadline=None)
@given(st.data())
def test_bytes_spliced_at_random_do_no_harm(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "spliced.safetensors"
    W = np.arange(24, dtype=np.float32).reshape(4, 6) % 5
    factors = DeepCompression(sparsity=0, n_bits=2).compress(W)
    whole = network_bytes({"a": factors}, {})[9:]
    at = data.draw(st.integers(0, len(whole)))
    to = data.draw(st.integers(at, len(whole)))
    middle = data.draw(st.binary(max_size=8))
    refused(path, sealed(whole[:at] + middle + whole[to:]))


def layer(**parts):
    return sealed(b"\1\1a\0" + layer_bytes(**parts))


def test_a_layer_made_by_hand_is_read(path):
    save(path, layer())
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened.to_dense("a"), [[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flags": 3}, r"dtype bits in \[0, 2\], got 3"),
        ({"flags": 16}, r"flags of layer 'a' must be in \[0, 15\]"),
        ({"gap_bits": 0}, r"'gap_bits' must be an integer in \[1, 16\], got 0"),
        ({"gap_bits": 17}, r"'gap_bits' must be an integer in \[1, 16\], got 17"),
        ({"shape": ()}, "shape of entry 'a' must be a list of sizes"),
        ({"shape": (2**40, 2**40)}, "shape of entry 'a' must be a list of sizes"),
        ({"shape": (1,) * 40}, "at most 32 dimensions, got 40"),
        ({"shape": (1, 2)}, "gap"),
        ({"shape": (0, 3)}, r"'n_entries' must be an integer in \[0, 0\], got 1"),
        ({"n_values": 0}, "1 to 256 values, got 0"),
        ({"n_values": 257}, "1 to 256 values, got 257"),
        ({"n_values": 2**40}, "data must have"),
        ({"n_entries": 7}, r"'n_entries' must be an integer in \[0, 6\], got 7"),
        ({"n_entries": 2**50, "shape": (2**50,)}, "max_dense_nbytes must be at least"),
        ({"codes": b"\1\0"}, "must have at most 1 bytes, got 2"),
        ({"codes": b"\3"}, "zeros after the last"),
        ({"codes": b"\1", "n_values": 1}, "codes must be in"),
    ],
)
def test_layers_that_contradict_themselves_are_refused(path, change, message):
    save(path, layer(**change))
    with pytest.raises(CorruptDataError, match=message):
        store.open_store(path)["a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (leb128(2**50), "at most 100000 records, got 1125899906842624"),
        (leb128(100_000), "must have 1 bytes from"),
        (b"\1" + leb128(2**40), "data must have 1099511627776 bytes from"),
        (b"\1\2\xff\xff\0", "a name must be UTF-8 text"),
        (b"\1\1a\x20\1\1", r"dtype number of 'a' must be in \[1, 17\], got 32"),
        (b"\1\1a\x02\2" + leb128(2**30) + leb128(2**30), r"fewer than 2\*\*59 elements"),
        (b"\1\1a\x02\1" + leb128(2**50), "must have 4503599627370496 bytes from"),
        (b"\2\1a\x0c\0\7\1a\x0c\0\7", "names must be unique, got 'a' twice"),
        (b"\2\1a\0" + layer_bytes() + b"\7a.codes\x0c\0\7", "names must be unique, got 'a.codes'"),
        (b"\0\0", "data must end at byte 10, got 1 more bytes"),
        (b"\x80\0", "a size must be below"),
        (b"\xff" * 12, "a size must be below"),
        (leb128(2**59), "a size must be below"),
    ],
)
def test_networks_that_contradict_themselves_are_refused(path, body, message):
    save(path, sealed(body))
    with pytest.raises(CorruptDataError, match=message):
        store.open_store(path)


def test_a_newer_version_is_named(path, network):
    save(path, sealed(network[9:], version=2))
    with pytest.raises(
        ValueError, match=r"format version of a network must be 1 .*, got 2"
    ) as caught:
        store.open_store(path)
    assert not isinstance(caught.value, CorruptDataError)

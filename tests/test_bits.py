from __future__ import annotations

import copy
import pickle
import re

import coding_oracle
import numpy as np
import pytest
from fastfactor import CorruptDataError, PackedCodes
from fastfactor.kernels.packing import bits_for, pack_bits, packed_nbytes, unpack_bits
from hypothesis import given
from hypothesis import strategies as st

WIDTHS = range(1, 17)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)

# The documented bit order, written out by hand: codes, n_bits, bytes.
VECTORS = [
    ([1, 0, 1, 1, 0, 0, 0, 1, 1], 1, [0b10001101, 0b00000001]),
    ([3, 2, 1, 0, 1], 2, [0b00011011, 0b00000001]),
    ([1, 2, 3, 4, 5], 3, [0b11010001, 0b01011000]),
    ([0xA, 0x3, 0xF], 4, [0x3A, 0x0F]),
    ([0b10001, 0b00110, 0b11111], 5, [0b11010001, 0b01111100]),
    ([0b100001, 0b000111, 0b111000], 6, [0b11100001, 0b10000001, 0b00000011]),
    ([0b1000001, 0b0000111, 0b1111000], 7, [0b11000001, 0b00000011, 0b00011110]),
    ([7, 200, 255], 8, [7, 200, 255]),
    ([0b100000001, 0b000001111], 9, [0b00000001, 0b00011111, 0b00000000]),
    ([0xABC, 0x123], 12, [0xBC, 0x3A, 0x12]),
    ([0x1234, 0xFFFF], 16, [0x34, 0x12, 0xFF, 0xFF]),
]


def dtype_of(n_bits):
    return np.uint8 if n_bits <= 8 else np.uint16 if n_bits <= 16 else np.uint32


def random_codes(rng, shape, n_bits, dtype=None):
    return rng.integers(0, 2**n_bits, shape).astype(dtype or dtype_of(n_bits))


@pytest.mark.parametrize("case", range(len(VECTORS)))
def test_vectors(case):
    codes, n_bits, expected = VECTORS[case]
    packed = PackedCodes.pack(np.array([codes]), n_bits)
    assert packed.data.tolist() == [expected]
    assert packed.nbytes == len(expected)
    again = PackedCodes(bytes(expected), n_bits, (1, len(codes)))
    assert again.unpack().tolist() == [codes]


def test_rows_and_codebooks_begin_on_bytes():
    codes = np.array([[[1, 2, 3], [3, 3, 3]], [[0, 1, 0], [2, 0, 1]]])
    packed = PackedCodes.pack(codes, 2, vector_dim=4)
    assert packed.shape == (2, 12)
    assert packed.n_codebooks == 2
    assert packed.data.tolist() == [[0b111001, 0b000100], [0b111111, 0b010010]]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(WIDTHS),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(0, 70),
    st.sampled_from(INTEGERS),
)
def test_like_the_oracle_and_back(seed, n_bits, books, rows, n, dtype):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, min(2**n_bits, np.iinfo(dtype).max + 1), (books, rows, n)).astype(dtype)
    packed = PackedCodes.pack(codes, n_bits)
    assert np.array_equal(packed.data, coding_oracle.pack(codes, n_bits))
    unpacked = packed.unpack()
    assert unpacked.dtype == dtype_of(n_bits)
    assert np.array_equal(unpacked, codes if books > 1 else codes[0])
    again = PackedCodes(packed.data, n_bits, packed.shape, 1, books)
    assert np.array_equal(again.data, packed.data)


@pytest.mark.parametrize("n_bits", WIDTHS)
@pytest.mark.parametrize(
    "shape",
    [(1, 65535), (1, 65536), (1, 65537), (3, 65537), (2, 3, 131077), (4099, 31), (70000, 1)],
)
def test_large_and_for_any_number_of_threads(rng, n_threads, n_bits, shape):
    codes = random_codes(rng, shape, n_bits)
    packed = PackedCodes.pack(codes, n_bits, n_threads=1)
    parallel = PackedCodes.pack(codes, n_bits, n_threads=n_threads)
    assert np.array_equal(packed.data, parallel.data)
    assert np.array_equal(packed.unpack(n_threads=1), codes)
    assert np.array_equal(packed.unpack(n_threads=n_threads), codes)
    bits = np.unpackbits(packed.data, axis=-1, bitorder="little")
    books = codes if codes.ndim == 3 else codes[np.newaxis]
    segments = bits.reshape(bits.shape[0], len(books), -1)[:, :, : shape[-1] * n_bits]
    weights = 1 << np.arange(n_bits)
    for book, expected in enumerate(books):
        one = segments[:, book].reshape(*expected.shape, n_bits)
        assert np.array_equal(one @ weights, expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers_and_strides(rng, dtype):
    wide = random_codes(rng, (6, 90), 4, dtype)
    expected = PackedCodes.pack(wide[::2, ::-3].copy(), 4).data
    assert np.array_equal(PackedCodes.pack(wide[::2, ::-3], 4).data, expected)
    turned = np.asfortranarray(wide)[::2, ::-3]
    assert np.array_equal(PackedCodes.pack(turned, 4).data, expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 70), st.integers(1, 3))
def test_flat_arrays_of_every_width(seed, n_bits, n, step):
    values = np.random.default_rng(seed).integers(0, 2**n_bits, n * step)[::step]
    packed = pack_bits(values, n_bits)
    assert packed.nbytes == packed_nbytes(n, n_bits)
    if n_bits:
        assert np.array_equal(packed, coding_oracle.pack(values[None, None], n_bits)[0])
    unpacked = unpack_bits(packed.tobytes(), n_bits, n)
    assert unpacked.dtype == dtype_of(n_bits)
    assert np.array_equal(unpacked, values)
    with pytest.raises(CorruptDataError, match=f"data must have .* {n} integers of {n_bits} bits"):
        unpack_bits(np.append(packed, np.uint8(0)), n_bits, n)


@pytest.mark.parametrize("n_bits", [7, 11, 17, 32])
def test_large_flat_arrays_for_any_number_of_threads(rng, n_threads, n_bits):
    for n in (65535, 65536, 200_003):
        values = rng.integers(0, 2**n_bits, n)
        packed = pack_bits(values, n_bits, n_threads=1)
        assert np.array_equal(pack_bits(values, n_bits, n_threads=n_threads), packed)
        assert np.array_equal(unpack_bits(packed, n_bits, n, n_threads=n_threads), values)
        bits = np.unpackbits(packed, bitorder="little")[: n * n_bits].reshape(n, n_bits)
        assert np.array_equal(bits @ (1 << np.arange(n_bits)), values)


def test_what_does_not_fit_a_flat_array_is_named():
    with pytest.raises(CorruptDataError, match="after the last integer, got 0b00010000 with 4"):
        unpack_bits(bytes([0, 16]), 12, 1)
    for n_bits in (9, 31):
        with pytest.raises(
            ValueError, match=rf"codes must be in \[0, {2**n_bits}\), got {2**n_bits}"
        ):
            pack_bits(np.array([1, 2**n_bits]), n_bits)
    with pytest.raises(ValueError, match="values must be zero for n_bits = 0, got 1"):
        pack_bits([0, 1], 0)
    with pytest.raises(ValueError, match=r"values must have 1 dimension, got shape \(1, 1\)"):
        pack_bits([[1]], 3)
    with pytest.raises(TypeError, match=r"values must be integers .* got float64"):
        pack_bits([1.5], 3)
    for call in (pack_bits, lambda data, n_bits: unpack_bits(data, n_bits, 1)):
        with pytest.raises(ValueError, match=r"n_bits must be in \[0, 32\], got 33"):
            call(np.zeros(1, np.uint8), 33)


def test_bits_for_so_many_numbers():
    assert [bits_for(n) for n in (0, 1, 2, 3, 4, 5, 256, 257)] == [0, 0, 1, 2, 2, 3, 8, 9]


def test_booleans_and_lists_and_memory_maps(rng, as_memmap):
    signs = rng.standard_normal((3, 77)) > 0
    assert np.array_equal(PackedCodes.pack(signs, 1).unpack(), signs)
    assert np.array_equal(PackedCodes.pack([[1, 0], [3, 2]], 2).unpack(), [[1, 0], [3, 2]])
    codes = random_codes(rng, (5, 33), 5, np.int32)
    packed = PackedCodes.pack(as_memmap(codes), 5)
    assert np.array_equal(PackedCodes(as_memmap(packed.data), 5, (5, 33)).unpack(), codes)


@pytest.mark.parametrize("n_bits", WIDTHS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_code_that_does_not_fit_is_named(rng, n_bits, dtype):
    for bad in (2**n_bits, -1):
        if not np.iinfo(dtype).min <= bad <= np.iinfo(dtype).max:
            continue
        codes = np.zeros((2, 5, 70001), dtype)
        codes[1, 3, 70000] = codes[1, 4, 2] = bad
        message = f"codes must be in [0, {2**n_bits}), got {bad} at [1, 3, 70000]"
        with pytest.raises(ValueError, match=re.escape(message)):
            PackedCodes.pack(codes, n_bits)


def test_data_is_owned_and_read_only():
    data = np.array([[0b0101]], np.uint8)
    packed = PackedCodes(data, 1, (1, 4))
    data[0, 0] = 15
    assert packed.unpack().tolist() == [[1, 0, 1, 0]]
    for made in (packed, PackedCodes.pack([[1, 0]], 1)):
        with pytest.raises(ValueError, match="read-only"):
            made.data[0, 0] = 1
        with pytest.raises(AttributeError):
            made.n_bits = 2


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies_are_equal_and_read_only(rng, duplicate):
    packed = PackedCodes.pack(random_codes(rng, (2, 3, 5), 6), 6, vector_dim=2)
    again = duplicate(packed)
    assert repr(again) == repr(packed)
    assert np.array_equal(again.data, packed.data)
    assert not again.data.flags.writeable


def test_padding_that_is_not_zero_is_refused():
    good = PackedCodes.pack(np.full((2, 3, 3), 7), 3).data
    for bit in range(good.size * 8):
        bad = np.packbits(
            np.unpackbits(good, bitorder="little") ^ (np.arange(good.size * 8) == bit),
            bitorder="little",
        )
        if bit % 16 < 9:
            assert PackedCodes(bad, 3, (3, 3), 1, 2).nbytes == good.size
        else:
            row, book = bit // 32, bit // 16 % 2
            with pytest.raises(CorruptDataError, match=f"of row {row}, codebook {book}$"):
                PackedCodes(bad, 3, (3, 3), 1, 2)


BAD = [
    ({"data": b"ab"}, ValueError, r"data must have shape \(2, 2\) for 4 bits .* got \(2,\)"),
    ({"data": b"abcde"}, ValueError, r"data must have shape \(2, 2\) .* got \(5,\)"),
    ({"data": np.zeros((4, 1), np.uint8)}, ValueError, r"data must have shape .* got \(4, 1\)"),
    ({"data": np.zeros(4, np.int8)}, TypeError, "data must have dtype uint8, got int8"),
    ({"data": [1, 2, 3, 4]}, TypeError, "data must be bytes or a uint8 array, got list"),
    ({"n_bits": 17}, ValueError, r"n_bits must be in \[1, 16\], got 17"),
    ({"n_bits": 0}, ValueError, r"n_bits must be in \[1, 16\], got 0"),
    ({"n_bits": 4.0}, TypeError, r"n_bits must be an integer in \[1, 16\], got 4.0"),
    ({"shape": (2,)}, ValueError, r"shape must be a pair of integers, got \(2,\)"),
    ({"shape": (2, -4)}, ValueError, r"shape\[1\] must be in .* got -4"),
    ({"shape": (2**62, 2**62)}, ValueError, "data must have shape .* got"),
    ({"vector_dim": 3}, ValueError, r"vector_dim must divide shape\[1\], 4, got 3"),
    ({"vector_dim": 0}, ValueError, "vector_dim must be at least 1, got 0"),
    ({"n_codebooks": 0}, ValueError, r"n_codebooks must be in \[1, 256\], got 0"),
    ({"n_codebooks": 2}, ValueError, r"data must have shape \(2, 4\) .* got \(4,\)"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    arguments = {"data": bytes(4), "n_bits": 4, "shape": (2, 4), "vector_dim": 1}
    with pytest.raises(error, match=message):
        PackedCodes(**arguments | change)


def test_bad_codes_are_named():
    with pytest.raises(TypeError, match=r"codes must be integers or booleans .* got float64"):
        PackedCodes.pack(np.ones((2, 2)), 4)
    with pytest.raises(TypeError, match=r"codes must be integers .* got >i4"):
        PackedCodes.pack(np.ones((2, 2), ">i4"), 4)
    with pytest.raises(ValueError, match=r"codes must have 2 or 3 dimensions, got shape \(2,\)"):
        PackedCodes.pack([1, 2], 4)
    with pytest.raises(ValueError, match=r"codes.shape\[0\] must be in \[1, 256\], got 0"):
        PackedCodes.pack(np.ones((0, 2, 2), int), 4)
    with pytest.raises(ValueError, match=r"n_bits must be in \[1, 16\], got 17"):
        PackedCodes.pack([[1, 2]], 17)
    with pytest.raises(ValueError, match=r"n_threads must be in \[1, 1024\], got 0"):
        PackedCodes.pack([[1, 2]], 4, n_threads=0)


def test_codes_have_no_product_and_are_no_array():
    packed = PackedCodes.pack([[1, 0], [0, 1]], 1)
    with pytest.raises(TypeError, match=r"unsupported operand|does not support ufuncs"):
        np.ones(2) @ packed
    with pytest.raises(TypeError, match=r"unsupported operand|does not support ufuncs"):
        packed @ np.ones(2)
    with pytest.raises(TypeError, match=r"PackedCodes must be turned into an array by unpack\(\)"):
        np.asarray(packed)

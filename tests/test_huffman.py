from __future__ import annotations

import hashlib
import re
from pathlib import Path

import coding_oracle
import huffman_oracle
import numpy as np
import pytest
from fastfactor import CorruptDataError, huffman_decode, huffman_encode
from hypothesis import given
from hypothesis import strategies as st
from processes import built_levels, output_of

BLOCK = 4096  # the smallest
SEEDS = sorted((Path(__file__).parent / "fuzz_corpus" / "huffman").iterdir())


def skewed(rng, n, n_symbols, dtype=np.uint8, strength=0.3):
    """Symbols with frequencies that fall by a power, in random places of the alphabet."""
    shares = 1.0 / np.arange(1, n_symbols + 1) ** (1 / strength if n_symbols < 300 else 1)
    return rng.permutation(n_symbols)[rng.choice(n_symbols, n, p=shares / shares.sum())].astype(
        dtype
    )


def both_ways(symbols, **options):
    data = huffman_encode(symbols, **options)
    decoded = huffman_decode(data)
    assert decoded.dtype == symbols.dtype
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(huffman_decode(data.tobytes()), symbols)
    return data


@given(
    st.lists(st.integers(0, 255), max_size=300),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 8),
    st.integers(1, 40),
)
def test_there_and_back(values, dtype, narrow, repeats):
    symbols = np.tile((np.array(values, np.int64) >> narrow).astype(dtype), repeats)
    data = both_ways(symbols)
    assert huffman_oracle.decode(data).symbols == symbols.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40_000), st.integers(1, 300), st.integers(12, 14))
def test_many_symbols_there_and_back(seed, n, n_symbols, block_log):
    rng = np.random.default_rng(seed)
    both_ways(skewed(rng, n, n_symbols, np.uint16), block_size=2**block_log)


@pytest.mark.parametrize("n_symbols", [1, 2, 3, 4, 16, 17, 32, 33, 256, 257, 5000, 65536])
@pytest.mark.parametrize(
    "n", [0, 1, 2, 3, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 24593, 100_003]
)
def test_alphabets_and_lengths(rng, n, n_symbols):
    dtype = np.uint8 if n_symbols <= 256 else np.uint16
    for symbols in (
        skewed(rng, n, n_symbols, dtype),
        rng.integers(0, n_symbols, n).astype(dtype),
        (np.arange(n) % n_symbols).astype(dtype),
    ):
        both_ways(symbols, block_size=BLOCK)
        both_ways(symbols)


@pytest.mark.parametrize(
    ("n_symbols", "dtype", "n"),
    [(16, np.uint8, 20_011), (2, np.uint8, 9001), (200, np.uint8, 9001), (700, np.uint16, 30_000)],
)
def test_like_the_description(rng, n_symbols, dtype, n):
    symbols = skewed(rng, n, n_symbols, dtype)
    data = both_ways(symbols, block_size=2**13)
    coded = huffman_oracle.decode(data)
    assert coded.kind == 0
    assert not any(coded.raw_blocks)
    assert np.array_equal(coded.symbols, symbols)


def test_every_kind_occurs(rng):
    kinds = {
        0: skewed(rng, 5000, 16),
        1: rng.integers(0, 256, 5000).astype(np.uint8),
        2: np.full(5000, 200, np.uint8),
    }
    for kind, symbols in kinds.items():
        assert huffman_oracle.decode(both_ways(symbols)).kind == kind
    mixed = np.concatenate([np.zeros(10 * BLOCK, np.uint8), kinds[1][:BLOCK]])
    raw = huffman_oracle.decode(both_ways(mixed, block_size=BLOCK)).raw_blocks
    assert raw == [False] * 10 + [True]


def fibonacci(n):
    counts = [1, 1]
    while len(counts) < n:
        counts.append(counts[-1] + counts[-2])
    return np.array(counts[:n])


DISTRIBUTIONS = [
    fibonacci(22),
    fibonacci(17),
    np.arange(1, 25) ** 3,
    np.array([1000, 1, 1, 1, 1, 1, 1]),
    np.array([1] * 33),
    np.array([1, 10**5]),
    np.arange(1, 65) ** 2,
    2 ** np.arange(16),
]


@pytest.mark.heavy
@pytest.mark.parametrize("case", range(len(DISTRIBUTIONS)))
@pytest.mark.parametrize("slack", [0, 1, 2, 5, 20])
def test_lengths_are_optimal_under_their_limit(case, slack):
    counts = DISTRIBUTIONS[case]
    symbols = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)
    limit = min(20, int(np.ceil(np.log2(len(counts)))) + slack)
    coded = huffman_oracle.decode(both_ways(symbols, max_length=max(limit, 1)))
    if coded.kind:  # raw, because no words as short as that take less
        assert coding_oracle.limited_cost(counts, limit) >= 8 * symbols.size
        return
    if coded.group > 1:  # neighbours are equal here, so that groups pay
        grouped = symbols[: symbols.size // coded.group * coded.group].reshape(-1, coded.group)
        symbols = grouped @ (1 << coded.symbol_bits * np.arange(coded.group))
        counts = np.bincount(symbols)
    counts = counts[counts > 0]
    lengths = np.array([length for length in coded.lengths if length])
    assert lengths.max() <= max(limit, 1)
    cost = int(counts @ lengths)
    assert cost == coding_oracle.limited_cost(counts, max(limit, 1))
    if slack == 20 and coding_oracle.limited_cost(counts, 40) == cost:
        assert cost == coding_oracle.huffman_cost(counts)


def test_a_deep_distribution_reaches_the_limit(rng):
    symbols = np.repeat(np.arange(24), fibonacci(24)).astype(np.uint16) * 1000
    rng.shuffle(symbols)
    coded = huffman_oracle.decode(both_ways(symbols, max_length=20))
    assert max(coded.lengths) == 20
    assert max(huffman_oracle.decode(both_ways(symbols)).lengths) == 12


def test_groups_are_taken_where_single_words_waste(rng):
    quantised = np.clip(np.round(rng.standard_normal(400_000) / 0.553 + 7.5), 0, 15)
    symbols = quantised.astype(np.uint8)
    data = both_ways(symbols)
    assert huffman_oracle.decode(data).group == 2
    assert data.size * 8 < symbols.size * coding_oracle.entropy(symbols) * 1.013
    bits = (rng.random(200_000) < 0.05).astype(np.uint8)
    data = both_ways(bits)
    assert huffman_oracle.decode(data).group == 4
    assert data.size * 8 < 0.38 * bits.size
    even = (np.arange(4000) % 16).astype(np.uint8)
    rng.shuffle(even)
    assert huffman_oracle.decode(both_ways(even)).group == 1


def test_small_data_stay_small(rng):
    assert huffman_encode(np.zeros(0, np.uint8)).size == 8
    assert huffman_encode(np.zeros(1, np.uint8)).size <= 10
    assert huffman_encode(np.full(16384, 7, np.uint8)).size <= 13
    for n in (10, 100, 1000):
        symbols = skewed(rng, n, 16, strength=1)
        bits = n * coding_oracle.entropy(symbols)
        assert huffman_encode(symbols).size <= min(bits / 8 * 1.03 + 32, n + 16)


@pytest.mark.parametrize("n_symbols", [2, 16, 256, 3000])
def test_the_same_bytes_for_any_number_of_threads(rng, n_threads, n_symbols):
    symbols = skewed(rng, 2_500_003, n_symbols, np.uint16)
    data = huffman_encode(symbols, block_size=2**16, n_threads=1)
    parallel = huffman_encode(symbols, block_size=2**16, n_threads=n_threads)
    assert np.array_equal(data, parallel)
    assert np.array_equal(huffman_decode(data, n_threads=n_threads), symbols)


def test_the_same_bytes_at_every_level():
    code = """
        import hashlib
        import numpy as np
        from fastfactor import PackedCodes, gap_encode, huffman_decode, huffman_encode

        rng = np.random.default_rng(5)
        digest = hashlib.sha256()
        for n_symbols in (1, 2, 16, 256, 4000, 65536):
            for n in (0, 1, 4097, 300_001):
                symbols = np.minimum(rng.geometric(min(1, 2 / n_symbols), n), n_symbols) - 1
                data = huffman_encode(symbols.astype(np.uint16))
                assert np.array_equal(huffman_decode(data), symbols)
                digest.update(data)
        digest.update(PackedCodes.pack(rng.integers(0, 32, (7, 1001)), 5).data)
        digest.update(gap_encode(rng.random(100_000) < 0.1).gaps)
        print(digest.hexdigest())
    """
    found = {output_of(code, environment={"FASTFACTOR_LEVEL": level}) for level in built_levels()}
    assert len(found) == 1


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.name)
def test_what_was_stored_once_is_read_for_ever(path):
    data = path.read_bytes()
    assert huffman_decode(data).tolist() == huffman_oracle.decode(data).symbols


def test_the_stored_form_does_not_change():
    """A digest of data of every kind."""
    symbols = (np.arange(20_000) ** 2 % 97 % 16).astype(np.uint8)
    kinds = [symbols, symbols.astype(np.uint16) * 300, symbols[:1], symbols[:0], symbols & 1]
    digest = hashlib.sha256(b"".join(huffman_encode(s, block_size=BLOCK) for s in kinds))
    assert digest.hexdigest()[:16] == "21ccb029d24cda89"


# --- data that somebody has changed


def small_blobs():
    rng = np.random.default_rng(7)
    return {
        "empty": huffman_encode(np.zeros(0, np.uint8)),
        "constant": huffman_encode(np.full(30_000, 9, np.uint16)),
        "raw": huffman_encode(rng.integers(0, 256, 40).astype(np.uint8)),
        "pairs": huffman_encode(skewed(rng, 301, 5)),
        "fours": huffman_encode((rng.random(203) < 0.1).astype(np.uint8)),
        "wide": huffman_encode(skewed(rng, 99, 30, np.uint16)),
        "streams": huffman_encode((rng.random(16_400) < 0.002).astype(np.uint8)),
    }


@pytest.mark.parametrize("name", small_blobs())
def test_every_flipped_bit_is_found(name):
    data = small_blobs()[name]
    for bit in range(8 * data.size):
        changed = data.copy()
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptDataError, match=r"^data must "):
            huffman_decode(changed)


@pytest.mark.parametrize("name", small_blobs())
def test_every_cut_and_every_longer_form_is_found(name):
    data = small_blobs()[name].tobytes()
    for size in range(len(data)):
        with pytest.raises(CorruptDataError, match=r"^data must "):
            huffman_decode(data[:size])
    for more in (b"\0", b"\1", b"\xff" * 9, data):
        with pytest.raises(CorruptDataError, match=r"^data must "):
            huffman_decode(data + more)
        with pytest.raises(CorruptDataError, match=r"^data must "):
            huffman_decode(more + data[1:] if more != data else b"")


def repaired(data, n_header, n_blocks=1):
    """Changed data whose checksums are right again: what only checks of the content can refuse."""
    header = bytes(data[:n_header])
    total = huffman_oracle.checksum(header, 0)
    content = bytes(data[n_header + 8 :])
    block = huffman_oracle.checksum(content, total << 32)
    return header + total.to_bytes(4, "little") + (block.to_bytes(4, "little") + content) * n_blocks


@pytest.mark.parametrize("name", ["pairs", "fours", "wide", "raw", "streams"])
def test_changes_with_right_checksums_do_no_harm(name):
    """Other symbols, or refused: never a crash."""
    data = small_blobs()[name]
    n_header = next(
        n
        for n in range(4, data.size)
        if huffman_oracle.checksum(bytes(data[:n]), 0) == int.from_bytes(data[n : n + 4], "little")
    )
    assert repaired(data, n_header) == data.tobytes()
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(3000):
        changed = data.copy()
        for _ in range(rng.integers(1, 4)):
            place = rng.integers(n_header) if rng.random() < 0.5 else rng.integers(data.size)
            changed[place] = rng.integers(256)
        try:
            assert huffman_decode(repaired(changed, n_header)).size < 2**20
        except CorruptDataError:
            refused += 1
    assert refused > 300


def forged(*parts):
    header = b"".join(parts)
    return header + huffman_oracle.checksum(header, 0).to_bytes(4, "little")


@pytest.mark.parametrize(
    "data",
    [
        forged(b"H\x01\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x16"),
        forged(b"H\x01\x02", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x16"),
        forged(b"H\x01\x04", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x07", bytes(1000)),
        forged(b"H\x01\x02", b"\x80\x80\x80\x02", b"\x16", b"\x0b\x0b"),
        forged(b"H\x01\x02", b"\x80\x80\x80\x02", b"\x16", b"\xff\xff\xff\xff\xff\x7f\x01"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(data):
    with pytest.raises(CorruptDataError, match=r"^data must "):
        huffman_decode(data)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(CorruptDataError, match=r"^data must "):
        huffman_decode(noise)
    with pytest.raises(CorruptDataError, match=r"^data must "):
        huffman_decode(b"H\x01" + noise)


def test_a_newer_version_is_named():
    data = huffman_encode(np.arange(9, dtype=np.uint8))
    data[1] = 2
    with pytest.raises(CorruptDataError, match="data must be of version 1, the only known one"):
        huffman_decode(data)


SYMBOLS = np.arange(16, dtype=np.uint8)
BAD = [
    (
        lambda: huffman_encode(SYMBOLS.astype(int)),
        TypeError,
        "symbols must have dtype .* got int64",
    ),
    (lambda: huffman_encode(SYMBOLS.reshape(4, 4)), ValueError, "symbols must have 1 dimension"),
    (lambda: huffman_encode(SYMBOLS[::2]), ValueError, "symbols must be contiguous and aligned"),
    (
        lambda: huffman_encode(SYMBOLS, max_length=3),
        ValueError,
        "max_length must be at least 4 for 16 different symbols, got 3",
    ),
    (lambda: huffman_encode(SYMBOLS, max_length=0), ValueError, r"max_length must be in \[1, 20\]"),
    (
        lambda: huffman_encode(SYMBOLS, max_length=21),
        ValueError,
        r"max_length must be in \[1, 20\]",
    ),
    (lambda: huffman_encode(SYMBOLS, block_size=5000), ValueError, "block_size must be a power of"),
    (lambda: huffman_encode(SYMBOLS, block_size=2048), ValueError, "block_size must be in .* 2048"),
    (lambda: huffman_encode(SYMBOLS, n_threads=0), ValueError, "n_threads must be in .* got 0"),
    (lambda: huffman_decode([1, 2]), TypeError, "data must be bytes or a uint8 array, got list"),
    (lambda: huffman_decode(SYMBOLS.astype(np.int8)), TypeError, "data must have dtype uint8"),
    (lambda: huffman_decode(SYMBOLS.reshape(4, 4)), ValueError, "data must have 1 dimension"),
    (lambda: huffman_decode(SYMBOLS[::2]), ValueError, "data must be contiguous and aligned"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_arguments_are_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_messages_are_whole_sentences():
    with pytest.raises(CorruptDataError) as caught:
        huffman_decode(b"")
    assert re.fullmatch(r"data must .*, .*", str(caught.value))
    assert isinstance(caught.value, ValueError)


def test_more_symbols_than_expected_are_refused_before_they_are_decoded(rng):
    data = huffman_encode(np.zeros(2**40 // 2**20, np.uint8).repeat(64))
    size = 64 * 2**20
    assert huffman_decode(data, max_size=size).size == size
    with pytest.raises(CorruptDataError, match=f"at most {size - 1} symbols, got {size}"):
        huffman_decode(data, max_size=size - 1)
    coded = huffman_encode(rng.integers(0, 9, 1000).astype(np.uint16))
    np.testing.assert_array_equal(huffman_decode(coded, max_size=10**30), huffman_decode(coded))
    with pytest.raises(CorruptDataError, match="at most 0 symbols, got 1000"):
        huffman_decode(coded, max_size=0)
    with pytest.raises(ValueError, match="max_size must be at least 0, got -1"):
        huffman_decode(coded, max_size=-1)

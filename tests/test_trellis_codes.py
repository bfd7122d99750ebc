"""Streams of trellis-coded levels, against plain Python."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import trellis_oracle as oracle
from fastfactor import CorruptDataError
from fastfactor.kernels.trellis import N_SYMBOLS, Classes, TrellisDecoder, trellis_encode


def frequencies_of(rng, n_contexts, *, flat=0.3):
    """Made-up tables that sum to 2**14 and have every symbol."""
    shares = rng.random((n_contexts, N_SYMBOLS)) ** (1 / flat) + 1e-6
    table = np.maximum((shares / shares.sum(axis=1, keepdims=True) * 2**14).astype(int), 1)
    table[np.arange(n_contexts), table.argmax(axis=1)] += 2**14 - table.sum(axis=1)
    return table.astype(np.uint16)


def coded(rng, shape, *, count=3, shift=1, block_rows=4, spread=3.0):
    """What a decoder is made of, and the levels and scales of rows that it holds."""
    n_rows, n_columns = shape
    classes = Classes(rng.integers(-6, 7, n_columns).astype(np.int8), shift, count)
    row_logs = rng.integers(-40, 40, n_rows) * (count > 1)
    levels = np.clip(np.rint(spread * rng.standard_normal(shape)), -65535, 65535).astype(np.int32)
    frequencies = frequencies_of(rng, classes.contexts)
    words, lengths = trellis_encode(levels, row_logs, classes, frequencies, block_rows=block_rows)
    centers = (0.2 * rng.standard_normal((2 * count, 3))).astype(np.float32)
    return (words, lengths, n_rows, block_rows, classes, frequencies, centers), levels, row_logs


def expected_rows(made, levels, row_logs):
    classes, centers = made[4], made[6]
    twice = oracle.twice_classes(classes.columns, row_logs, classes.shift, classes.count)
    return oracle.reconstruct(levels, oracle.contexts_of(levels, twice), centers)


SHAPES = [(0, 5), (3, 0), (1, 1), (5, 1), (4, 7), (13, 7), (64, 3), (70, 17), (301, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3])
def test_like_the_oracle_and_back(rng, shape, count):
    made, levels, row_logs = coded(rng, shape, count=count)
    words, lengths, n_rows, block_rows, classes, frequencies, _ = made
    contexts = oracle.contexts_of(
        levels, oracle.twice_classes(classes.columns, row_logs, classes.shift, count)
    )
    streams = []
    for first in range(0, n_rows, block_rows):
        pairs = []
        for row in range(first, min(first + block_rows, n_rows)):
            pairs += [(int(row_logs[row]), 2 * count)] * (count > 1)
            pairs += zip(levels[row].tolist(), contexts[row].tolist(), strict=True)
        streams.append(oracle.encode_block(pairs, frequencies))
    assert lengths.tolist() == [len(stream) for stream in streams]
    np.testing.assert_array_equal(words, np.concatenate([np.zeros(0, np.uint16), *streams]))
    decoder = TrellisDecoder(*made)
    everything = decoder.rows(np.arange(n_rows))
    assert everything.dtype == np.float32
    np.testing.assert_array_equal(everything, expected_rows(made, levels, row_logs))
    assert decoder.rows(np.arange(0)).shape == (0, shape[1])


@pytest.mark.parametrize("spread", [0.01, 0.5, 10, 300, 20000, 1e6])
def test_levels_of_every_size(rng, spread):
    made, levels, row_logs = coded(rng, (23, 31), spread=spread)
    found = TrellisDecoder(*made).rows(np.arange(23))
    np.testing.assert_array_equal(found, expected_rows(made, levels, row_logs))


@pytest.mark.parametrize("block_rows", [1, 2, 5, 64, 1000])
def test_any_rows_alone_and_together(rng, block_rows):
    made, levels, row_logs = coded(rng, (211, 9), block_rows=block_rows)
    expected, decoder = expected_rows(made, levels, row_logs), TrellisDecoder(*made)
    for row in (0, 1, 100, 209, 210):
        np.testing.assert_array_equal(decoder.rows(np.array([row])), expected[[row]])
    for n in (2, 3, 5, 60, 150):
        ids = np.sort(rng.choice(211, n, replace=False))
        np.testing.assert_array_equal(decoder.rows(ids), expected[ids])


@pytest.mark.parametrize("count", [1, 128])
@pytest.mark.parametrize("shift", [0, 8])
def test_classes(rng, count, shift):
    made, levels, row_logs = coded(rng, (40, 21), count=count, shift=shift)
    found = TrellisDecoder(*made).rows(np.arange(40))
    np.testing.assert_array_equal(found, expected_rows(made, levels, row_logs))


def test_the_same_for_any_number_of_threads(rng, n_threads):
    made, levels, row_logs = coded(rng, (4001, 23), block_rows=3)
    words, lengths, _, block_rows, classes, frequencies, _ = made
    several = trellis_encode(
        levels, row_logs, classes, frequencies, block_rows=block_rows, n_threads=n_threads
    )
    np.testing.assert_array_equal(several[0], words)
    np.testing.assert_array_equal(several[1], lengths)
    decoder = TrellisDecoder(*made)
    found = decoder.rows(np.arange(4001), n_threads=n_threads)
    np.testing.assert_array_equal(found, expected_rows(made, levels, row_logs))


def test_the_size_is_the_entropy(rng):
    levels = np.rint(1.5 * rng.standard_normal((50, 400))).astype(np.int32)
    one = Classes(np.zeros(400, np.int8), 0, 1)
    contexts = oracle.contexts_of(levels, np.zeros(levels.shape, int))
    frequencies, bits = np.zeros((2, N_SYMBOLS), np.uint16), 0.0
    for context in (0, 1):
        here = levels[contexts == context]
        symbols = np.where(here > 0, 2 * here - 1, -2 * here)
        counts = np.bincount(symbols, minlength=N_SYMBOLS)
        shares = np.maximum((counts / counts.sum() * 2**14).astype(int), counts > 0)
        shares[shares.argmax()] += 2**14 - shares.sum()
        frequencies[context] = shares
        used = counts > 0
        bits -= np.sum(counts[used] * np.log2(counts[used] / counts.sum()))
    words, _ = trellis_encode(levels, np.zeros(50, int), one, frequencies, block_rows=50)
    assert bits < 16 * len(words) < 1.003 * bits + 32


def test_words_are_read_where_they_lie(rng, as_memmap):
    made, levels, row_logs = coded(rng, (50, 7))
    mapped = as_memmap(made[0])
    assert not mapped.flags.writeable
    for words in (mapped, np.repeat(made[0], 2)[::2], made[0].astype(">u2")):
        found = TrellisDecoder(words, *made[1:]).rows(np.arange(50))
        np.testing.assert_array_equal(found, expected_rows(made, levels, row_logs))


def test_decoders_are_copied_and_pickled(rng):
    made, levels, row_logs = coded(rng, (50, 7))
    decoder = TrellisDecoder(*made)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        np.testing.assert_array_equal(
            other.rows(np.arange(50)), expected_rows(made, levels, row_logs)
        )


# --- damage


def test_every_cut_is_refused(rng):
    made, _, _ = coded(rng, (4, 11))
    words, lengths = made[:2]
    for size in range(len(words)):
        with pytest.raises(CorruptDataError, match=r"words must have|lengths must"):
            TrellisDecoder(words[:size], *made[1:])
        shorter = np.array([size])
        with pytest.raises(CorruptDataError, match=r"(lengths|data|states) must"):
            TrellisDecoder(words[:size], shorter, *made[2:]).rows(np.arange(4))
    longer = np.append(words, np.uint16(7))
    with pytest.raises(CorruptDataError, match="data must end with its last level"):
        TrellisDecoder(longer, lengths + 1, *made[2:]).rows(np.arange(4))


def test_any_words_give_what_the_oracle_gives(rng):
    made, _, _ = coded(rng, (4, 9))
    words, _, _, _, classes, frequencies, centers = made
    refused = 0
    for trial in range(300):
        changed = words.copy()
        if trial % 2:
            changed[rng.integers(len(changed))] ^= np.uint16(1 << rng.integers(16))
        else:
            changed = rng.integers(0, 2**16, rng.integers(2, 30)).astype(np.uint16)
        decoder = TrellisDecoder(changed, np.array([len(changed)]), *made[2:])
        try:
            levels, contexts = oracle.read_block(
                changed, frequencies, 4, classes.columns, classes.shift, classes.count
            )
        except CorruptDataError as error:
            refused += 1
            with pytest.raises(CorruptDataError, match=str(error)):
                decoder.rows(np.arange(4))
            continue
        found = decoder.rows(np.arange(4))
        np.testing.assert_array_equal(found, oracle.reconstruct(levels, contexts, centers))
    assert refused > 250


def test_a_row_needs_no_words_of_other_blocks(rng):
    made, levels, row_logs = coded(rng, (12, 7), block_rows=4)
    words = made[0].copy()
    words[: made[1][0]] = 0
    decoder = TrellisDecoder(words, *made[1:])
    expected = expected_rows(made, levels, row_logs)
    np.testing.assert_array_equal(decoder.rows(np.arange(4, 12)), expected[4:])
    with pytest.raises(CorruptDataError, match="states must be at least 65536, got 0"):
        decoder.rows(np.array([3]))


def test_what_does_not_fit_is_named(rng):
    made, levels, row_logs = coded(rng, (12, 7))
    words, lengths, n_rows, block_rows, classes, frequencies, centers = made
    less = frequencies.copy()
    less[1, less[1].argmax()] -= 1
    with pytest.raises(CorruptDataError, match="frequencies must be 16384 in all, got 16383"):
        TrellisDecoder(words, lengths, n_rows, block_rows, classes, less, centers)
    with pytest.raises(CorruptDataError, match="frequencies must be 16384 in all"):
        trellis_encode(levels, row_logs, classes, less, block_rows=4)
    for wrong in ([1, *lengths[1:]], [-5, *lengths[1:]], [2**40, *lengths[1:]]):
        with pytest.raises(CorruptDataError, match="lengths must be at least 2"):
            TrellisDecoder(words, np.array(wrong), *made[2:])
    for arguments, message in (
        ((words.astype(int), *made[1:]), "words must be uint16"),
        ((words.tolist(), *made[1:]), "words must be uint16 of 1 dimension, got int64 of shape"),
        ((words, lengths[1:], *made[2:]), "lengths must have shape"),
        ((words, lengths + 0.5, *made[2:]), "lengths must be integers, got float64"),
        ((words, lengths, -1, *made[3:]), "n_rows must be at least 0"),
        ((words, lengths, n_rows, 0, *made[4:]), "block_rows must be in"),
        ((*made[:5], frequencies[1:], centers), "frequencies must have shape"),
        ((*made[:5], frequencies.astype(int), centers), "frequencies must be a uint16 array"),
        ((*made[:6], centers[1:]), "centers must have shape"),
        ((*made[:6], centers * np.float32(np.nan)), "centers must be finite"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            TrellisDecoder(*arguments)
    decoder = TrellisDecoder(*made)
    for ids in ([-1], [12], [3, 3], [4, 2]):
        with pytest.raises(ValueError, match=r"ids must be in \[0, 12\) and strictly ascend, got"):
            decoder.rows(np.array(ids))
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        decoder.rows(np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"ids must have 1 dimension, got shape \(2, 1\)"):
        decoder.rows(np.array([[0], [1]]))
    assert decoder.rows([]).shape == (0, 7)
    np.testing.assert_array_equal(decoder.rows([2, 3]), decoder.rows(np.arange(12))[2:4])
    never = frequencies.copy()
    never[:, 1] += never[:, 2]
    never[:, 2] = 0
    with pytest.raises(ValueError, match="frequencies must be positive for every level, got 0"):
        trellis_encode(np.full((12, 7), -1, np.int32), row_logs, classes, never, block_rows=4)
    with pytest.raises(ValueError, match=r"levels must be in \[-65535, 65535\], got 65536"):
        trellis_encode(
            np.full((12, 7), 65536, np.int32), row_logs, classes, frequencies, block_rows=4
        )
    with pytest.raises(TypeError, match="levels must be an int32 array"):
        trellis_encode(levels.astype(int), row_logs, classes, frequencies, block_rows=4)

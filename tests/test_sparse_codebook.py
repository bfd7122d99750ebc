"""Products from codes at the places of a pruned matrix, against the matrix that they stand for."""

from __future__ import annotations

import copy
import pickle

import fastfactor
import ml_dtypes
import numpy as np
import pytest
from fastfactor import CorruptDataError, SparseCodes, sparse_codebook_matmul
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from numpy.random import default_rng

TILE = 255  # columns that a tile of the layout has; a group has 64 rows, a block 256
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def random_case(rng, shape, *, density=0.1, entries=16, dtype=np.float32, gap_bits=None):
    """Codes, and the matrix that they stand for in float64."""
    codebook = rng.standard_normal(entries).astype(dtype)
    zero = int(rng.integers(entries))
    codebook[zero] = 0
    labels = rng.integers(0, entries, shape)
    labels[rng.random(shape) >= density] = zero
    sparse = SparseCodes.from_labels(labels, codebook, gap_bits=gap_bits)
    return sparse, codebook.astype(np.float64)[labels]


def check(sparse, dense, x, **options):
    found = sparse_codebook_matmul(x, sparse, **options)
    exact = x.astype(np.float64) @ dense.T
    allowed = 1e-5 * (np.abs(x.astype(np.float64)) @ np.abs(dense).T)
    assert found.dtype == np.float32
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= allowed).all()
    return found


def inputs(rng, batch, columns):
    shape = (columns,) if batch is None else (batch, columns)
    return rng.standard_normal(shape).astype(np.float32)


# --- the matrix that codes stand for


@pytest.mark.parametrize("gap_bits", [1, 2, 5, 8, 9, 16])
def test_stored_form_is_that_of_gap_codes(rng, gap_bits):
    codebook = np.array([0.5, 0, -2], np.float32)
    labels = rng.choice([0, 1, 2], p=[0.05, 0.9, 0.05], size=(40, 31))
    sparse = SparseCodes.from_labels(labels, codebook, gap_bits=gap_bits)
    gaps, fillers, width, size = fastfactor.gap_encode(labels != 1, gap_bits=gap_bits)
    assert (sparse.gap_bits, sparse.shape, size) == (width, labels.shape, labels.size)
    np.testing.assert_array_equal(sparse.gaps, gaps)
    assert (sparse.codes[fillers] == 1).all()
    np.testing.assert_array_equal(np.delete(sparse.codes, fillers), labels[labels != 1])
    np.testing.assert_array_equal(sparse.to_dense(), codebook[labels])
    again = SparseCodes(sparse.codes, sparse.gaps, width, codebook, sparse.shape)
    np.testing.assert_array_equal(again.to_dense(), codebook[labels])


def test_through_huffman_and_back(rng):
    sparse, dense = random_case(rng, (90, 300), entries=16)
    stored = [fastfactor.huffman_encode(a) for a in (sparse.codes, sparse.gaps)]
    codes, gaps = (fastfactor.huffman_decode(data) for data in stored)
    again = SparseCodes(codes, gaps, sparse.gap_bits, sparse.codebook, sparse.shape)
    x = inputs(rng, 3, 300)
    np.testing.assert_array_equal(check(again, dense, x), sparse_codebook_matmul(x, sparse))


def test_from_the_labels_of_kmeans1d(rng):
    W = rng.standard_normal((30, 50)).astype(np.float32)
    W[rng.random(W.shape) < 0.8] = 0
    best = fastfactor.kmeans1d(W.reshape(-1), 16, fixed=[0])
    labels, codebook = best.labels.reshape(W.shape), best.centroids
    sparse = SparseCodes.from_labels(labels, codebook, mask=W != 0)
    shared = np.where(W != 0, codebook.reshape(-1)[labels], 0)
    np.testing.assert_array_equal(sparse.to_dense(), shared)
    check(sparse, shared.astype(np.float64), inputs(rng, None, 50))


def test_matrices_that_it_turns_into(rng):
    sparse, dense = random_case(rng, (33, 700), entries=100, dtype=np.float16)
    csr = sparse.to_csr()
    np.testing.assert_array_equal(csr.to_dense(), dense.astype(np.float32))
    np.testing.assert_array_equal(sparse.to_dense(), dense.astype(np.float32))
    assert csr.nnz == np.count_nonzero(dense)
    assert sparse.n_bits == 7
    bits = sparse.codes.size * (7 + sparse.gap_bits)
    assert sparse.stored_nbytes == -(-bits // 8) + 200


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_are_equal_and_read_only(rng, twin):
    sparse, dense = random_case(rng, (20, 30))
    codes = sparse.codes.copy()
    other = twin(sparse)
    x = inputs(rng, 2, 30)
    np.testing.assert_array_equal(check(other, dense, x), sparse_codebook_matmul(x, sparse))
    for array in (other.codes, other.gaps, other.codebook):
        assert not array.flags.writeable
    held = SparseCodes(codes, sparse.gaps, sparse.gap_bits, sparse.codebook, sparse.shape)
    codes[:] = 0
    np.testing.assert_array_equal(held.to_dense(), sparse.to_dense())


def test_bytes_for_execution_stay_below_a_csr_of_floats(rng):
    for density in (0.02, 0.1, 0.5, 1):
        sparse, dense = random_case(rng, (512, 1024), density=density)
        assert sparse.execution_nbytes < 0.5 * sparse.to_csr().nbytes
    assert sparse.execution_nbytes < 1.8 * np.count_nonzero(dense)


# --- products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [1, 2, 3, 8, 15, 16, 17, 64, 200, 256])
def test_codebooks_of_every_size(rng, entries, dtype):
    for density in (0.1, 0.9):
        sparse, dense = random_case(rng, (70, 600), entries=entries, dtype=dtype, density=density)
        for batch in (None, 2, 7):
            check(sparse, dense, inputs(rng, batch, 600))


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 521])
def test_every_number_of_rows(rng, rows):
    for columns in (1, 97):
        sparse, dense = random_case(rng, (rows, columns), density=0.4)
        for batch in (None, 3, 6):
            check(sparse, dense, inputs(rng, batch, columns))


@pytest.mark.parametrize("columns", [0, 1, 15, 16, 17, TILE - 1, TILE, TILE + 1, 2 * TILE, 1021])
def test_every_number_of_columns(rng, columns):
    for density in (0.1, 1):
        sparse, dense = random_case(rng, (67, columns), density=density)
        for batch in (None, 3, 6):
            check(sparse, dense, inputs(rng, batch, columns))


@pytest.mark.parametrize("batch", [0, *range(1, 19), 31, 32, 33, 49, 65])
def test_every_batch(rng, batch):
    sparse, dense = random_case(rng, (131, 517))
    check(sparse, dense, inputs(rng, batch, 517))


@pytest.mark.parametrize("entries", [16, 40])
def test_rows_of_every_kind(rng, entries):
    """Empty ones, full ones, entries at the edges of tiles; and nothing at all."""
    codebook = rng.standard_normal(entries).astype(np.float32)
    codebook[3] = 0
    labels = np.full((300, 1000), 3)
    for rows in ([], [7], [7, 8, 9, 255, 256], range(40, 120)):
        labels[list(rows)] = rng.integers(0, entries, (len(rows), 1000))
        labels[299, [0, TILE - 1, TILE, 2 * TILE - 1, 999]] = 0
        sparse = SparseCodes.from_labels(labels, codebook)
        for batch in (None, 5):
            check(sparse, codebook.astype(np.float64)[labels], inputs(rng, batch, 1000))
    nothing = SparseCodes.from_labels(np.full((300, 1000), 3), codebook)
    assert nothing.codes.size == 0
    assert nothing.execution_nbytes == 0
    assert not sparse_codebook_matmul(np.full(1000, np.inf, np.float32), nothing).any()


def test_wide_and_thin_matrices(rng):
    """More columns than 16 bits count, and few entries in a huge shape."""
    sparse, dense = random_case(rng, (3, 140_003), density=0.05, entries=20)
    for batch in (None, 6):
        check(sparse, dense, inputs(rng, batch, 140_003))
    codes = np.array([1, 2, 1], np.uint8)
    codebook = np.array([0, 3, 5], np.float32)
    far = SparseCodes(codes, np.array([2, 65535, 65535], np.uint16), 16, codebook, (10**6, 10**12))
    assert far.execution_nbytes < 2000
    tall = SparseCodes(codes, np.array([2, 65535, 65535], np.uint16), 16, codebook, (200_000, 1))
    found = sparse_codebook_matmul(np.array([2], np.float32), tall)
    assert np.flatnonzero(found).tolist() == [2, 65538, 131074]
    assert found[[2, 65538, 131074]].tolist() == [6, 10, 6]


def test_long_rows_stay_within_the_bound():
    """All of one sign, where rounding adds up."""
    columns = 400_000
    for entries in (16, 200):
        codebook = np.full(entries, 0.7, np.float32)
        sparse = SparseCodes(
            np.ones(columns, np.uint8), np.zeros(columns, np.uint8), 1, codebook, (1, columns)
        )
        for batch in (1, 5):
            x = np.full((batch, columns), 0.1, np.float32)
            found = sparse_codebook_matmul(x, sparse)
            exact = columns * float(x[0, 0]) * float(codebook[0])
            assert np.abs(found - exact).max() <= 1e-5 * exact


@pytest.mark.parametrize("entries", [16, 200])
@pytest.mark.parametrize("batch", [None, 1, 3, 8, 40])
def test_equal_bits_for_every_thread_count(rng, entries, batch, n_threads):
    sparse, _ = random_case(rng, (1300, 700), entries=entries)
    x = inputs(rng, batch, 700)
    first = sparse_codebook_matmul(x, sparse, n_threads=1)
    found = sparse_codebook_matmul(x, sparse, n_threads=n_threads)
    np.testing.assert_array_equal(found, first)


@pytest.mark.parametrize("batch", [2, 6])
def test_equal_bits_for_every_thread_count_when_making_them(rng, batch, n_threads):
    labels = rng.integers(0, 16, (600, 300)) * (rng.random((600, 300)) < 0.2)
    codebook = np.arange(16, dtype=np.float32)
    x = inputs(rng, batch, 300)
    one, many = (SparseCodes.from_labels(labels, codebook, n_threads=n) for n in (1, n_threads))
    np.testing.assert_array_equal(one.codes, many.codes)
    np.testing.assert_array_equal(sparse_codebook_matmul(x, one), sparse_codebook_matmul(x, many))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 600),
    st.integers(1, 256),
    st.floats(0, 1),
    st.integers(1, 16),
    st.integers(0, 20),
    st.integers(0, 2**32),
)
def test_any_matrix(rows, columns, entries, density, gap_bits, batch, seed):
    rng = default_rng(seed)
    sparse, dense = random_case(
        rng, (rows, columns), density=density, entries=entries, gap_bits=gap_bits
    )
    np.testing.assert_array_equal(sparse.to_dense(), dense.astype(np.float32))
    check(sparse, dense, inputs(rng, batch, columns))


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=60),
    st.binary(max_size=60),
    st.integers(1, 8),
    st.integers(1, 256),
    st.integers(0, 30),
    st.integers(0, 300),
)
def test_any_stored_bytes_make_a_matrix_or_are_refused(
    codes, gaps, gap_bits, entries, rows, columns
):
    codes, gaps = (np.frombuffer(data, np.uint8) for data in (codes, gaps))
    codebook = np.arange(entries, dtype=np.float32)
    places = np.cumsum(gaps.astype(int) + 1) - 1
    fits = (places < rows * columns).all() and (gaps >> gap_bits == 0).all()
    if len(codes) != len(gaps):
        expected = ValueError
    elif fits and (codes < entries).all():
        dense = np.zeros(rows * columns)
        dense[places] = codes
        sparse = SparseCodes(codes, gaps, gap_bits, codebook, (rows, columns))
        check(sparse, dense.reshape(rows, columns), np.ones((3, columns), np.float32))
        return
    else:
        expected = CorruptDataError
    with pytest.raises((expected, CorruptDataError)):
        SparseCodes(codes, gaps, gap_bits, codebook, (rows, columns))


@pytest.mark.parametrize("batch", [2, 6])
def test_ieee_values_spread(rng, batch):
    """What is not finite in an input reaches the rows that have an entry there, and no other."""
    sparse, dense = random_case(rng, (300, 400), density=0.05)
    for bad in (np.nan, np.inf):
        x = inputs(rng, batch, 400)
        x[0, 270] = bad
        found = sparse_codebook_matmul(x, sparse)
        np.testing.assert_array_equal(~np.isfinite(found[0]), dense[:, 270] != 0)
        assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [3, 6])
def test_inputs_of_any_layout(rng, layout, batch):
    sparse, _ = random_case(rng, (90, 310))
    x = inputs(rng, batch, 310)
    expected = sparse_codebook_matmul(x, sparse)
    np.testing.assert_array_equal(sparse_codebook_matmul(layout(x), sparse), expected)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        other = layout(x.astype(dtype))
        np.testing.assert_array_equal(
            sparse_codebook_matmul(other, sparse),
            sparse_codebook_matmul(x.astype(dtype).astype(np.float32), sparse),
        )


def test_out_is_written_and_returned(rng):
    sparse, dense = random_case(rng, (60, 80))
    for batch in (None, 1, 7):
        x = inputs(rng, batch, 80)
        out = np.full(60 if batch is None else (batch, 60), np.nan, np.float32)
        assert check(sparse, dense, x, out=out) is out


def test_bad_products_are_named(rng):
    sparse, _ = random_case(rng, (3, 16), density=1)
    x = np.zeros(16, np.float32)
    out = np.full(3, 7, np.float32)
    locked = out.copy()
    locked.setflags(write=False)
    wrong = [
        (TypeError, "sparse_codes must be a SparseCodes, got ndarray", (x, x), {}),
        (ValueError, r"x must have shape \(\.\.\., 16\), got \(8,\)", (x[:8], sparse), {}),
        (ValueError, r"x must have shape \(\.\.\., 16\), got \(\)", (x[0], sparse), {}),
        (TypeError, "x must have dtype", (x.astype(int), sparse), {}),
        (ValueError, "out must have shape", (x, sparse), {"out": out[:2]}),
        (TypeError, "out must have dtype", (x, sparse), {"out": out.astype(float)}),
        (TypeError, "out must be a plain NumPy array", (x, sparse), {"out": [0, 0, 0]}),
        (ValueError, "out must be writeable", (x, sparse), {"out": locked}),
        (ValueError, "out must not overlap x", (x, sparse), {"out": x[:3]}),
        (ValueError, "n_threads must be in", (x, sparse), {"n_threads": 0}),
    ]
    for error, message, arguments, options in wrong:
        with pytest.raises(error, match=message):
            sparse_codebook_matmul(*arguments, **options)
    strided = np.zeros((3, 6), np.float32)[:, ::2]
    with pytest.raises(ValueError, match="out must be C-contiguous"):
        sparse_codebook_matmul(np.zeros((3, 16), np.float32), sparse, out=strided)
    assert (out == 7).all()


def test_bad_stored_forms_are_named():
    codes, gaps = np.array([1, 0, 1], np.uint8), np.array([0, 3, 3], np.uint8)
    table = np.array([0, 1], np.float32)
    SparseCodes(codes, gaps, 2, table, (3, 3))
    wrong = [
        (
            CorruptDataError,
            r"codes must be in \[0, 2\), got 2 at \[0\]",
            {"codes": 2 * codes},
        ),
        (CorruptDataError, r"gaps must be in \[0, 2\), got a larger one", {"gap_bits": 1}),
        (CorruptDataError, r"positions in \[0, 8\), got 8", {"shape": (2, 4)}),
        (CorruptDataError, r"positions in \[0, 0\), got 8", {"shape": (5, 0)}),
        (ValueError, "codes must be as long as gaps, 3, got 2", {"codes": codes[:2]}),
        (TypeError, "codes must have dtype uint8, got float32", {"codes": table}),
        (ValueError, "codes must have 1 dimension", {"codes": codes[None]}),
        (TypeError, "gaps must have dtype uint8 or uint16", {"gaps": gaps.astype(int)}),
        (ValueError, "gaps must have 1 dimension", {"gaps": gaps[None]}),
        (ValueError, r"gap_bits must be in \[1, 8\], got 9", {"gap_bits": 9}),
        (TypeError, "gap_bits must be an integer", {"gap_bits": 2.0}),
        (TypeError, "codebook must have dtype .* float64", {"codebook": table.astype(float)}),
        (TypeError, "codebook must have dtype .* got int64", {"codebook": [0, 1]}),
        (ValueError, r"codebook must have shape \(K,\) or", {"codebook": table[None]}),
        (ValueError, "codebook must have 1 or 2 dimensions", {"codebook": table[0]}),
        (ValueError, r"len\(codebook\) must be in \[1, 256\], got 0", {"codebook": table[:0]}),
        (ValueError, "len.* got 257", {"codebook": np.zeros(257, np.float32)}),
        (ValueError, "codebook must be finite, got nan at", {"codebook": table * np.nan}),
        (ValueError, "shape must be a pair", {"shape": (9,)}),
        (ValueError, r"shape\[0\] must be in", {"shape": (-1, 9)}),
        (ValueError, r"shape\[0\] \* shape\[1\] must be in", {"shape": (2**40, 2**40)}),
    ]
    right = {"codes": codes, "gaps": gaps, "gap_bits": 2, "codebook": table, "shape": (3, 3)}
    for error, message, fault in wrong:
        with pytest.raises(error, match=message):
            SparseCodes(**(right | fault))


def test_bad_labels_are_named():
    labels, table = np.array([[0, 1], [2, 0]]), np.array([0, 1, 2], np.float32)
    mask = labels > 0
    wrong = [
        (
            ValueError,
            r"labels must be in \[0, 3\), got 3 at \[1, 0\]",
            (labels + 1, table),
            {},
        ),
        (ValueError, r"labels must be in \[0, 3\), got -1 at \[0, 0\]", (labels - 1, table), {}),
        (TypeError, "labels must be integers, got float64", (labels / 1, table), {}),
        (ValueError, "labels must have 2 dimensions", (labels[0], table), {}),
        (ValueError, "codebook must hold a zero", (labels, table + 1), {}),
        (TypeError, "mask must have dtype bool", (labels, table), {"mask": labels}),
        (ValueError, "mask must have the shape of labels", (labels, table), {"mask": mask[0]}),
        (ValueError, r"gap_bits must be in \[1, 16\], got 17", (labels, table), {"gap_bits": 17}),
        (ValueError, "n_threads must be in", (labels, table), {"n_threads": 0}),
    ]
    for error, message, arguments, options in wrong:
        with pytest.raises(error, match=message):
            SparseCodes.from_labels(*arguments, **options)


def test_inputs_of_any_rank(rng):
    sparse, dense = random_case(rng, (60, 80))
    flat = inputs(rng, 12, 80)
    expected = check(sparse, dense, flat)
    for lead in [(3, 4), (1, 12), (2, 3, 2)]:
        x = flat.reshape(*lead, 80)
        out = np.full((*lead, 60), np.nan, np.float32)
        assert check(sparse, dense, np.asfortranarray(x), out=out) is out
        np.testing.assert_array_equal(out, expected.reshape(*lead, 60))


def test_operators_are_the_products(rng):
    sparse, dense = random_case(rng, (20, 30))
    x = inputs(rng, 4, 30)
    np.testing.assert_array_equal(sparse @ x.T, check(sparse, dense, x).T)
    np.testing.assert_array_equal(sparse @ x[0], check(sparse, dense, x[0]))
    for y in (inputs(rng, None, 20), inputs(rng, 5, 20)):
        np.testing.assert_allclose(y @ sparse, y @ dense, rtol=0, atol=1e-5 * 20)
    with pytest.raises(ValueError, match=r"x must have 30 rows, got shape \(4, 30\)"):
        sparse @ x
    with pytest.raises(TypeError, match=r"SparseCodes must be turned into an array by to_dense"):
        np.asarray(sparse)


def test_memory_is_that_of_both_forms(rng):
    sparse, _ = random_case(rng, (20, 30))
    stored = sum(a.nbytes for a in (sparse.codes, sparse.gaps, sparse.codebook))
    assert sparse.nbytes == stored + sparse.execution_nbytes

"""Products straight from packed codes, against the dense matrix that the codes stand for."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fastfactor import PackedCodes, codebook_matmul, codebook_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import unaligned
from numpy.random import default_rng

WIDTHS = range(1, 9)
KINDS = ("tensor", "row", "group", "row and group")
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


class Case:
    """A random problem, the dense W, and Σ|c| of the vectors that were added to make it."""

    def __init__(
        self, rng, *, n_bits, out, places, dim=1, books=1, kind="tensor", group=0, dtype=np.float32
    ):
        columns, size = places * dim, group or max(places, 1) * dim
        groups = max(-(-columns // size), 1)
        by_row = "row" in kind
        shape = (books, out if by_row else 1, groups, 2**n_bits, dim)
        table = rng.standard_normal(shape, np.float32).astype(dtype)
        codes = rng.integers(0, 2**n_bits, (books, out, places))
        rows = np.arange(out)[:, None] if by_row else np.zeros((out, 1), int)
        of_place = np.arange(places)[None] * dim // size
        parts = np.stack([table[b][rows, of_place, codes[b]] for b in range(books)])
        parts = parts.reshape(books, out, columns).astype(np.float64)
        self.dense, self.magnitude = parts.sum(axis=0), np.abs(parts).sum(axis=0)
        self.packed = PackedCodes.pack(codes if books > 1 else codes[0], n_bits, vector_dim=dim)
        shape = (out,) * by_row + (groups,) * ("group" in kind) + (2**n_bits, dim)
        self.codebook = table.reshape((books,) * (books > 1) + shape)
        self.group_size = size if "group" in kind else None

    def product(self, x, **options):
        return codebook_matmul(x, self.packed, self.codebook, group_size=self.group_size, **options)

    def check(self, x):
        found = self.product(x)
        exact = x.astype(np.float64) @ self.dense.T
        allowed = 1e-5 * (np.abs(x.astype(np.float64)) @ self.magnitude.T)
        assert found.dtype == np.float32
        assert found.shape == exact.shape
        assert (np.abs(found - exact) <= allowed).all()
        return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", WIDTHS)
def test_scalar_codes_of_every_width(rng, n_bits, kind, dtype):
    for out, places in [(1, 1), (5, 63), (3, 577), (2, 2048 + 37)]:
        for group in (1, 64, 512) if "group" in kind else (0,):
            if group == 1 and places > 100:
                continue
            case = Case(
                rng, n_bits=n_bits, out=out, places=places, kind=kind, group=group, dtype=dtype
            )
            case.check(rng.standard_normal((9, places)).astype(np.float32))
            case.check(rng.standard_normal(places).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("books", [1, 2, 3])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 16, 130])
def test_vectors_and_several_codebooks(rng, dim, books, kind):
    # Long vectors have long tables, one for each row or group.
    most = 300 if dim <= 8 else 40 if kind != "row and group" else 20
    for n_bits, out, places in [(1, 1, 1), (3, 9, 15), (4, 40, 17), (7, most, 33), (8, most, 33)]:
        group = 4 * dim if "group" in kind else 0
        case = Case(
            rng,
            n_bits=n_bits,
            out=out,
            places=places,
            dim=dim,
            books=books,
            kind=kind,
            group=group,
        )
        for batch in (1, 2, 3):
            case.check(rng.standard_normal((batch, places * dim)).astype(np.float32))


@pytest.mark.parametrize("batch", range(1, 26))
def test_every_batch(rng, batch):
    for out in (1, 2, 3, 6, 7):
        case = Case(rng, n_bits=4, out=out, places=1100, kind="row")
        case.check(rng.standard_normal((batch, 1100)).astype(np.float32))


@pytest.mark.parametrize("n_bits", [1, 2, 4, 7, 8])
def test_more_rows_and_columns_than_a_task_takes(rng, n_bits):
    for kind, group in (("tensor", 0), ("row", 0), ("row and group", 512)):
        for out, places in [(53, 1024 * 17 + 3), (24, 4096), (49, 1024)]:
            case = Case(rng, n_bits=n_bits, out=out, places=places, kind=kind, group=group)
            case.check(rng.standard_normal((9, places)).astype(np.float32))


@pytest.mark.parametrize("kind", ["tensor", "group"])
@pytest.mark.parametrize("books", [1, 2])
@pytest.mark.parametrize("n_bits", [3, 6, 7, 8])
def test_sums_of_products_and_tiles(rng, n_bits, books, kind):
    """Rows around a vector of bytes and a task, codes around a span, batches on both sides."""
    for out, places, dim, batches in [
        (256, 150, 8, (1, 8, 9, 16, 17)),
        (577, 133, 8, (1, 9)),
        (319, 913, 2, (1, 2, 9, 10, 19)),
        (260, 1040, 4, (1, 3)),
        (300, 40, 64, (1, 9)),
        (300, 40, 65, (1, 9)),
        (300, 240, 5, (1, 60)),
    ]:
        group = 48 * dim if kind == "group" else 0
        case = Case(
            rng, n_bits=n_bits, out=out, places=places, dim=dim, books=books, kind=kind, group=group
        )
        for batch in batches:
            case.check(rng.standard_normal((batch, places * dim)).astype(np.float32))


def test_what_no_code_names_reaches_no_sum(rng):
    codes = rng.integers(0, 255, (300, 40))
    codes[7, 3] = 255
    table = rng.standard_normal((256, 8)).astype(np.float32)
    table[255] = np.inf
    packed = PackedCodes.pack(codes, 8, vector_dim=8)
    for batch in (1, 3, 9):
        found = codebook_matmul(np.ones((batch, 320), np.float32), packed, table)
        assert np.isinf(found[:, 7]).all()
        assert np.isfinite(np.delete(found, 7, axis=1)).all()


def test_long_rows_stay_within_the_bound(rng):
    """All of one sign, where rounding adds up."""
    places = 400_000
    codes = np.ones((1, places), np.uint8)
    x = np.full((3, places), 0.1, np.float32)
    for n_bits in (1, 4, 7, 8):
        codebook = np.full((2**n_bits, 1), 0.7, np.float32)
        packed = PackedCodes.pack(codes, n_bits)
        exact = places * float(x[0, 0]) * float(codebook[0, 0])
        for inputs in (x[0], x):
            found = codebook_matmul(inputs, packed, codebook)
            assert (np.abs(found - exact) <= 1e-5 * exact).all()
    vectors = PackedCodes.pack(np.ones((256, places // 8), np.uint8), 8, vector_dim=8)
    for inputs in (x[0], x):
        found = codebook_matmul(inputs, vectors, np.full((256, 8), 0.7, np.float32))
        assert (np.abs(found - exact) <= 1e-5 * exact).all()


@pytest.mark.parametrize("n_bits", [2, 4, 6, 7, 8])
def test_equal_bits_for_every_thread_count(rng, n_bits):
    for case in (
        Case(rng, n_bits=n_bits, out=301, places=2000, kind="row"),
        Case(rng, n_bits=n_bits, out=301, places=250, dim=8, books=2),
    ):
        for batch in (1, 2, 11):
            x = rng.standard_normal((batch, 2000)).astype(np.float32)
            first = case.product(x, n_threads=1)
            for n_threads in (2, 3, 7):
                np.testing.assert_array_equal(case.product(x, n_threads=n_threads), first)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(WIDTHS),
    st.integers(0, 20),
    st.integers(0, 90),
    st.integers(1, 9),
    st.integers(1, 2),
    st.integers(0, 5),
    st.sampled_from(KINDS),
    st.integers(0, 2**32),
)
def test_any_shape(n_bits, out, places, dim, books, batch, kind, seed):
    rng = default_rng(seed)
    group = dim * int(rng.integers(1, 2 * places + 2)) if "group" in kind else 0
    case = Case(
        rng, n_bits=n_bits, out=out, places=places, dim=dim, books=books, kind=kind, group=group
    )
    case.check(rng.standard_normal((batch, places * dim)).astype(np.float32))
    rows = codebook_rows(case.packed, case.codebook, None, group_size=case.group_size)
    np.testing.assert_allclose(rows, case.dense, atol=1e-6 * books * 10)


def test_ieee_values_spread(rng):
    """An infinite or missing input reaches every output; no other column's does."""
    case = Case(rng, n_bits=4, out=5, places=200)
    for bad in (np.nan, np.inf):
        x = rng.standard_normal((2, 200)).astype(np.float32)
        x[0, 150] = bad
        found = case.product(x)
        assert not np.isfinite(found[0]).any()
        assert np.isfinite(found[1]).all()
    table = np.array([[0], [np.inf]], np.float32)
    packed = PackedCodes.pack(np.array([[0] * 70, [0] * 69 + [1]]), 1)
    assert codebook_matmul(np.ones(70, np.float32), packed, table).tolist() == [0, np.inf]


def test_inputs_of_any_layout(rng):
    case = Case(rng, n_bits=4, out=9, places=300, kind="row")
    x = rng.standard_normal((4, 300)).astype(np.float32)
    expected = case.product(x)
    wide = np.zeros((8, 600), np.float32)
    wide[::2, ::2] = x
    for other in (np.asfortranarray(x), wide[::2, ::2], unaligned(x), x.astype(np.float64)):
        np.testing.assert_array_equal(case.product(other), expected)
    np.testing.assert_array_equal(case.product(x[::-1]), expected[::-1])
    half = x.astype(np.float16)
    np.testing.assert_array_equal(case.product(half), case.product(half.astype(np.float32)))
    out = np.empty((4, 9), np.float32)
    assert case.product(x, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_rows_in_any_order(rng):
    case = Case(rng, n_bits=5, out=50, places=12, dim=4, kind="row and group", group=20)
    ids = np.array([[3, 3, 0], [49, 7, 1]])
    rows = codebook_rows(case.packed, case.codebook, ids, group_size=20)
    assert rows.shape == (2, 3, 48)
    np.testing.assert_array_equal(rows, case.dense[ids].astype(np.float32))
    assert codebook_rows(case.packed, case.codebook, [], group_size=20).shape == (0, 48)
    for n_threads in (1, 2, 3):
        again = codebook_rows(case.packed, case.codebook, ids, group_size=20, n_threads=n_threads)
        np.testing.assert_array_equal(again, rows)


def test_bad_arguments_are_named(rng):
    packed = PackedCodes.pack(np.zeros((3, 8), int), 2, vector_dim=2)
    nine = PackedCodes.pack(np.zeros((3, 8), int), 9, vector_dim=2)
    table = np.zeros((4, 2), np.float32)
    x = np.zeros(16, np.float32)
    out = np.full(3, 7, np.float32)
    locked = out.copy()
    locked.setflags(write=False)
    wrong = [
        (TypeError, "packed must be a PackedCodes, got ndarray", (x, x, table), {}),
        (ValueError, "packed must have codes of up to 8 bits .* got 9", (x, nine, table), {}),
        (ValueError, r"x must have shape \(\.\.\., 16\), got \(8,\)", (x[:8], packed, table), {}),
        (TypeError, "x must have dtype", (x.astype(int), packed, table), {}),
        (TypeError, "codebook must have dtype .* float64", (x, packed, table.astype(float)), {}),
        (ValueError, r"codebook must have shape \(4, 2\)", (x, packed, table[:3]), {}),
        (ValueError, "codebook must have 2 or 3 or 4 dim", (x, packed, table[0]), {}),
        (ValueError, r"codebook must have shape \(3, 4, 2\)", (x, packed, table[None]), {}),
        (ValueError, "group_size must be given", (x, packed, table[None, None]), {}),
        (ValueError, "group_size must be a multiple", (x, packed, table), {"group_size": 3}),
        (ValueError, "group_size must be at least 1", (x, packed, table), {"group_size": 0}),
        (ValueError, "out must have shape", (x, packed, table), {"out": out[:2]}),
        (TypeError, "out must have dtype", (x, packed, table), {"out": out.astype(float)}),
        (ValueError, "out must be writeable", (x, packed, table), {"out": locked}),
        (ValueError, "out must not overlap x", (x, packed, table), {"out": x[:3]}),
        (ValueError, "n_threads must be in", (x, packed, table), {"n_threads": 0}),
    ]
    for error, message, arguments, options in wrong:
        with pytest.raises(error, match=message):
            codebook_matmul(*arguments, **options)
    assert (out == 7).all()
    for ids in ([3], [-1], np.array([2**63], np.uint64)):
        with pytest.raises(IndexError, match=r"ids must be in \[0, 3\), got"):
            codebook_rows(packed, table, ids)
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        codebook_rows(packed, table, [0.5])


def test_inputs_of_any_rank(rng):
    case = Case(rng, n_bits=4, out=9, places=33)
    flat = rng.standard_normal((6, 33)).astype(np.float32)
    expected = case.product(flat)
    for lead in [(2, 3), (1, 6), (3, 1, 2), (6, 1)]:
        x = flat.reshape(*lead, 33)
        np.testing.assert_array_equal(case.product(x), expected.reshape(*lead, 9))
        out = np.full((*lead, 9), np.nan, np.float32)
        assert case.product(np.asfortranarray(x), out=out) is out
        np.testing.assert_array_equal(out, expected.reshape(*lead, 9))
    assert case.product(flat.reshape(2, 3, 33)[:, :0]).shape == (2, 0, 9)
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 33\), got \(\)"):
        case.product(flat[0, 0])

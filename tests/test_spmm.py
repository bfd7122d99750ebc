from __future__ import annotations

import threading
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import oracle
import pytest
import scipy.sparse
from fastfactor import CSR, spmm
from hypothesis import given, settings
from hypothesis import strategies as st

THREADS = (1, 2, 3, 7)
# Columns around every vector and panel width of every level, one below and one above.
COLUMNS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257]
PIECE = 2**15  # nonzeros and rows in a piece of work


def random_arrays(rng, rows, cols, nnz, dtype=np.float32, index=np.int32):
    """Columns in any order, some of them twice in a row, rows of any length."""
    counts = rng.multinomial(nnz, rng.dirichlet(np.full(rows, 0.5))) if rows else np.zeros(0, int)
    return SimpleNamespace(
        data=rng.standard_normal(counts.sum()).astype(dtype),
        indices=rng.integers(0, cols, counts.sum()).astype(index),
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(index),
        shape=(rows, cols),
    )


def assert_close(result, A, B):
    """Within the rounding of a sum of so many terms of such a size."""
    expected = oracle.spmm(A.data, A.indices, A.indptr, A.shape, B)
    size = oracle.spmm(np.abs(A.data), A.indices, A.indptr, A.shape, np.abs(np.asarray(B, float)))
    longest = max(1, np.diff(A.indptr).max(initial=0))
    assert result.shape == expected.shape
    assert np.all(np.abs(result - expected) <= np.finfo(result.dtype).eps * (longest + 2) * size)


@pytest.mark.parametrize("columns", [None, *COLUMNS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matches_oracle_for_every_width(columns, dtype):
    rng = np.random.default_rng(columns)
    A = random_arrays(rng, 37, 53, 400, dtype)
    B = rng.standard_normal((53,) if columns is None else (53, columns)).astype(dtype)
    result = spmm(A, B)
    assert result.dtype == dtype
    assert_close(result, A, B)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 61), (61, 1), (2, 4099), (257, 16)])
@pytest.mark.parametrize("columns", [1, 8, 9, 64])
def test_matches_oracle_for_every_shape(rows, cols, columns):
    rng = np.random.default_rng(rows)
    A = random_arrays(rng, rows, cols, 500)
    B = rng.standard_normal((cols, columns)).astype(np.float32)
    assert_close(spmm(A, B), A, B)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (5, 7)])
@pytest.mark.parametrize("columns", [None, 0, 1, 8, 65])
def test_nothing_stored_gives_zeros(shape, columns):
    A = CSR(np.zeros(0, np.float32), np.zeros(0, int), np.zeros(shape[0] + 1, int), shape)
    B = np.full((shape[1],) if columns is None else (shape[1], columns), np.nan, np.float32)
    result = spmm(A, B)
    assert result.dtype == np.float32
    assert np.array_equal(result, np.zeros((shape[0], *B.shape[1:])))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matches_scipy(data):
    rows, cols = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    columns = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kind = data.draw(st.sampled_from([scipy.sparse.csr_array, scipy.sparse.csr_matrix]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    dense = rng.standard_normal((rows, cols)) * (rng.random((rows, cols)) < 0.3)
    A = kind(dense.astype(dtype))
    B = rng.integers(-3, 4, (cols, columns)).astype(dtype)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(spmm(A, B), A @ B, rtol=0, atol=400 * eps * np.abs(dense).max())


@pytest.mark.parametrize("columns", [None, 1, 3, 8, 40, 130])
@pytest.mark.parametrize("order", ["C", "F"])
def test_same_bits_for_any_number_of_threads(columns, order):
    """Also where one row holds most of the nonzeros, and where most rows are empty."""
    rng = np.random.default_rng(0)
    counts = np.zeros(3 * PIECE, int)
    counts[rng.integers(0, counts.size, 2000)] = 9
    counts[[0, 5000, counts.size - 1]] = [PIECE + 1, 3 * PIECE + 77, 2 * PIECE]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    values = rng.standard_normal(indptr[-1]).astype(np.float32)
    A = CSR(values, rng.integers(0, 1000, indptr[-1]), indptr, (counts.size, 1000))
    B = rng.standard_normal((1000,) if columns is None else (1000, columns)).astype(np.float32)
    B = np.asarray(B, order=order)
    results = [spmm(A, B, n_threads=n) for n in THREADS]
    for result in results[1:]:
        assert np.array_equal(result, results[0])
    expected = A.to_scipy().astype(np.float64) @ B.astype(np.float64)
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=0.02)
    assert not results[0][counts == 0].any()


@pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1])
def test_rows_around_a_piece(length):
    """Ones add up exactly, so that no nonzero is lost or counted twice at a cut."""
    indptr = np.array([0, 0, 1, 1 + length, 2 + length, 2 + length])
    indices = np.zeros(indptr[-1], np.int32)
    A = CSR(np.ones(indptr[-1], np.float32), indices, indptr, (5, 1))
    for B in (np.ones(1, np.float32), np.ones((1, 11), np.float32)):
        assert np.array_equal(
            spmm(A, B).T, np.broadcast_to([0, 1, length, 1, 0], (*B.shape[1:], 5))
        )


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("pointer", [np.int32, np.int64])
def test_index_types_give_the_same_bits(index, pointer):
    rng = np.random.default_rng(1)
    A = random_arrays(rng, 40, 30, 300)
    B = rng.standard_normal((30, 20)).astype(np.float32)
    expected = spmm(A, B)
    A.indices, A.indptr = A.indices.astype(index), A.indptr.astype(pointer)
    assert np.array_equal(spmm(A, B), expected)


@pytest.mark.parametrize("columns", [1, 3, 8, 16, 40])
@pytest.mark.parametrize(
    "layout",
    [
        lambda B: np.asfortranarray(B),
        lambda B: np.repeat(np.repeat(B, 2, 0), 3, 1)[::2, ::3],
        lambda B: B[::-1].copy()[::-1],
        lambda B: B[:, ::-1].copy()[:, ::-1],
        lambda B: np.ascontiguousarray(B.T).T[:, :],
    ],
)
def test_layouts_give_the_same_bits(columns, layout):
    rng = np.random.default_rng(2)
    A = random_arrays(rng, 40, 30, 300)
    B = rng.standard_normal((30, columns)).astype(np.float32)
    strided = layout(B)
    result = spmm(A, strided)
    assert np.array_equal(result, spmm(A, B))
    flags = strided.flags
    assert result.flags.f_contiguous == flags.f_contiguous or result.flags.c_contiguous
    if flags.f_contiguous:
        assert result.flags.f_contiguous


def test_broadcast_and_strided_vectors():
    rng = np.random.default_rng(3)
    A = random_arrays(rng, 20, 30, 100)
    x = rng.standard_normal(60).astype(np.float32)
    assert np.array_equal(spmm(A, x[::2]), spmm(A, x[::2].copy()))
    ones = np.broadcast_to(np.float32(1), (30, 5))
    assert np.array_equal(spmm(A, ones), spmm(A, ones.copy()))


@pytest.mark.parametrize("values", [np.float32, np.float64])
@pytest.mark.parametrize("dense", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("columns", [None, 6, 33])
def test_mixed_dtypes_are_widened(values, dense, columns):
    rng = np.random.default_rng(4)
    A = random_arrays(rng, 20, 30, 200, values)
    B = rng.standard_normal((30,) if columns is None else (30, columns)).astype(dense)
    result = spmm(A, B)
    wide = np.float64 in (values, dense)
    assert result.dtype == (np.float64 if wide else np.float32)
    A.data = A.data.astype(result.dtype)
    assert np.array_equal(result, spmm(A, B.astype(result.dtype)))
    assert_close(result, A, B.astype(np.float64))


@pytest.mark.parametrize("columns", [1, 4, 9, 16, 70])
def test_nan_and_infinity_spread_as_ieee_says(columns):
    rng = np.random.default_rng(5)
    A = random_arrays(rng, 60, 20, 300, np.float64)
    A.data[rng.integers(0, A.data.size, 6)] = [np.nan, np.inf, -np.inf, 0, 0, 0]
    B = rng.standard_normal((20, columns))
    B[rng.integers(0, 20, 5), rng.integers(0, columns, 5)] = [np.nan, np.inf, -np.inf, 0, np.inf]
    expected = oracle.spmm(A.data, A.indices, A.indptr, A.shape, B)
    assert not np.isfinite(expected).all()
    np.testing.assert_allclose(spmm(A, B), expected, rtol=1e-12, atol=1e-12)


def test_columns_do_not_leak_into_each_other():
    A = CSR.from_dense(np.ones((3, 4), np.float32))
    for columns in (2, 5, 9, 17, 33, 66):
        B = np.zeros((4, columns), np.float32)
        B[1, columns // 2] = np.nan
        expected = np.zeros((3, columns))
        expected[:, columns // 2] = np.nan
        assert np.array_equal(spmm(A, B), expected, equal_nan=True)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("columns", [1, 8, 13, 64])
def test_out_is_written_and_returned(order, columns):
    rng = np.random.default_rng(6)
    A = random_arrays(rng, 20, 30, 100)
    B = np.asarray(rng.standard_normal((30, columns)).astype(np.float32), order=order)
    out = np.full((20, columns), np.nan, np.float32, order=order)
    assert spmm(A, B, out=out) is out
    assert np.array_equal(out, spmm(A, B))
    vector = np.full(20, np.nan, np.float32)
    assert spmm(A, B[:, 0], out=vector) is vector
    assert_close(vector, A, B[:, 0])


def test_writes_nothing_beside_out():
    rng = np.random.default_rng(7)
    A = random_arrays(rng, 21, 30, 100)
    for columns in (1, 3, 8, 17, 40):
        B = rng.standard_normal((30, columns)).astype(np.float32)
        guarded = np.full(21 * columns + 128, 7, np.float32)
        spmm(A, B, out=guarded[64:-64].reshape(21, columns))
        assert np.all(guarded[:64] == 7)
        assert np.all(guarded[-64:] == 7)
        assert np.array_equal(guarded[64:-64].reshape(21, columns), spmm(A, B))


def test_operands_stay_as_they_are_and_may_be_read_only_maps(tmp_path):
    rng = np.random.default_rng(8)
    A = random_arrays(rng, 50, 30, 200)
    B = rng.standard_normal((30, 9)).astype(np.float32)
    mapped = {}
    for name, array in (("B", B), ("data", A.data), ("indices", A.indices), ("indptr", A.indptr)):
        np.save(tmp_path / name, array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    dense = mapped.pop("B")
    result = spmm(SimpleNamespace(**mapped, shape=A.shape), dense)
    assert np.array_equal(result, spmm(A, B))
    assert np.array_equal(dense, B)
    assert np.array_equal(mapped["data"], A.data)


def test_several_python_threads_at_once():
    rng = np.random.default_rng(9)
    A = CSR.from_dense(rng.standard_normal((200, 150)).astype(np.float32))
    B = rng.standard_normal((150, 70)).astype(np.float32)
    expected = spmm(A, B)
    wrong = []

    def work():
        for _ in range(10):
            if not np.array_equal(spmm(A, B, n_threads=2), expected):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

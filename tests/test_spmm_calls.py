from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from fastfactor import spmm

THREADS = (1, 2, 3, 7)


LIES = {
    "begins late": ("indptr", 0, 1, "A.indptr must begin at 0, got 1"),
    "begins before": ("indptr", 0, -1, "A.indptr must begin at 0, got -1"),
    "falls": ("indptr", 2, 7, "A.indptr must not fall, got 7 and then 5 at [3]"),
    "negative": (
        "indptr",
        1,
        -(2**31),
        "A.indptr must not fall, got 0 and then -2147483648 at [1]",
    ),
    "far away": (
        "indptr",
        2,
        2**31 - 1,
        "A.indptr must not fall, got 2147483647 and then 5 at [3]",
    ),
    "ends late": ("indptr", 4, 9, "A.indptr must end at the number of nonzeros, 8, got 9"),
    "ends early": ("indptr", 4, 6, "A.indptr must end at the number of nonzeros, 8, got 6"),
    "column at the end": ("indices", 7, 6, "A.indices must be in [0, 6), got 6 at [7]"),
    "column below": ("indices", 3, -1, "A.indices must be in [0, 6), got -1 at [3]"),
    "column far away": (
        "indices",
        0,
        2**31 - 1,
        "A.indices must be in [0, 6), got 2147483647 at [0]",
    ),
    "column far below": (
        "indices",
        0,
        -(2**31),
        "A.indices must be in [0, 6), got -2147483648 at [0]",
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("columns", [None, 3])
def test_lies_about_structure_are_refused(lie, index, columns):
    array, at, value, message = LIES[lie]
    A = SimpleNamespace(
        data=np.ones(8, np.float32),
        indices=np.array([0, 1, 2, 3, 4, 5, 0, 1], index),
        indptr=np.array([0, 2, 5, 5, 8], index),
        shape=(4, 6),
    )
    getattr(A, array)[at] = value
    out = np.full((4,) if columns is None else (4, columns), 7, np.float32)
    B = np.ones((6,) if columns is None else (6, columns), np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        spmm(A, B, out=out)
    assert np.all(out == 7)


def test_the_first_of_many_bad_columns_is_named():
    indices = np.zeros(500_000, np.int64)
    indices[[200_001, 499_999]] = [2**40, -5]
    A = SimpleNamespace(
        data=np.ones(500_000, np.float32),
        indices=indices,
        indptr=np.array([0, 500_000]),
        shape=(1, 10),
    )
    for n in THREADS:
        with pytest.raises(ValueError, match=re.escape("got 1099511627776 at [200001]")):
            spmm(A, np.ones(10, np.float32), n_threads=n)


def test_a_column_in_a_matrix_without_columns_is_refused():
    A = SimpleNamespace(
        data=np.ones(1, np.float32),
        indices=np.zeros(1, np.int32),
        indptr=np.array([0, 1], np.int32),
        shape=(1, 0),
    )
    with pytest.raises(ValueError, match=re.escape("A.indices must be in [0, 0), got 0 at [0]")):
        spmm(A, np.ones((0, 3), np.float32))


def foreign(**changes):
    arrays = {
        "data": np.ones(3, np.float32),
        "indices": np.array([0, 1, 0], np.int32),
        "indptr": np.array([0, 2, 3], np.int32),
        "shape": (2, 2),
    }
    return SimpleNamespace(**(arrays | changes))


B22 = np.ones((2, 2), np.float32)
unaligned = np.zeros(13, np.uint8)[1:].view(np.float32)
BAD_CALLS = [
    (lambda: spmm(np.eye(2), B22), TypeError, "A must be a CSR or an object with .* got ndarray"),
    (lambda: spmm(None, B22), TypeError, "A must be a CSR or an object with .* got NoneType"),
    (
        lambda: spmm(scipy.sparse.csc_array(np.eye(2)), B22),
        TypeError,
        "A must be in CSR format, got csc_array in format 'csc'",
    ),
    (
        lambda: spmm(scipy.sparse.coo_matrix(np.eye(2)), B22),
        TypeError,
        "A must be in CSR format, got coo_matrix in format 'coo'",
    ),
    (
        lambda: spmm(scipy.sparse.bsr_array(np.eye(2)), B22),
        TypeError,
        "A must be in CSR format, got bsr_array in format 'bsr'",
    ),
    (
        lambda: spmm(foreign(data=[1, 2, 3]), B22),
        TypeError,
        "A.data must be a NumPy array, got list",
    ),
    (
        lambda: spmm(foreign(data=np.ones(3, np.int32)), B22),
        TypeError,
        "A.data must have dtype float32 or float64 in native byte order, got int32",
    ),
    (
        lambda: spmm(foreign(data=np.ones(3, ">f4")), B22),
        TypeError,
        "A.data must have dtype float32 or float64 in native byte order, got >f4",
    ),
    (
        lambda: spmm(foreign(data=np.ones(3, np.complex64)), B22),
        TypeError,
        "A.data must have dtype float32 or float64 .* got complex64",
    ),
    (
        lambda: spmm(foreign(indices=np.zeros(3, np.uint32)), B22),
        TypeError,
        "A.indices must have dtype int32 or int64 in native byte order, got uint32",
    ),
    (
        lambda: spmm(foreign(indptr=np.array([0.0, 2, 3])), B22),
        TypeError,
        "A.indptr must have dtype int32 or int64 in native byte order, got float64",
    ),
    (
        lambda: spmm(foreign(data=np.ones((3, 1), np.float32)), B22),
        ValueError,
        r"A.data must have 1 dimension, got shape \(3, 1\)",
    ),
    (
        lambda: spmm(foreign(data=np.ones(6, np.float32)[::2]), B22),
        ValueError,
        r"A.data must be contiguous and aligned, got strides \(8,\)",
    ),
    (
        lambda: spmm(foreign(data=unaligned), B22),
        ValueError,
        "A.data must be contiguous and aligned",
    ),
    (
        lambda: spmm(foreign(data=np.ones(4, np.float32)), B22),
        ValueError,
        "A.indices must be as long as A.data, 4, got 3",
    ),
    (
        lambda: spmm(foreign(shape=(3, 2)), B22),
        ValueError,
        "A.indptr must have one entry more than there are rows, 4, got 3",
    ),
    (
        lambda: spmm(foreign(shape=(2,)), B22),
        ValueError,
        r"A.shape must be a pair of integers, got \(2,\)",
    ),
    (lambda: spmm(foreign(shape=4), B22), TypeError, "A.shape must be a pair of integers, got 4"),
    (
        lambda: spmm(foreign(shape=(2, 2.0)), B22),
        TypeError,
        r"A.shape\[1\] must be an integer in .* got 2.0",
    ),
    (
        lambda: spmm(foreign(shape=(2, -1)), B22),
        ValueError,
        r"A.shape\[1\] must be in .* got -1",
    ),
    (
        lambda: spmm(foreign(), B22.astype(int)),
        TypeError,
        "B must have dtype float16, bfloat16, float32 or float64 .* got int64",
    ),
    (
        lambda: spmm(foreign(), np.ones((3, 2), np.float32)),
        ValueError,
        r"B must have as many rows as A has columns, 2, got shape \(3, 2\)",
    ),
    (
        lambda: spmm(foreign(), np.ones((2, 2, 2), np.float32)),
        ValueError,
        r"B must have 1 or 2 dimensions, got shape \(2, 2, 2\)",
    ),
    (
        lambda: spmm(foreign(), np.float32(3)),
        ValueError,
        r"B must have 1 or 2 dimensions, got shape \(\)",
    ),
    (
        lambda: spmm(foreign(), B22, out=[[0, 0], [0, 0]]),
        TypeError,
        "out must be a plain NumPy array, got list",
    ),
    (
        lambda: spmm(foreign(), B22, out=np.zeros((2, 2))),
        TypeError,
        "out must have dtype float32, got float64",
    ),
    (
        lambda: spmm(foreign(), B22, out=np.zeros((2, 3), np.float32)),
        ValueError,
        r"out must have shape \(2, 2\), got \(2, 3\)",
    ),
    (
        lambda: spmm(foreign(), B22[:, 0], out=np.zeros((2, 1), np.float32)),
        ValueError,
        r"out must have shape \(2,\), got \(2, 1\)",
    ),
    (
        lambda: spmm(foreign(), B22, out=np.zeros((2, 2), np.float32, order="F")),
        ValueError,
        r"out must be C-contiguous, got strides \(4, 8\) for shape \(2, 2\)",
    ),
    (
        lambda: spmm(foreign(), np.asfortranarray(B22), out=np.zeros((2, 2), np.float32)),
        ValueError,
        "out must be Fortran-contiguous because B is",
    ),
    (
        lambda: spmm(foreign(), B22, out=np.zeros((2, 4), np.float32)[:, ::2]),
        ValueError,
        "out must be C-contiguous",
    ),
    (lambda: spmm(foreign(), B22, n_threads=0), ValueError, r"n_threads must be .* got 0"),
    (lambda: spmm(foreign(), B22, n_threads=1.5), TypeError, r"n_threads must be .* got 1.5"),
]


@pytest.mark.parametrize("case", range(len(BAD_CALLS)))
def test_bad_arguments_are_named(case):
    call, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        call()


def test_read_only_and_overlapping_out_are_refused():
    A, B = foreign(), np.ones((2, 2), np.float32)
    fixed = np.zeros((2, 2), np.float32)
    fixed.setflags(write=False)
    with pytest.raises(
        ValueError, match="out must be writeable and aligned, got a read-only array"
    ):
        spmm(A, B, out=fixed)
    with pytest.raises(ValueError, match="out must not overlap B"):
        spmm(A, B, out=B)
    A.data = np.ones(4, np.float32)
    A.indices = np.array([0, 1, 0, 1], np.int32)
    A.indptr = np.array([0, 2, 4], np.int32)
    with pytest.raises(ValueError, match=r"out must not overlap A\.data"):
        spmm(A, B, out=A.data.reshape(2, 2))
    assert np.all(B == 1)
    assert np.all(A.data == 1)

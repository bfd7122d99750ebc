from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import oracle
import pytest
import scipy.sparse
from fastfactor import CSR
from fastfactor.kernels import sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def arrays():
    return {
        "data": np.array([1, 2, 3, 4], np.float32),
        "indices": np.array([2, 0, 2, 2], np.int32),
        "indptr": np.array([0, 2, 2, 4], np.int64),
        "shape": (3, 4),
    }


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.sampled_from([0.0, -0.0, 1.0, -2.5, np.inf, np.nan]),
    )
)
def test_dense_and_back(W):
    A = CSR.from_dense(W)
    assert A.nnz == np.count_nonzero(W)
    assert A.dtype == W.dtype
    assert np.array_equal(A.to_dense(), W, equal_nan=True)
    assert all(np.all(np.diff(A.indices[a:b]) > 0) for a, b in pairwise(A.indptr))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_from_dense_widens_narrow_floats(dtype):
    W = np.array([[0, 1.5], [-2, 0]]).astype(dtype)
    A = CSR.from_dense(W)
    assert A.dtype == np.float32
    assert np.array_equal(A.to_dense(), W.astype(np.float32))


def test_from_dense_of_strided_and_fortran_arrays():
    W = np.arange(24, dtype=np.float32).reshape(4, 6) % 5
    for view in (W[::2, ::-1], np.asfortranarray(W), W.T):
        assert np.array_equal(CSR.from_dense(view).to_dense(), view)


def test_unsorted_and_repeated_columns_are_legal():
    A = CSR(**arrays())
    expected = [[2, 0, 1, 0], [0, 0, 0, 0], [0, 0, 7, 0]]
    assert np.array_equal(A.to_dense(), expected)
    assert np.array_equal(oracle.csr_to_dense(A.data, A.indices, A.indptr, A.shape), expected)
    assert np.array_equal(A @ np.eye(4, dtype=np.float32), expected)


def test_arrays_are_owned_and_read_only():
    given_arrays = arrays()
    A = CSR(**given_arrays)
    given_arrays["indices"][0] = 99
    given_arrays["data"][0] = 99
    assert A.indices[0] == 2
    assert A.data[0] == 1
    for array in (A.data, A.indices, A.indptr):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        A.data = np.ones(4)
    assert A.shape == (3, 4)
    assert CSR(**arrays() | {"shape": np.array([3, 4])}).shape == (3, 4)


def pickled(A):
    return pickle.loads(pickle.dumps(A))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies_are_equal_and_read_only(duplicate):
    A = CSR(**arrays())
    B = duplicate(A)
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(A, name), getattr(B, name))
        assert getattr(A, name).dtype == getattr(B, name).dtype
        assert not getattr(B, name).flags.writeable
    assert A.shape == B.shape


def test_a_pickle_that_lies_is_refused():
    blob = pickle.dumps(CSR(**arrays()))
    indices = np.array([2, 0, 2, 2], np.int32).tobytes()
    assert blob.count(indices) == 1
    forged = blob.replace(indices, np.array([2, 0, 9, 2], np.int32).tobytes())
    with pytest.raises(ValueError, match=re.escape("indices must be in [0, 4), got 9 at [2]")):
        pickle.loads(forged)


def test_sizes_and_repr():
    A = CSR(**arrays())
    assert repr(A) == "CSR(shape=(3, 4), nnz=4, dtype=float32)"
    assert (A.nnz, A.nbytes, A.dtype) == (4, 4 * 4 + 4 * 4 + 4 * 8, np.dtype(np.float32))


def test_to_dense_into_out():
    A = CSR(**arrays())
    wide = np.full((3, 8), 5, np.float32)
    out = wide[:, ::2]
    assert A.to_dense(out) is out
    assert np.array_equal(out, A.to_dense())
    assert np.all(wide[:, 1::2] == 5)
    with pytest.raises(TypeError, match="out must have dtype float32, got float64"):
        A.to_dense(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"out must have shape \(3, 4\), got \(4, 3\)"):
        A.to_dense(np.zeros((4, 3), np.float32))


def test_to_scipy_and_from_scipy():
    A = CSR(**arrays())
    B = A.to_scipy()
    assert isinstance(B, scipy.sparse.csr_array)
    assert np.array_equal(B.toarray(), A.to_dense())
    C = CSR(B.data, B.indices, B.indptr, B.shape)
    assert np.array_equal(C.to_dense(), A.to_dense())


def test_scipy_is_needed_by_to_scipy_alone():
    code = """
import sys
sys.modules["scipy"] = sys.modules["scipy.sparse"] = None
import numpy as np, fastfactor
A = fastfactor.CSR.from_dense(np.eye(3, dtype=np.float32))
assert np.array_equal(A @ np.ones(3, np.float32), np.ones(3))
try:
    A.to_scipy()
except ImportError as error:
    assert str(error) == "CSR.to_scipy needs SciPy: pip install scipy", error
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


BAD = [
    ({"data": np.ones(4, int)}, TypeError, "data must have dtype float32 or float64 .* got int64"),
    ({"data": np.ones(4, np.float16)}, TypeError, "data must have dtype .* got float16"),
    ({"indices": np.ones(4)}, TypeError, "indices must have dtype int32 or int64 .* got float64"),
    ({"indices": np.ones(4, np.int16)}, TypeError, "indices must have dtype .* got int16"),
    ({"indptr": np.ones(4)}, TypeError, "indptr must have dtype int32 or int64 .* got float64"),
    ({"data": np.ones((2, 2))}, ValueError, r"data must have 1 dimension, got shape \(2, 2\)"),
    ({"data": np.ones(5)}, ValueError, "indices must be as long as data, 5, got 4"),
    ({"indptr": np.array([0, 4])}, ValueError, "indptr must have one entry more .* 4, got 2"),
    ({"indptr": np.array([], int)}, ValueError, "indptr must have one entry more .* 4, got 0"),
    ({"indptr": np.array([1, 2, 2, 4])}, ValueError, "indptr must begin at 0, got 1"),
    (
        {"indptr": np.array([0, 3, 2, 4])},
        ValueError,
        r"indptr must not fall, got 3 and then 2 at \[2\]",
    ),
    (
        {"indptr": np.array([0, 2, 2, 3])},
        ValueError,
        "indptr must end at the number of nonzeros, 4, got 3",
    ),
    (
        {"indptr": np.array([0, 2, 2, 2**62])},
        ValueError,
        "indptr must end at the number of nonzeros, 4",
    ),
    (
        {"indices": np.array([2, 0, 4, 2])},
        ValueError,
        r"indices must be in \[0, 4\), got 4 at \[2\]",
    ),
    (
        {"indices": np.array([2, -1, 2, 2])},
        ValueError,
        r"indices must be in \[0, 4\), got -1 at \[1\]",
    ),
    ({"shape": (3, 2)}, ValueError, r"indices must be in \[0, 2\), got 2 at \[0\]"),
    ({"shape": (3,)}, ValueError, r"shape must be a pair of integers, got \(3,\)"),
    ({"shape": 3}, TypeError, "shape must be a pair of integers, got 3"),
    ({"shape": ("3", 4)}, TypeError, r"shape\[0\] must be an integer in .* got '3'"),
    ({"shape": (-1, 4)}, ValueError, r"shape\[0\] must be in .* got -1"),
    ({"shape": (2**63, 4)}, ValueError, r"shape\[0\] must be in .* got 9223372036854775808"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_structure_is_named(case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        CSR(**arrays() | change)


def test_from_dense_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError, match=r"W must have dtype .* got int64"):
        CSR.from_dense(np.eye(3, dtype=int))
    with pytest.raises(ValueError, match=r"W must have 2 dimensions, got shape \(3,\)"):
        CSR.from_dense(np.ones(3))


# --- the transpose, and products from the left


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (7, 13), (64, 65_537)])
def test_the_transpose_holds_the_same_values(rng, shape, index):
    W = rng.standard_normal(shape) * (rng.random(shape) < 0.1)
    B = CSR.from_dense(W)
    A = CSR(B.data, B.indices.astype(index), B.indptr.astype(index), shape)
    T = A.T
    assert (T.shape, T.nnz, T.dtype) == (shape[::-1], A.nnz, A.dtype)
    assert np.array_equal(T.to_dense(), W.T)
    assert np.array_equal(T.indices, CSR.from_dense(W.T).indices)  # ascending in each row
    again = CSR(T.data, T.indices, T.indptr, T.shape)  # obeys the rules
    assert np.array_equal(again.T.to_dense(), W)
    with pytest.raises(ValueError, match="read-only"):
        T.data[:] = 0


def test_the_transpose_of_columns_beyond_32_bits_sorts_all_their_digits(rng):
    columns = rng.choice(2**40, 3000)
    order = sparse._counting_sort(columns, 2**40)
    assert np.array_equal(order, np.argsort(columns, kind="stable"))


def test_the_transpose_keeps_what_is_stored_twice():
    A = CSR(**arrays())
    assert A.T.nnz == 4
    assert np.array_equal(A.T.to_dense(), A.to_dense().T)
    assert A.T.data[A.T.indptr[2] :].tolist() == [1, 3, 4]  # as they came


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("lead", [(), (0,), (1,), (5,), (2, 3)])
def test_products_from_the_left(rng, lead, dtype):
    W = np.round(4 * rng.standard_normal((20, 33)) * (rng.random((20, 33)) < 0.3))
    A = CSR.from_dense(W.astype(np.float32))
    x = np.round(4 * rng.standard_normal((*lead, 20))).astype(dtype)
    result = x @ A
    assert result.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.array_equal(result, x.astype(np.float64) @ W)  # small integers are exact
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 20\), got"):
        x[..., 1:] @ A


def test_numpy_is_refused_what_is_not_a_product():
    A = CSR(**arrays())
    with pytest.raises(TypeError, match=r"CSR must be turned into an array by to_dense\(\)"):
        np.asarray(A)
    for wrong in (np.add, np.multiply, np.matmul):
        with pytest.raises(TypeError, match="does not support ufuncs"):
            wrong(np.ones((3, 3)), A)
    with pytest.raises(TypeError):
        np.ones((3, 4)) * A
    with pytest.raises(TypeError, match="has no len"):
        len(A)
    assert bool(CSR.from_dense(np.zeros((0, 0))))
    assert A == A
    assert CSR(**arrays()) != A
    assert len({A, A, CSR(**arrays())}) == 2


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_scipy_of_any_format(rng, make, dtype):
    W = (rng.standard_normal((9, 14)) * (rng.random((9, 14)) < 0.3)).astype(dtype)
    for form in ("csr", "csc", "coo", "lil", "bsr"):
        A = CSR.from_scipy(make(W).asformat(form))
        assert A.dtype == dtype
        assert np.array_equal(A.to_dense(), W)
        assert np.array_equal(CSR.from_scipy(A.to_scipy()).to_dense(), W)


def test_from_scipy_copies():
    B = scipy.sparse.csr_array(np.eye(3))
    A = CSR.from_scipy(B)
    B.data[:] = 7
    assert np.array_equal(A.to_dense(), np.eye(3))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.eye(3), TypeError, "matrix must be a SciPy sparse matrix or array, got ndarray"),
        (
            scipy.sparse.coo_array(np.eye(3, dtype=int)),
            TypeError,
            "data must have dtype .* got int64",
        ),
        (
            SimpleNamespace(shape=(3,), tocsr=None),
            ValueError,
            r"matrix.shape must be a pair .* \(3,\)",
        ),
    ],
)
def test_from_scipy_names_what_it_cannot_take(given, error, message):
    with pytest.raises(error, match=message):
        CSR.from_scipy(given)

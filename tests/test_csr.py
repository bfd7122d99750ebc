from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from itertools import pairwise

import ml_dtypes
import numpy as np
import oracle
import pytest
import scipy.sparse
from fastfactor import CSR
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

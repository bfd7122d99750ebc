"""Foreign arrays in each array argument of each public function and method.

A foreign value gives the result of the plain array, or is refused by one line that begins with the
argument's name.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys

import fastfactor as ff
import foreign
import ml_dtypes
import numpy as np
import public_calls
import pytest
import scipy.sparse
from fastfactor import deep_compression, methods, store
from fastfactor._arrays import as_array

CALLS = public_calls.all_calls()
CASES = {
    f"{name}-{i}-{label}": (call, label)
    for name, calls in CALLS.items()
    for i, call in enumerate(calls)
    for label in call.arrays
}
REFUSALS = (TypeError, ValueError)


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """An imitation of torch, as if it had been imported."""
    monkeypatch.setitem(sys.modules, "torch", foreign.TORCH)


def leaves(value):
    """Yield the arrays and numbers that a result holds."""
    if isinstance(value, dict):
        value = tuple(value.values())
    elif dataclasses.is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    if isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def assert_same(result, expected):
    for ours, plain in zip(leaves(result), leaves(expected), strict=True):
        assert type(ours) is type(plain)
        if isinstance(plain, np.ndarray):
            assert ours.dtype == plain.dtype
            np.testing.assert_array_equal(ours, plain)
        else:
            assert ours == plain


def assert_named(error, label, kind):
    text = str(error)
    assert "\n" not in text, (kind, text)
    assert text.startswith(f"{label} must "), (kind, text)


@pytest.mark.parametrize("case", CASES)
def test_taken_as_the_plain_array(case):
    call, label = CASES[case]
    expected = call.run(call.arrays)
    for kind, make in foreign.TAKEN.items():
        value = make(call.arrays[label])
        if value is None:
            continue
        if call.only_numpy and not isinstance(value, np.ndarray):
            with pytest.raises(TypeError) as caught:
                call.run({**call.arrays, label: value})
            assert_named(caught.value, label, kind)
            continue
        assert_same(call.run({**call.arrays, label: value}), expected)


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case):
    call, label = CASES[case]
    for kind, make in foreign.REFUSED.items():
        value = make(call.arrays[label])
        if value is None:
            continue
        with pytest.raises(REFUSALS) as caught:
            call.run({**call.arrays, label: value})
        assert_named(caught.value, label, kind)


# --- that the tables above hold everything public


BASES = {"ConvFactors", "ConvMethod", "Factors", "Method"}


def test_each_public_name_has_calls_or_takes_no_arrays():
    public = {*ff.__all__, *methods.__all__, *deep_compression.__all__}
    settings = {name for name in public if isinstance(getattr_of(name), type(methods.Method))}
    called = {name.removesuffix(".compress") for name in CALLS}
    without = set().union(*public_calls.NO_ARRAYS.values())
    assert public == (called | without | BASES) & public
    assert not called & without
    assert {name for name in settings if not inspect.isabstract(getattr_of(name))} <= called


def getattr_of(name):
    """Return what is public under a name."""
    home = next(m for m in (ff, methods, deep_compression) if name in m.__all__)
    return getattr(home, name)


def test_each_method_of_factors_has_calls_or_takes_no_arrays():
    public = {name for name in dir(methods.Factors) if not name.startswith("_")}
    assert public == public_calls.FACTORS_TAKE | public_calls.FACTORS_TAKE_NONE


# --- what is taken, one by one


def test_plain_arrays_pass_as_they_are():
    for array in (public_calls.W, np.zeros(()), np.array([None]), np.array("text")):
        assert as_array(array, "W") is array


def test_nothing_is_copied(as_memmap):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for kind, make in foreign.TAKEN.items():
        assert np.shares_memory(as_array(make(array), "W"), array), kind
    mapped = as_memmap(array)
    plain = as_array(mapped, "W")
    assert type(plain) is np.ndarray
    assert np.shares_memory(plain, mapped)
    assert not plain.flags.writeable


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_of_torch_are_views_of_ml_dtypes(dtype):
    values = np.array([[1.5, -2.0], [0.25, 0.0]]).astype(getattr(ml_dtypes, dtype))
    bits = values.view(np.int16 if dtype == "bfloat16" else np.uint8)
    taken = as_array(foreign.Tensor(bits, dtype, requires_grad=True), "W")
    assert taken.dtype == values.dtype
    np.testing.assert_array_equal(taken, values)
    assert np.shares_memory(taken, bits)


def test_numbers_lists_and_buffers_are_converted_by_numpy():
    for value in (3, 2.5, np.float32(1), [1, 2.5], ((1, 2), (3, 4)), range(3), memoryview(b"ab")):
        np.testing.assert_array_equal(as_array(value, "x"), np.asarray(value))


# --- messages

SAID = [
    (np.ma.array([1.0, 2.0], mask=[0, 1]), "W must not have masked values", "W.filled(0)"),
    ([np.ma.masked, 1.0], "W must not have masked values", "W.filled(0)"),
    (scipy.sparse.coo_array(np.eye(3)), "dense array, got sparse coo_array", "W.toarray()"),
    (foreign.Tensor(np.ones(2), device="cuda:0"), "W must be on the CPU", "W.cpu()"),
    (foreign.Tensor(np.ones(2), layout="sparse_csr"), "layout torch.sparse_csr", "W.to_dense()"),
    (
        foreign.Tensor(np.ones(2), "quint8"),
        "got quint8 tensor, which cannot be converted",
        "Got unsupported",
    ),
    (foreign.OnDevice(), "got OnDevice, which cannot be converted", "Implicit conversion"),
    (ff.CSR.from_dense(np.eye(2)), "got CSR, which cannot be converted", "to_dense()"),
    ([[1.0, 2.0], [3.0]], "W must have rows of equal length", "a list of different lengths"),
    (None, "W must be an array of numbers", "got None"),
    ({1.0}, "W must be an array of numbers", "got set"),
    ([1.0, None], "W must be an array of numbers", "got list with NoneType None"),
    ([1, 2**64], "W must be an array of numbers", "got list with int 18446744073709551616"),
    ([1.0, 10**400], "W must be an array of numbers", "got list with int "),
]


@pytest.mark.parametrize(("value", "said", "also"), SAID)
def test_refusals_say_what_came_and_what_to_do(value, said, also):
    with pytest.raises(REFUSALS) as caught:
        as_array(value, "W")
    assert_named(caught.value, "W", type(value))
    assert said in str(caught.value)
    assert also in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("dtype", ["i1", "u8", "?", "g", ">f4" if np.little_endian else "<f4"])
def test_real_numbers_that_are_no_floats_are_to_be_cast_by_the_caller(dtype):
    W = np.ones((3, 4), dtype)
    with pytest.raises(TypeError, match=r"^W must have dtype .*; use W\.astype\(np\.float32\)$"):
        methods.LowRank(rank=1).compress(W)
    with pytest.raises(TypeError, match=r"; use W\.float\(\)$"):
        methods.LowRank(rank=1).compress(foreign.Tensor(W))
    if W.dtype.kind in "iu":
        with pytest.raises(TypeError, match=r"; use np\.asarray\(W, np\.float32\)$"):
            methods.LowRank(rank=1).compress(W.tolist())


@pytest.mark.parametrize("large", [2**63, 2**64 - 1])
def test_unsigned_numbers_beyond_int64_are_shown_as_they_are(large):
    ids = np.array([0, large], np.uint64)
    factors = methods.Codebook(n_bits=2).compress(public_calls.W)
    for look_up in (
        factors.rows,
        lambda ids: ff.codebook_rows(factors.packed, factors.codebook, ids),
    ):
        with pytest.raises(IndexError, match=rf"^ids must be in \[0, 8\), got {large}$"):
            look_up(ids)
    with pytest.raises(ValueError, match=rf"^positions must be in \[0, 9\), got {large}$"):
        ff.gap_encode(ids, size=9)
    with pytest.raises(ValueError, match=rf"^codes must .*{large}"):
        ff.PackedCodes.pack(ids[np.newaxis], 2)


# --- output and files

WITH_OUT = {
    "CSR.to_dense": (public_calls.SPARSE.to_dense, {}, np.empty(public_calls.SPARSE.shape, "f4")),
    "spmm": (
        ff.spmm,
        {"A": public_calls.SPARSE, "B": public_calls.X.T.copy()},
        np.empty((8, 5), "f4"),
    ),
    "codebook_matmul": (
        ff.codebook_matmul,
        {"x": public_calls.X, "packed": public_calls.PACKED, "codebook": public_calls.TABLE},
        np.empty((5, 8), "f4"),
    ),
    "sparse_codebook_matmul": (
        ff.sparse_codebook_matmul,
        {"x": public_calls.X, "sparse_codes": public_calls.CODED},
        np.empty((5, 8), "f4"),
    ),
}


@pytest.mark.parametrize("name", WITH_OUT)
def test_results_are_written_to_plain_arrays_only(name):
    function, given, out = WITH_OUT[name]
    for value in (out.view(np.matrix), np.ma.array(out), foreign.Tensor(out), out.tolist()):
        with pytest.raises(TypeError, match=r"^out must be a plain NumPy array, got "):
            function(**given, out=value)
    mapped = out.view(np.memmap)
    assert function(**given, out=mapped) is mapped
    np.testing.assert_array_equal(mapped, function(**given))


def test_each_function_with_out_is_tested():
    with_out = {
        name
        for name in ff.__all__
        if inspect.isfunction(getattr(ff, name))
        and "out" in inspect.signature(getattr(ff, name)).parameters
    }
    assert with_out == {name for name in WITH_OUT if "." not in name}
    factors = methods.LowRank(rank=1).compress(public_calls.W)
    for product in (factors.linear, lambda x, out: factors.to_dense(out=out)):
        with pytest.raises(TypeError, match=r"^out must be a plain NumPy array, got matrix"):
            product(public_calls.X, out=np.empty((8, 16), "f4").view(np.matrix))


def test_entries_of_stores_are_taken_as_arrays(tmp_path):
    path = tmp_path / "one.safetensors"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for make in foreign.TAKEN.values():
        store.save(path, {"bias": make(array)})
        with store.open_store(path) as saved:
            assert_same(np.array(saved["bias"]), array)
    narrow = array.astype(ml_dtypes.bfloat16)
    with store.Writer(path) as writer:
        writer.add("bias", foreign.Tensor(narrow.view(np.int16), "bfloat16"))
        for kind, make in foreign.REFUSED.items():
            if kind in ("complex", "ragged list"):
                continue
            with pytest.raises(REFUSALS) as caught:
                writer.add("other", make(array))
            assert "\n" not in str(caught.value)
            assert "'other' must " in str(caught.value)
    with store.open_store(path) as saved:
        assert list(saved) == ["bias"]
        assert_same(np.array(saved["bias"]), narrow)


# --- the libraries themselves, where they are installed


@pytest.mark.framework
def test_tensors_of_torch(monkeypatch):
    monkeypatch.undo()  # the imitation of torch
    torch = pytest.importorskip("torch", reason="torch is not installed")
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for tensor in (values, torch.nn.Parameter(values), values.T, values[:, ::2]):
        taken = as_array(tensor, "W")
        np.testing.assert_array_equal(taken, np.array(tensor.tolist()))
        assert taken.ctypes.data == tensor.data_ptr()
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.int64, torch.bool):
        taken = as_array(values.to(dtype), "W")
        assert taken.dtype.name == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(taken.astype(float), values.to(dtype).float().numpy())
    for refused in (values.to_sparse(), values.to("meta")):
        with pytest.raises(TypeError) as caught:
            as_array(refused, "W")
        assert_named(caught.value, "W", refused)


@pytest.mark.framework
def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    frame = pandas.DataFrame(values, columns=list("abc"))
    np.testing.assert_array_equal(as_array(frame, "W"), values)
    np.testing.assert_array_equal(as_array(frame["b"], "W"), values[:, 1])
    assert as_array(frame, "W").dtype == np.float32
    for refused in (frame.assign(d=["x", "y"]), frame.assign(d=pandas.array([1, None], "Int64"))):
        with pytest.raises(TypeError, match=r"^W must be an array of numbers, got DataFrame "):
            as_array(refused, "W")

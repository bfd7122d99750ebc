"""omp however it is called: threads, blocks, dtypes, layouts, sizes, magnitudes, and bad input."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import omp
from layouts import LAYOUTS
from omp_checks import (
    SIZES,
    assert_codes_scale,
    assert_rows_alone_have_the_same_bits,
    assert_same_bits,
    assert_well_formed,
    dense,
    unit_atoms,
)

# --- the same bits, however it is called


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 6}, {"tol": 3.0}])
def test_a_row_alone_has_the_bits_it_has_among_others(rng, dtype, limit):
    dictionary = rng.standard_normal((65, 17)).astype(dtype)
    X = rng.standard_normal((997, 17)).astype(dtype)
    parts = [(0, 1), (1, 2), (11, 13), (500, 997), (763, 775), (996, 997)]
    assert_rows_alone_have_the_same_bits(partial(omp, **limit), X, dictionary, parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_samples", "n_atoms", "n_features"), [(3001, 67, 19), (50, 2000, 40)])
def test_any_number_of_threads_gives_the_same_bits(
    rng, dtype, n_threads, n_samples, n_atoms, n_features
):
    dictionary = rng.standard_normal((n_atoms, n_features)).astype(dtype)
    X = rng.standard_normal((n_samples, n_features)).astype(dtype)
    for options in (
        {"n_nonzero_coefs": 5},
        {"tol": 4.0},
        {"n_nonzero_coefs": 4, "criterion": "ols"},
    ):
        assert_same_bits(
            omp(X, dictionary, n_threads=n_threads, **options),
            omp(X, dictionary, n_threads=1, **options),
        )


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened_exactly(rng, narrow):
    X = rng.standard_normal((101, 23)).astype(narrow)
    dictionary = rng.standard_normal((40, 23)).astype(narrow)
    X[0, :3] = np.array([6e-8, -3e-5, 0], narrow)  # float16's denormals too
    expected = omp(X.astype(np.float32), dictionary.astype(np.float32), n_nonzero_coefs=5)
    assert_same_bits(omp(X, dictionary, n_nonzero_coefs=5), expected)
    gram = (dictionary.astype(np.float32) @ dictionary.astype(np.float32).T).astype(narrow)
    assert_same_bits(
        omp(X, dictionary, gram=gram, n_nonzero_coefs=5),
        omp(X, dictionary, gram=gram.astype(np.float32), n_nonzero_coefs=5),
    )


def test_one_float64_operand_makes_a_float64_result(rng):
    X = rng.standard_normal((9, 8)).astype(np.float32)
    dictionary = rng.standard_normal((12, 8)).astype(np.float32)
    wide = omp(X.astype(np.float64), dictionary.astype(np.float64), n_nonzero_coefs=3)
    assert_same_bits(omp(X, dictionary.astype(np.float64), n_nonzero_coefs=3), wide)
    assert_same_bits(omp(X.astype(np.float64), dictionary, n_nonzero_coefs=3), wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_layout_does_not_matter(rng, layout, dtype):
    X = rng.standard_normal((37, 13)).astype(dtype)
    dictionary = rng.standard_normal((29, 13)).astype(dtype)
    expected = omp(X, dictionary, n_nonzero_coefs=4)
    assert_same_bits(omp(layout(X), layout(dictionary), n_nonzero_coefs=4), expected)


def test_read_only_memory_maps(rng, as_memmap):
    X = rng.standard_normal((200, 13)).astype(np.float32)
    dictionary = rng.standard_normal((29, 13)).astype(np.float32)
    gram = (dictionary @ dictionary.T).astype(np.float32)
    codes = omp(as_memmap(X), as_memmap(dictionary), gram=as_memmap(gram), n_nonzero_coefs=4)
    assert_same_bits(codes, omp(X, dictionary, gram=gram, n_nonzero_coefs=4))


def test_rows_that_share_memory(rng):
    # A stride of zero, and windows that overlap.
    row = rng.standard_normal(21)
    dictionary = rng.standard_normal((30, 21))
    same = omp(np.broadcast_to(row, (5, 21)), dictionary, n_nonzero_coefs=3)
    np.testing.assert_array_equal(same.indices, np.tile(same.indices[:3], 5))
    windows = np.lib.stride_tricks.sliding_window_view(rng.standard_normal(60), 21)
    assert_same_bits(
        omp(windows, dictionary, n_nonzero_coefs=3),
        omp(windows.copy(), dictionary, n_nonzero_coefs=3),
    )


def test_lists_of_floats():
    codes = omp([[0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], n_nonzero_coefs=1)
    np.testing.assert_array_equal(codes.to_dense(), [[0.0, 2.0]])


def test_operands_are_not_written_to(rng):
    X, dictionary = rng.standard_normal((40, 9)), rng.standard_normal((20, 9))
    gram = dictionary @ dictionary.T
    copies = X.copy(), dictionary.copy(), gram.copy()
    omp(X, dictionary, gram=gram, n_nonzero_coefs=4)
    for array, copy in zip((X, dictionary, gram), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- sizes and magnitudes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", SIZES)
def test_any_number_of_atoms(rng, dtype, n_atoms):
    dictionary = rng.standard_normal((n_atoms, 12))
    X = rng.standard_normal((25, 12))
    expected = oracle.omp_codes(X, dictionary, 4)
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=4)
    assert_well_formed(codes, 25, n_atoms, dtype, 4)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_features", [*SIZES, 255, 256, 257, 513, 1021])
def test_any_number_of_features(rng, dtype, n_features):
    dictionary = rng.standard_normal((20, n_features))
    X = rng.standard_normal((14, n_features))
    limit = min(3, n_features)
    expected = oracle.omp_codes(X, dictionary, limit)
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=limit)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_samples", [0, *SIZES, 767, 768, 769])
def test_any_number_of_rows(rng, dtype, n_samples):
    dictionary = rng.standard_normal((21, 11))
    X = rng.standard_normal((n_samples, 11))
    codes = omp(X.astype(dtype), dictionary.astype(dtype), n_nonzero_coefs=2)
    assert_well_formed(codes, n_samples, 21, dtype, 2)
    expected = oracle.omp_codes(X, dictionary, 2)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(dense(codes), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [15, 16, 17, 33, 40])
def test_codes_longer_than_the_first_allocation(rng, count):
    dictionary = rng.standard_normal((60, 45))
    X = rng.standard_normal((10, 45))
    np.testing.assert_allclose(
        dense(omp(X, dictionary, n_nonzero_coefs=count)),
        oracle.omp_codes(X, dictionary, count),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("power", [-110, -60, -1, 1, 60, 110])
def test_scaling_by_a_power_of_two_scales_the_codes(rng, power):
    dictionary = rng.standard_normal((50, 20)).astype(np.float32)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    assert_codes_scale(partial(omp, n_nonzero_coefs=6), X, dictionary, np.float32(2.0**power))


def test_tol_scales_with_the_square(rng):
    dictionary = rng.standard_normal((50, 20)).astype(np.float32)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    base = omp(X, dictionary, tol=3.0)
    scaled = omp(X * np.float32(2.0**-70), dictionary, tol=3.0 * 2.0**-140)
    np.testing.assert_array_equal(scaled.indices, base.indices)


def test_rows_of_any_magnitude_side_by_side(rng):
    dictionary = unit_atoms(rng, 40, 8, np.float32)
    X = rng.uniform(0.5, 1, (77, 8)).astype(np.float32)
    magnitudes = (10.0 ** np.linspace(-38, 38, 77)).astype(np.float32)[:, None]
    codes = omp(X * magnitudes, dictionary, n_nonzero_coefs=3)
    assert_well_formed(codes, 77, 40, np.float32, 3)
    expected = oracle.omp_codes((X * magnitudes).astype(np.float64), dictionary, 3)
    relative = np.abs(dense(codes) - expected) / magnitudes
    assert relative.max() < 1e-4


def test_denormal_rows(rng):
    X = np.array([[1e-45, 0, 0], [0, 3e-42, 0], [0, 0, -1e-40]], np.float32)
    codes = omp(X, np.eye(3, dtype=np.float32), n_nonzero_coefs=2)
    np.testing.assert_array_equal(codes.to_dense(), X)


# --- bad input


X_OK = np.ones((4, 3), np.float32)
ATOMS_OK = np.eye(3, dtype=np.float32)
DTYPES = "must have dtype float16, bfloat16, float32 or float64 in native byte order, got "


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (X_OK.astype(np.int32), "int32"),
        (X_OK.astype(bool), "bool"),
        (X_OK.astype(np.complex64), "complex64"),
        (X_OK.astype(np.longdouble), "float128|longdouble"),
        (X_OK.astype(">f4" if np.little_endian else "<f4"), "[<>]f4"),
        (X_OK.astype(object), "object"),
        (X_OK.astype(str), "<U"),
        ([["a", "b", "c"]], "<U"),
        ([[1, 2, 3]], "int"),
    ],
)
@pytest.mark.parametrize("name", ["X", "dictionary"])
def test_wrong_dtypes(name, bad, said):
    operands = {"X": X_OK, "dictionary": ATOMS_OK, name: bad}
    with pytest.raises(TypeError, match=f"^{name} {DTYPES}({said})"):
        omp(**operands)


@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "O", "U1"])
def test_wrong_dtypes_of_gram(dtype):
    with pytest.raises(TypeError, match=f"^gram {DTYPES}"):
        omp(X_OK, ATOMS_OK, gram=np.eye(3).astype(dtype))


@pytest.mark.parametrize("name", ["X", "dictionary", "gram"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3, 3)])
def test_wrong_ranks(name, shape):
    operands = {"X": X_OK, "dictionary": ATOMS_OK, name: np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=rf"^{name} must have 2 dimensions, got shape \("):
        omp(**operands)


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        (
            {"X": np.ones((4, 2), np.float32)},
            r"X must have as many columns as the dictionary, 3, got shape \(4, 2\)",
        ),
        (
            {"X": np.ones((4, 0), np.float32)},
            r"X must have as many columns as the dictionary, 3, got shape \(4, 0\)",
        ),
        (
            {"gram": np.eye(4, dtype=np.float32)},
            r"gram must have shape \(3, 3\), got \(4, 4\)",
        ),
        (
            {"gram": np.ones((3, 2), np.float32)},
            r"gram must have shape \(3, 3\), got \(3, 2\)",
        ),
        (
            {"dictionary": np.ones((0, 3), np.float32)},
            r"dictionary must have at least one atom and one feature, got shape \(0, 3\)",
        ),
        (
            {"dictionary": np.ones((3, 0), np.float32)},
            r"dictionary must have at least one atom and one feature, got shape \(3, 0\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(operands, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        omp(**{"X": X_OK, "dictionary": ATOMS_OK, **operands})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "dictionary", "gram"])
def test_nan_and_infinity(rng, name, value, dtype):
    operands = {
        "X": rng.standard_normal((2000, 5)).astype(dtype),
        "dictionary": rng.standard_normal((90, 5)).astype(dtype),
    }
    if name == "gram":
        wide = operands["dictionary"].astype(np.float32)
        operands["gram"] = (wide @ wide.T).astype(dtype)
    rows, columns = operands[name].shape
    for at in [(0, 0), (rows - 1, columns - 1), (rows // 2, 3)]:
        broken = operands[name].copy()
        broken[at] = value
        place = rf"\[{at[0]}, {at[1]}\]"
        with pytest.raises(ValueError, match=rf"^{name} must be finite, got {value} at {place}$"):
            omp(**{**operands, name: broken}, n_nonzero_coefs=2, n_threads=2)


def test_a_limit_of_magnitude_is_named():
    with pytest.raises(ValueError, match=r"^dictionary must have a finite squared norm in row 0"):
        omp(np.ones((1, 2)), np.full((2, 2), 1e200), n_nonzero_coefs=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_nonzero_coefs": 0}, ValueError, "n_nonzero_coefs must be at least 1, got 0"),
        ({"n_nonzero_coefs": -1}, ValueError, "n_nonzero_coefs must be at least 1, got -1"),
        ({"n_nonzero_coefs": 1.5}, TypeError, "n_nonzero_coefs must be an integer .*, got 1.5"),
        ({"n_nonzero_coefs": 2.0}, TypeError, "n_nonzero_coefs must be an integer .*, got 2.0"),
        ({"n_nonzero_coefs": True}, TypeError, "n_nonzero_coefs must be an integer .*, got True"),
        ({"n_nonzero_coefs": "3"}, TypeError, "n_nonzero_coefs must be an integer .*, got '3'"),
        ({"tol": -1e-9}, ValueError, "tol must be zero or more, got -1e-09"),
        ({"tol": np.nan}, ValueError, "tol must be zero or more, got nan"),
        ({"tol": -np.inf}, ValueError, "tol must be zero or more, got -inf"),
        ({"tol": "much"}, TypeError, "tol must be a number .*, got 'much'"),
        ({"tol": "0.5"}, TypeError, "tol must be a number .*, got '0.5'"),
        ({"tol": [1.0]}, TypeError, r"tol must be a number .*, got \[1.0\]"),
        ({"tol": 1j}, TypeError, "tol must be a number .*, got 1j"),
        (
            {"criterion": "lars"},
            ValueError,
            "criterion must be one of 'correlation', 'ols', got 'lars'",
        ),
        ({"criterion": None}, TypeError, "criterion must be one of 'correlation', 'ols', got None"),
        ({"n_threads": 0}, ValueError, r"n_threads must be in \[1, 1024\], got 0"),
        ({"n_threads": -1}, ValueError, r"n_threads must be in \[1, 1024\], got -1"),
        ({"n_threads": 1025}, ValueError, r"n_threads must be in \[1, 1024\], got 1025"),
        ({"n_threads": 1.5}, TypeError, "n_threads must be an integer .*, got 1.5"),
        ({"n_threads": True}, TypeError, "n_threads must be an integer .*, got True"),
        ({"n_threads": "2"}, TypeError, "n_threads must be an integer .*, got '2'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        omp(X_OK, ATOMS_OK, **options)


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        omp(X_OK, ATOMS_OK, 2)


def test_numpy_integers_and_floats_are_numbers():
    codes = omp(
        X_OK, ATOMS_OK, n_nonzero_coefs=np.int16(2), tol=np.float32(0), n_threads=np.uint8(1)
    )
    np.testing.assert_array_equal(np.diff(codes.indptr), 2)

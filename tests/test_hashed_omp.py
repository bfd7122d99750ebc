"""hashed_omp against a replay in plain NumPy, against omp, and however it is called."""

from __future__ import annotations

import sys
from functools import partial

import hash_oracle
import ml_dtypes
import numpy as np
import oracle
import pytest
from fastfactor import LinearDependenceWarning, hashed_omp, omp
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from omp_checks import (
    SIZES,
    assert_codes_scale,
    assert_rows_alone_have_the_same_bits,
    assert_same_bits,
    assert_tol_is_reached_at_the_error,
    assert_well_formed,
    dense,
    errors,
    sparse_signals,
    unit_atoms,
)
from processes import output_of


def supports(codes):
    return [
        set(codes.indices[start:end].tolist())
        for start, end in zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    ]


def assert_least_squares(codes, X, dictionary, tolerance):
    X, dictionary = np.asarray(X, np.float64), np.asarray(dictionary, np.float64)
    for x, row in zip(X, dense(codes), strict=True):
        atoms = np.flatnonzero(row)
        if len(atoms):
            expected = oracle.least_squares(x, dictionary, atoms)[0]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(row[atoms], expected, rtol=0, atol=tolerance * scale)


# --- the atoms that are taken


@pytest.mark.parametrize(
    ("n_features", "n_tables", "hash_bits", "probe_fraction"),
    [(16, 2, 4, 0.3), (16, 3, 2, 0.2), (16, 1, 6, 0.1), (13, 2, 5, 0.3), (33, 4, 3, 0.5)],
)
def test_each_atom_is_the_best_of_those_in_buckets_near_the_residual(
    rng, n_features, n_tables, hash_bits, probe_fraction
):
    dictionary = rng.standard_normal((300, n_features))
    X = rng.standard_normal((60, n_features))
    options = {
        "n_tables": n_tables,
        "hash_bits": hash_bits,
        "probe_fraction": probe_fraction,
        "random_state": 5,
    }
    tables = hash_oracle.directions(n_features, n_tables, hash_bits, 5)
    cosine = hash_oracle.threshold(probe_fraction, n_tables, n_features)
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=4, **options)
    found = [hash_oracle.path(x, dictionary, 4, tables, cosine) for x in X]
    assert supports(codes) == [set(chosen) for chosen, _ in found]
    assert_least_squares(codes, X, dictionary, 1e-9)
    # The tables matter: not all of these are what a look at all atoms gives.
    exact = omp(X, dictionary, n_nonzero_coefs=4)
    assert supports(codes) != supports(exact)
    # In the order of the path: a shorter code is a beginning of a longer one.
    first = hashed_omp(X, dictionary, n_nonzero_coefs=1, **options)
    np.testing.assert_array_equal(first.indices, [chosen[0] for chosen, _ in found])


def test_a_step_that_finds_no_bucket_looks_at_all_atoms(rng):
    dictionary = rng.standard_normal((200, 32))
    X = rng.standard_normal((40, 32))
    options = {"n_tables": 1, "hash_bits": 5, "probe_fraction": 0.02}
    tables = hash_oracle.directions(32, 1, 5, 0)
    cosine = hash_oracle.threshold(0.02, 1, 32)
    found = [hash_oracle.path(x, dictionary, 5, tables, cosine) for x in X]
    assert sum(len(saw_all) for _, saw_all in found) > 20
    assert sum(5 - len(saw_all) for _, saw_all in found) > 20
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=5, **options)
    assert supports(codes) == [set(chosen) for chosen, _ in found]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limits", [{"n_nonzero_coefs": 7}, {"tol": 3.0}, {}])
def test_with_one_bucket_it_is_omp(rng, dtype, limits):
    dictionary = unit_atoms(rng, 150, 24, dtype)
    X = rng.standard_normal((100, 24)).astype(dtype)
    exact = omp(X, dictionary, **limits)
    codes = hashed_omp(X, dictionary, hash_bits=0, **limits)
    np.testing.assert_array_equal(codes.indptr, exact.indptr)
    np.testing.assert_array_equal(codes.indices, exact.indices)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(codes.data, exact.data, rtol=tolerance, atol=tolerance)


def test_with_every_bucket_looked_into_it_is_omp(rng):
    dictionary = unit_atoms(rng, 700, 20)
    X = rng.standard_normal((50, 20))
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=4, n_tables=1, hash_bits=6, probe_fraction=1)
    np.testing.assert_array_equal(codes.indices, omp(X, dictionary, n_nonzero_coefs=4).indices)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_most_planted_atoms_are_found(rng, dtype):
    dictionary = unit_atoms(rng, 2000, 64)
    X, planted = sparse_signals(rng, dictionary, 200, 2)
    X, dictionary = X.astype(dtype), dictionary.astype(dtype)
    few = hashed_omp(X, dictionary, n_nonzero_coefs=2, hash_bits=5, probe_fraction=0.02)
    many = hashed_omp(X, dictionary, n_nonzero_coefs=2, hash_bits=5, probe_fraction=0.3)
    truth = [set(np.flatnonzero(row)) for row in planted]
    hit = [sum(a == b for a, b in zip(supports(c), truth, strict=True)) for c in (few, many)]
    assert hit[1] >= 195
    assert hit[1] > hit[0]
    assert errors(X, many, dictionary).sum() < errors(X, few, dictionary).sum()


def test_the_seed_matters_and_is_kept(rng):
    dictionary = unit_atoms(rng, 1000, 32)
    X = rng.standard_normal((100, 32))
    options = {"n_nonzero_coefs": 3, "hash_bits": 4}
    one = hashed_omp(X, dictionary, random_state=1, **options)
    assert_same_bits(hashed_omp(X, dictionary, random_state=1, **options), one)
    other = hashed_omp(X, dictionary, random_state=2, **options)
    assert (other.indices != one.indices).any()


# --- what holds for every code


@pytest.mark.filterwarnings("ignore::fastfactor.LinearDependenceWarning")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 90), st.integers(1, 20)),
    limit=st.integers(1, 25),
    tol=st.none() | st.floats(0, 30),
    n_tables=st.integers(1, 4),
    hash_bits=st.integers(0, 6),
    probe_fraction=st.floats(1e-4, 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_codes_are_least_squares_and_errors_fall(
    seed, shape, limit, tol, n_tables, hash_bits, probe_fraction, dtype
):
    rng = np.random.default_rng(seed)
    n, n_atoms, d = shape
    dictionary = rng.standard_normal((n_atoms, d)).astype(dtype)
    dictionary[rng.random(n_atoms) < 0.2] = dictionary[0]  # duplicates
    dictionary[rng.random(n_atoms) < 0.1] = 0
    X = rng.standard_normal((n, d)).astype(dtype)
    X[rng.random(n) < 0.1] = 0
    options = {
        "n_tables": n_tables,
        "hash_bits": hash_bits,
        "probe_fraction": probe_fraction,
        "random_state": seed,
    }
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=limit, tol=tol, **options)
    assert_well_formed(codes, n, n_atoms, dtype, min(limit, n_atoms, d))
    error = errors(X, codes, dictionary)
    energy = (X.astype(np.float64) ** 2).sum(axis=1)
    eps = np.finfo(dtype).eps
    condition = 1e3 * max(d, n_atoms)
    assert (error <= energy * (1 + condition * eps)).all()
    assert (np.diff(codes.indptr)[energy == 0] == 0).all()
    # What is left is orthogonal to the atoms that were taken.
    wide = dictionary.astype(np.float64)
    left = X.astype(np.float64) - dense(codes) @ wide
    inner = np.abs(left @ wide.T)[dense(codes) != 0]
    assert (inner <= 1e-2 * np.sqrt(eps) * 1e4 * np.sqrt(energy.max(initial=0) * d)).all()
    if limit > 1:
        shorter = hashed_omp(X, dictionary, n_nonzero_coefs=limit - 1, tol=tol, **options)
        for less, more in zip(supports(shorter), supports(codes), strict=True):
            assert less <= more
        assert (error <= errors(X, shorter, dictionary) + condition * eps * energy).all()
    if tol is not None:
        # A row that ended before its limits is within tol, or nothing helped.
        ended = np.diff(codes.indptr) < min(limit, n_atoms, d)
        useful = np.abs(left @ wide.T).max(axis=1, initial=0) > 1e3 * np.sqrt(eps * energy * d)
        assert (error[ended & useful] <= tol + condition * eps * energy[ended & useful]).all()


@pytest.mark.parametrize("count", [15, 16, 17, 33, 40])
def test_codes_longer_than_the_first_allocation(rng, count):
    dictionary = rng.standard_normal((60, 45))
    X = rng.standard_normal((10, 45))
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=count, hash_bits=0)
    expected = oracle.omp_codes(X, dictionary, count)
    np.testing.assert_allclose(dense(codes), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_one_row_of_many_atoms_takes_little_memory_for_the_rows_beside_it():
    """Room for 512 atoms a row would be 4 GB for a block of the 4000 rows that fit else."""
    code = """
        import re
        import numpy as np
        import fastfactor

        atoms = np.eye(512, dtype=np.float32)
        X = atoms[np.arange(32_000) % 512]
        X[5] = np.arange(512) + 1

        def megabytes(name):
            status = open("/proc/self/status").read()
            return int(re.search(name + r":\\s+(\\d+)", status)[1]) // 1024

        before = megabytes("VmSize")
        codes = fastfactor.hashed_omp(X, atoms, tol=1e-6, hash_bits=0, n_threads=1)
        print(codes.indptr[-1], megabytes("VmPeak") - before)
    """
    n_nonzeros, taken = map(int, output_of(code).split())
    assert n_nonzeros == 32_000 - 1 + 512
    assert taken < 1000


def test_tol_at_the_error_of_an_exact_code():
    for hash_bits in (0, 1, 2, 3):
        assert_tol_is_reached_at_the_error(partial(hashed_omp, hash_bits=hash_bits))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hash_bits", [0, 3])
def test_duplicated_atoms_are_taken_once_and_the_first_of_them(rng, dtype, hash_bits):
    distinct = rng.standard_normal((30, 10)).astype(dtype)
    dictionary = np.concatenate([distinct, distinct, -distinct])
    X = rng.standard_normal((50, 10)).astype(dtype)
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=10, hash_bits=hash_bits, probe_fraction=0.5)
    assert (codes.indices < 30).all()
    assert_least_squares(codes, X, dictionary, 1e-2 if dtype == np.float32 else 1e-8)


def test_rows_and_atoms_of_zeros():
    atoms = np.zeros((5, 3), np.float32)
    with pytest.warns(LinearDependenceWarning, match="4 of 4 rows"):
        assert hashed_omp(np.ones((4, 3), np.float32), atoms, hash_bits=2).nnz == 0
    atoms[3] = [0, 2, 0]
    codes = hashed_omp(np.array([[0, 0, 0], [0, 3, 0], [0, -1, 0]], np.float32), atoms, hash_bits=2)
    np.testing.assert_array_equal(codes.indptr, [0, 0, 1, 2])
    np.testing.assert_array_equal(codes.indices, [3, 3])
    np.testing.assert_array_equal(codes.data, np.array([1.5, -0.5], np.float32))


# --- the same bits, however it is called


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [{"n_nonzero_coefs": 5}, {"tol": 5.0}])
def test_any_number_of_threads_gives_the_same_bits(rng, dtype, n_threads, limit):
    dictionary = rng.standard_normal((500, 19)).astype(dtype)
    X = rng.standard_normal((3001, 19)).astype(dtype)
    options = {"hash_bits": 4, "probe_fraction": 0.1, **limit}
    assert_same_bits(
        hashed_omp(X, dictionary, n_threads=n_threads, **options),
        hashed_omp(X, dictionary, n_threads=1, **options),
    )


@pytest.mark.parametrize(("dtype", "n_features"), [(np.float32, 300), (np.float64, 17)])
def test_a_row_alone_has_the_bits_it_has_among_others(rng, dtype, n_features):
    dictionary = rng.standard_normal((200, n_features)).astype(dtype)
    X = rng.standard_normal((997, n_features)).astype(dtype)
    encode = partial(hashed_omp, n_nonzero_coefs=5, hash_bits=4, probe_fraction=0.1)
    parts = [(0, 1), (1, 2), (11, 13), (500, 997), (996, 997)]
    assert_rows_alone_have_the_same_bits(encode, X, dictionary, parts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_layout_and_narrow_floats_do_not_matter(rng, layout, dtype):
    X = rng.standard_normal((37, 13)).astype(dtype)
    dictionary = rng.standard_normal((129, 13)).astype(dtype)
    options = {"n_nonzero_coefs": 4, "hash_bits": 3}
    wide = np.float64 if dtype == np.float64 else np.float32
    expected = hashed_omp(X.astype(wide), dictionary.astype(wide), **options)
    assert_same_bits(hashed_omp(layout(X), layout(dictionary), **options), expected)


def test_read_only_memory_maps(rng, as_memmap):
    X = rng.standard_normal((50, 13)).astype(np.float32)
    dictionary = rng.standard_normal((300, 13)).astype(np.float32)
    codes = hashed_omp(as_memmap(X), as_memmap(dictionary), n_nonzero_coefs=4, hash_bits=3)
    assert_same_bits(codes, hashed_omp(X, dictionary, n_nonzero_coefs=4, hash_bits=3))


@pytest.mark.parametrize("power", [-110, -1, 60])
def test_scaling_by_a_power_of_two_scales_the_codes(rng, power):
    dictionary = rng.standard_normal((300, 20)).astype(np.float32)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    encode = partial(hashed_omp, n_nonzero_coefs=5, hash_bits=4)
    assert_codes_scale(encode, X, dictionary, np.float32(2.0**power))


# --- sizes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, 15, 16, 17, 31, 33, 64, 65, 1021])
@pytest.mark.parametrize("n_features", [1, 3, 8, 12])
def test_any_number_of_atoms_and_features(rng, dtype, n_atoms, n_features):
    dictionary = rng.standard_normal((n_atoms, n_features)).astype(dtype)
    X = rng.standard_normal((25, n_features)).astype(dtype)
    limit = min(3, n_atoms, n_features)
    for hash_bits in (None, 1, 5):
        codes = hashed_omp(X, dictionary, n_nonzero_coefs=3, hash_bits=hash_bits)
        assert_well_formed(codes, 25, n_atoms, dtype, limit)
        np.testing.assert_array_equal(np.diff(codes.indptr), limit)
        assert_least_squares(codes, X, dictionary, 0.1 if dtype == np.float32 else 1e-8)


@pytest.mark.parametrize("n_samples", [0, *SIZES, 257])
def test_any_number_of_rows(rng, n_samples):
    dictionary = rng.standard_normal((90, 11))
    X = rng.standard_normal((n_samples, 11))
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=2, hash_bits=3, probe_fraction=0.2)
    tables = hash_oracle.directions(11, 8, 3, 0)
    cosine = hash_oracle.threshold(0.2, 8, 11)
    expected = [set(hash_oracle.path(x, dictionary, 2, tables, cosine)[0]) for x in X]
    assert supports(codes) == expected


@pytest.mark.parametrize("n_features", [255, 256, 257, 600])
def test_many_features(rng, n_features):
    dictionary = rng.standard_normal((120, n_features))
    X = rng.standard_normal((14, n_features))
    tables = hash_oracle.directions(n_features, 2, 3, 0)
    cosine = hash_oracle.threshold(0.5, 2, n_features)
    codes = hashed_omp(
        X, dictionary, n_nonzero_coefs=3, n_tables=2, hash_bits=3, probe_fraction=0.5
    )
    expected = [set(hash_oracle.path(x, dictionary, 3, tables, cosine)[0]) for x in X]
    assert supports(codes) == expected


# --- bad input


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["X", "dictionary"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity(rng, name, value, dtype):
    operands = {
        "X": rng.standard_normal((500, 5)).astype(dtype),
        "dictionary": rng.standard_normal((90, 5)).astype(dtype),
    }
    at = (len(operands[name]) - 1, 3)
    operands[name][at] = value
    said = rf"^{name} must be finite, got {value} at \[{at[0]}, {at[1]}\]$"
    for hash_bits in (0, 3):
        with pytest.raises(ValueError, match=said):
            hashed_omp(**operands, n_nonzero_coefs=2, hash_bits=hash_bits, n_threads=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_nonzero_coefs": 0}, ValueError, "n_nonzero_coefs must be at least 1, got 0"),
        ({"tol": -1.0}, ValueError, "tol must be zero or more, got -1.0"),
        ({"probe_fraction": 0}, ValueError, r"probe_fraction must be in \(0, 1\], got 0"),
        ({"probe_fraction": 1.5}, ValueError, r"probe_fraction must be in \(0, 1\], got 1.5"),
        ({"probe_fraction": -1}, ValueError, r"probe_fraction must be in \(0, 1\], got -1"),
        ({"probe_fraction": np.nan}, ValueError, r"probe_fraction must be in \(0, 1\], got nan"),
        (
            {"probe_fraction": "most"},
            TypeError,
            r"probe_fraction must be a number in \(0, 1\], got 'most'",
        ),
        ({"n_tables": 0}, ValueError, r"n_tables must be in \[1, 256\], got 0"),
        ({"n_tables": 2.0}, TypeError, "n_tables must be an integer .*, got 2.0"),
        ({"hash_bits": -1}, ValueError, r"hash_bits must be in \[0, 20\], got -1"),
        ({"hash_bits": 21}, ValueError, r"hash_bits must be in \[0, 20\], got 21"),
        ({"random_state": "x"}, TypeError, "random_state must be None, .*, got 'x'"),
        ({"random_state": -1}, ValueError, "random_state must be in .*, got -1"),
        ({"n_threads": 0}, ValueError, r"n_threads must be in \[1, 1024\], got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        hashed_omp(np.ones((4, 3), np.float32), np.eye(3, dtype=np.float32), **options)


def test_bad_operands():
    atoms = np.eye(3, dtype=np.float32)
    with pytest.raises(TypeError, match=r"^X must have dtype"):
        hashed_omp(np.ones((4, 3), np.int32), atoms)
    with pytest.raises(ValueError, match=r"^X must have as many columns as the dictionary, 3"):
        hashed_omp(np.ones((4, 2), np.float32), atoms)
    with pytest.raises(ValueError, match=r"^dictionary must have at least one atom"):
        hashed_omp(np.ones((4, 3), np.float32), atoms[:0])


@pytest.mark.parametrize("hash_bits", [0, 2])
@pytest.mark.parametrize("share", [0.02, 1e-4])
def test_float32_goes_on_where_float64_does(rng, hash_bits, share):
    noise = rng.standard_normal((20, 32))
    dictionary = (rng.standard_normal(32) + share * noise).astype(np.float32)
    X = rng.standard_normal((50, 32)).astype(np.float32)
    codes = hashed_omp(X, dictionary, n_nonzero_coefs=20, hash_bits=hash_bits)
    wide = hashed_omp(X.astype(np.float64), dictionary, n_nonzero_coefs=20, hash_bits=hash_bits)
    assert codes.nnz == wide.nnz == 1000
    assert errors(X, codes, dictionary).sum() <= 1.01 * errors(X, wide, dictionary).sum()


def test_rows_that_end_early_are_warned_of(rng):
    atoms = rng.standard_normal((3, 8))
    with pytest.warns(LinearDependenceWarning, match="4 of 4 rows ended early"):
        hashed_omp(rng.standard_normal((4, 8)), np.concatenate([atoms, atoms]), n_nonzero_coefs=5)

"""What `forward` may use of an array library; that it uses no more is in contract."""

from __future__ import annotations

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import strict_namespace
from fastfactor.methods import Factors, LowRank, LowRankFactors
from fastfactor.methods.forward import (
    NUMPY,
    ArrayNamespace,
    constant,
    gathered_product,
    length,
    n_inputs,
    with_lead,
    with_zero,
)
from product_cases import CASES, SHAPE, factors_of
from strict_namespace import DEVICE, NAMES, StrictNamespace, strict_array

STRICT = StrictNamespace()
REFUSE_EMPTY = {"block_diagonal", "dictionary", "entropy_coded"}
REFUSE_EMPTY |= {case for case in CASES if case.startswith("conv_")}


def test_the_names_are_the_standards_and_numpys_adapter_has_all_of_them():
    assert {name for name in dir(ArrayNamespace) if not name.startswith("_")} == NAMES
    for name in NAMES:
        assert callable(getattr(array_api_strict, name))
        assert callable(getattr(NUMPY, name))


def test_the_strict_library_refuses_what_is_not_its_own(rng):
    factors = LowRank(rank=2).compress(rng.standard_normal((6, 5)).astype(np.float32))
    x = rng.standard_normal((3, 5)).astype(np.float32)
    own = {name: strict_array(t, "float32") for name, t in factors.tensors().items()}
    factors.forward(STRICT, own, strict_array(x, "float32"))
    with pytest.raises(TypeError, match="NumPy's was given"):
        factors.forward(STRICT, factors.tensors(), strict_array(x, "float32"))
    with pytest.raises(TypeError, match="NumPy's was given"):
        factors.forward(STRICT, own, x)
    with pytest.raises(AttributeError, match="has no einsum"):
        STRICT.einsum("ij->ji", own["B"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constants_come_to_the_device_and_floats_to_the_dtype(dtype):
    like = strict_array(np.zeros(2), dtype)
    floats = constant(STRICT, np.array([1.5, -2], np.float32), like)
    assert (floats.dtype, floats.device) == (like.dtype, DEVICE)
    assert [float(value) for value in floats] == [1.5, -2]
    ids = constant(STRICT, np.array([3, 4], np.int64), like)
    assert (ids.dtype, ids.device) == (array_api_strict.int64, DEVICE)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_zero_is_appended_in_the_dtype(dtype):
    for values in (np.array([1, 2], dtype), np.zeros(0, dtype)):
        padded = with_zero(NUMPY, values)
        assert padded.dtype == dtype
        assert padded.tolist() == [*values.tolist(), 0]


class Symbol:
    """A length that a library traces: it can be multiplied and not be compared."""

    def __rmul__(self, factor):
        return self

    def __le__(self, limit):
        raise TypeError


def test_lengths_may_be_unknown():
    assert length() == 1
    assert length(2, 3, 4) == 24
    assert length(2, None, 4) == -1

    class Traced:
        def __init__(self, *shape):
            self.shape = shape

    assert n_inputs(Traced(5)) == 1
    assert n_inputs(Traced(2, 3, 5)) == 6
    assert n_inputs(Traced(2, None, 5)) is None
    assert n_inputs(Traced(Symbol(), 5)) is None
    rows = np.arange(12).reshape(6, 2)
    assert with_lead(NUMPY, rows, (None, 3)).shape == (2, 3, 2)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_gathered_products_are_those_of_the_matrix(rng, lead, m):
    values, columns = rng.standard_normal((5, m)), rng.integers(0, 7, (5, m))
    W = np.zeros((5, 7))
    np.add.at(W, (np.arange(5)[:, None], columns), values)
    x = rng.standard_normal((*lead, 7))
    found = gathered_product(NUMPY, values, columns, x)
    np.testing.assert_allclose(found, x @ W.T, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(0, 16), (20, 0), (0, 0), SHAPE])
def test_matrices_without_values_have_products_in_another_library(case, shape):
    if 0 in shape and case.partition("-")[0] in REFUSE_EMPTY and case != "block_diagonal-equal":
        with pytest.raises(ValueError, match="must"):
            CASES[case].compress(np.zeros(shape, np.float32))
        return
    factors = CASES[case].compress(np.zeros(shape, np.float32))
    x, ids = np.ones((2, shape[1]), np.float32), np.arange(min(shape[0], 3))
    y = strict_namespace.forward(factors, factors.tensors(), x, "float32")
    rows = strict_namespace.forward_rows(factors, factors.tensors(), ids, "float32")
    np.testing.assert_array_equal(y, np.zeros((2, shape[0])))
    np.testing.assert_array_equal(rows, np.zeros((len(ids), shape[1])))


class Sizes:
    """NumPy's functions, and the size of the largest array that they gave but for constants."""

    def __init__(self):
        self.largest = 0

    def __getattr__(self, name):
        function = getattr(NUMPY, name)

        def call(*arguments, **options):
            result = function(*arguments, **options)
            if name != "asarray":
                self.largest = max(self.largest, result.size)
            return result

        return call


DENSE = {"block_diagonal-equal", "codebook", "codebook-vectors", "codebook-sum", "entropy_coded"}
DENSE |= {"deep_compression", "prune", "prune-blocks", "prune_codebook", "simhash-many"}


@pytest.mark.parametrize("case", CASES)
def test_products_of_few_inputs_build_no_dense_matrix_where_less_will_do(case):
    factors, xp = factors_of(case), Sizes()
    factors.forward(xp, factors.tensors(), np.ones((1, SHAPE[1]), np.float32))
    assert (xp.largest >= SHAPE[0] * SHAPE[1]) == (case in DENSE)


@pytest.mark.parametrize(
    "case", sorted(CASES.keys() - {"block_diagonal-equal", "codebook-vectors"})
)
def test_rows_are_built_alone(case):
    """But for two cases whose trained values are more than those of W."""
    factors, xp = factors_of(case), Sizes()
    factors.forward_rows(xp, factors.tensors(), np.array([4]))
    assert xp.largest < SHAPE[0] * SHAPE[1]


@pytest.fixture
def own_kind():
    """Factors of a user's own, which define the product and nothing about rows of it."""

    class OwnFactors(LowRankFactors):
        kind = "own_low_rank"
        _forward_rows = Factors._forward_rows

    yield OwnFactors
    del Factors.kinds[OwnFactors.kind]


def test_rows_of_ones_own_factors_follow_from_the_product(own_kind, rng):
    B, C = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    factors = own_kind(B=B, C=C, shape=(6, 5), dtype=np.dtype(np.float64))
    rows = strict_namespace.forward_rows(factors, factors.tensors(), np.array([[5, 0]]), "float64")
    np.testing.assert_allclose(rows, (B @ C)[[[5, 0]]], rtol=1e-12)


def test_ones_own_factors_that_train_nothing_say_what_to_define(own_kind, rng):
    own_kind.trainable = ()
    B, C = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    factors = own_kind(B=B, C=C, shape=(6, 5), dtype=np.dtype(np.float64))
    with pytest.raises(TypeError, match="OwnFactors must define _forward_rows, because"):
        factors.forward_rows(NUMPY, {}, np.array([1]))

"""What `forward` may use of an array library; that it uses no more is in contract."""

from __future__ import annotations

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from fastfactor.methods import LowRank
from fastfactor.methods.forward import NUMPY, ArrayNamespace, constant, with_zero
from strict_namespace import DEVICE, NAMES, StrictNamespace, strict_array

STRICT = StrictNamespace()


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

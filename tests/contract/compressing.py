"""What `compress` takes and refuses, and when it gives the same factors."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from fastfactor import _checks
from fastfactor.methods import Factors
from layouts import LAYOUTS

from .matrices import Matrices

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


class CompressingContract(Matrices):
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_float_is_taken_and_given_back(self, method, dtype):
        W = self.matrix(dtype)
        before = W.copy()
        factors = method.compress(W)
        assert isinstance(factors, Factors)
        assert factors.shape == W.shape
        assert factors.dtype == W.dtype == factors.to_dense().dtype
        np.testing.assert_array_equal(W, before)
        plain = method.compress(self.matrix()).error(self.matrix())
        assert factors.error(W) <= 1.25 * plain + 10 * self.tolerance(dtype) ** 2 + 1e-4

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_gives_the_same_factors(self, method, layout):
        W = self.matrix()
        expected = method.compress(W).to_dense()
        result = method.compress(layout(W)).to_dense()
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3), (16, 16), (17, 31)])
    def test_small_shapes_work_or_are_refused_by_name(self, method, shape):
        W = self.matrix(shape=shape)
        try:
            factors = method.compress(W)
        except ValueError as error:
            self.check_refusal(str(error))
            return
        assert factors.to_dense().shape == shape
        assert factors.linear(np.ones(shape[1], np.float32)).shape == (shape[0],)
        assert np.isfinite(factors.error(W))

    def test_bad_matrices_are_named(self, method):
        W = self.matrix()
        for value in (np.nan, np.inf):
            broken = W.copy()
            broken[1, 2] = value
            with pytest.raises(ValueError, match="W must be finite"):
                method.compress(broken)
        with pytest.raises(ValueError, match="W must have 2 dimensions"):
            method.compress(W[0])
        with pytest.raises(TypeError, match="W must have dtype"):
            method.compress(W.astype(int))
        with pytest.raises(ValueError, match="importance must have the shape of W"):
            method.compress(W, importance=np.ones((2, 2)))
        with pytest.raises(ValueError, match="importance must not be negative"):
            method.compress(W, importance=-np.ones(W.shape))
        with pytest.raises(ValueError, match="input_covariance must have shape"):
            method.compress(W, input_covariance=np.ones((2, 2)))
        with pytest.raises(ValueError, match="must not both be given"):
            method.compress(W, importance=np.ones(W.shape), input_covariance=np.eye(W.shape[1]))

    def test_each_call_draws_one_seed_from_a_generator(self, method):
        if not hasattr(method, "random_state"):
            pytest.skip("draws no random numbers")
        W = self.matrix()
        for kind in (np.random.default_rng, np.random.RandomState):
            drawn = dataclasses.replace(method, random_state=kind(3))
            expected = kind(3)
            for _ in range(2):
                seed = _checks.seed(expected)
                same = dataclasses.replace(method, random_state=seed).compress(W).tensors()
                found = drawn.compress(W).tensors()
                assert found.keys() == same.keys()
                for name, tensor in same.items():
                    np.testing.assert_array_equal(found[name], tensor)
        dataclasses.replace(method, random_state=None).compress(W)
        with pytest.raises(TypeError, match="random_state must be None, an integer,"):
            dataclasses.replace(method, random_state="x")

    def test_same_factors_for_any_number_of_threads(self, method):
        W = self.matrix()
        first = method.compress(W, n_threads=1)
        for n_threads in (2, 3, 7):
            other = method.compress(W, n_threads=n_threads)
            for name, tensor in first.tensors().items():
                if self.EXACT_BITS:
                    np.testing.assert_array_equal(tensor, other.tensors()[name])
                else:
                    np.testing.assert_allclose(tensor, other.tensors()[name], rtol=1e-4, atol=1e-5)

    def check_refusal(self, message):
        """Of a shape that is too small: what must be otherwise, and what came."""
        assert "must" in message
        assert "got" in message

"""What factors give: products, rows, dense matrices, their sizes and errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import strict_namespace
from layouts import LAYOUTS

from .matrices import Matrices


class FactorsContract(Matrices):
    @pytest.mark.parametrize("batch", [None, 0, 1, 2, 9])
    def test_linear_is_the_product_with_what_to_dense_gives(self, method, batch):
        factors = method.compress(self.matrix())
        rng = np.random.default_rng(1)
        inputs = self.SHAPE[1]
        x = rng.standard_normal(inputs if batch is None else (batch, inputs)).astype(np.float32)
        dense = factors.to_dense().astype(np.float64)
        expected, size = x @ dense.T, np.abs(x) @ np.abs(dense).T
        result = factors.linear(x)
        assert result.dtype == np.float32
        assert result.shape == expected.shape
        scale = max(float(size.max(initial=0)), 1e-30)
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5 * scale)
        out = np.full(expected.shape, np.nan, np.float32)
        assert factors.linear(x, out=out) is out
        np.testing.assert_array_equal(out, result)
        np.testing.assert_allclose(factors.matmul(x.T), expected.T, rtol=0, atol=2e-5 * scale)
        np.testing.assert_array_equal(factors @ x.T, factors.matmul(x.T))

    def test_inputs_may_have_any_number_of_axes(self, method):
        factors = method.compress(self.matrix())
        rng = np.random.default_rng(6)
        for lead in [(1, 1), (2, 3), (3, 0), (2, 1, 3)]:
            x = rng.standard_normal((*lead, self.SHAPE[1])).astype(np.float32)
            expected = factors.linear(x.reshape(-1, self.SHAPE[1])).reshape(*lead, self.SHAPE[0])
            np.testing.assert_array_equal(factors.linear(x), expected)
            out = np.full((*lead, 2 * self.SHAPE[0]), np.nan, np.float32)[..., ::2]
            assert factors.linear(np.asfortranarray(x), out=out) is out
            np.testing.assert_array_equal(out, expected)

    def test_products_from_the_left_are_those_with_what_to_dense_gives(self, method):
        factors = method.compress(self.matrix())
        dense = factors.to_dense().astype(np.float64)
        rng = np.random.default_rng(7)
        for lead in [(), (5,), (0,), (2, 3)]:
            x = rng.standard_normal((*lead, self.SHAPE[0]))
            scale = float((np.abs(x) @ np.abs(dense)).max(initial=1e-30))
            for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
                result = x.astype(dtype) @ factors
                assert result.dtype == dtype
                np.testing.assert_allclose(result, x @ dense, rtol=0, atol=tolerance * scale)
        with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 24\), got \(25,\)"):
            np.ones(self.SHAPE[0] + 1) @ factors
        with pytest.raises(ValueError, match=r"x must have 32 rows, got shape \(5, 32\)"):
            factors @ np.ones((5, self.SHAPE[1]))
        with pytest.raises(TypeError):
            np.ones(self.SHAPE) + factors

    def test_numpy_makes_the_dense_array_of_factors(self, method):
        factors = method.compress(self.matrix())
        np.testing.assert_array_equal(np.asarray(factors), factors.to_dense())
        assert np.asarray(factors, np.float64).dtype == np.float64

    def test_strided_and_wide_input_give_the_same_product(self, method):
        factors = method.compress(self.matrix())
        x = np.random.default_rng(2).standard_normal((5, self.SHAPE[1])).astype(np.float32)
        expected = factors.linear(x)
        scale = 1e-5 * float(np.abs(expected).max(initial=1))
        for layout in LAYOUTS:
            np.testing.assert_allclose(factors.linear(layout(x)), expected, rtol=0, atol=scale)
        wide = factors.linear(x.astype(np.float64))
        np.testing.assert_allclose(wide, expected, rtol=0, atol=2 * scale)

    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-6)])
    def test_forward_is_the_same_product_in_another_library(self, method, dtype, tolerance):
        factors = method.compress(self.matrix())
        tensors = factors.tensors()
        assert set(factors.trainable) <= set(tensors)
        for lead in [(), (0,), (1,), (4,), (40,), (2, 3), (2, 0, 3)]:
            x = np.random.default_rng(3).standard_normal((*lead, self.SHAPE[1])).astype(dtype)
            expected = factors.linear(x)
            result = strict_namespace.forward(factors, tensors, x, dtype)
            assert result.shape == expected.shape
            scale = float(np.abs(expected).max(initial=1e-30))
            np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * scale)

    @pytest.mark.parametrize("ids", [[], [0], [3, 3, 1], [[5, 0], [23, 7]], 4])
    def test_forward_rows_are_those_of_to_dense_in_another_library(self, method, ids):
        factors = method.compress(self.matrix())
        expected = factors.to_dense()[ids] if np.size(ids) else np.zeros((0, self.SHAPE[1]))
        for dtype in ("float32", "float64"):
            rows = strict_namespace.forward_rows(factors, factors.tensors(), np.array(ids), dtype)
            assert rows.shape == expected.shape
            scale = float(np.abs(expected).max(initial=1e-30))
            np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * scale)

    def test_products_in_another_library_follow_the_trained_tensors(self, method):
        """Far from what was stored, they are those of factors that are made of the new values."""
        factors = method.compress(self.matrix())
        rng = np.random.default_rng(8)
        moved = factors.tensors()
        for name in factors.trainable:
            shape, dtype = moved[name].shape, moved[name].dtype
            moved[name] = (moved[name] * rng.uniform(0.5, 1.5, shape)).astype(dtype)
        again = type(factors).from_tensors(moved, factors.config(), factors.shape, factors.dtype)
        dense = again.to_dense().astype(np.float64)
        scale = np.abs(dense).max()
        rows = strict_namespace.forward_rows(factors, moved, np.arange(self.SHAPE[0]), "float64")
        np.testing.assert_allclose(rows, dense, rtol=0, atol=1e-5 * scale)
        for batch in (1, 40):  # few inputs, and more than a row has weights
            x = rng.standard_normal((batch, self.SHAPE[1]))
            result = strict_namespace.forward(factors, moved, x, "float64")
            np.testing.assert_allclose(result, x @ dense.T, rtol=0, atol=1e-4 * scale)

    def test_bad_input_is_named(self, method):
        factors = method.compress(self.matrix())
        inputs = self.SHAPE[1]
        with pytest.raises(ValueError, match="x must have"):
            factors.linear(np.zeros(inputs + 1, np.float32))
        with pytest.raises(ValueError, match="x must have"):
            factors.linear(np.zeros((1, 1, inputs + 1), np.float32))
        with pytest.raises(ValueError, match="x must have"):
            factors.linear(np.float32(0))
        with pytest.raises(TypeError, match="x must have dtype"):
            factors.linear(np.zeros(inputs, int))
        with pytest.raises((TypeError, ValueError), match="out must"):
            factors.linear(
                np.zeros(inputs, np.float32), out=np.zeros(self.SHAPE[0] + 1, np.float32)
            )

    # --- rows

    @pytest.mark.parametrize("ids", [[], [0], [3, 3, 1], [[5, 0], [23, 7]], 4])
    def test_rows_are_those_of_to_dense(self, method, ids):
        factors = method.compress(self.matrix())
        ids = np.array(ids, np.int32)
        rows = factors.rows(ids)
        assert rows.dtype == factors.dtype
        assert rows.shape == (*ids.shape, self.SHAPE[1])
        expected = factors.to_dense()[ids].astype(np.float64)
        np.testing.assert_allclose(
            rows.astype(np.float64), expected, rtol=self.tolerance(factors.dtype), atol=1e-5
        )

    def test_bad_ids_are_named(self, method):
        factors = method.compress(self.matrix())
        for bad in ([self.SHAPE[0]], [-1]):
            with pytest.raises(IndexError, match="ids must be in"):
                factors.rows(bad)
        with pytest.raises(TypeError, match="ids must be integers"):
            factors.rows([0.5])

    def test_to_dense_writes_to_out(self, method):
        factors = method.compress(self.matrix())
        out = np.full(self.SHAPE, np.nan, np.float32)
        assert factors.to_dense(out=out) is out
        np.testing.assert_array_equal(out, factors.to_dense())
        with pytest.raises(ValueError, match="out must have shape"):
            factors.to_dense(out=np.zeros((1, 1), np.float32))

    # --- sizes and errors

    def test_sizes_are_those_of_the_tensors(self, method):
        factors = method.compress(self.matrix())
        assert factors.nbytes == sum(t.nbytes for t in factors.tensors().values()) > 0
        assert factors.bits_per_weight == 8 * factors.nbytes / (self.SHAPE[0] * self.SHAPE[1])

    def test_error_is_what_its_definition_says(self, method):
        W = self.matrix().astype(np.float64)
        factors = method.compress(W.astype(np.float32))
        E = W.astype(np.float32) - factors.to_dense().astype(np.float64)
        rng = np.random.default_rng(4)
        importance = rng.random(self.SHAPE)
        x = rng.standard_normal((50, self.SHAPE[1]))
        covariance = x.T @ x / 50
        of_outputs = np.trace(E @ covariance @ E.T) / np.trace(W @ covariance @ W.T)
        expected = (
            ({}, np.sum(E**2) / np.sum(W**2)),
            ({"importance": importance}, np.sum(importance * E**2) / np.sum(importance * W**2)),
            ({"input_covariance": covariance}, of_outputs),
        )
        for given, value in expected:
            error = factors.error(W.astype(np.float32), **given)
            assert error == pytest.approx(value, rel=1e-4, abs=1e-12)

    def test_errors_refuse_what_compress_refuses(self, method):
        W = self.matrix()
        factors = method.compress(W)
        wrong = (
            {"importance": -np.ones(W.shape)},
            {"importance": np.ones((2, 2))},
            {"input_covariance": np.ones((2, 2))},
            {"importance": np.ones(W.shape), "input_covariance": np.eye(W.shape[1])},
        )
        for given in wrong:
            with pytest.raises(ValueError, match=r"importance|input_covariance") as refused:
                method.compress(W, **given)
            with pytest.raises(ValueError, match=f"^{re.escape(str(refused.value))}$"):
                factors.error(W, **given)

    def test_zeros_cost_no_error(self, method):
        W = np.zeros(self.SHAPE, np.float32)
        factors = method.compress(W)
        assert factors.error(W) == 0
        assert not factors.to_dense().any()

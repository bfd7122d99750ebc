"""What every method and its factors must obey: inherit `MethodContract` and name the methods.

    class TestLowRank(MethodContract):
        METHODS = (LowRank(rank=3), …)

conftest.py gives each test that asks for `method` one after the other of `METHODS`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
import strict_namespace
from fastfactor import CorruptDataError, _checks
from fastfactor.methods import Factors
from fastfactor.metrics import Covariance, Diagonal
from layouts import LAYOUTS

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


class MethodContract:
    METHODS = ()
    SHAPE = (24, 32)
    LARGE = (96, 128)  # where a size or an error is searched for
    EXACT_BITS = True  # the same for any number of threads; not where LAPACK decides

    def matrix(self, dtype=np.float32, shape=None, seed=0):
        """With some structure in it: low rank, a few large values."""
        rng = np.random.default_rng(seed)
        out, inputs = shape or self.SHAPE
        W = rng.standard_normal((out, 3)) @ rng.standard_normal((3, inputs))
        W += 0.3 * rng.standard_normal((out, inputs))
        return W.astype(dtype)

    def tolerance(self, dtype):
        """Of a value rounded to dtype, relative to the largest."""
        return 4 * float(ml_dtypes.finfo(dtype).eps)

    # --- products

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

    # --- what compress takes

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

    # --- metrics

    def test_importance_is_minimised_or_refused(self, method):
        W = self.matrix()
        importance = np.random.default_rng(5).random(W.shape) ** 4 + 1e-3
        self._lower_or_refused(method, W, Diagonal, importance=importance)

    def test_input_covariance_is_minimised_or_refused(self, method):
        W = self.matrix()
        rng = np.random.default_rng(6)
        x = rng.standard_normal((200, W.shape[1])) * np.geomspace(0.05, 5, W.shape[1])
        covariance = x.T @ x / 200
        self._lower_or_refused(method, W, Covariance, input_covariance=covariance)

    def test_weights_of_zero_change_nothing(self, method):
        W = self.matrix()
        zeros = {"importance": np.zeros(W.shape), "input_covariance": np.zeros((32, 32))}
        expected = method.compress(W)
        for (name, weights), metric in zip(zeros.items(), (Diagonal, Covariance), strict=True):
            if metric in method.metrics:
                found = method.compress(W, **{name: weights})
                np.testing.assert_array_equal(found.to_dense(), expected.to_dense())
                assert found.error(W, **{name: weights}) == expected.error(W)

    def test_an_indefinite_covariance_is_refused(self, method):
        with pytest.raises(ValueError, match="input_covariance must have no negative eigenvalue"):
            method.compress(self.matrix(), input_covariance=np.diag([-0.5, *np.ones(31)]))

    @pytest.mark.parametrize("kind", ["spread", "singular", "few"])
    def test_no_metric_makes_its_own_error_worse(self, method, kind):
        """By trials on random weights, for which a metric gains little."""
        for seed in range(2):
            rng = np.random.default_rng(seed)
            W = rng.standard_normal(self.SHAPE).astype(np.float32)
            basis = np.linalg.qr(rng.standard_normal((32, 32)))[0]
            values = np.geomspace(0.09, 1, 32) * (np.arange(32) >= (8 if kind == "singular" else 0))
            weights = {
                "importance": (rng.random(W.shape) < 0.1) + (0.0 if kind == "few" else 0.1),
                "input_covariance": np.eye(32) if kind == "few" else (basis * values) @ basis.T,
            }
            for (name, array), metric in zip(weights.items(), (Diagonal, Covariance), strict=True):
                self._lower_or_refused(method, W, metric, strictly=False, **{name: array})

    def _lower_or_refused(self, method, W, metric, *, strictly=True, **argument):
        if metric not in method.metrics:
            with pytest.raises(ValueError, match="cannot minimise"):
                method.compress(W, **argument)
            return
        plain = method.compress(W).error(W, **argument)
        weighted = method.compress(W, **argument).error(W, **argument)
        assert weighted <= plain * (1 + 1e-6)
        if strictly and plain > 1e-6:
            assert weighted < plain

    # --- how much

    def test_sizes_and_errors_may_be_asked_for(self, method):
        W = self.matrix(shape=self.LARGE)
        plain = method.compress(W)
        error, ratio = plain.error(W), W.nbytes / plain.nbytes
        by_error = self.asked(method, max_error=error * 1.01).compress(W)
        assert by_error.error(W) <= error * 1.01
        assert by_error.nbytes <= plain.nbytes * 1.02
        by_ratio = self.asked(method, ratio=ratio).compress(W)
        assert by_ratio.nbytes * ratio <= W.nbytes * (1 + 1e-12)
        assert by_ratio.error(W) <= error * 1.02 + 1e-12

    def test_what_cannot_be_reached_is_said(self, method):
        with pytest.raises(ValueError, match="ratio must be at most"):
            self.asked(method, ratio=1e9).compress(self.matrix())

    @pytest.mark.parametrize("goal", [{"ratio": 2.0}, {"max_error": 0.1}])
    def test_an_empty_matrix_has_no_ratio_and_no_error(self, method, goal):
        asked = self.asked(method, **goal)
        for refused in (
            lambda: asked.compress(np.zeros((0, self.SHAPE[1]), np.float32)),
            lambda: asked.planned_size((0, self.SHAPE[1]), np.float32),
        ):
            with pytest.raises(ValueError, match="W must not be empty"):
                refused()

    @pytest.mark.parametrize(("shape", "dtype"), [((24, 32), np.float32), ((48, 64), np.float16)])
    def test_sizes_are_known_before(self, method, shape, dtype):
        W = self.matrix(dtype, shape)
        for settings in (method, self.asked(method, ratio=2.5)):
            self._as_planned(settings, W)
        assert self.asked(method, max_error=0.1).planned_size(shape, dtype) is None

    def test_less_in_a_matrix_takes_no_more_than_planned(self, method):
        W = np.zeros((24, 32), np.float32)
        W[::5] = np.arange(32)
        self._as_planned(method, W)

    def test_settings_within_a_size(self, method):
        shape = (96, 128)
        assert method.within(shape, np.float32, 40_000) is not None
        for nbytes in (40_000, 10_000, 3000):
            within = method.within(shape, np.float32, nbytes)
            if within is not None:
                assert within.planned_size(shape, np.float32).nbytes <= nbytes
                assert getattr(within, method.parameter) is not None
        smallest = method.within(shape, np.float32, 1)
        assert smallest is None or smallest.planned_size(shape, np.float32).nbytes <= 1

    def _as_planned(self, method, W):
        try:
            planned = method.planned_size(W.shape, W.dtype)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                method.compress(W)
            return
        if planned is None:
            assert method.ratio is None
            return
        nbytes = method.compress(W).nbytes
        assert nbytes == planned.nbytes if planned.exact else nbytes <= planned.nbytes

    def test_one_way_to_say_how_much(self, method):
        parameter = method.parameter
        value = getattr(method, parameter)
        with pytest.raises(ValueError, match=r"one of .* must be given"):
            dataclasses.replace(method, ratio=2.0)
        with pytest.raises(ValueError, match=r"one of .* must be given"):
            dataclasses.replace(method, **{parameter: None})
        for name in ("ratio", "max_error"):
            with pytest.raises(ValueError, match=f"{name} must be"):
                dataclasses.replace(method, **{parameter: None, name: -1.0})
        with pytest.raises((TypeError, ValueError), match=parameter):
            dataclasses.replace(method, **{parameter: "many"})
        assert dataclasses.replace(method, **{parameter: value}) == method

    def asked(self, method, **goal):
        return dataclasses.replace(method, **{method.parameter: None}, **goal)

    # --- what is stored

    def test_tensors_and_config_make_the_same_factors(self, method):
        factors = method.compress(self.matrix())
        config = json.loads(json.dumps(factors.config()))
        tensors = {name: t.copy() for name, t in factors.tensors().items()}
        again = Factors.kinds[factors.kind].from_tensors(
            tensors, config, factors.shape, factors.dtype
        )
        np.testing.assert_array_equal(again.to_dense(), factors.to_dense())
        x = np.ones((3, self.SHAPE[1]), np.float32)
        np.testing.assert_array_equal(again.linear(x), factors.linear(x))
        assert again.nbytes == factors.nbytes

    def test_copies_and_pickles_are_the_same_factors(self, method):
        factors = method.compress(self.matrix())
        for tensor in factors.tensors().values():
            tensor.setflags(write=False)
        unused = pickle.dumps(factors)
        x = np.ones((3, self.SHAPE[1]), np.float32)
        expected, dense = factors.linear(x), factors.to_dense()
        assert pickle.dumps(factors) == unused  # what products made of it does not travel
        for again in (pickle.loads(unused), copy.copy(factors), copy.deepcopy(factors)):
            assert type(again) is type(factors)
            assert (again.shape, again.dtype) == (factors.shape, factors.dtype)
            assert again.config() == factors.config()
            for name, tensor in again.tensors().items():
                np.testing.assert_array_equal(tensor, factors.tensors()[name])
                assert not tensor.flags.writeable
            np.testing.assert_array_equal(again.linear(x), expected)
            np.testing.assert_array_equal(again.to_dense(), dense)

    def test_settings_may_be_copied_and_pickled(self, method):
        for again in (pickle.loads(pickle.dumps(method)), copy.copy(method), copy.deepcopy(method)):
            assert again == method

    def test_representations_are_short(self, method):
        factors = method.compress(self.matrix())
        assert len(repr(method)) <= 600
        assert len(repr(factors)) <= 300
        assert repr(factors).startswith(f"{type(factors).__name__}(shape={factors.shape}, ")
        assert f"nbytes={factors.nbytes}" in repr(factors)
        for field in dataclasses.fields(factors):
            value = getattr(factors, field.name)
            if not isinstance(value, np.ndarray):
                assert len(repr(value)) <= 300, field.name

    def test_tensors_that_do_not_fit_are_refused(self, method):
        factors = method.compress(self.matrix())
        tensors, config = factors.tensors(), factors.config()
        make = Factors.kinds[factors.kind].from_tensors
        for name in tensors:
            rest = {other: t for other, t in tensors.items() if other != name}
            with pytest.raises(CorruptDataError, match=name):
                make(rest, config, factors.shape, factors.dtype)
            for broken in (
                tensors[name][..., :-1],
                tensors[name].astype(np.int64),
                tensors[name][None],
            ):
                with pytest.raises(CorruptDataError):
                    make(rest | {name: broken}, config, factors.shape, factors.dtype)
        with pytest.raises(CorruptDataError):
            make(tensors, config, (factors.shape[0] + 1, factors.shape[1]), factors.dtype)
        with pytest.raises(CorruptDataError):
            make(tensors, config, (factors.shape[0], factors.shape[1] + 64), factors.dtype)
        for name in config:
            rest = {other: value for other, value in config.items() if other != name}
            for broken in (rest, rest | {name: -7}, rest | {name: 10**12}, rest | {name: "x"}):
                with pytest.raises(CorruptDataError, match=name):
                    make(tensors, broken, factors.shape, factors.dtype)

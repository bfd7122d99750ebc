"""Ratios, errors and sizes that are asked for, and sizes that are known before."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from .matrices import Matrices


class SizesContract(Matrices):
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

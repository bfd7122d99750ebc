"""Errors that weigh values or inputs: a method minimises them or refuses to."""

from __future__ import annotations

import numpy as np
import pytest
from fastfactor.metrics import Covariance, Diagonal

from .matrices import Matrices


class MetricsContract(Matrices):
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

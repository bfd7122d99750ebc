"""What is stored of factors, copies, and what is refused of a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from fastfactor import CorruptDataError
from fastfactor.methods import Factors

from .matrices import Matrices


class StoredContract(Matrices):
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

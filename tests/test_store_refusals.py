"""What cannot be stored, and with which words."""

from __future__ import annotations

import numpy as np
import pytest
from fastfactor import store
from fastfactor.methods import Factors, LowRankFactors
from stores import B, C, a_low_rank


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


@pytest.fixture
def low_rank(rng):
    return a_low_rank(rng)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"": B}, ValueError, "name must be text, but not empty"),
        ({"__metadata__": B}, ValueError, "name must be text"),
        ({3: B}, ValueError, "name must be text"),
        ({"\ud800": B}, ValueError, "must be valid Unicode text"),
        ({"a": [1.0]}, TypeError, "'a' must be Factors or an array, got list"),
        ({"a": np.array(["x"])}, TypeError, "'a' must have a dtype that safetensors knows"),
        ({"a": np.zeros(2, np.longdouble)}, TypeError, "dtype that safetensors knows"),
    ],
)
def test_bad_entries_are_named(path, entries, error, message):
    with pytest.raises(error, match=message):
        store.save(path, entries)
    assert not list(path.parent.iterdir())


def test_names_that_would_mean_two_tensors_are_refused(path, low_rank):
    with pytest.raises(ValueError, match=r"names of tensors must be unique, got 'fc.B' twice"):
        store.save(path, {"fc": low_rank, "fc.B": B})


def test_bad_shapes_and_metadata_are_named(path, low_rank):
    for shape, message in [
        ((6, 5, 4), "shape of 'fc' must flatten to"),
        ((), "shape of 'fc' must flatten to"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.save(path, {"fc": low_rank}, shapes={"fc": shape})
    with pytest.raises(ValueError, match="shapes must have names of entries only, got 'other'"):
        store.save(path, {"fc": low_rank}, shapes={"other": (6, 15)})
    with pytest.raises(ValueError, match="shape must be given for factors only"):
        store.save(path, {"b": B}, shapes={"b": (2, 1)})
    with pytest.raises(ValueError, match="must not use the reserved name 'fastfactor'"):
        store.save(path, {"b": B}, metadata={"fastfactor": "x"})
    with pytest.raises(TypeError, match="metadata must map names to text"):
        store.save(path, {"b": B}, metadata={"x": 1})
    assert not list(path.parent.iterdir())


def test_factors_whose_config_is_no_json_are_refused(path):
    class Odd(LowRankFactors):
        kind = "odd"

        def config(self):
            return {"value": float("nan")}

    try:
        odd = Odd(B=B, C=C, shape=(2, 3), dtype=np.dtype(np.float32))
        with pytest.raises(ValueError, match="JSON compliant"):
            store.save(path, {"odd": odd})
    finally:
        del Factors.kinds["odd"]

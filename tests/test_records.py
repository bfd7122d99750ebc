"""Objects that hold arrays: one line each, and copies that lose nothing."""

from __future__ import annotations

import copy
import pickle

import fastfactor
import numpy as np
import pytest
from fastfactor import CSR, DictionaryResult, GapCodes, KMeansResult
from fastfactor.deep_compression import SharedWeights
from fastfactor.kernels.balancing import BalancedAssignment
from fastfactor.kernels.trellis import Classes, TrellisLevels
from fastfactor.methods.pruning.kept_places import KeptPlaces
from fastfactor.metrics import Covariance, Diagonal

LARGE = np.zeros((30, 40), np.float32)
RESULTS = [
    KMeansResult(LARGE, np.zeros(30, np.int32), 1.5, 7),
    GapCodes(np.zeros(999, np.uint8), np.zeros(3, np.int64), 4, 5000),
    DictionaryResult(CSR.from_dense(LARGE), LARGE, 0.25, 3),
    BalancedAssignment(np.zeros(999, np.int32), 1.0, np.zeros(40), 0.0),
    TrellisLevels(None, LARGE, LARGE),
]
RECORDS = [
    Diagonal(LARGE),
    Covariance(LARGE),
    Classes(np.zeros(900, np.int8), 1, 3),
    KeptPlaces.from_mask(LARGE == 0),
    SharedWeights(np.zeros((30, 40), np.uint8), LARGE[0], LARGE == 0),
]


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def test_results_show_arrays_by_dtype_and_shape():
    assert repr(RESULTS[0]) == (
        "KMeansResult(centroids=float32[30, 40], labels=int32[30], inertia=1.5, n_iter=7)"
    )
    assert repr(RESULTS[2]) == (
        "DictionaryResult(codes=CSR(shape=(30, 40), nnz=0, dtype=float32), "
        "dictionary=float32[30, 40], error=0.25, n_iter=3)"
    )
    for value in RESULTS + RECORDS:
        assert len(repr(value)) <= 200


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_results_are_copied(result, duplicate):
    again = duplicate(result)
    assert type(again) is type(result)
    for name, value in result._asdict().items():
        other = getattr(again, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value)
        else:
            assert repr(other) == repr(value)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_copied_and_stay_read_only(record, duplicate, read_only):
    original = copy.deepcopy(record)
    arrays = [name for name, v in vars(record).items() if isinstance(v, np.ndarray)]
    assert arrays
    for name in arrays:
        getattr(original, name).setflags(write=not read_only)
    again = duplicate(original)
    assert repr(again) == repr(record)
    for name in arrays:
        np.testing.assert_array_equal(getattr(again, name), getattr(record, name))
        assert getattr(again, name).flags.writeable == (not read_only)


def test_a_run_gives_a_short_result(rng):
    assert len(repr(fastfactor.kmeans(rng.standard_normal((500, 20)), 40))) <= 200

"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
import zlib

# Threads that wait must sleep: where they spin, two processes take the processors from each other,
# and tests that are done in 46 s take 75. Those of NumPy's products always spin, and the matrices
# here are too small for them. Both are read when the libraries are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No deadline: a shared machine stalls for longer than any example takes. In CI the same examples
# every time, so that a red run is about the change.
settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
# For builds that are many times slower, and where little differs: pytest --hypothesis-profile=few
settings.register_profile("few", settings.get_profile("ci"), max_examples=8)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# So that a failing assertion in these shows its values too.
pytest.register_assert_rewrite("contract", "kmeans_checks", "omp_checks", "processes", "stores")


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def as_memmap(tmp_path):
    """An array as a read-only memory map of a file."""

    def mapped(array):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")

    return mapped


def pytest_addoption(parser):
    parser.addoption(
        "--part", metavar="I/N", help="one of N parts of the cases; tests without cases are in all"
    )


def pytest_collection_modifyitems(config, items):
    """Leave out cases that are not in the part asked for; every case is in one of the N parts."""
    part = config.getoption("--part")
    if part is None:
        return
    number, n_parts = map(int, part.split("/"))
    if not 1 <= number <= n_parts:
        raise pytest.UsageError(f"--part must be I/N with I in [1, N], got {part}")

    def is_in_part(item):
        # By a hash, because parameters alternate with periods of their own.
        return zlib.crc32(item.nodeid.encode()) % n_parts == number - 1

    chosen = [item for item in items if not hasattr(item, "callspec") or is_in_part(item)]
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    items[:] = chosen


def pytest_generate_tests(metafunc):
    """Fill in `n_threads` and `method`.

    `n_threads`: counts to compare with one, as many as, and more than, this machine may have; only
    one of them for slow builds. `method` in a class that inherits contract.MethodContract: each of
    its METHODS.
    """
    given = [
        name
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in ([mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0])
    ]
    if "n_threads" in metafunc.fixturenames and "n_threads" not in given:
        few = metafunc.config.getoption("--hypothesis-profile") == "few"
        metafunc.parametrize("n_threads", [3] if few else [2, 3, 7])
    methods = getattr(metafunc.cls, "METHODS", None)
    if methods is not None and "method" in metafunc.fixturenames:
        metafunc.parametrize("method", methods, ids=repr)

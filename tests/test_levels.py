"""Every instruction-set level that was built and runs here, each in a process of its own.

Across levels supports and labels are equal on data without near ties; floats differ by the order
and fusing of roundings, which a well-conditioned problem turns into a few hundred ulps at most.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fastfactor import _core
from processes import built_levels, output_of, run_python

LEVELS = built_levels()
SUPPORTED = _core.supported_levels()
VARIABLE = "FASTFACTOR_LEVEL"
WITH_TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

COMPUTE = """
    import sys
    import numpy as np
    import fastfactor

    rng = np.random.default_rng(8)
    results = {}
    for name, dtype in (("single", np.float32), ("double", np.float64)):
        for n_atoms, n_features in ((70, 33), (257, 64)):
            atoms = rng.standard_normal((n_atoms, n_features)).astype(dtype)
            X = rng.standard_normal((301, n_features)).astype(dtype)
            for criterion in ("correlation", "ols"):
                codes = fastfactor.omp(X, atoms, n_nonzero_coefs=5, criterion=criterion)
                key = f"{name} {criterion} {n_atoms}"
                results[key + " data"] = codes.data
                results[key + " indices"] = codes.indices
                results[key + " indptr"] = codes.indptr
                results[key + " product"] = fastfactor.spmm(codes, atoms)
            codes = fastfactor.hashed_omp(
                X, atoms, n_nonzero_coefs=5, hash_bits=4, probe_fraction=0.2
            )
            results[f"{name} hashed {n_atoms} data"] = codes.data
            results[f"{name} hashed {n_atoms} indices"] = codes.indices
            for k in (7, 64):
                for init in (X[:k], "k-means++", "random"):
                    found = fastfactor.kmeans(X, k, init=init, random_state=3, max_iter=4)
                    key = f"{name} kmeans {k} {n_features} {init if isinstance(init, str) else ''}"
                    results[key + " centroids"] = found.centroids
                    results[key + " labels"] = found.labels
                    results[key + " inertia"] = np.float64(found.inertia)
                    results[key + " n_iter"] = np.int64(found.n_iter)
                found = fastfactor.kmeans1d(X.T, k)
                results[f"{name} kmeans1d {k} {n_features} centroids"] = found.centroids
                results[f"{name} kmeans1d {k} {n_features} labels"] = found.labels
                results[f"{name} kmeans1d {k} {n_features} inertia"] = found.inertia
                labels, distances = fastfactor.assign(X, X[:k] + dtype(0.1))
                results[f"{name} assign {k} {n_features} labels"] = labels
                results[f"{name} assign {k} {n_features} distances"] = distances
    np.savez(sys.argv[1], **results)
    print(fastfactor.show_config()["level"])
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By level: what COMPUTE finds there."""
    folder = tmp_path_factory.mktemp("levels")
    found = {}
    for level in LEVELS:
        path = folder / f"{level}.npz"
        printed = output_of(COMPUTE, path, environment={VARIABLE: level})
        assert printed.splitlines()[-1] == level
        with np.load(path) as arrays:
            found[level] = dict(arrays)
    return found


@pytest.mark.parametrize("levels", [SUPPORTED, _core.built_levels(), LEVELS])
def test_the_levels_are_known_and_best_first(levels):
    assert levels
    assert len(set(levels)) == len(levels)
    assert sorted(levels, reverse=True) == levels


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree(results, level):
    reference = results[LEVELS[-1]]
    assert results[level].keys() == reference.keys()
    for key, array in results[level].items():
        expected = reference[key]
        assert array.dtype == expected.dtype, key
        if array.dtype.kind == "f":
            tolerance = 1e-12 if key.startswith("double") else 5e-5
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                array, expected, rtol=tolerance, atol=tolerance * scale, err_msg=key
            )
        else:
            np.testing.assert_array_equal(array, expected, err_msg=key)


@pytest.mark.parametrize("level", LEVELS)
def test_labels_are_within_the_documented_bound_on_hard_data(level):
    code = """
        import fastfactor, numpy as np, oracle, problems

        rng = np.random.default_rng(1)
        for problem in problems.HARD:
            for shape in problems.SHAPES:
                X, centroids = (a.astype(np.float32) for a in problem(rng, *shape))
                labels = fastfactor.assign(X, centroids)[0]
                excess = oracle.label_excess(X, centroids, labels, np.finfo(np.float32).eps)
                assert excess <= 1, (problem, shape, excess)
                if problem is problems.bits:
                    assert (labels == oracle.nearest(X, centroids)[0]).all(), shape
    """
    output_of(code, environment={VARIABLE: level, "PYTHONPATH": WITH_TESTS})


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_gives_the_same_bits_for_any_number_of_threads(level):
    code = """
        import numpy as np
        import fastfactor

        rng = np.random.default_rng(0)
        X = rng.standard_normal((6001, 19)).astype(np.float32)
        atoms = rng.standard_normal((83, 19)).astype(np.float32)

        def run(n_threads):
            codes = fastfactor.omp(X, atoms, n_nonzero_coefs=4, n_threads=n_threads)
            hashed = fastfactor.hashed_omp(X, atoms, hash_bits=3, tol=9.0, n_threads=n_threads)
            found = fastfactor.kmeans(X, 41, random_state=0, max_iter=3, n_threads=n_threads)
            arrays = codes.data, codes.indices, hashed.data, hashed.indices, *found[:2]
            return b"".join(a.tobytes() for a in arrays)

        assert len({run(n_threads) for n_threads in (1, 2, 3, 7)}) == 1
    """
    output_of(code, environment={VARIABLE: level})


@pytest.mark.parametrize("level", LEVELS)
def test_sparse_codes_are_multiplied_right_at_every_level(level):
    code = """
        import numpy as np
        from test_sparse_codebook import check, inputs, random_case

        rng = np.random.default_rng(2)
        for entries in (3, 16, 17, 256):
            for shape, density in (((70, 600), 0.1), ((300, 255), 0.6), ((1, 1021), 1)):
                sparse, dense = random_case(rng, shape, density=density, entries=entries)
                for batch in (1, 2, 3, 4, 5, 8, 17, 40):
                    x = inputs(rng, batch, shape[1])
                    bits = {check(sparse, dense, x, n_threads=n).tobytes() for n in (1, 2, 7)}
                    assert len(bits) == 1
    """
    output_of(code, environment={VARIABLE: level, "PYTHONPATH": WITH_TESTS})


@pytest.mark.parametrize("level", LEVELS)
def test_trellis_coded_levels_are_the_same_at_every_level(level):
    code = """
        import numpy as np
        from fastfactor.kernels.trellis import TrellisDecoder
        from test_trellis import check, problem, with_step
        from test_trellis_codes import coded, expected_rows

        rng = np.random.default_rng(4)
        for shape in ((5, 1), (3, 63), (9, 130), (40, 67)):
            for scale in (0.3, 2, 200):
                check(*with_step(problem(rng, shape, scale=scale), 0.7), 0.3)
            made, levels, row_logs = coded(rng, shape)
            found = TrellisDecoder(*made).rows(np.arange(shape[0]))
            assert np.array_equal(found, expected_rows(made, levels, row_logs))
    """
    output_of(code, environment={VARIABLE: level, "PYTHONPATH": WITH_TESTS})


@pytest.mark.parametrize("level", LEVELS)
def test_the_configuration_names_the_level(level):
    code = "import fastfactor; fastfactor.show_config()"
    lines = output_of(code, environment={VARIABLE: level}).splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines if not line.startswith("levels "))
    assert shown["level"] == level
    assert any(line == f"levels supported  {', '.join(SUPPORTED)}" for line in lines)


def test_without_the_variable_the_best_level_is_taken():
    code = "import fastfactor._core as core; print(core.kernels.build_info()['level'])"
    assert output_of(code, environment={VARIABLE: ""}).strip() == LEVELS[0]


@pytest.mark.parametrize("level", ["v9", "V4", "avx2", "../v2", "v2 ", "_detect", "v4.kernels"])
def test_an_unknown_level_is_a_clear_import_error(level):
    done = run_python("import fastfactor", environment={VARIABLE: level})
    assert done.returncode == 1  # an exception, not a signal
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: FASTFACTOR_LEVEL must be a level that this processor runs")
    assert last.endswith(f"one of {', '.join(SUPPORTED)}, got {level!r}")


def test_a_level_that_the_processor_lacks_is_a_clear_import_error():
    code = """
        import sys, types

        detect = types.ModuleType("fastfactor._core._detect")
        detect.supported_levels = lambda: ["v2"]
        sys.modules[detect.__name__] = detect
        import fastfactor
    """
    done = run_python(code, environment={VARIABLE: "v4"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: FASTFACTOR_LEVEL must be a level that this processor runs, "
        "one of v2, got 'v4'"
    )


def test_a_level_that_was_not_built_is_a_clear_import_error():
    code = """
        import sys, types

        detect = types.ModuleType("fastfactor._core._detect")
        detect.supported_levels = lambda: ["v7", "v6"]
        sys.modules[detect.__name__] = detect
        import fastfactor
    """
    built = ", ".join(_core.built_levels())
    named = run_python(code, environment={VARIABLE: "v7"})
    assert named.returncode == 1
    assert named.stderr.splitlines()[-1] == (
        f"ImportError: fastfactor was built for {built}, not for v7: build all levels: "
        "pip install . -C cmake.define.FASTFACTOR_LEVELS=all"
    )
    moved = run_python(code, environment={VARIABLE: ""})  # to a processor without those levels
    assert moved.returncode == 1
    assert moved.stderr.splitlines()[-1] == (
        f"ImportError: fastfactor was built for {built}, but this processor runs v7, v6: "
        "install it again on this machine, or build all levels: "
        "pip install . -C cmake.define.FASTFACTOR_LEVELS=all"
    )

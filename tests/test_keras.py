"""Compressed layers of Keras, in a process for each backend: Keras takes it when imported."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from processes import run_python

# JAX is left out: it compiles every operation, so that these cases take minutes.
BACKENDS = [name for name in ("tensorflow", "torch") if importlib.util.find_spec(name)]


@pytest.mark.framework
@pytest.mark.skipif(
    importlib.util.find_spec("keras") is None or not BACKENDS, reason="Keras is not installed"
)
@pytest.mark.parametrize(
    "file", ["keras_cases.py", "keras_gradual_cases.py", "keras_trainer_cases.py"]
)
@pytest.mark.parametrize("backend", BACKENDS or ["none"])
def test_keras(backend, file, tmp_path):
    cases = Path(__file__).with_name(file)
    done = run_python(
        "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))",
        "-q",
        "-n2",
        "--dist=load",
        "-p",
        "no:cacheprovider",
        str(cases),
        environment={
            "KERAS_BACKEND": backend,
            "KERAS_HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        limit=600,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert " passed" in done.stdout

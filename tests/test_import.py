"""Importing fastfactor is light: NumPy and the standard library."""

from __future__ import annotations

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
from fastfactor import store
from fastfactor.files import container
from processes import run_python

CODE = """
import json, sys
import numpy

def packages():
    return {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)

before = packages()
import {module}
print(json.dumps(sorted(packages() - before)))
"""


def imported_by(module):
    """What it imports beside the standard library and NumPy."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_fastfactor_imports_numpy_and_nothing_heavier():
    assert imported_by("fastfactor") == ["fastfactor"]


def test_demo_needs_no_command_line():
    assert not {"typer", "rich", "safetensors"} & set(imported_by("fastfactor.demo"))


def test_adapters_import_no_framework():
    assert imported_by("fastfactor.adapters") == ["fastfactor"]


def test_command_line_is_there_without_the_table_and_the_files():
    added = imported_by("fastfactor.cli")
    assert "typer" in added
    assert "safetensors" not in added


def test_what_needs_ml_dtypes_says_so_where_it_is_not_installed(tmp_path):
    """In a file, in settings, on the command line; all else works, and damage stays damage."""
    values = np.ones((8, 8), ml_dtypes.bfloat16)
    store.save(tmp_path / "half", {"W": values})
    places = {
        "a": container.TensorInfo("BF16", (4,), 0, 8),
        "b": container.TensorInfo("F8_E5M2", (3,), 8, 12),
    }
    (tmp_path / "damaged").write_bytes(container.header_bytes(places, {}, {}) + bytes(12))
    code = """
import os, sys
sys.modules["ml_dtypes"] = None
import numpy as np
from fastfactor import CorruptDataError, kmeans1d, store
from fastfactor.cli import app as cli
from fastfactor.methods import Codebook, DeepCompression
os.chdir(sys.argv[1])
W = np.diag(np.arange(1, 65)).astype(np.float32)
for call in (
    lambda: store.open_store("half"),
    lambda: kmeans1d(W, 3, centroid_dtype="bfloat16"),
    lambda: Codebook(n_bits=2, codebook_dtype="bfloat16").compress(W),
    lambda: DeepCompression(sparsity=0.5, codebook_dtype="bfloat16").compress(W),
):
    try:
        call()
    except ImportError as error:
        assert str(error).startswith("dtype bfloat16 needs ml_dtypes, which is not"), error
    else:
        raise AssertionError("it must need ml_dtypes")
try:
    store.open_store("damaged")
except CorruptDataError as error:
    assert "tensor 'b'" in str(error), error
else:
    raise AssertionError("it must be refused")
Codebook(n_bits=2, codebook_dtype="float16").compress(W)
assert DeepCompression(sparsity=0).compress(W).sizes.n_kept == 64
sys.argv = ["fastfactor", "inspect", "half"]
cli.main()
"""
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("fastfactor: error: dtype bfloat16 needs ml_dtypes")
    assert done.stderr.count("\n") == 1


def test_methods_and_files_are_imported_when_they_are_asked_for():
    code = """
import sys, fastfactor
assert not [name for name in sys.modules if name in ("fastfactor.methods", "fastfactor.store")]
for name in fastfactor.__all__:
    getattr(fastfactor, name)
assert "fastfactor.methods" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Importing fastfactor is light: NumPy and the standard library."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys
before = set(sys.modules)
import {module}
added = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(added - set(sys.stdlib_module_names))))
"""


def imported_by(module):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_fastfactor_imports_numpy_and_nothing_heavier():
    assert imported_by("fastfactor") == ["fastfactor", "numpy"]


def test_demo_needs_no_command_line():
    assert not {"typer", "rich", "safetensors"} & set(imported_by("fastfactor.demo"))


def test_command_line_is_there_without_the_table_and_the_files():
    added = imported_by("fastfactor.cli")
    assert "typer" in added
    assert "safetensors" not in added


def test_methods_and_files_are_imported_when_they_are_asked_for():
    code = """
import sys, fastfactor
assert not [name for name in sys.modules if name in ("fastfactor.methods", "fastfactor.store")]
for name in fastfactor.__all__:
    getattr(fastfactor, name)
assert "fastfactor.methods" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Which levels a build takes, as cmake/levels.cmake reads FASTFACTOR_LEVELS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fastfactor import _core

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake")
COMPILER = shutil.which("c++")
ALL = "v2;v3;v4;v4_vnni"

needs_cmake = pytest.mark.skipif(CMAKE is None, reason="CMake is not here")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="a C++ compiler is not here")


def configure(levels, folder, processor="x86_64"):
    """What including levels.cmake does while cross-compiling, when no program can be run."""
    script = folder / "levels.cmake"
    script.write_text(
        f"""
        cmake_minimum_required(VERSION 3.18)
        set(CMAKE_SYSTEM_PROCESSOR {processor})
        set(CMAKE_CROSSCOMPILING ON)
        set(FASTFACTOR_LEVELS "{levels}")
        include("{(ROOT / "cmake" / "levels.cmake").as_posix()}")
        message("chosen: ${{levels}}")
        """
    )
    return subprocess.run([CMAKE, "-P", script], capture_output=True, text=True, timeout=60)


@needs_cmake
@pytest.mark.parametrize(
    ("levels", "expected"), [("all", ALL), ("best", ALL), ("v3", "v3"), ("v2;v4", "v2;v4")]
)
def test_levels_are_those_that_are_asked_for(levels, expected, tmp_path):
    done = configure(levels, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"chosen: {expected}"


@needs_cmake
def test_other_processors_have_one_level(tmp_path):
    done = configure("all", tmp_path, processor="arm64")
    assert done.stderr.splitlines()[-1] == "chosen: baseline"


@needs_cmake
@pytest.mark.parametrize("levels", ["v9", "v3;fast", "baseline"])
def test_unknown_levels_are_refused(levels, tmp_path):
    done = configure(levels, tmp_path)
    assert done.returncode != 0
    assert f"must be best, all, or some of {ALL}, got {levels}" in " ".join(done.stderr.split())


@needs_compiler
def test_a_build_and_an_import_agree_on_what_the_processor_runs(tmp_path):
    program = tmp_path / "supported_levels"
    source = ROOT / "cmake" / "supported_levels.cpp"
    subprocess.run(
        [COMPILER, "-std=c++17", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True
    )
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert printed.rstrip(";").split(";") == _core.supported_levels()
